"""From a loss to new parameters: gradients, reduction over ranks, clipping, one step of Adam.  Used by every algorithm.

    loss(*inputs) --> gradients --> over all ranks --> clip and apply
    eager:     autograd (DistributedDataParallel's, with ranks on GPUs or several hosts), then the fused Adam, over one
               flat buffer of parameters and one of gradients
    compiled:  all of it as one program; with several ranks two, around one all-reduce of the flat gradient

Small networks on a CPU, and nearly all on a GPU, lose most of their time between operations.  So parameters are views
of one flat buffer, which makes clipping and Adam a few operations, and the compiled step is a single call.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.programs import CompileError, Specialized
from rlsurreal.utils.torch_tree import named_tensors

Loss = Callable[..., tuple[Any, ...]]

_BETA1, _BETA2 = 0.9, 0.999
_log = logging.getLogger("rlsurreal")


class GradientStep:
    """Owns the parameters of one module and their optimizer.

    Args:
        module: its parameters that require gradients become views of one buffer; all are of one type, on one device.
        loss: a pure function of tensors, ``loss(*inputs) -> loss, metrics``, that calls ``module``; ``metrics`` is a
            vector of ``num_metrics`` detached numbers.  What changes from call to call must be in the inputs: numbers
            that it finds elsewhere are taken for constants when it is compiled.
        num_metrics: see ``loss``.
        reads: other modules that ``loss`` calls (target networks, critics of a policy); they are not changed.
        extra: if given, ``loss`` has a third result, a tensor like this one; it is found in ``extra`` after each step.
        max_grad_norm: the norm of all ranks' gradient over all parameters is clipped to it.
        num_apart: so many numbers at the end of the parameters (a temperature) have no part in that.
        eps: Adam's (Kingma and Ba 2015, arXiv 1412.6980).
        compile: run as one compiled graph.  If that fails, the log says so once, and steps go on eagerly.
        ranks: all of them make the same step.
        over_ranks: what the gradient and the metrics are of those of all ranks.

    Attributes:
        num_steps: made since metrics were last taken.
        learning_rate: of the next steps, to be filled.
        sums: of the metrics since they were last taken, on this rank.
        extra: see above.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        num_metrics: int,
        *,
        max_grad_norm: float,
        num_apart: int = 0,
        reads: Sequence[nn.Module] = (),
        extra: Tensor | None = None,
        eps: float = 1e-5,
        compile: bool = False,
        ranks: Ranks = ALONE,
        over_ranks: Literal["sum", "mean"] = "mean",
    ) -> None:
        self._names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._shapes = [module.get_parameter(name).shape for name in self._names]
        self._flat = nn.Parameter(flatten_parameters(module))
        self._flat.grad = self._gradient = torch.zeros_like(self._flat)
        for name, gradient in self._split(self._gradient).items():
            module.get_parameter(name).grad = gradient
        self._module, self._with_loss = module, _WithLoss(module, reads, loss)
        self._own = [module.get_parameter(name) for name in self._names]
        self.extra = None if extra is None else torch.zeros_like(extra)
        self._max_grad_norm, self._eps = max_grad_norm, eps
        self._num_clipped = len(self._flat) - num_apart
        self._ranks, self._over_ranks = ranks, over_ranks
        self.learning_rate = torch.zeros((), device=self._flat.device)
        self._state = {name: torch.zeros_like(self._flat.detach()) for name in ("exp_avg", "exp_avg_sq")}
        self._state["step"] = torch.zeros((), device=self._flat.device)
        self.sums = torch.zeros(num_metrics + 1, device=self._flat.device)
        self.num_steps = 0
        self._specialized: list[Specialized] = []
        self._compiled = self._compile() if compile else None
        # Where compiling fails on one rank later, its steps must still meet those of the others: one flat all-reduce.
        self._averaging = None if compile else ranks.average_gradients(_WithLoss(module, (), loss))

    def __call__(self, *inputs: Tree) -> None:
        """One step down the gradient of the loss of ``inputs``."""
        self.num_steps += 1
        if self._compiled is not None:
            try:
                return self._compiled(*inputs)
            except CompileError as error:
                self._give_up_compiling(error)
        self._eager(*inputs)

    def take_metrics(self) -> Tensor:
        """As `metrics`, which begin anew."""
        means = self.metrics()
        self.sums.zero_()
        self.num_steps = 0
        return means

    def metrics(self) -> Tensor:
        """Means over the steps since they were taken: the loss's metrics, and the gradient's norm before clipping."""
        for name, part in self._split(self._flat.detach()).items():
            if self._module.get_parameter(name).data_ptr() != part.data_ptr():
                raise RuntimeError(
                    f"parameter {name!r} was replaced after the algorithm was initialized (by module.to(...)?), so it "
                    "no longer learns; change the module before"
                )
        for specialized in self._specialized:
            specialized.forget()
        means = self.sums / max(1, self.num_steps)
        if self._ranks.count > 1:  # the norm is that of all ranks already
            means[:-1] = self._reduce(means[:-1].clone())
        return means

    @property
    def flat(self) -> Tensor:
        """All parameters, as one vector."""
        return self._flat.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's state, and the metrics that are still to be taken."""
        state = {name: tensor.clone() for name, tensor in self._state.items()}
        return {**state, "sums": self.sums.clone(), "num_steps": torch.tensor(self.num_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])
        self.sums.copy_(state["sums"])
        self.num_steps = int(state["num_steps"])

    # ------------------------------------------------------------ eager

    def _eager(self, *inputs: Tree) -> None:
        gradient = self._gradient
        gradient.zero_()
        loss, metrics, *extra = (self._averaging or self._with_loss)(*inputs)
        with self._ranks.waiting():  # DistributedDataParallel's exchange is in the backward pass
            loss.backward(inputs=self._own)  # not those of the modules that it reads
        if self._averaging is None:
            self._reduce(gradient)
        elif self._over_ranks == "sum":
            gradient.mul_(self._ranks.count)
        clipped = gradient[: self._num_clipped]
        norm = torch.linalg.vector_norm(clipped)
        if self._max_grad_norm < math.inf:
            clipped.mul_(self._shrink(norm))
        self._adam()
        self.sums[:-1] += metrics
        self.sums[-1] += norm
        if self.extra is not None:
            self.extra.copy_(extra[0].detach())

    @torch.no_grad()
    def _adam(self) -> None:
        """As a function: an optimizer's constructor imports PyTorch's compiler, which takes seconds."""
        state = self._state
        adam(
            [self._flat], [self._gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            fused=True, amsgrad=False, beta1=_BETA1, beta2=_BETA2, lr=self.learning_rate, weight_decay=0.0,
            eps=self._eps, maximize=False,
        )  # fmt: skip

    # ------------------------------------------------------------ compiled

    def _compile(self) -> Callable[..., None]:
        flat, gradient, state, sums = self._flat.detach(), self._gradient, self._state, self.sums
        learning_rate, num_clipped = self.learning_rate, self._num_clipped
        named = named_tensors(self._with_loss)
        trained = {id(self._module.get_parameter(name)): name for name in self._names}
        fixed = {name: tensor for name, tensor in named.items() if id(tensor) not in trained}
        canonical = {name: trained[id(tensor)] for name, tensor in named.items() if id(tensor) in trained}

        def gradients(
            out: Tensor, flat: Tensor, fixed: dict[str, Tensor], sums: Tensor, extra: Tensor | None, inputs: Any
        ) -> None:
            own = {name: part.detach().requires_grad_() for name, part in self._split(flat).items()}
            tensors = {**fixed, **{name: own[first] for name, first in canonical.items()}}
            with torch.enable_grad():
                called = torch.func.functional_call(self._with_loss, tensors, inputs, tie_weights=False)
                loss, metrics, *found = called
                parts = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
            sums[:-1] += metrics
            if extra is not None:
                extra.copy_(found[0].detach())
            out.copy_(torch.cat([part.reshape(-1) for part in parts]))

        def apply(
            flat: Tensor, sums: Tensor, state: dict[str, Tensor], learning_rate: Tensor, gradient: Tensor
        ) -> None:
            clipped, apart = gradient[:num_clipped], gradient[num_clipped:]
            norm = torch.linalg.vector_norm(clipped)
            sums[-1] += norm
            if self._max_grad_norm < math.inf:
                clipped = clipped * _once(self._shrink(norm))
                gradient = torch.cat([clipped, apart]) if len(apart) else clipped
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - _BETA1)
            state["exp_avg_sq"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            scale = (1 - _BETA2 ** state["step"]).sqrt()
            rate = learning_rate * scale / (1 - _BETA1 ** state["step"])
            flat -= _once(rate) * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + _once(self._eps * scale))

        def whole(
            flat: Tensor,
            fixed: dict[str, Tensor],
            sums: Tensor,
            state: dict[str, Tensor],
            learning_rate: Tensor,
            extra: Tensor | None,
            *inputs: Tree,
        ) -> None:
            gradient = torch.empty_like(flat)
            gradients(gradient, flat, fixed, sums, extra, inputs)
            apply(flat, sums, state, learning_rate, gradient)

        if self._ranks.count == 1:
            step = Specialized(whole, 6)
            self._specialized = [step]
            return lambda *inputs: step(flat, fixed, sums, state, learning_rate, self.extra, *inputs)
        first, second = Specialized(gradients, 5), Specialized(apply, 5)
        self._specialized = [first, second]

        def in_two(*inputs: Tree) -> None:
            first(gradient, flat, fixed, sums, self.extra, inputs)
            self._reduce(gradient)
            try:
                second(flat, sums, state, learning_rate, gradient)
            except CompileError as error:  # the exchange must not be made again
                self._give_up_compiling(error)
                apply(flat, sums, state, learning_rate, gradient)

        return in_two

    def _give_up_compiling(self, error: CompileError) -> None:
        self._compiled = None
        _log.warning("the update cannot be compiled and runs eagerly (compile='off' is quiet): %s", error)

    def _reduce(self, tensor: Tensor) -> Tensor:
        """The sum or mean over ranks, in place."""
        return self._ranks.sum(tensor) if self._over_ranks == "sum" else self._ranks.mean(tensor)

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer by the parameters' names."""
        parts = flat.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes)}

    def _shrink(self, norm: Tensor) -> Tensor:
        return (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0)


