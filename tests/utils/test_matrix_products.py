"""Matrix products by oneDNN: the same numbers, and only where they are large."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rlsurreal.utils import matrix_products
from rlsurreal.utils.programs import compile_program

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")

_A, _B = torch.randn(256, 200), torch.randn(200, 300)
_STACK = torch.randn(2, 256, 200), torch.randn(2, 200, 300)
_WEIGHT, _VECTOR, _MATRIX = torch.randn(300, 200), torch.randn(300), torch.randn(256, 300)
_GRADIENT = _MATRIX.expand(2, -1, -1)
_CASES = {
    "mm": (torch.mm, (_A, _B)),
    "mm with a transposed second": (lambda a, w: a @ w.t(), (_A, _WEIGHT)),
    "mm with a transposed first": (lambda a, b: a.t() @ b, (_A, _MATRIX)),
    "addmm of a vector": (torch.addmm, (_VECTOR, _A, _B)),
    "addmm of a matrix": (torch.addmm, (_MATRIX, _A, _B)),
    "bmm": (torch.bmm, _STACK),
    "bmm with a transposed first": (lambda a, g: torch.bmm(a.transpose(1, 2), g), (_STACK[0], _GRADIENT)),
    "bmm of one matrix for all": (lambda a, b: torch.bmm(a.expand(2, -1, -1), b), (_A[None], _STACK[1])),
    "baddbmm": (torch.baddbmm, (torch.randn(2, 1, 300), *_STACK)),
}


def _targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", _CASES)
def test_large_products_are_rewritten_and_stay_what_they_are(name: str) -> None:
    function, arguments = _CASES[name]
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    matrix_products.rewrite(graph)
    targets = _targets(graph)
    assert "rlsurreal.linear.default" in targets and not {"aten.mm.default", "aten.bmm.default"} & set(targets)
    torch.testing.assert_close(graph(*arguments), function(*arguments), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.randn(64, 64), torch.randn(64, 64)),
        (torch.randn(256, 200, dtype=torch.float64), torch.randn(200, 300, dtype=torch.float64)),
        (torch.randn(200, 100).t(), torch.randn(200, 128)),  # 2.6 million, but the first would be copied
    ],
)
def test_others_are_left_alone(a: Tensor, b: Tensor) -> None:
    graph = make_fx(torch.mm, tracing_mode="fake")(a, b)
    matrix_products.rewrite(graph)
    assert _targets(graph) == ["aten.mm.default"]


@pytest.mark.compiles
def test_a_compiled_program_multiplies_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_products, "are_faster", lambda: True)  # it need not be: it must only work

    def layer_and_gradient(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, gradient: Tensor) -> None:
        y = torch.relu(torch.nn.functional.linear(x, weight, bias))
        out.copy_(y)
        gradient.copy_(y.t() @ x)

    x, weight, bias = _A, _WEIGHT, _VECTOR
    out, gradient = torch.empty(256, 300), torch.empty(300, 200)
    program = compile_program(layer_and_gradient, x, weight, bias, out, gradient)
    program.run(program.bind(x, weight, bias, out, gradient))
    expected = torch.relu(x @ weight.t() + bias)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(gradient, expected.t() @ x, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("ratio, faster", [(2.0, True), (1.1, False), (0.9, False)])
def test_they_are_exchanged_where_that_is_by_far_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, faster: bool
) -> None:
    times = iter([ratio, 1.0])
    monkeypatch.setattr(matrix_products, "_seconds", lambda product: next(times))
    assert matrix_products.are_faster.__wrapped__() == (faster and torch.backends.mkl.is_available())


def test_the_measurement_says_the_same_again() -> None:
    assert len({matrix_products.are_faster.__wrapped__() for _ in range(5)}) == 1
