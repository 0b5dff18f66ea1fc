"""What watches the training loop: logs, evaluations, the progress bar."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.runners.checkpoints import Checkpoints
from rlsurreal.runners.counter import Counter
from rlsurreal.structs import Agent, Algorithm, Sampler, Samples, TrajInfo
from rlsurreal.utils.logger import MetricLogger, ProgressBar
from rlsurreal.utils.timing import PhaseTimer

Judge = Callable[[int, dict[str, float]], str | None]  # of a number of environment steps, and a row of metrics

CONSOLE_COLUMNS = {
    "return": "return/mean",
    "score": "score/mean",
    "eval": "eval/return/mean",
    "length": "length/mean",
    "games": "trajectories",
    "steps/s": "rate/env_steps_per_s",
}  # titles and names of what a terminal shows, and after them the algorithm's own
TRAJECTORY_WINDOW = 100  # training returns are those of the last so many games


class Observer(Protocol):
    """Anything that looks at the loop."""

    def begin(self, counter: Counter) -> None:
        """Before the first iteration, of a resumed run, too."""

    def after_update(self, counter: Counter, samples: Samples, metrics: Mapping[str, Any]) -> None:
        """After each update, before the samples are released."""

    def finish(self, counter: Counter) -> None:
        """When the loop has ended, by itself or interrupted."""

    def rescue(self, counter: Counter) -> None:
        """When sampling has failed."""

    def close(self) -> None:
        """At the end, whatever it was."""


class Observers:
    """Several observers, in order; closed as a context."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers

    def begin(self, counter: Counter) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.begin(counter)

    def after_update(self, counter: Counter, samples: Samples, metrics: Mapping[str, Any]) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.after_update(counter, samples, metrics)

    def finish(self, counter: Counter) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.finish(counter)

    @contextlib.contextmanager
    def rescuing(self, counter: Counter) -> Iterator[None]:
        """If sampling fails in here, tell all: agent and algorithm are as the last update left them."""
        try:
            yield
        except FloatingPointError:  # what was learned is spoilt
            raise
        except BaseException:
            for observer in self._observers:
                observer.rescue(counter)
            raise

    def __enter__(self) -> Observers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for observer in self._observers:
            observer.close()


class _Watching:
    """What most observers have nothing to do for."""

    def begin(self, counter: Counter) -> None:
        """Nothing is to be made up for."""

    def finish(self, counter: Counter) -> None:
        """Nothing is left to do."""

    def rescue(self, counter: Counter) -> None:
        """Nothing can be saved."""

    def close(self) -> None:
        """Nothing is open."""


