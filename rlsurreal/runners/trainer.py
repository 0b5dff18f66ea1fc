"""The training loop.

    sampler.obtain() -> algo.update() -> agent.publish() -> observers -> sampler.release()

Everything else (logs, evaluation, checkpoints, the progress bar) watches the loop as an observer; see
`rlsurreal.runners.observers`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlsurreal.runners.checkpoints import CheckpointPolicy, Checkpoints, load_latest
from rlsurreal.runners.counter import Counter
from rlsurreal.runners.interrupts import Interrupts
from rlsurreal.runners.observers import CONSOLE_COLUMNS, Evaluations, MetricLog, Observers, Progress
from rlsurreal.structs import Agent, Algorithm, Sampler, Spaces
from rlsurreal.utils import config
from rlsurreal.utils.affinity import count_cpus
from rlsurreal.utils.files import atomic_write, describe_environment, make_run_folder
from rlsurreal.utils.logger import Console, MetricLogger
from rlsurreal.utils.namedarraytuple import leaves
from rlsurreal.utils.programs import Compile
from rlsurreal.utils.seeding import derive_seed
from rlsurreal.utils.spaces import map_spaces
from rlsurreal.utils.timing import PhaseTimer

_MAX_THREADS = 8

_log = logging.getLogger("rlsurreal")


@dataclass(kw_only=True, eq=False)
class Trainer:
    """A complete experiment: what learns, from what, for how long, and what is kept of it."""

    agent: Agent
    algo: Algorithm
    sampler: Sampler
    total_env_steps: int
    seed: int = 0
    device: str = "cpu"
    num_threads: int | None = None  # of torch in this process; None: 1, or the CPUs there are, up to 8, where they help
    compile: Compile = "auto"  # gradient steps and choice of actions; "auto": where a run of this length gains
    log_interval_steps: int = 10_000
    eval_interval_steps: int | None = None  # None: no evaluation
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    name: str = "run"
    root: str = "runs"  # run folders are made in here
    tensorboard: bool = True
    console: Console = "line"  # metrics on the terminal, beside a progress bar: a "line" each, a "table" each, or "off"

    def __post_init__(self) -> None:
        for name in ("total_env_steps", "log_interval_steps", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is {self.compile!r}; choose 'auto', 'on' or 'off'")
        if self.eval_interval_steps is not None and self.eval_interval_steps < 1:
            raise ValueError(
                f"eval_interval_steps is {self.eval_interval_steps}; it must be at least 1, or None for never"
            )

    def train(self, resume: str | Path | None = None) -> Path:
        """Train until the budget is used or the run is interrupted; the run's folder.

        ``resume``: the folder of a run to continue from its latest checkpoint.  In serial mode on the CPU, with
        environments whose state can be saved, a resumed run equals an uninterrupted one bit for bit.
        """
        saved = None if resume is None else load_latest(Path(resume))
        folder = make_run_folder(self.root, self.name) if resume is None else Path(resume)
        counter = Counter(self.total_env_steps)
        resume_step = None if saved is None else saved["counter"]["env_steps"]
        with (
            MetricLogger(
                folder,
                resume_step=resume_step,
                tensorboard=self.tensorboard,
                console=self.console,
                columns=CONSOLE_COLUMNS,
            ) as logger,
            Interrupts() as interrupts,
        ):
            try:
                self._describe(folder, resumed=saved is not None)
                self._initialize()
                timer = PhaseTimer()
                observers = self._observers(folder, counter, logger, timer, saved)
                with observers:
                    self._loop(counter, observers, interrupts, timer)
                    observers.finish(counter)
            finally:
                self.sampler.close()
            if interrupts.received:
                _log.warning(
                    "stopped by %s after %d of %d environment steps; continue with train(resume=%r)",
                    interrupts.received,
                    counter.env_steps,
                    counter.total_env_steps,
                    str(folder),
                )
        self.interrupted_by = interrupts.received
        return folder

    def _loop(self, counter: Counter, observers: Observers, interrupts: Interrupts, timer: PhaseTimer) -> None:
        started = time.perf_counter() - counter.seconds
        while counter.env_steps < counter.total_env_steps and not interrupts.received:
            progress = counter.progress
            with observers.rescuing(counter), timer("sample"):
                samples = self.sampler.obtain()
            num_steps = len(samples.env.reward) - 1
            counter.env_steps += int(samples.env.valid[:num_steps].sum())
            with timer("update"):
                metrics = self.algo.update(samples, progress)
            counter.iterations += 1
            self.agent.publish(version=counter.iterations)
            counter.seconds = time.perf_counter() - started
            with observers.rescuing(counter):  # evaluation is sampling, too
                observers.after_update(counter, samples, metrics)
            self.sampler.release(samples)

    def _initialize(self) -> None:
        """Build everything; each part's random streams are derived from the one seed."""
        spaces = self.sampler.connect(seed=derive_seed(self.seed, "sampler"))
        torch.set_num_threads(
            self.num_threads or _suitable_threads(spaces, self.algo.wants_threads(self.sampler.batch.size))
        )
        self.agent.initialize(spaces, seed=derive_seed(self.seed, "model"), device=self.device)
        batch = self.sampler.batch
        num_iterations = -(-self.total_env_steps // (batch.num_steps * batch.num_envs))
        self.algo.initialize(
            self.agent,
            batch,
            seed=derive_seed(self.seed, "algo"),
            compile=self.compile,
            num_iterations=num_iterations,
        )
        self.sampler.initialize(
            self.agent, discount=self.algo.discount, compile=self.compile, num_iterations=num_iterations
        )

    def _observers(
        self, folder: Path, counter: Counter, logger: MetricLogger, timer: PhaseTimer, saved: dict[str, Any] | None
    ) -> Observers:
        """All observers, and everything continued from ``saved``."""
        log = MetricLog(logger, self.agent, self.sampler, self.log_interval_steps, timer)
        parts = {"counter": counter, "agent": self.agent, "algo": self.algo, "sampler": self.sampler, "log": log}
        checkpoints = Checkpoints(self.checkpoints, folder, parts)
        watching: list[Any] = [log, checkpoints]
        if self.eval_interval_steps is not None:
            evaluations = Evaluations(self.sampler, log, checkpoints, self.eval_interval_steps)
            parts["evaluations"] = evaluations
            watching.insert(0, evaluations)
        if saved is not None:
            exact = checkpoints.restore(saved)
            _log.info(
                "resumed after %d environment steps%s",
                counter.env_steps,
                "" if exact else "; the environments' state was not saved: they start new episodes",
            )
        if self.console != "off":
            watching.append(Progress(counter, log))
        return Observers(watching)

    def _describe(self, folder: Path, resumed: bool) -> None:
        """Write the whole configuration and where it runs."""
        path, tree = folder / "config.json", config.to_tree(self, strict=False)
        before = json.loads(path.read_text()) if resumed and path.exists() else tree
        if before != tree:  # the settings that a run was begun with stay beside those that it goes on with
            numbers = [int(old.stem.rpartition("_")[2]) for old in folder.glob("config_*.json")]
            path.rename(folder / f"config_{max(numbers, default=-1) + 1}.json")
        with atomic_write(path, "w") as file:
            json.dump(tree, file, indent=1)
        with atomic_write(folder / ("environment_resumed.json" if resumed else "environment.json"), "w") as file:
            json.dump(describe_environment(), file, indent=1)


def _suitable_threads(spaces: Spaces, algo_wants: bool) -> int:
    """Dispatch of small operations only loses by a second thread; arithmetic uses what is there."""
    has_images = any(len(leaf.shape or ()) == 3 for leaf in leaves(map_spaces(lambda leaf: leaf, spaces.observation)))
    return min(count_cpus(), _MAX_THREADS) if has_images or algo_wants else 1
