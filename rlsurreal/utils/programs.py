"""Functions of tensors as programs.  On a CPU: compiled ahead of time, kept on disk, loaded by any process.

    compile_program(function, *example) --trace, C++ compiler--> a file in the cache --> Program
    Program.bind(*arguments) -> list of tensors (checked)        Program.run(list): one call into compiled code

Called by algorithms for their gradient steps and by samplers for choosing actions: with small networks PyTorch's
dispatch takes several times as long as the arithmetic.  A program has no guards: its run costs some microseconds, where
a function of torch.compile costs 40 and more.  It is picklable (the file's path and what it takes), and a process that
runs it needs no compiler.  On a GPU `Specialized` has functions compiled in this process and captured in CUDA graphs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree

import rlsurreal.utils.torch_tree  # noqa: F401  # makes named array tuples pytrees
from rlsurreal.utils import matrix_products, program_builder
from rlsurreal.utils.cuda_graphs import CudaProgram
from rlsurreal.utils.files import atomic_write, cache_folder, lock
from rlsurreal.utils.namedarraytuple import Tree

Compile = Literal["auto", "on", "off"]
Signature = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device], ...]

_log = logging.getLogger("rlsurreal")


_SECONDS_TO_COMPILE = 30.0  # on two cores, with what is in the way


def should_compile(setting: Compile, num_calls: int | None, seconds_saved: float, *, recurrent: bool = False) -> bool:
    """What ``setting`` comes to: "auto" compiles what is called often enough to earn back the time that it takes.

    Args:
        setting: "on", "off" or "auto".
        num_calls: to come; None where nobody knows: then "auto" does not compile.
        seconds_saved: by each call, about.
        recurrent: the pass goes from reset to reset, so its course depends on the data: no program can do that.
    """
    if recurrent:
        if setting == "on":
            _log.warning("the update is not compiled, though compile is 'on': the model is recurrent")
        return False
    if setting == "auto":
        return num_calls is not None and num_calls * seconds_saved > _SECONDS_TO_COMPILE
    return setting == "on"


class CompileError(RuntimeError):
    """A function cannot be compiled here; the message says why."""


def signature_of(tensors: Sequence[Tensor]) -> Signature:
    """What a program is made for: shapes, strides (where they matter), types and devices."""
    return tuple((t.shape, _strides(t), t.dtype, t.device) for t in tensors)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    strides = tensor.stride()
    if 1 not in tensor.shape:
        return strides
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, strides))  # theirs may be anything


@dataclass
class Program:
    """A compiled function; see `compile_program`."""

    path: str
    signature: Signature
    _loader: Any = field(default=None, repr=False)

    def bind(self, *arguments: Tree) -> list[Tensor]:
        """The tensors of ``arguments``, in order.

        Raises:
            ValueError: they are not what the program was compiled for.
        """
        tensors: list[Tensor] = [leaf for leaf in _pytree.tree_leaves(arguments) if leaf is not None]
        if signature_of(tensors) != self.signature:
            raise ValueError(
                f"the program was compiled for {_describe(self.signature)}, and is given "
                f"{_describe(signature_of(tensors))}"
            )
        return tensors

    def run(self, tensors: list[Tensor]) -> None:
        """Call the function with what `bind` gave; any of the tensors may be replaced by one just like it."""
        if self._loader is None:
            try:
                self._loader = _load(self.path)
            except Exception as error:
                raise RuntimeError(f"the compiled program {self.path} cannot be loaded; start anew") from error
        self._loader.run(tensors)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "signature": self.signature, "_loader": None}


def compile_program(function: Callable[..., None], *example: Tree, num_threads: int | None = None) -> Program:
    """``function`` compiled for arguments like ``example``, trees of CPU tensors; from the cache where it is there.

    Args:
        function: writes its results into tensors among its arguments.  Other tensors that it uses must be arguments,
            too; everything else that it finds (numbers, options) is taken for constant.
        num_threads: of the process that will run it; None: as in this process.

    Raises:
        CompileError: it cannot be traced as one graph, or there is no C++ compiler.
    """
    on_leaves, tensors = _on_leaves(function, example)
    num_threads = num_threads or torch.get_num_threads()
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise CompileError("programs are for CPU tensors")
    started = time.perf_counter()
    with _compile_errors():
        traced = _trace(on_leaves, tensors)
        if matrix_products.are_faster():
            matrix_products.rewrite(traced)
        exported = _export(traced, tensors)
        path = cache_folder("programs") / f"{_key(exported, tensors, num_threads)}.so"
        program = Program(str(path), signature_of(tensors))
        try:
            program._loader = _load(program.path)
        except Exception:  # not there, or damaged
            _log.info("compiling (once; it takes half a minute or so) ...")
            _build_once(exported, path, num_threads)
            _log.info("compiled in %.0f s", time.perf_counter() - started)
            program._loader = _load(program.path)
    return program


def capture_program(function: Callable[..., None], num_fixed: int, *example: Tree, compile: bool = True) -> CudaProgram:
    """``function`` captured for arguments like ``example``, trees of tensors; see `CudaProgram`.

    Args:
        function: see `compile_program`.  Without ``compile`` it may use other tensors, which must stay where they are.
        num_fixed: so many arguments, the first, will always be the very ones of ``example``.
        compile: before it is captured, which takes seconds, and makes fewer kernels of it.

    Raises:
        CompileError: it cannot be traced, compiled or captured.
    """
    on_leaves, tensors = _on_leaves(function, example)
    num_fixed_tensors = len(_on_leaves(function, example[:num_fixed])[1])
    with _compile_errors(), torch.no_grad():
        if compile:
            on_leaves = torch.compile(_trace(on_leaves, tensors), fullgraph=True, dynamic=False)
        return CudaProgram(on_leaves, tensors, num_fixed_tensors)


def _on_leaves(function: Callable[..., None], example: Sequence[Tree]) -> tuple[Callable[..., None], list[Tensor]]:
    """The function of the tensors in ``example``, and these."""
    present = [i for i, argument in enumerate(example) if argument is not None]
    tensors, spec = _pytree.tree_flatten([example[i] for i in present])

    def on_leaves(*leaves: Tensor) -> None:
        arguments: list[Tree] = [None] * len(example)
        for i, argument in zip(present, _pytree.tree_unflatten(list(leaves), spec)):
            arguments[i] = argument
        function(*arguments)

    return on_leaves, tensors


@contextlib.contextmanager
def _compile_errors() -> Iterator[None]:
    """Tracers and compilers raise all kinds of exceptions.  If it is the function's own, it comes again eagerly."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CompileError(f"{type(error).__name__}: {reason}") from error


