"""An experiment while it is trained: the loop of one rank, and what it is built from.

    sampler.obtain() -> algo.update() -> agent.publish() -> observers -> sampler.release()

Everything else (logs, evaluation, checkpoints, the progress bar) watches the loop as an observer; see
`rlsurreal.runners.observers`.  With several ranks each has this loop over environments of its own; they meet to count
steps, and in the gradients.  Called by `rlsurreal.runners.trainer`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlsurreal.distributed.group import local_place
from rlsurreal.distributed.ranks import Ranks
from rlsurreal.runners.agreement import check_parameters, check_settings
from rlsurreal.runners.checkpoints import Checkpoints, find_latest, load_latest
from rlsurreal.runners.counter import Counter
from rlsurreal.runners.division import divide, plays
from rlsurreal.runners.interrupts import Interrupts
from rlsurreal.runners.observers import CONSOLE_COLUMNS, Evaluations, MetricLog, Observers, Progress
from rlsurreal.runners.verdicts import OnRow, make_judge
from rlsurreal.structs import Samples, Spaces
from rlsurreal.utils import config
from rlsurreal.utils.affinity import count_cpus, pin, split_cpus, usable_cpus
from rlsurreal.utils.files import (
    RUN_LOCK,
    alone_in,
    atomic_write,
    describe_environment,
    latest_checkpoint,
    make_run_folder,
)
from rlsurreal.utils.logger import MetricLogger
from rlsurreal.utils.namedarraytuple import leaves
from rlsurreal.utils.seeding import derive_seed
from rlsurreal.utils.spaces import map_spaces
from rlsurreal.utils.timing import PhaseTimer

if TYPE_CHECKING:
    from rlsurreal.runners.trainer import Trainer

_MAX_THREADS = 8

_log = logging.getLogger("rlsurreal")


class Run:
    """One rank's part of an experiment.

    Attributes:
        folder: of the run.
        interrupted_by: the signal that ended it before its budget was used, on any rank, or None.
    """

    def __init__(self, trainer: Trainer, ranks: Ranks, on_row: OnRow | None = None) -> None:
        """Raises ValueError if the experiment cannot be divided among so many ranks."""
        self._trainer, self._ranks, self._agent = trainer, ranks, trainer.agent
        self._algo, self._sampler = divide(trainer.algo, trainer.sampler, ranks, trainer.scaling)
        self._counter, self._timer = Counter(trainer.total_env_steps), PhaseTimer()
        self.interrupted_by: str | None = None
        self._is_enough = False  # before the budget is used
        self._judge = make_judge(trainer, on_row)

    def train(self, resume: str | Path | None, folder: str | Path | None) -> None:
        """See `rlsurreal.runners.Trainer.train`."""
        if self._ranks.count > 1:
            check_settings(self._trainer, self._ranks)
            _share_cpus(self._ranks)
        self.folder = Path(self._ranks.share(self._choose_folder(resume, folder) if self._ranks.is_first else ""))
        with contextlib.ExitStack() as stack:
            if self._ranks.is_first:  # before anything is read: who has it may still write
                stack.enter_context(alone_in(self.folder, RUN_LOCK, "run"))
            saved = self._load()
            if saved is not None and resume is None:
                self._check_experiment()
            stack.callback(torch.set_num_threads, torch.get_num_threads())  # the caller's are its own
            logger = stack.enter_context(self._logger(saved)) if self._ranks.is_first else None
            interrupts = stack.enter_context(Interrupts())
            stack.callback(self._sampler.close)
            stack.callback(self._algo.close)
            if logger is not None and not self._is_resumed:
                self._describe()
            self._initialize()
            with self._observers(logger, saved, interrupts) as observers:
                saved = None  # its file is mapped into memory as long
                if logger is not None and self._is_resumed:  # what could not be continued is as it was
                    self._describe()
                observers.begin(self._counter)
                self._is_enough = bool(self._ranks.share(self._log.verdict is not None))
                self._loop(observers, interrupts)
                observers.finish(self._counter)
            self._sampler.close()
            if logger is not None:
                self._say_how_it_ended(logger)

    def _loop(self, observers: Observers, interrupts: Interrupts) -> None:
        counter, timer = self._counter, self._timer
        started = time.perf_counter() - counter.seconds
        while counter.env_steps < counter.total_env_steps and not (self.interrupted_by or self._is_enough):
            progress = counter.progress
            with observers.rescuing(counter):
                with timer("sample"):
                    samples = self._sampler.obtain()
                with timer("meet"):
                    self._meet(samples, interrupts, time.perf_counter() - started)
            with timer("update"):
                metrics = self._algo.update(samples, progress)
            counter.iterations += 1
            self._agent.publish(version=counter.iterations)
            counter.seconds = time.perf_counter() - started
            with observers.rescuing(counter):  # evaluation is sampling, too
                observers.after_update(counter, samples, metrics)
            self._sampler.release(samples)
            if self._ranks.count == 1:
                self.interrupted_by, self._is_enough = interrupts.received, self._log.verdict is not None
        if counter.env_steps >= counter.total_env_steps:
            self.interrupted_by = None  # there was nothing left to interrupt

    def _meet(self, samples: Samples, interrupts: Interrupts, seconds: float) -> None:
        """Agree on what all ranks do alike: count the steps of all, keep the first one's time, stop if one must."""
        own = [
            int(samples.env.valid[:-1].sum()),
            seconds if self._ranks.is_first else 0.0,
            interrupts.received in ("SIGTERM", "SIGHUP"),
            interrupts.received == "SIGINT",
            self._log.verdict is not None,
        ]
        steps, common, terms, ints, enough = self._ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        self._counter.env_steps += int(steps)
        self._counter.common_seconds = common
        if self._ranks.count > 1:  # alone it leaves sooner: after this iteration
            self.interrupted_by = "SIGTERM" if terms else "SIGINT" if ints else None
            self._is_enough = bool(enough)

    def _say_how_it_ended(self, logger: MetricLogger) -> None:
        counts = self._counter.env_steps, self._counter.total_env_steps
        if self.interrupted_by:
            kept = self._trainer.checkpoints.keep != "none"
            further = f"continue with train(resume={str(self.folder)!r})" if kept else "nothing is kept of it"
            logger.text.warning(
                "stopped by %s after %d of %d environment steps; %s", self.interrupted_by, *counts, further
            )
        elif self._is_enough:
            logger.text.info("ended after %d of %d environment steps: %s", *counts, self._log.verdict)

    # ------------------------------------------------------------ before the loop

    def _choose_folder(self, resume: str | Path | None, folder: str | Path | None) -> str:
        if resume is not None:
            find_latest(Path(resume))  # or that is an error, and no folder is made
            return str(resume)
        return str(folder or make_run_folder(self._trainer.root, self._trainer.name))

    def _load(self) -> dict[str, Any] | None:
        """On the first rank the checkpoint to go on from, if there is one."""
        saved = None
        if self._ranks.is_first:
            with self._ranks.busy():
                is_there = latest_checkpoint(self.folder / "checkpoints") is not None
                saved = load_latest(self.folder) if is_there else None
            if saved is not None:
                self._check_budget(saved["counter"])
        self._is_resumed = bool(self._ranks.share(saved is not None))
        return saved

    def _check_experiment(self) -> None:
        """ValueError where ``folder`` has another experiment's run."""
        path = self.folder / "config.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        for name, change in _changes(before, config.to_tree(self._trainer, strict=False)) if before else ():
            if name == "seed" or name.startswith(("sampler.env.", "agent.model.")):
                raise ValueError(
                    f"{self.folder} has a run with {name}={change[0]}, and this one has {change[1]}: give it another "
                    f"folder, or go on with that run by resume={str(self.folder)!r}"
                )

    def _check_budget(self, counts: dict[str, int]) -> None:
        """ValueError where a run that goes on was given fewer steps than it has made."""
        budget, before, done = self._counter.total_env_steps, counts["total_env_steps"], counts["env_steps"]
        if budget <= done and budget < before:
            raise ValueError(
                f"total_env_steps is {budget}, and the run in {self.folder} has made {done} steps; give it more"
            )

    def _logger(self, saved: dict[str, Any] | None) -> MetricLogger:
        is_begun = (self.folder / "progress.csv").exists()  # but nothing was saved: it begins again
        return MetricLogger(
            self.folder,
            resume_step=saved["counter"]["env_steps"] if saved is not None else -1 if is_begun else None,
            tensorboard=self._trainer.tensorboard,
            console=self._trainer.console,
            columns={**CONSOLE_COLUMNS, **getattr(self._algo, "console_columns", {})},
        )

    def _initialize(self) -> None:
        """Build everything; each part's random streams are derived from the one seed."""
        trainer, sampler, algo, ranks = self._trainer, self._sampler, self._algo, self._ranks
        spaces = sampler.connect(seed=derive_seed(trainer.seed, "sampler"))
        wanted = algo.wants_threads(sampler.batch.size)
        torch.set_num_threads(trainer.num_threads or _suitable_threads(spaces, wanted, ranks.count))
        self._agent.initialize(spaces, seed=derive_seed(trainer.seed, "model"), device=self._device)
        steps_per_iteration = sampler.batch.num_steps * (sampler.batch.total_envs or sampler.batch.num_envs)
        options: Any = {
            "compile": trainer.compile,
            "num_iterations": -(-trainer.total_env_steps // steps_per_iteration),
        }
        if ranks.count > 1:
            check_parameters(self._agent, ranks)
        algo.initialize(self._agent, sampler.batch, seed=derive_seed(trainer.seed, "algo"), ranks=ranks, **options)
        sampler.initialize(self._agent, discount=algo.discount, **options)

    @property
    def _device(self) -> str:
        """With several ranks on a machine each has a GPU of its own, which `rlsurreal.distributed.group` has set."""
        device = self._trainer.device
        if self._ranks.count == 1 or not device.startswith("cuda"):
            return device
        if device != "cuda":
            raise ValueError(f"device is {device!r}; with several ranks each has a GPU of its own: make it 'cuda'")
        return f"cuda:{torch.cuda.current_device()}"

    def _is_leaving(self, interrupts: Interrupts) -> bool:
        """Whether this is the last iteration, on all ranks alike."""
        return (self.interrupted_by if self._ranks.count > 1 else interrupts.received) is not None

    def _observers(
        self, logger: MetricLogger | None, saved: dict[str, Any] | None, interrupts: Interrupts
    ) -> Observers:
        """All observers, and everything continued from ``saved``."""
        trainer, counter, sampler, ranks = self._trainer, self._counter, self._sampler, self._ranks
        self._log = log = MetricLog(
            logger, self._agent, self._algo, sampler, trainer.log_interval_steps, self._timer, ranks, self._judge
        )
        parts = {"counter": counter, "agent": self._agent, "algo": self._algo, "sampler": sampler, "log": log}
        checkpoints = Checkpoints(trainer.checkpoints, self.folder, parts, ranks)
        watching: list[Any] = [log, checkpoints]
        if trainer.eval_interval_steps is not None:
            has_part = plays(trainer.sampler.evaluation.num_envs, ranks)
            evaluations = Evaluations(
                sampler,
                log,
                checkpoints,
                trainer.eval_interval_steps,
                ranks,
                has_part,
                is_leaving=lambda: self._is_leaving(interrupts),
                is_interrupted=lambda: interrupts.received is not None,
            )
            parts["evaluations"] = evaluations
            watching.insert(0, evaluations)
        if self._is_resumed:
            with ranks.busy():
                exact = checkpoints.restore(saved)
            _log.info(
                "resumed after %d environment steps%s",
                counter.env_steps,
                "" if exact else "; the environments' state was not saved: they start new episodes",
            )
        if trainer.console != "off" and ranks.is_first:
            watching.append(Progress(counter, log))
        return Observers(watching)

    def _describe(self) -> None:
        """Write the whole configuration and where it runs; warn of what could not be found again."""
        path, tree = self.folder / "config.json", config.to_tree(self._trainer, strict=False)
        try:
            config.to_tree(self._trainer)
        except ValueError as error:
            _log.warning(
                "--resume, evaluate.py and load_agent(run) will not find all of this experiment again: %s.  Or its "
                "script goes on with it: train(resume=run), load_agent(run, experiment=...)",
                error,
            )
        before = json.loads(path.read_text()) if self._is_resumed and path.exists() else tree
        if before != tree:  # the settings that a run was begun with stay beside those that it goes on with
            changes = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in _changes(before, tree))
            _log.info("goes on with other settings: %s", changes or "see config.json")
            endings = [old.stem.rpartition("_")[2] for old in self.folder.glob("config_*.json")]
            number = max((int(ending) for ending in endings if ending.isdecimal()), default=-1) + 1
            with atomic_write(self.folder / f"config_{number}.json", "w") as file:
                file.write(path.read_text())
        with atomic_write(path, "w") as file:
            json.dump(tree, file, indent=1)
        name = "environment_resumed.json" if self._is_resumed else "environment.json"
        with atomic_write(self.folder / name, "w") as file:
            json.dump({**describe_environment(), "ranks": self._ranks.count}, file, indent=1)


