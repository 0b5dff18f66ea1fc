"""What a learning benchmark's task is.  Used by `benchmarks.learning_tasks` and `benchmarks.learning_replayed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.utils import config


@dataclass(frozen=True)
class LearningTask:
    """One experiment over seeds."""

    make: Callable[[int], Trainer]
    num_seeds: int
    target: float
    metric: str = "return of the last 100 games"
    peer: str | None = None
    num_peer_seeds: int = 3
    peer_settings: dict[str, Any] = field(default_factory=dict)
    gain: bool = False  # the result is the last 100 games' mean less that of the first 100
    num_games: int = 100  # that the result is the mean of
    picture: str | None = None  # that its curves share with other tasks, under this label
    label: str = "rlsurreal"


def serially(trainer: Trainer) -> Trainer:
    """The same experiment in one process: as many runs side by side as there are cores."""
    old: Any = trainer.sampler
    sampler = SerialSampler(
        env=old.env, batch=old.batch, max_decorrelation_steps=old.max_decorrelation_steps, evaluation=old.evaluation
    )
    return config.override(trainer, {"sampler": sampler})
