"""What `python -m benchmarks learning` trains: tasks, their experiments, and the settings of peers.

As a script, `python -m benchmarks.learning_tasks TASK SEED` trains once and prints the result.
"""

from __future__ import annotations

import bisect
import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rlsurreal
from benchmarks.learning_replayed import OFF_POLICY
from benchmarks.learning_task import LearningTask, serially
from rlsurreal import recipes
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import RecallEnv
from rlsurreal.utils import config
from rlsurreal.utils.files import cache_folder, list_checkpoints
from rlsurreal.utils.schedules import Linear

_NUM_POINTS = 100  # of a curve


def train(name: str, seed: int) -> dict[str, Any]:
    """Train once, in this process; the result as plain data.  What another process has begun goes on."""
    task = TASKS[name]
    trainer = task.make(seed)
    quiet = {
        "console": "off",
        "tensorboard": False,
        "eval_interval_steps": None,
        "checkpoints": CheckpointPolicy(best=False),
        "num_threads": 1,  # several run side by side
    }
    if hasattr(trainer.algo, "save_replay"):
        quiet["algo.save_replay"] = True
    trainer = config.override(trainer, quiet)
    folder = cache_folder("learning") / f"{name}-{seed}-{_digest(trainer)}"
    games = RecordedGames(trainer, folder)
    trainer.train(folder=folder)
    if trainer.interrupted_by:
        raise SystemExit(f"{trainer.interrupted_by}: it goes on from {folder}")
    final = games.mean_of_last(task.num_games)
    with open(folder / "progress.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    shutil.rmtree(folder)
    return {
        "task": name,
        "seed": seed,
        "version": getattr(rlsurreal, "__version__", ""),
        "final": final - games.mean_of_first(100) if task.gain else final,
        "first_100": games.mean_of_first(100),
        "last_100": final,
        "seconds": float(last["time/seconds"]),
        "curve": games.curve(trainer.total_env_steps, task.num_games),
    }


def _digest(trainer: Trainer) -> str:
    """Of its settings: with others it is another run."""
    settings = json.dumps(config.to_tree(trainer, strict=False), default=repr, sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


class RecordedGames:
    """The scores of all training games, in the order in which they ended, and how many steps there were by then.

    They are kept in the run's folder, too, for a process that goes on from its checkpoint.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.scores: list[float] = []
        self.steps: list[int] = []
        self._env_steps = max((step for step, _ in list_checkpoints(folder / "checkpoints")), default=0)
        self._file = folder / "games.csv"
        self._go_on()
        obtain, pop = trainer.sampler.obtain, trainer.sampler.pop_trajectories

        def obtain_and_count() -> Any:
            samples = obtain()
            self._env_steps += int(samples.env.valid[:-1].sum())
            return samples

        def pop_and_record() -> Any:
            ended = pop()
            self._record([(self._env_steps, game.score) for game in ended])
            return ended

        trainer.sampler.obtain = obtain_and_count  # type: ignore[method-assign]
        trainer.sampler.pop_trajectories = pop_and_record  # type: ignore[method-assign]

    def _go_on(self) -> None:
        """Leave out what was played after the checkpoint."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text("")
        games = [(int(step), float(score)) for step, score in (line.split(",") for line in lines)]
        self._record([(step, score) for step, score in games if step <= self._env_steps])

    def _record(self, games: list[tuple[int, float]]) -> None:
        if not games:  # as in most iterations
            return
        self.steps += [step for step, _ in games]
        self.scores += [score for _, score in games]
        with open(self._file, "a") as file:
            file.writelines(f"{step},{score!r}\n" for step, score in games)

    def curve(self, total_env_steps: int, num_games: int) -> list[tuple[int, float]]:
        """Steps and the mean score of the last ``num_games`` by then: what the result is the mean of, and a peer's."""
        points = [total_env_steps * (i + 1) // _NUM_POINTS for i in range(_NUM_POINTS)]
        counts = [bisect.bisect_right(self.steps, point) for point in points]
        means = [np.mean(self.scores[max(0, count - num_games) : count]) for count in counts if count]
        return [(point, round(float(mean), 2)) for point, mean in zip(points[-len(means) :], means)]

    def mean_of_last(self, count: int) -> float:
        """Mean score of the last games."""
        last = self.scores[-count:]
        return sum(last) / max(1, len(last))

    def mean_of_first(self, count: int) -> float:
        """Mean score of the first games."""
        first = self.scores[:count]
        return sum(first) / max(1, len(first))


# The same for us and for the peer; what they mean is in `halfcheetah` here and in the peer's script.
HALFCHEETAH: dict[str, Any] = {
    "env_id": "HalfCheetah-v5",
    "total_env_steps": 1_000_000,
    "num_envs": 16,
    "num_steps": 128,
    "minibatch_size": 64,
    "num_epochs": 10,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "learning_rate": 3e-4,
    "clip_range": 0.2,
    "init_std": 0.5,
    "max_grad_norm": 0.5,
    "value_loss_coeff": 0.5,
    "hidden_sizes": [64, 64],
    "entropy_coeff": 0.0,
    "normalize": True,  # observations and rewards
    "decay": True,  # the learning rate, to zero
    "vector": "dummy",
    "num_threads": 1,
    "device": "cpu",
}


def halfcheetah(seed: int) -> Trainer:
    """The recipe, on the budget of the published comparisons."""
    same = {
        "total_env_steps": HALFCHEETAH["total_env_steps"],
        "algo.value_loss_coeff": 2 * HALFCHEETAH["value_loss_coeff"],  # the peer's loss lacks our factor of one half
        "sampler.max_decorrelation_steps": 0,  # its environments all start together
    }
    return config.override(serially(recipes.ppo_mujoco(seed=seed)), same)


def cartpole(seed: int) -> Trainer:
    """The recipe."""
    return recipes.ppo_cartpole(seed=seed)


def pong(seed: int) -> Trainer:
    """The recipe, 300,000 agent steps, and hastier for it: a larger rate, clip range, and more updates."""
    hasty = {
        "total_env_steps": 300_000,
        "algo.learning_rate": 5e-4,
        "algo.clip_range": 0.2,
        "algo.num_minibatches": 8,
        "sampler.batch.num_steps": 64,
    }
    return config.override(serially(recipes.ppo_atari(seed=seed)), hasty)


def recall(recurrent: str | None) -> Callable[[int], Trainer]:
    """The memory task, with or without memory; otherwise the same."""

    def make(seed: int) -> Trainer:
        kwargs = {"hidden_sizes": (32,), "recurrent": recurrent, "recurrent_size": 32}
        return Trainer(
            agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs)),
            algo=PPO(learning_rate=Linear(3e-3, 0.0), num_epochs=4, num_minibatches=4, entropy_coeff=0.01),
            sampler=SerialSampler(
                env=GymnasiumEnv(factory=RecallEnv, kwargs={"num_cues": 4, "delay": 10}), batch=BatchSpec(64, 16)
            ),
            total_env_steps=150_000,
            seed=seed,
        )

    return make


TASKS = OFF_POLICY | {
    "cartpole": LearningTask(cartpole, num_seeds=3, target=475),
    "recall-lstm": LearningTask(recall("lstm"), num_seeds=3, target=1.0),
    "recall-none": LearningTask(recall(None), num_seeds=3, target=0.25),
    "halfcheetah": LearningTask(
        halfcheetah, num_seeds=16, target=4000, peer="sb3", num_peer_seeds=16, peer_settings=HALFCHEETAH
    ),
    "pong": LearningTask(pong, num_seeds=2, target=1.5, metric="last 100 games less the first 100", gain=True),
}

if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], int(sys.argv[2]))))
