"""Large matrix products of compiled CPU programs by oneDNN, where PyTorch's own choice leaves half of a core unused.

PyTorch multiplies float32 matrices with MKL, which on processors that are not Intel's uses no AVX-512; oneDNN, which
PyTorch has for convolutions, does.  A Zen 5 is by far faster so; a Zen 4, which takes 512 bits in two halves, is not.
Called by `programs` (the traced graph is rewritten) and `program_builder` (which says what the compiler is to make of
it).

    mm, addmm, bmm, baddbmm  -->  rlsurreal::linear(x, weight, bias) = x @ weight.T + bias, for each matrix
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_LEAST_MACS = 2_000_000  # multiplications and additions, below which the call costs more than is gained
_LEAST_MACS_TRANSPOSED = 8_000_000  # where the first matrix must be copied
_MAX_STACK = 16  # matrices in a batch; each is a call of its own
_SIZE, _TRIES = 256, 12  # of the products that are timed
_BY_FAR = 1.3  # less is noise, by which programs would differ from run to run, or lost in copies

_aten = torch.ops.aten
_library = torch.library.Library("rlsurreal", "FRAGMENT")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("linear", lambda x, weight, bias: _onednn()(x, weight, bias, "none", [], ""), "CPU")
_library.impl("linear", lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]), "Meta")


def _onednn() -> Any:
    return torch.ops.mkldnn._linear_pointwise.default


@functools.cache
def are_faster() -> bool:
    """Whether oneDNN multiplies by far faster than PyTorch's own choice on this machine: measured, once a process."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    x = torch.ones(_SIZE, _SIZE)
    return _seconds(lambda: torch.mm(x, x)) > _BY_FAR * _seconds(lambda: _onednn()(x, x, None, "none", [], ""))


def _seconds(product: Callable[[], Tensor]) -> float:
    """The shortest time of several."""
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return min(times)


def rewrite(graph: fx.GraphModule) -> None:
    """Have the large products in ``graph``, a trace of plain operations with shapes, done by `linear`."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _PRODUCTS or node.kwargs:
            continue
        bias, x, y = _PRODUCTS[node.target](node.args)
        if not _suits(x, y):
            continue
        with graph.graph.inserting_before(node):
            found = _product(graph.graph, x, y, bias)
        node.replace_all_uses_with(found)
        graph.graph.erase_node(node)
    graph.recompile()


_PRODUCTS: dict[Any, Any] = {
    _aten.mm.default: lambda args: (None, *args),
    _aten.bmm.default: lambda args: (None, *args),
    _aten.addmm.default: lambda args: args,
    _aten.baddbmm.default: lambda args: args,
}


def _suits(x: fx.Node, y: fx.Node) -> bool:
    a, b = x.meta["val"], y.meta["val"]
    if a.dtype != torch.float32 or a.device.type != "cpu" or (a.ndim == 3 and len(a) > _MAX_STACK):
        return False
    is_transposed = a.stride(-1) != 1
    return bool(a.shape[-2] * a.shape[-1] * b.shape[-1] >= (_LEAST_MACS_TRANSPOSED if is_transposed else _LEAST_MACS))


def _product(graph: fx.Graph, x: fx.Node, y: fx.Node, bias: fx.Node | None) -> fx.Node:
    """Nodes for ``x @ y + bias``."""
    call, linear = graph.call_function, torch.ops.rlsurreal.linear.default
    if x.meta["val"].ndim == 2:
        joins = bias is not None and bias.meta["val"].ndim == 1
        found = call(linear, (x, call(_aten.t.default, (y,)), bias if joins else None))
        return found if joins or bias is None else call(_aten.add.Tensor, (found, bias))
    parts = []
    for i in range(len(x.meta["val"])):
        weight = call(_aten.t.default, (call(_aten.select.int, (y, 0, i)),))
        parts.append(call(linear, (call(_aten.select.int, (x, 0, i)), weight, None)))
    found = call(_aten.stack.default, (parts,))
    return found if bias is None else call(_aten.add.Tensor, (found, bias))


def teach_compiler() -> None:
    """Have inductor call oneDNN for `linear`, with weights that change from call to call."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import register_lowering
    from torch._inductor.mkldnn_ir import LinearUnary

    def lower(x: Any, weight: Any, bias: Any) -> Any:
        return TensorBox.create(LinearUnary.create(x, weight, bias, "none", [], ""))

    register_lowering(torch.ops.rlsurreal.linear.default, type_promotion_kind=None)(lower)
