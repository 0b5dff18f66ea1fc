"""A complete experiment: its settings, and the way to train it in this process, or in several ranks."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlsurreal.distributed import group
from rlsurreal.distributed.start import start_ranks
from rlsurreal.runners.checkpoints import CheckpointPolicy
from rlsurreal.runners.division import Scaling
from rlsurreal.runners.run import Run
from rlsurreal.runners.verdicts import OnRow
from rlsurreal.structs import Agent, Algorithm, Sampler
from rlsurreal.utils.kinds import check_kinds
from rlsurreal.utils.logger import Console
from rlsurreal.utils.programs import Compile


@dataclass(kw_only=True, eq=False)
class Trainer:
    """What learns, from what, for how long, and what is kept of it."""

    agent: Agent
    algo: Algorithm
    sampler: Sampler
    total_env_steps: int
    stop_at_return: float | None = None  # a mean return that ends the run: of an evaluation, else of the last 100 games
    seed: int = 0
    device: str = "cpu"  # "cuda" with several ranks: each has a GPU of its own
    ranks: int = 1  # learners to start on this machine, with one gradient; torchrun starts them on several machines
    scaling: Scaling = "strong"  # ranks divide this experiment; "weak": each has as many environments, as large batches
    rank_timeout_s: float = 300.0  # a rank that keeps the others waiting for so long ends the run
    num_threads: int | None = None  # of torch in this process; None: 1, or, where more help, those allowed, up to 8
    compile: Compile = "auto"  # gradient steps and choice of actions; "auto": where a run of this length gains
    log_interval_steps: int = 10_000
    eval_interval_steps: int | None = None  # None: no evaluation
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    name: str = "run"
    root: str = "runs"  # run folders are made in here
    tensorboard: bool = True
    console: Console = "line"  # metrics on the terminal, beside a progress bar: a "line" each, a "table" each, or "off"

    def __post_init__(self) -> None:
        self.name = re.sub("[/:]", "_", self.name)  # it may have the id of an environment: dm_control/cheetah-run-v0
        for name in ("total_env_steps", "log_interval_steps", "num_threads", "ranks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is {self.compile!r}; choose 'auto', 'on' or 'off'")
        if self.scaling not in ("strong", "weak"):
            raise ValueError(f"scaling is {self.scaling!r}; choose 'strong' or 'weak'")
        if self.console not in ("line", "table", "off"):
            raise ValueError(f"console is {self.console!r}; choose 'line', 'table' or 'off'")
        if self.stop_at_return is not None and math.isnan(self.stop_at_return):
            raise ValueError("stop_at_return is nan; give a number, or None for a run that uses its whole budget")
        if not isinstance(self.seed, numbers.Integral) or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, at least 0")
        if not self.rank_timeout_s > 0:
            raise ValueError(f"rank_timeout_s is {self.rank_timeout_s}; it must be positive")
        if self.eval_interval_steps is not None and self.eval_interval_steps < 1:
            raise ValueError(
                f"eval_interval_steps is {self.eval_interval_steps}; it must be at least 1, or None for never"
            )

    def check(self) -> None:
        """Raises ValueError where training would fail at once: there is no such device, or see `check_parts`."""
        self.check_parts()
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, and torch finds no GPU here; use 'cpu'")
        known = ["cpu", "cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if self.device not in known:
            raise ValueError(f"device is {self.device!r}; choose one of {', '.join(known)}")

    def check_parts(self) -> None:
        """Raises ValueError where a part is of the wrong kind, or environments cannot be found, on any machine."""
        sampler: Any = self.sampler
        evaluation = getattr(sampler, "evaluation", None)
        envs = {"env": getattr(sampler, "env", None), "evaluation.env": getattr(evaluation, "env", None)}
        for name, env in envs.items():
            if isinstance(env, str) or (isinstance(env, type) and not hasattr(env, "make")):
                factory = env.__qualname__ if isinstance(env, type) else repr(env)
                raise ValueError(f"sampler.{name} is {factory}; write GymnasiumEnv(factory={factory})")
        check_kinds(self)
        for name, env in envs.items():
            try:
                if env is not None:
                    env.preload_modules()
            except Exception as error:
                raise ValueError(f"sampler.{name} cannot be found: {error}") from error

    def train(
        self, resume: str | Path | None = None, *, folder: str | Path | None = None, on_row: OnRow | None = None
    ) -> Path:
        """Train until the budget is used or the run is interrupted; the run's folder.

        Args:
            resume: the folder of a run to continue from its latest checkpoint.  In serial mode on the CPU, with
                environments whose state can be saved, a resumed run equals an uninterrupted one bit for bit.
            folder: of this run, which is begun there or, if it has a checkpoint, continued: so the same call goes on
                after whatever has happened.  None: a new folder under ``root``.
            on_row: called with the number of environment steps and the metrics, by name, at every log interval, on the
                first rank; where it returns True, the run ends as if its budget were used.

        Raises:
            ValueError: see `check`; or there is nothing to resume, or settings cannot be divided among the ranks.
            ChildError: a worker, or one of the ranks that this process has started, has failed.
            RankError: another rank has failed.
        """
        if resume is not None and folder is not None:
            raise ValueError(
                f"resume is {str(resume)!r} and folder {str(folder)!r}; folder alone goes on with the run that is there"
            )
        self.check()
        if self.ranks > 1 and not group.in_group():
            self.interrupted_by, path = start_ranks(self.ranks, _train_as_rank, self, resume, folder, on_row)
            return path
        with group.join(self.rank_timeout_s, cuda=self.device.startswith("cuda")) as ranks:
            if self.ranks not in (1, ranks.count):
                raise ValueError(f"ranks is {self.ranks}, and {ranks.count} were started from outside; leave it out")
            run = Run(self, ranks, on_row)
            run.train(resume, folder)
        self.interrupted_by = run.interrupted_by
        return run.folder


def _train_as_rank(
    trainer: Trainer, resume: str | Path | None, folder: str | Path | None, on_row: OnRow | None
) -> tuple[str | None, Path]:
    path = trainer.train(resume, folder=folder, on_row=on_row)
    return trainer.interrupted_by, path
