"""Functions of CUDA tensors, captured: one launch where there were hundreds.  Called by `programs`.

capture: warm up beside the present stream -> put back what that changed -> record
run:     copy what is new into the recorded tensors -> replay, all on the present stream, without waiting
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UP_RUNS = 3  # the first may compile, the next let libraries choose their kernels and take their memory


class CudaProgram:
    """``function``, which writes its results into its arguments, as a CUDA graph.

    Args:
        function: of tensors; see `rlsurreal.utils.programs.compile_program`.
        tensors: its arguments.  The first ``num_fixed`` will always be these very tensors (parameters and such), on the
            GPU; of the others, which may lie in the host's memory, the graph has copies, into which `run` writes: what
            ``function`` writes there is lost.
    """

    def __init__(self, function: Callable[..., None], tensors: Sequence[Tensor], num_fixed: int) -> None:
        self._num_fixed = num_fixed
        with torch.cuda.device(tensors[0].device):
            self._capture(function, tensors)

    def _capture(self, function: Callable[..., None], tensors: Sequence[Tensor]) -> None:
        fixed = tensors[: self._num_fixed]
        self._inputs = [tensor.to(tensors[0].device, copy=True) for tensor in tensors[self._num_fixed :]]
        self._copied: list[Tensor | None] = [None] * len(self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        arguments = [*fixed, *self._inputs]
        before = [tensor.clone() for tensor in fixed]
        present, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        try:
            aside.wait_stream(present)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP_RUNS):
                    function(*arguments)
        finally:
            present.wait_stream(aside)
            for tensor, old in zip(fixed, before):
                tensor.copy_(old)
        with torch.cuda.graph(self._graph):
            function(*arguments)

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call the function.  Inputs that are those of the call before must not have changed since."""
        for i, tensor in enumerate(tensors[self._num_fixed :]):
            if tensor is not self._copied[i]:
                self._inputs[i].copy_(tensor, non_blocking=True)
                self._copied[i] = tensor
        self._graph.replay()

    def forget(self) -> None:
        """Take no input for unchanged, and hold none."""
        self._copied = [None] * len(self._inputs)