class _WithLoss(nn.Module):
    """A module whose forward pass is the loss, so that `torch.func.functional_call` can put in other parameters."""

    def __init__(self, module: nn.Module, reads: Sequence[nn.Module], loss: Loss) -> None:
        super().__init__()
        self.module, self.reads = module, nn.ModuleList(reads)
        self._loss = loss

    def forward(self, *inputs: Tree) -> tuple[Any, ...]:
        return self._loss(*inputs)


def _once(number: Tensor) -> Tensor:
    """``number``, worked out before the loop over parameters.

    The compiler draws the arithmetic of single numbers into the loops that use them: two powers for every sixteen
    parameters take as long as all the rest of Adam.  It does not draw in reductions.  A GPU has arithmetic to spare.
    """
    return number.expand(64).amax() if number.device.type == "cpu" else number


def flatten_parameters(module: nn.Module) -> Tensor:
    """Make the parameters that require gradients views of one buffer, in order; the buffer.

    A module that is flat already keeps its buffer.

    Raises:
        ValueError: there are none, or they are of several types or on several devices.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) != 1:
        raise ValueError(
            f"the trainable parameters of {type(module).__name__} are {sorted(map(str, kinds)) or 'none'}; they must "
            "be of one type and on one device"
        )
    size = sum(parameter.numel() for parameter in parameters)
    first, offset, is_flat = parameters[0], parameters[0].storage_offset(), True
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        is_flat &= same and parameter.storage_offset() == offset and parameter.is_contiguous()
        offset += parameter.numel()
    if is_flat:
        return first.detach().as_strided((size,), (1,))
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
        parameter.data = part.view(parameter.shape)
    return flat
