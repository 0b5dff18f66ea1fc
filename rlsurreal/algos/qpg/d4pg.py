"""Distributed distributional DDPG (Barth-Maron et al. 2018, arXiv 1804.08617): a critic of the return's distribution,
n-step returns; prioritized replay if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlsurreal.agents import ModelSpec
from rlsurreal.agents.return_heads import Categorical, ReturnHead
from rlsurreal.algos.qpg.ddpg import DDPG
from rlsurreal.models import CriticEnsemble
from rlsurreal.replays import NStep, Replay, ReplayRatio


@dataclass(kw_only=True, eq=False)
class D4PG(DDPG):
    """Hyperparameters of D4PG; the head's bounds must hold the task's discounted returns."""

    batch_size: int = 256
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=256, min_steps=10_000))
    replay: Replay = field(default_factory=lambda: Replay(extractor=NStep(num_steps=5)))
    critic: ModelSpec = field(
        default_factory=lambda: ModelSpec(cls=CriticEnsemble, kwargs={"num_critics": 1, "num_atoms": 51})
    )
    head: ReturnHead = field(default_factory=lambda: Categorical(low=-100.0, high=1000.0))