class Specialized:
    """A function that is compiled for each kind of arguments it meets; see `compile_program`.

    The first ``num_fixed`` arguments are the same tensors in every call.
    """

    def __init__(self, function: Callable[..., None], num_fixed: int) -> None:
        self._function, self._num_fixed = function, num_fixed
        self._programs: dict[tuple[int, ...], Program | CudaProgram] = {}
        self._kinds: dict[Any, int] = {}
        self._last: list[tuple[Tree, list[Tensor], int]] = []  # arguments, their tensors, their kinds

    def __call__(self, *arguments: Tree) -> None:
        """Call the function.

        Raises:
            CompileError: see `compile_program`; nothing has been run.
        """
        if len(self._last) != len(arguments):
            self._last = [(None, [], -1)] * len(arguments)
        for i, argument in enumerate(arguments):
            if argument is not self._last[i][0]:  # most arguments are those of the call before
                tensors, structure = _pytree.tree_flatten(argument)
                if not all(isinstance(tensor, Tensor) for tensor in tensors):
                    raise ValueError(
                        f"argument {i} of a compiled function is {argument!r}; pass tensors (0-dim for numbers)"
                    )
                kind = self._kinds.setdefault((structure, signature_of(tensors)), len(self._kinds))
                self._last[i] = argument, tensors, kind
        key = tuple(kind for _, _, kind in self._last)
        program = self._programs.get(key)
        if program is None:
            on_gpu = self._last[0][1][0].device.type == "cuda"
            if on_gpu:
                program = capture_program(self._function, self._num_fixed, *arguments)
            else:
                program = compile_program(self._function, *arguments)
            self._programs[key] = program
        program.run([tensor for _, tensors, _ in self._last for tensor in tensors])

    def forget(self) -> None:
        """Hold no argument any longer than its call, and take none for unchanged."""
        self._last = []
        for program in self._programs.values():
            if isinstance(program, CudaProgram):
                program.forget()


def _trace(function: Callable[..., None], tensors: list[Tensor]) -> Any:
    """One graph of plain operations, backward passes included."""
    from torch.fx.experimental.proxy_tensor import make_fx  # seconds of imports, which only those who compile need

    def with_result(*leaves: Tensor) -> tuple[Tensor]:
        function(*leaves)
        return (leaves[0].new_zeros(()),)  # a graph needs a result

    return make_fx(with_result, tracing_mode="fake")(*tensors)


def _export(graph: Any, tensors: list[Tensor]) -> Any:
    """Sorts out writes into arguments.  (It takes no backward passes itself: hence the graph.)"""

    class Graph(torch.nn.Module):
        def forward(self, *leaves: Tensor) -> tuple[Tensor]:
            result: tuple[Tensor] = graph(*leaves)
            return result

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, to itself
        return torch.export.export(Graph(), tuple(tensors), strict=False)


def _build_once(exported: Any, path: Path, num_threads: int) -> None:
    """Several ranks of one machine, and runs of one queue, want the same program at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else None
    with open(path.with_suffix(".lock"), "w") as file:
        lock(file, wait=True)
        if (path.stat().st_mtime_ns if path.exists() else None) == before:  # nobody has built it meanwhile
            _build(exported, path, num_threads)


def _build(exported: Any, path: Path, num_threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "exported.pt2", Path(folder) / "program.so"
        torch.export.save(exported, source)
        command = [sys.executable, "-m", program_builder.__name__, str(source), str(library), str(num_threads)]
        here = str(Path(program_builder.__file__).parents[2])  # this very package is found from there
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"{lines[-1] if lines else 'no message'} (exit status {done.returncode})")
        with atomic_write(path) as file:  # another process may look for it
            file.write(library.read_bytes())


def _load(path: str) -> Any:
    return torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)


def _key(exported: Any, tensors: list[Tensor], num_threads: int) -> str:
    """Differs where the compiled code would."""
    digest = hashlib.sha256()
    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    parts: list[Any] = [
        [str(graph) for graph in graphs],
        [repr(node.meta.get("val")) for graph in graphs for node in graph.nodes],
        signature_of(tensors),
        program_builder.OPTIONS,
        torch.__version__,
        num_threads,
        torch.get_float32_matmul_precision(),
        torch.backends.cpu.get_cpu_capability(),
        os.cpu_count(),
        _cpu(),
    ]
    for part in parts:
        digest.update(repr(part).encode())
    for name, constant in sorted(exported.constants.items()):
        digest.update(name.encode() + bytes(constant.detach().contiguous().flatten().view(torch.uint8).tolist()))
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """Code is made for this very processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _describe(signature: Signature) -> str:
    return ", ".join(
        f"{str(dtype).removeprefix('torch.')}{list(shape)} strides {list(strides)} on {device}"
        for shape, strides, dtype, device in signature
    )
