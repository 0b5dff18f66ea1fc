"""What is saved of a run, and when."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlsurreal.runners.counter import Counter
from rlsurreal.utils.files import (
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

_log = logging.getLogger("rlsurreal")
BEST = "best.pt"


@dataclass(kw_only=True, eq=False)
class CheckpointPolicy:
    """Which checkpoints are kept."""

    keep: Literal["none", "last", "all"] = "last"
    interval_steps: int | None = None  # between checkpoints; None: only at the end and when interrupted
    keep_every_steps: int | None = None  # keep="last": keep, too, one from each interval of so many steps
    best: bool = True  # keep the one with the best mean return of an evaluation

    def __post_init__(self) -> None:
        if self.keep not in ("none", "last", "all"):
            raise ValueError(f"checkpoints.keep is {self.keep!r}; choose 'none', 'last' or 'all'")
        for name in ("interval_steps", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} is {value}; it must be at least 1, or None")


class Checkpoints:
    """Observer that saves the run's parts; also restores them."""

    def __init__(self, policy: CheckpointPolicy, folder: Path, parts: dict[str, Any]) -> None:
        """``parts`` by name: objects with ``state_dict`` and ``load_state_dict`` (or ``get_state``, ``set_state``)."""
        self.parts = parts
        self._policy = policy
        self._folder = folder / "checkpoints"
        self._saved_at = -1
        self._best = -math.inf
        if policy.keep != "none":
            self._folder.mkdir(exist_ok=True)

    def after_update(self, counter: Counter, samples: Any, metrics: Any) -> None:
        """Save if it is time."""
        interval = self._policy.interval_steps
        if interval is not None and counter.env_steps // interval > max(self._saved_at, 0) // interval:
            self._save(counter)

    def after_evaluation(self, counter: Counter, mean_return: float) -> None:
        """Save as the best, if it is."""
        if self._policy.keep != "none" and self._policy.best and mean_return > self._best:
            self._best = mean_return
            save_checkpoint(self._folder / BEST, self._state())

    def finish(self, counter: Counter) -> None:
        """Save where the run ended."""
        if counter.env_steps != self._saved_at:
            self._save(counter)

    def rescue(self, counter: Counter) -> None:
        """Save what was learned, without the environments: sampling has failed."""
        if counter.iterations > 0 and counter.env_steps != self._saved_at and self._is_finite():
            self._save(counter, with_environments=False)

    def _is_finite(self) -> bool:
        module = getattr(self.parts["agent"], "module", torch.nn.Module())
        return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())

    def close(self) -> None:
        """Nothing is open."""

    def _save(self, counter: Counter, *, with_environments: bool = True) -> None:
        if self._policy.keep == "none":
            return
        if not self._is_finite():
            raise FloatingPointError(
                f"the agent's parameters are not finite (NaN or infinity) after {counter.env_steps} environment steps; "
                "the checkpoint before is kept"
            )
        self._saved_at = counter.env_steps
        save_checkpoint(checkpoint_path(self._folder, counter.env_steps), self._state(with_environments))
        if self._policy.keep == "last":
            prune_checkpoints(self._folder, 1, self._policy.keep_every_steps)

    def _state(self, with_environments: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = {"best": self._best, "saved_at": self._saved_at}
        for name, part in self.parts.items():
            is_sampler = not hasattr(part, "state_dict")
            state[name] = part.get_state(exact=with_environments) if is_sampler else part.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> bool:
        """Load a checkpoint into all parts; False where environments could not be continued."""
        self._best, self._saved_at = state["best"], state["saved_at"]
        exact = True
        for name, part in self.parts.items():
            if name not in state:
                _log.warning("the checkpoint has nothing for %r; it starts afresh", name)
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
            else:
                exact &= part.set_state(state[name])
        return exact


def load_latest(folder: Path) -> dict[str, Any]:
    """The latest checkpoint of the run in ``folder``.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        raise ValueError(
            f"{folder} has no checkpoint to resume from; give the folder of a run that saved one "
            "(checkpoints.keep='none' saves none)"
        )
    return load_checkpoint(path)