class MetricLog(_Watching):
    """Writes a row of metrics at every log interval; stops the run when a metric is not finite.

    ``logger``: of the first rank; None on the others, whose games it is told of.
    ``judge``: is given each row, on the first rank, and says why the run has reached what it was for, if it has.

    Attributes:
        recent: the games that training returns are of.
        verdict: what ``judge`` has said.
    """

    def __init__(
        self,
        logger: MetricLogger | None,
        agent: Agent,
        algo: Algorithm,
        sampler: Sampler,
        interval_steps: int,
        timer: PhaseTimer,
        ranks: Ranks,
        judge: Judge,
    ) -> None:
        self.verdict: str | None = None
        self._judge = judge
        self._last: tuple[int, dict[str, float]] | None = None  # the row of the verdict, if there is one
        self.recent: deque[TrajInfo] = deque(maxlen=TRAJECTORY_WINDOW)
        self._logger, self._agent, self._algo, self._sampler, self._ranks = logger, agent, algo, sampler, ranks
        self._ended: list[tuple[int, TrajInfo]] = []  # games since ranks last met here, and their iterations
        self._interval_steps, self._timer = interval_steps, timer
        self._logged_at = 0
        self._metrics: dict[str, Any] = {}  # the newest of each since the last row; not every update gives all
        self._pending: dict[str, float] = {}
        self._rate_from: tuple[int, float] = (0, 0.0)  # steps and seconds at the last row

    def after_update(self, counter: Counter, samples: Samples, metrics: Mapping[str, Any]) -> None:
        """Take in the games that ended, and log if it is time."""
        self._ended += [(counter.iterations, info) for info in self._sampler.pop_trajectories()]
        due = is_due(counter, self._logged_at, self._interval_steps)
        if due or self._ranks.count == 1:
            self._collect(counter)
        if due:
            metrics = {**metrics, **self._algo.take_metrics()}
        if self._agent.device.type == "cpu":
            self._check_finite(metrics, counter)  # on an accelerator this would wait for it: there at log time
        self._metrics |= metrics
        if due:
            self._write(counter, samples)

    def _collect(self, counter: Counter) -> None:
        """Take in the games of all ranks, on the first one, in their order."""
        every = self._ranks.gather(self._ended)
        ended = sorted((entry for own in every for entry in own), key=lambda entry: entry[0])
        self._ended = []
        counter.trajectories += len(ended)
        self.recent.extend(info for _, info in ended)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Metrics that go into the next row."""
        self._pending.update(metrics)

    def finish(self, counter: Counter) -> None:
        """Write what was added after the last row of all."""
        self.amend(counter)

    def amend(self, counter: Counter) -> None:
        """Put what was added into the row of this very step, if it was written; else it goes into the next, if any."""
        is_last = counter.env_steps >= counter.total_env_steps
        if self._pending and self._logger is not None and (is_last or self._logged_at == counter.env_steps):
            pending, self._pending = self._pending, {}
            self._take_verdict(counter.env_steps, self._logger.amend(counter.env_steps, pending))

    def _write(self, counter: Counter, samples: Samples) -> None:
        self._check_finite(self._metrics, counter)
        self._logged_at = counter.env_steps
        metrics, self._metrics = self._metrics, {}
        if self._logger is None:
            return
        valid = samples.env.valid[:-1]
        lag = (self._agent.version - 1 - samples.policy_version[:-1][valid]).double()
        steps, seconds = self._rate_from
        row: dict[str, float] = {
            "iterations": counter.iterations,
            "trajectories": counter.trajectories,
            "time/seconds": counter.seconds,
            "rate/env_steps_per_s": (counter.env_steps - steps) / max(counter.seconds - seconds, 1e-9),
            "rate/policy_lag": float(lag.mean()) if lag.numel() else 0.0,
        }
        self._rate_from = (counter.env_steps, counter.seconds)
        row |= {f"time/{phase}_share": share for phase, share in self._timer.shares().items()}
        row |= {f"time/{kind}_wait_share": share for kind, share in self._sampler.wait_shares().items()}
        row |= trajectory_statistics(self.recent, has_score=records_score(samples))
        row |= {name: float(value) for name, value in metrics.items()}
        row |= self._pending
        self._pending = {}
        self._logger.write(counter.env_steps, row)
        self._take_verdict(counter.env_steps, row)

    def _take_verdict(self, steps: int, row: dict[str, float]) -> None:
        self.verdict = self._judge(steps, row)
        self._last = (steps, row) if self.verdict is not None else None

    def _check_finite(self, metrics: Mapping[str, Any], counter: Counter) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(float(value))]
        if bad:
            module = getattr(self._agent, "module", torch.nn.Module())
            spoilt = [name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
            raise FloatingPointError(
                f"{', '.join(bad)} not finite in update {counter.iterations} (after {counter.env_steps} "
                f"environment steps); parameters not finite: {', '.join(spoilt) or 'none'}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Recent games, and when the last row was written."""
        return {
            "recent": [list(vars(info).values()) for info in self.recent],
            "logged_at": self._logged_at,
            "rate_from": list(self._rate_from),
            "pending": dict(self._pending),
            "metrics": {name: float(value) for name, value in self._metrics.items()},
            "last": self._last,
            "own": {"ended": [[iteration, list(vars(info).values())] for iteration, info in self._ended]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.recent.extend(TrajInfo(*values) for values in state["recent"])
        self._logged_at, self._pending = state["logged_at"], state["pending"]
        self._rate_from = (state["rate_from"][0], state["rate_from"][1])
        self._metrics = state["metrics"]
        if self._logger is not None and state.get("last") is not None:  # the goal may be another one now
            self._take_verdict(*state["last"])
        if state["own"] is not None:
            self._ended = [(iteration, TrajInfo(*values)) for iteration, values in state["own"]["ended"]]


def is_due(counter: Counter, last_at: int, interval_steps: int) -> bool:
    """Whether a new interval has begun since ``last_at`` environment steps, or the budget is used."""
    new_interval = counter.env_steps // interval_steps > last_at // interval_steps
    return new_interval or counter.env_steps >= counter.total_env_steps


def records_score(samples: Samples) -> bool:
    """Whether the environments say what their games' scores are."""
    info = samples.env.env_info
    return info is not None and "score" in info


def trajectory_statistics(games: Iterable[TrajInfo], prefix: str = "", *, has_score: bool) -> dict[str, float]:
    """Mean, standard deviation, median, least and most of return, length, discounted return and score; means of info.

    The score is left out where it can only be the return; nothing at all where there are no games.
    """
    games = list(games)
    if not games:
        return {}
    columns = {
        "return": [g.total_reward for g in games],
        "length": [g.length for g in games],
        "discounted_return": [g.discounted_return for g in games],
        "score": [g.score for g in games],
    }
    if not has_score and columns["score"] == columns["return"]:
        del columns["score"]
    statistics: dict[str, Callable[..., Any]] = {
        "mean": np.mean,
        "std": np.std,
        "median": np.median,
        "min": np.min,
        "max": np.max,
    }
    found = {
        f"{prefix}{name}/{kind}": float(compute(values))
        for name, values in columns.items()
        for kind, compute in statistics.items()
    }
    for name in dict.fromkeys(name for game in games for name in game.info):
        found[f"{prefix}info/{name}"] = float(np.mean([game.info[name] for game in games if name in game.info]))
    return found


class Evaluations(_Watching):
    """Evaluates at every interval and at the end; ranks share the games."""

    def __init__(
        self,
        sampler: Sampler,
        log: MetricLog,
        checkpoints: Checkpoints,
        interval_steps: int,
        ranks: Ranks,
        has_part: bool,
        is_leaving: Callable[[], bool],
        is_interrupted: Callable[[], bool],
    ) -> None:
        """``has_part``: whether there are games for this rank.

        ``is_leaving``: whether all ranks have agreed to stop; ``is_interrupted``: whether this one was told to.  The
        run that goes on makes up for the evaluation.
        """
        self._is_leaving, self._is_interrupted = is_leaving, is_interrupted
        self._sampler, self._log, self._checkpoints = sampler, log, checkpoints
        self._interval_steps, self._ranks, self._has_part = interval_steps, ranks, has_part
        self._evaluated_at = 0

    def begin(self, counter: Counter) -> None:
        """Make the evaluation in which the run was interrupted."""
        if counter.env_steps > self._evaluated_at and is_due(counter, self._evaluated_at, self._interval_steps):
            self._evaluate(counter, has_score=False)
            self._log.amend(counter)

    def after_update(self, counter: Counter, samples: Samples, metrics: Mapping[str, Any]) -> None:
        """Evaluate if it is time."""
        if is_due(counter, self._evaluated_at, self._interval_steps) and not self._is_leaving():
            self._evaluate(counter, records_score(samples))

    def finish(self, counter: Counter) -> None:
        """Evaluate at the end of the budget, if that failed when the budget's last step was made."""
        if counter.env_steps >= counter.total_env_steps > self._evaluated_at:
            self._evaluate(counter, has_score=False)

    def _evaluate(self, counter: Counter, has_score: bool) -> None:
        with self._ranks.busy():
            own = self._sampler.evaluate(self._is_interrupted) if self._has_part else []
        parts = self._ranks.gather(own)
        games = self._ranks.share(None if None in parts else [game for part in parts for game in part])
        if games is None:  # nothing of it is saved
            return
        self._evaluated_at = counter.env_steps
        self._log.add(trajectory_statistics(games, "eval/", has_score=has_score))
        self._checkpoints.after_evaluation(counter, float(np.mean([game.total_reward for game in games])))

    def state_dict(self) -> dict[str, Any]:
        """When the last evaluation was."""
        return {"evaluated_at": self._evaluated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._evaluated_at = state["evaluated_at"]


class Progress(_Watching):
    """The progress bar, with the recent mean return."""

    def __init__(self, counter: Counter, log: MetricLog) -> None:
        self._bar = ProgressBar(counter.total_env_steps, "training", initial=counter.env_steps)
        self._log = log

    def after_update(self, counter: Counter, samples: Samples, metrics: Mapping[str, Any]) -> None:
        """Move it."""
        self._bar.update(counter.env_steps, self._note)

    def _note(self) -> str:
        games = self._log.recent
        return f"return {np.mean([g.total_reward for g in games]):.1f}" if games else ""

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._bar.close()
