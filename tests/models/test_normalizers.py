"""Running statistics against those of all the data at once."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.models import RunningNorm
from rlsurreal.utils.namedarraytuple import namedarraytuple

torch.set_num_threads(1)
SPACE = gs.Box(-np.inf, np.inf, (3,))
Nested: Any = namedarraytuple("Dict", ("deep", "image", "speed"))
Deep = namedarraytuple("Tuple", ("f0", "f1"))
NESTED_SPACE = gs.Dict(
    {
        "speed": gs.Box(-1, 1, ()),
        "image": gs.Box(0, 255, (1, 4, 4), np.uint8),
        "deep": gs.Tuple([gs.Discrete(3), gs.Box(-1, 1, (2, 2))]),
    }
)


def rows(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mean + std * x).float()


def all_valid(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def leaf(norm: RunningNorm) -> Any:
    return norm.leaves[0]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (5.0, 0.1), (1e6, 0.1), (-1e6, 30.0), (1e-3, 1e-3)])
def test_batches_merge_to_the_moments_of_the_whole(mean: float, std: float) -> None:
    x = rows(60, 8, 3, mean=mean, std=std)
    valid = rows(60, 8, seed=1) > -0.5
    spoilt = torch.where(valid[..., None], x, math.nan)
    norm = RunningNorm(SPACE)
    for part in (slice(0, 1), slice(1, 2), slice(2, 30), slice(30, 30), slice(30, 60)):
        norm.update(spoilt[part], valid[part])
    kept = x[valid].double()
    assert leaf(norm).count == valid.sum()
    torch.testing.assert_close(leaf(norm).mean, kept.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(leaf(norm).m2 / valid.sum(), kept.var(0, correction=0), rtol=1e-6, atol=1e-15)
    result = norm(x)[valid].double()
    expected = (kept - kept.mean(0)) / (kept.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(result, expected.clamp(-10, 10), atol=1e-5, rtol=1e-5)
    assert result.mean(0).abs().max() < 1e-5


def test_many_small_batches_do_not_drift() -> None:
    x = rows(3000, 1, 3, mean=300.0, std=2.0)
    norm = RunningNorm(SPACE)
    for t in range(len(x)):
        norm.update(x[t : t + 1], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(leaf(norm).m2 / 3000, x.double().var((0, 1), correction=0), rtol=1e-9, atol=0)


def test_two_ranks_equal_one() -> None:
    """Unequal halves with different means: an average of the ranks' variances would be wrong."""
    x = torch.cat([rows(10, 4, 3), rows(10, 4, 3, mean=50.0, std=3.0, seed=1)], 1)
    valid = rows(10, 8, seed=2) > torch.tensor([0.0] * 4 + [-1.0] * 4)
    whole = RunningNorm(SPACE)
    whole.update(x, valid)
    halves = (slice(0, 4), slice(4, 8))
    total: list[Tensor] = []

    def run(rank: int, norm: RunningNorm) -> list[Tensor]:
        """One rank's calls of ``reduce``: recorded, and answered with the sums over ranks that are known so far."""
        calls: list[Tensor] = []

        def reduce(sums: Tensor) -> Tensor:
            calls.append(sums)
            return total[len(calls) - 1] if len(calls) <= len(total) else sums

        norm.update(x[:, halves[rank]], valid[:, halves[rank]], reduce)
        return calls

    for call in range(2):
        total.append(run(0, RunningNorm(SPACE))[call] + run(1, RunningNorm(SPACE))[call])
    ranks = [RunningNorm(SPACE), RunningNorm(SPACE)]
    for rank, norm in enumerate(ranks):
        assert len(run(rank, norm)) == 2
    for name, buffer in whole.state_dict().items():
        assert torch.equal(ranks[0].state_dict()[name], ranks[1].state_dict()[name]), name
        torch.testing.assert_close(ranks[0].state_dict()[name], buffer, msg=name)


def test_identity_before_the_first_update() -> None:
    x = rows(4, 3) * 1e6
    norm = RunningNorm(SPACE)
    assert torch.equal(norm(x), x)
    norm.update(x[None], torch.zeros(1, 4, dtype=torch.bool))  # no valid row is no update
    assert torch.equal(norm(x), x)
    norm.update(x[None], torch.ones(1, 4, dtype=torch.bool))
    assert norm(x * 1e6).abs().max() == 10


def test_clips_and_survives_constants() -> None:
    norm = RunningNorm(SPACE, clip=2.0)
    x = rows(20, 5, 3)
    x[..., 1] = 7.0
    norm.update(x, all_valid(x))
    assert norm(x).abs().max() <= 2 and (norm(x)[..., 1] == 0).all()
    assert norm(torch.full((3,), 1e9)).tolist() == [2, 2, 2] and norm(torch.full((3,), -1e9)).tolist() == [-2, -2, -2]


def test_nested_observations() -> None:
    """Float boxes are normalised, each by its own statistics; images and whole numbers pass as they are."""
    observation = Nested(
        speed=rows(6, 4, mean=3.0),
        image=torch.randint(0, 256, (6, 4, 1, 4, 4), dtype=torch.uint8),
        deep=Deep(torch.randint(0, 3, (6, 4)), rows(6, 4, 2, 2, mean=-5.0, seed=1)),
    )
    norm, calls = RunningNorm(NESTED_SPACE), []

    def reduce(sums: Tensor) -> Tensor:
        calls.append(sums)
        return sums

    norm.update(observation, all_valid(observation.speed), reduce)
    assert len(calls) == 2, "one reduction per pass, whatever the number of leaves"
    result = norm(observation)
    assert result.image is observation.image and result.deep.f0 is observation.deep.f0
    for got, x in ((result.speed, observation.speed), (result.deep.f1, observation.deep.f1)):
        expected = (x - x.mean((0, 1))) / x.std((0, 1), correction=0)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    one_row = norm(observation[2, 1])
    torch.testing.assert_close(one_row.deep.f1, result.deep.f1[2, 1])


def test_nothing_to_normalise() -> None:
    norm = RunningNorm(gs.Discrete(3))
    x = torch.tensor([[0, 2]])
    norm.update(x, torch.ones(1, 2, dtype=torch.bool))
    assert norm(x) is x and not norm.state_dict()


def test_state_travels_with_the_state_dict_and_copies() -> None:
    x = rows(10, 4, 3, mean=100.0)
    norm, other = RunningNorm(SPACE), RunningNorm(SPACE)
    norm.update(x, all_valid(x))
    other.load_state_dict(norm.state_dict())
    twin = copy.deepcopy(norm)
    for loaded in (other, twin):
        assert torch.equal(loaded(x), norm(x))
        loaded.update(x + 1, all_valid(x))
    assert torch.equal(other(x), twin(x)) and not torch.equal(other(x), norm(x))


def test_forward_changes_no_statistics() -> None:
    norm = RunningNorm(SPACE)
    x = rows(10, 4, 3)
    norm.update(x, all_valid(x))
    before = copy.deepcopy(norm.state_dict())
    norm.train()(x * 3)
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.state_dict().items())
