"""What is saved of a run, and when: in one file, written by the first rank."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.runners.counter import Counter
from rlsurreal.utils.files import (
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    remove_partial_files,
    save_checkpoint,
)

_log = logging.getLogger("rlsurreal")
BEST = "best.pt"


@dataclass(kw_only=True, eq=False)
class CheckpointPolicy:
    """Which checkpoints are kept."""

    keep: Literal["none", "last", "all"] = "last"
    interval_steps: int | None = None  # between checkpoints
    interval_minutes: float | None = (
        10.0  # at most, between checkpoints.  There is one at the end, and when interrupted
    )
    keep_every_steps: int | None = None  # keep="last": keep, too, one from each interval of so many steps
    best: bool = True  # keep the one with the best mean return of an evaluation

    def __post_init__(self) -> None:
        if self.keep not in ("none", "last", "all"):
            raise ValueError(f"checkpoints.keep is {self.keep!r}; choose 'none', 'last' or 'all'")
        for name in ("interval_steps", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} is {value}; it must be at least 1, or None")
        if self.interval_minutes is not None and not self.interval_minutes > 0:
            raise ValueError(f"checkpoints.interval_minutes is {self.interval_minutes}; it must be positive, or None")


class Checkpoints:
    """Observer that saves the run's parts; also restores them.

    What the ranks have in common is saved as the first one has it; with it what is each one's own: its sampler, and
    what its parts have under ``"own"``.
    """

    def __init__(self, policy: CheckpointPolicy, folder: Path, parts: dict[str, Any], ranks: Ranks) -> None:
        """``parts`` by name: objects with ``state_dict`` and ``load_state_dict`` (or ``get_state``, ``set_state``)."""
        self.parts = parts
        self._ranks = ranks
        self._policy = policy
        self._folder = folder / "checkpoints"
        self._saved_at = -1
        self._saved_seconds = 0.0
        self._best = -math.inf
        if policy.keep != "none" and ranks.is_first:
            self._folder.mkdir(exist_ok=True)
            remove_partial_files(self._folder)

    def begin(self, counter: Counter) -> None:
        """Nothing: what there is has been restored."""

    def after_update(self, counter: Counter, samples: Any, metrics: Any) -> None:
        """Save if it is time."""
        interval, minutes = self._policy.interval_steps, self._policy.interval_minutes
        is_due = interval is not None and counter.env_steps // interval > max(self._saved_at, 0) // interval
        if is_due or (minutes is not None and counter.common_seconds - self._saved_seconds > 60 * minutes):
            self.save(counter)

    def after_evaluation(self, counter: Counter, mean_return: float) -> None:
        """Save as the best, if it is.  What was saved before the evaluation is out of date."""
        self._saved_at = min(self._saved_at, counter.env_steps - 1)
        if self._policy.keep != "none" and self._policy.best and mean_return > self._best:
            self._best = mean_return
            if self._ranks.is_first:  # what acts; a run goes on from the latest
                agent = {name: value for name, value in self.parts["agent"].state_dict().items() if name != "own"}
                save_checkpoint(
                    self._folder / BEST, {"best": self._best, "agent": agent, "saved_at": counter.env_steps}
                )

    def finish(self, counter: Counter) -> None:
        """Save where the run ended."""
        if counter.env_steps != self._saved_at:
            self.save(counter)

    def rescue(self, counter: Counter) -> None:
        """Save what was learned, without the environments: sampling, or another rank, has failed."""
        is_new = counter.iterations > 0 and counter.env_steps != self._saved_at
        if is_new and self._ranks.is_first and self._is_finite():
            self.save(counter, in_peace=False)

    def _is_finite(self) -> bool:
        module = getattr(self.parts["agent"], "module", torch.nn.Module())
        return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())

    def close(self) -> None:
        """Nothing is open."""

    def save(self, counter: Counter, *, in_peace: bool = True) -> None:
        """Save now; not ``in_peace``: without the environments."""
        if self._policy.keep == "none":
            return
        if not self._is_finite():
            raise FloatingPointError(
                f"the agent's parameters are not finite (NaN or infinity) after {counter.env_steps} environment steps; "
                "the checkpoint before is kept"
            )
        with self._ranks.busy():
            state = {**self._state(in_peace), "saved_at": counter.env_steps}
            if self._ranks.is_first:
                save_checkpoint(checkpoint_path(self._folder, counter.env_steps), state)
        self._saved_at, self._saved_seconds = counter.env_steps, counter.common_seconds
        if self._policy.keep == "last" and self._ranks.is_first:
            prune_checkpoints(self._folder, 1, self._policy.keep_every_steps)

    def _state(self, in_peace: bool = True) -> dict[str, Any]:
        """Of all ranks, and of environments in the midst of their games; or, not ``in_peace``, of neither."""
        state: dict[str, Any] = {"best": self._best, "saved_at": self._saved_at}
        own: dict[str, Any] = {}
        for name, part in self.parts.items():
            if hasattr(part, "state_dict"):
                state[name] = part.state_dict()
                if "own" in state[name]:
                    own[name] = state[name].pop("own")
            else:
                state[name] = part.get_state(exact=False)
                if in_peace:
                    own[name] = part.get_state()
        count = self._ranks.count
        # Of several ranks, all go on with what is their own, or none: replays and their limiters must agree.
        state["ranks"] = self._ranks.gather(own) if in_peace or count == 1 else [None] * count
        return state

    def restore(self, state: dict[str, Any] | None) -> bool:
        """Load a checkpoint, which the first rank hands in; False where environments could not be continued."""
        count = self._ranks.count
        every = [None] * count if state is None else state.pop("ranks")
        if len(every) != count:
            _log.info("the checkpoint is that of %d ranks: what was each one's own starts afresh", len(every))
            every = [None] * count
        own = self._ranks.scatter(every) or {}
        if state is not None and (self._folder / BEST).exists():  # it may be newer than the checkpoint
            state["best"] = max(state["best"], load_checkpoint(self._folder / BEST)["best"])
        state = self._ranks.share(state)
        self._best, self._saved_at = state["best"], state["saved_at"]
        exact = True
        for name, part in self.parts.items():
            if name not in state:
                _log.warning("the checkpoint has nothing for %r; it starts afresh", name)
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict({**state[name], "own": own.get(name)})
            else:
                exact &= part.set_state(own.get(name, state[name]))
        self._saved_seconds = self.parts["counter"].common_seconds
        return bool(self._ranks.sum(torch.tensor(float(exact))) == count)


def load_latest(folder: Path) -> dict[str, Any]:
    """The latest checkpoint of the run in ``folder``.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    return load_checkpoint(find_latest(folder))


def find_latest(folder: Path) -> Path:
    """Its file; ValueError if there is none."""
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        raise ValueError(
            f"{folder} has no checkpoint to resume from; give the folder of a run that saved one "
            "(checkpoints.keep='none' saves none)"
        )
    return path
