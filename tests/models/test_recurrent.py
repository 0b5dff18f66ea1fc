"""A pass over a sequence against a loop over its rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsurreal.models import Recurrent, RecurrentState
from rlsurreal.utils.namedarraytuple import leaves, tree_map

torch.set_num_threads(1)
KINDS = pytest.mark.parametrize("kind", ["lstm", "gru"])
T, B, F, H = 9, 4, 3, 5


def loop(layer: Recurrent, x: Tensor, state: RecurrentState, first: Tensor) -> tuple[Tensor, RecurrentState]:
    outputs = []
    for t in range(len(x)):
        state = tree_map(lambda s, t=t: torch.where(first[t][:, None], torch.zeros(()), s), state)
        output, state = layer.step(x[t], state)
        outputs.append(output)
    return torch.stack(outputs), state


def random_state(layer: Recurrent) -> Any:
    return tree_map(torch.randn_like, layer.initial_state(B))


def firsts() -> dict[str, Tensor]:
    none = torch.zeros(T, B, dtype=torch.bool)
    row_0, one, last = none.clone(), none.clone(), none.clone()
    row_0[0, :2] = True
    one[4, 1] = True
    last[T - 1, 0] = True
    some = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.3
    return {"none": none, "row 0": row_0, "one": one, "last": last, "some": some, "all": ~none}


@KINDS
@pytest.mark.parametrize("first", firsts().values(), ids=firsts().keys())
def test_sequence_equals_loop(kind: str, first: Tensor) -> None:
    torch.manual_seed(1)
    layer = Recurrent(kind, F, H)  # type: ignore[arg-type]
    x, state = torch.randn(T, B, F), random_state(layer)
    results = []
    for function in (loop, lambda layer, *args: layer.sequence(*args)):
        layer.zero_grad(set_to_none=True)
        output, final = function(layer, x, state, first)
        (output.square().sum() + sum(leaf.sum() for leaf in leaves(final))).backward()
        results.append([output, *leaves(final), *(p.grad for p in layer.parameters())])
    for got, expected in zip(results[1], results[0]):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@KINDS
def test_nothing_passes_a_reset(kind: str) -> None:
    layer = Recurrent(kind, F, H)  # type: ignore[arg-type]
    x = torch.randn(T, B, F, requires_grad=True)
    first = torch.zeros(T, B, dtype=torch.bool)
    first[4, 1] = True
    output, _ = layer.sequence(x, random_state(layer), first)
    output[4:].sum().backward()
    assert x.grad is not None
    assert (x.grad[:4, 1] == 0).all() and (x.grad[:4, 0] != 0).any() and (x.grad[4:] != 0).any()


@KINDS
def test_state_that_is_reset_may_hold_anything(kind: str) -> None:
    layer = Recurrent(kind, F, H)  # type: ignore[arg-type]
    x, first = torch.randn(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    first[0, 2] = True
    clean = random_state(layer)
    spoilt = tree_map(torch.clone, clean)
    spoilt[2] = math.nan
    expected, got = layer.sequence(x, clean, first), layer.sequence(x, spoilt, first)
    assert torch.equal(got[0], expected[0])
    assert all(leaf.isfinite().all() for leaf in leaves(got[1]))


@KINDS
def test_state_of_two_halves(kind: str) -> None:
    """Ending in the middle and going on gives what one pass gives; the arguments are not written to."""
    layer = Recurrent(kind, F, H)  # type: ignore[arg-type]
    x, first, state = torch.randn(T, B, F), firsts()["some"], random_state(layer)
    before = tree_map(torch.clone, state)
    whole, end = layer.sequence(x, state, first)
    part_1, middle = layer.sequence(x[:4], state, first[:4])
    part_2, end_2 = layer.sequence(x[4:], middle, first[4:])
    torch.testing.assert_close(torch.cat([part_1, part_2]), whole)
    for a, b, c, d in zip(leaves(end), leaves(end_2), leaves(state), leaves(before)):
        torch.testing.assert_close(a, b)
        assert torch.equal(c, d)


def test_initial_state_and_kinds() -> None:
    lstm, gru = Recurrent("lstm", F, H).initial_state(B), Recurrent("gru", F, H).initial_state(B)
    assert gru.cell is None and lstm.cell is not None
    assert all(leaf.shape == (B, H) and (leaf == 0).all() for leaf in [*leaves(lstm), *leaves(gru)])
    assert lstm.hidden.data_ptr() != lstm.cell.data_ptr()
    with pytest.raises(ValueError, match="recurrent is 'rnn'; use 'lstm', 'gru' or None"):
        Recurrent("rnn", F, H)  # type: ignore[arg-type]
