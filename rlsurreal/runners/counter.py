"""How far a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Counter:
    """Counts over the whole run, resumed parts included."""

    total_env_steps: int  # the budget
    env_steps: int = 0  # actions that were applied to an environment
    iterations: int = 0  # slots learned from
    trajectories: int = 0  # games that ended
    seconds: float = 0.0  # of training, resumed parts included
    common_seconds: float = 0.0  # the same of the first rank, at the last meeting: what all ranks decide by

    @property
    def progress(self) -> float:
        """The part of the budget that is used, in [0, 1]."""
        return min(1.0, self.env_steps / self.total_env_steps)

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the budget may be another one."""
        for name in ("env_steps", "iterations", "trajectories", "seconds", "common_seconds"):
            setattr(self, name, state[name])
