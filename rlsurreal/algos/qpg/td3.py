"""Twin delayed DDPG (Fujimoto et al. 2018, arXiv 1802.09477): two critics, a smoothed target, a delayed policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlsurreal.agents import ModelSpec
from rlsurreal.algos.qpg.ddpg import DDPG
from rlsurreal.models import CriticEnsemble
from rlsurreal.replays import ReplayRatio


@dataclass(kw_only=True, eq=False)
class TD3(DDPG):
    """Hyperparameters of TD3."""

    batch_size: int = 256
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=256, min_steps=10_000))
    critic: ModelSpec = field(default_factory=lambda: ModelSpec(cls=CriticEnsemble, kwargs={"num_critics": 2}))
    policy_interval: int = 2
    target_interval: int = 2
    target_noise: float = 0.2