def _changes(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What differs between two trees of settings: dotted names, and both values.

    Not fields that only one version of this library knows, nor what has no name by which it would be found again.
    """
    if any(isinstance(value, dict) and "repr" in value for value in (before, now)):
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if key == "fields":
                for name in before[key].keys() & now.get(key, {}).keys():
                    yield from _changes(before[key][name], now[key][name], f"{path}.{name}".lstrip("."))
            else:
                yield from _changes(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif before != now:
        yield path, (before, now)


def _share_cpus(ranks: Ranks) -> None:
    """Ranks of one machine take a part of its CPUs each, for threads and workers, unless each has its own already."""
    index, count = local_place()
    host, cpus = socket.gethostname(), usable_cpus()
    everywhere = ranks.share(ranks.gather((host, cpus)))
    have_the_same = all(own == cpus for place, own in everywhere if place == host)
    if have_the_same and 1 < count <= len(cpus) <= count_cpus():
        pin(split_cpus(cpus, count)[index])


def _suitable_threads(spaces: Spaces, algo_wants: bool, num_ranks: int) -> int:
    """Dispatch of small operations only loses by a second thread; arithmetic uses all that it may."""
    has_images = any(len(leaf.shape or ()) == 3 for leaf in leaves(map_spaces(lambda leaf: leaf, spaces.observation)))
    allowed = torch.get_num_threads() if num_ranks == 1 else _MAX_THREADS  # torchrun allows a rank one, unasked
    return min(count_cpus(), allowed, _MAX_THREADS) if has_images or algo_wants else 1
