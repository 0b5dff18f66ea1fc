"""When a run has reached what it was for, before its budget is used.  Called by `rlsurreal.runners.run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rlsurreal.runners.observers import TRAJECTORY_WINDOW, Judge

if TYPE_CHECKING:
    from rlsurreal.runners.trainer import Trainer

OnRow = Callable[[int, dict[str, float]], object]


def make_judge(trainer: Trainer, on_row: OnRow | None) -> Judge:
    """Shows each row of metrics to the user's function, and holds it against the experiment's goal."""
    goal, has_evaluations = trainer.stop_at_return, trainer.eval_interval_steps is not None

    def judge(env_steps: int, row: dict[str, float]) -> str | None:
        found = None if on_row is None else on_row(env_steps, row)
        if isinstance(found, (bool, np.bool_)) and found:  # not what `file.write` gives, say
            return "on_row has returned True"
        if goal is not None and (reached := mean_return(row, has_evaluations)) is not None and reached >= goal:
            return f"the mean return is {reached:,.6g}, and stop_at_return {goal:,.6g}"
        return None

    return judge


def mean_return(row: dict[str, float], has_evaluations: bool) -> float | None:
    """Of the evaluation that the row has; of a run without any, of a full window of training games."""
    if has_evaluations:
        return row.get("eval/return/mean")
    return row.get("return/mean") if row["trajectories"] >= TRAJECTORY_WINDOW else None
