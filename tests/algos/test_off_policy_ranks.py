"""Learning from replay: two ranks with half the batch are one with the whole, and hold the ratio together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.replays import Fifo, Replay, ReplayRatio, Ticket
from rlsurreal.testing.ranks import run_ranks
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, tree_map
from tests.algos.test_off_policy import EVERY, Run

BUILDING = threading.Lock()  # weights are drawn from the process's one generator


class Weighted(NamedArrayTuple):
    """A batch that has weights alone."""

    weight: Any


def constant_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every row has the same, whichever rank it is on."""
    for name, value in (("randn", 0.3), ("rand", 0.6)):
        monkeypatch.setattr(
            torch, name, lambda *size, generator=None, device=None, v=value: torch.full(torch.zeros(*size).shape, v)
        )


def half_of(batch: Any, index: int) -> Any:
    """Of a batch of 8, or of sequences ``[L, 8]``."""
    part = slice(4 * index, 4 * index + 4)
    if not hasattr(batch, "state"):
        return batch[part]
    halves = tree_map(lambda x: x[:, part], batch._replace(state=None, weight=None))
    return halves._replace(state=tree_map(lambda x: x[part], batch.state), weight=batch.weight[part])


@EVERY
def test_two_ranks_with_half_the_batch_are_one_with_the_whole(name, monkeypatch):
    source = Run(name)
    source.advance(20)
    batches = [source.algo.replay.sample(8)[0] for _ in range(4)]
    constant_noise(monkeypatch)

    def learn(ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, float], list[torch.Tensor]]:
        with BUILDING:
            run = Run(name, ranks=ranks, target_tau=0.5)  # so that targets move by more than is tolerated below
        priorities = []
        for batch in batches:
            priorities.append(run.algo._update(batch if ranks.count == 1 else half_of(batch, ranks.index), 0.5).clone())
            run.algo._num_updates += 1
        metrics = {key: float(value) for key, value in run.algo.take_metrics().items()}
        return run.tensors(), metrics, priorities

    tensors, metrics, priorities = learn(ALONE)
    first, second = run_ranks(2, learn)
    for key, expected in tensors.items():
        if "generator" in key:
            continue
        assert torch.equal(first[0][key], second[0][key]), key
        torch.testing.assert_close(
            first[0][key], expected, atol=3e-5, rtol=1e-3, msg=lambda text, key=key: f"{key} {text}"
        )
    assert first[1] == second[1] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    for whole, *halves in zip(priorities, first[2], second[2]):
        torch.testing.assert_close(torch.cat(halves), whole, atol=1e-4, rtol=1e-3)


def test_two_ranks_hold_the_ratio_together_and_stay_alike():
    def learn(ranks: Ranks) -> tuple[int, int, dict[str, torch.Tensor], float]:
        with BUILDING:
            run = Run("sac-normalized", ranks=ranks)
        for _ in range(ranks.index):  # so that its slots are not those of the other
            run.sampler.release(run.sampler.obtain())
        run.advance(20)
        return run.num_steps, run.algo._num_updates, run.tensors(), run.algo.limiter.achieved

    first, second = run_ranks(2, learn)
    total = first[0] + second[0]
    assert first[1] == second[1] == int((total - 20) * 3 / 8) > 10
    for key in first[2]:
        if "generator" not in key and "sums" not in key:  # metrics are summed over ranks when they are read
            assert torch.equal(first[2][key], second[2][key]), key


def test_importance_weights_have_one_largest_over_all_ranks():
    """As if both shards were one, half of each batch from either."""

    def draw(ranks: Ranks) -> tuple[torch.Tensor, np.ndarray]:
        with BUILDING:
            run = Run("dqn", ranks=ranks)
        run.advance(8)
        run.algo.replay.selector.tree.set_range(0, run.algo.replay.selector.tree.num_leaves, 0.0)
        run.algo.replay.selector.tree.set(np.arange(6), np.linspace(1, 3 + 5 * ranks.index, 6))
        drawn = run.algo.replay.selector.draw(40, np.random.default_rng(ranks.index), 0.0)
        batch = Weighted(torch.from_numpy(drawn.weight))
        weight = run.algo._with_common_weights(batch, Ticket(drawn.starts, drawn.envs, drawn.largest_weight)).weight
        tree = run.algo.replay.selector.tree
        places = run.algo.replay.starts.ring.flat(drawn.starts, drawn.envs)
        return weight, tree.leaves[places] / tree.total

    (one, one_p), (other, other_p) = run_ranks(2, draw)
    chance = np.concatenate([one_p, other_p]) / 2
    expected = chance**-0.4 / (chance**-0.4).max()
    np.testing.assert_allclose(torch.cat([one, other]).numpy(), expected, rtol=1e-5)


def test_fifo_is_for_one_rank():
    def learn(ranks: Ranks) -> None:
        with BUILDING:
            fifo = Replay(capacity=400, selector=Fifo())
            Run("dqn", ranks=ranks, replay=fifo, limiter=ReplayRatio(ratio=1, min_steps=1))

    with pytest.raises(ValueError, match="Fifo, and there are 2 ranks"):
        run_ranks(2, learn)
