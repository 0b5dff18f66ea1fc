"""What all samplers share: their settings, their slots, and how an evaluation counts episodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from typing_extensions import Self

from rlsurreal.distributed.page_lock import page_lock
from rlsurreal.samplers.trajectories import TrajectoryTracker
from rlsurreal.structs import BatchSpec, EnvSamples, EnvSpec, Samples, Spaces, TrajInfo
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.torch_tree import to_torch

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class EvalSpec:
    """How to evaluate: equally many episodes from each environment, so that short episodes do not count for more."""

    num_envs: int = 4
    first_env: int = 0  # number of the first one, where several ranks divide the evaluation
    episodes_per_env: int = 2
    env: EnvSpec | None = None  # None: like the training environments
    deterministic: bool = True  # the most likely action instead of a random one
    num_steps: int = 100  # rows between checks for the end
    max_episode_steps: int = 100_000  # a longer game is given up, and counts with what it came to

    def __post_init__(self) -> None:
        for name in ("num_envs", "episodes_per_env", "num_steps", "max_episode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"EvalSpec.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(kw_only=True, eq=False)
class SamplerSettings:
    """Settings of every sampler."""

    env: EnvSpec
    batch: BatchSpec
    mid_batch_reset: bool = True  # False: an environment whose episode ended waits for the slot's end
    max_decorrelation_steps: int = 0  # each environment starts after a random number (up to this) of random actions
    state_interval: int | None = None  # rows between recorded agent states; None: num_steps
    evaluation: EvalSpec = field(default_factory=EvalSpec)

    def __post_init__(self) -> None:
        if self.max_decorrelation_steps < 0:
            raise ValueError(f"max_decorrelation_steps is {self.max_decorrelation_steps}; 0 turns it off")
        if self.state_interval is not None and (self.state_interval < 1 or self.batch.num_steps % self.state_interval):
            raise ValueError(
                f"state_interval is {self.state_interval}; it must divide batch.num_steps={self.batch.num_steps}"
            )

    @property
    def eval_env(self) -> EnvSpec:
        """What evaluation plays."""
        return self.evaluation.env or self.env

    @property
    def eval_batch(self) -> BatchSpec:
        """The size of evaluation's slot."""
        return BatchSpec(self.evaluation.num_steps, self.evaluation.num_envs, self.evaluation.first_env)

    def divided(self, batch: BatchSpec, evaluation: EvalSpec) -> Self:
        """One rank's part of this sampler, before it is connected."""
        return dataclasses.replace(self, batch=batch, evaluation=evaluation)


class SlotBoard:
    """Which slot is where: FREE, FILLING, READY, LEASED, and FREE again, in the order of the ring."""

    ORDER = ("FREE", "FILLING", "READY", "LEASED")

    def __init__(self, slots: Samples, device: torch.device) -> None:
        """``device``: where the samples will go."""
        page_lock(slots, device)
        num_slots = len(slots.env.reward)
        self.states = ["FREE"] * num_slots
        self.numpy: list[Samples] = [tree_map(np.asarray, slots[s]) for s in range(num_slots)]
        self._torch: list[Samples] = [to_torch(slot) for slot in self.numpy]

    def advance(self, slot: int, to: str) -> None:
        """Move a slot on to state ``to``; RuntimeError if it is not where it should be."""
        if self.states[slot] == "LEASED" and to != "FREE":
            raise RuntimeError("the samples of an earlier obtain() are still in use; release() them first")
        if self.states[slot] == to == "FILLING":
            raise RuntimeError("an earlier obtain() did not come to its end; close() this sampler")
        expected = self.ORDER[self.ORDER.index(to) - 1]
        assert self.states[slot] == expected, f"slot {slot} is {self.states[slot]}, it cannot become {to}"
        self.states[slot] = to

    def check_all_free(self) -> None:
        """RuntimeError if a slot is in use."""
        if "LEASED" in self.states:
            raise RuntimeError("the samples of an earlier obtain() are still in use; release() them first")

    def lease(self, slot: int) -> Samples:
        """Hand out a READY slot."""
        self.advance(slot, "LEASED")
        return self._torch[slot]

    def free(self, samples: Samples) -> int:
        """Take back a LEASED slot; ValueError if ``samples`` is none."""
        for slot, leased in enumerate(self._torch):
            if leased is samples and self.states[slot] == "LEASED":
                self.advance(slot, "FREE")
                return slot
        raise ValueError("release() wants the very samples that obtain() returned, once")


def play_episodes(
    spec: EvalSpec,
    fill: Callable[[], EnvSamples],
    on_hold: np.ndarray,
    can_skip: bool,
    discount: float,
    give_up: Callable[[], bool],
) -> list[TrajInfo] | None:
    """Run evaluation slots with ``fill`` until each environment has played its games; extra ones are not counted.

    None: ``give_up()``, which is asked before each slot, wanted it.

    ``on_hold`` is set for environments that have finished, so that they need not be stepped (if the engine
    ``can_skip``).
    """
    on_hold[:] = False
    tracker = TrajectoryTracker(len(on_hold), spec.first_env, discount)
    played: list[TrajInfo] = []
    counts = np.zeros(len(on_hold), dtype=np.int64)
    while counts.min() < spec.episodes_per_env:
        if give_up():
            return None
        ended = tracker.update(fill())
        cut = tracker.cut_long_games(spec.max_episode_steps)
        for info in ended + cut:
            counts[info.env - spec.first_env] += 1
            if counts[info.env - spec.first_env] <= spec.episodes_per_env:
                played.append(info)
        if cut:
            _log.warning("gave up %d evaluation games after %d steps", len(cut), spec.max_episode_steps)
        if can_skip:
            on_hold[:] = counts >= spec.episodes_per_env
    return played


def check_engine_can_wait(settings: SamplerSettings, can_skip: bool) -> None:
    """ValueError if environments that go on by themselves are asked to wait."""
    if not can_skip and (not settings.mid_batch_reset or settings.max_decorrelation_steps):
        raise ValueError(
            f"{type(settings.env).__name__} steps all its environments together: it needs mid_batch_reset=True and "
            "max_decorrelation_steps=0"
        )


def check_spaces_agree(train: Spaces, evaluation: Spaces) -> None:
    """ValueError if evaluation environments cannot be played by an agent made for the training environments."""
    for name in ("observation", "action"):
        ours, theirs = getattr(train, name), getattr(evaluation, name)
        if ours != theirs:
            raise ValueError(
                f"evaluation.env has {name} space {theirs}, the training environments have {ours}; they must be "
                "the same"
            )


def replica(agent: object) -> object:
    """A copy of an agent's settings, without what it built: what travels to other processes."""
    if not dataclasses.is_dataclass(agent) or isinstance(agent, type):
        raise ValueError(
            f"the agent is a {type(agent).__name__}; agents are dataclasses, so that copies can be made of them"
        )
    return dataclasses.replace(agent)
