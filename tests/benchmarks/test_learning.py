"""The queue of learning runs goes on where it was; its curves are of the games that the result is of."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import learning, learning_tasks
from benchmarks.learning_task import LearningTask
from benchmarks.learning_tasks import RecordedGames
from rlsurreal.recipes import debug, dqn_cartpole
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.utils import config


def test_a_curve_is_the_mean_of_the_last_games_by_then(tmp_path):
    trainer = config.override(debug(), {"console": "off", "tensorboard": False, "total_env_steps": 2_000})
    games = RecordedGames(trainer, tmp_path)
    trainer.train(folder=tmp_path)
    curve = games.curve(2_000, 3)
    assert len(games.scores) == len(games.steps) > 20 and curve[-1][0] == 2_000
    for step, mean in curve:
        by_then = [score for score, end in zip(games.scores, games.steps) if end <= step]
        assert mean == pytest.approx(sum(by_then[-3:]) / len(by_then[-3:]), abs=0.006)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """A game that ended after the checkpoint, and will be played again, does not count."""

    def make(seed: int) -> Trainer:
        return config.override(dqn_cartpole(seed=seed), {"total_env_steps": 3_000, "algo.limiter.min_steps": 500})

    monkeypatch.setitem(learning_tasks.TASKS, "task", LearningTask(make, num_seeds=1, target=1.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = learning_tasks.train("task", 0)
    assert whole["seconds"] > 0 and not list((tmp_path / "rlsurreal" / "learning").iterdir())
    pop = SerialSampler.pop_trajectories

    def pop_and_stop(self: SerialSampler) -> Any:
        if self._train.actor.num_slots_begun == 20:
            signal.raise_signal(signal.SIGTERM)
        return pop(self)

    with monkeypatch.context() as patch:
        patch.setattr(SerialSampler, "pop_trajectories", pop_and_stop)
        with pytest.raises(SystemExit, match=r"SIGTERM: it goes on from .*task-0-"):
            learning_tasks.train("task", 0)
    (folder,) = (tmp_path / "rlsurreal" / "learning").iterdir()
    with open(folder / "games.csv", "a") as file:
        file.write("2999,500.0\n")
    again = learning_tasks.train("task", 0)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def queue(results: Path) -> Namespace:
    return Namespace(tasks="recall-dqn,cartpole", results=results, seeds=2, peers="", install_peers=False, at_once=2)


@pytest.mark.processes
def test_a_queue_goes_on_where_it_was_and_a_failure_stops_no_other(tmp_path, monkeypatch):
    started, broken = [], {"recall-dqn-rlsurreal-1": "import sys; sys.exit(3)", "cartpole-rlsurreal-0": "pass"}

    def start(job: Any) -> subprocess.Popen[str]:
        started.append(job.name)
        result = {"final": job.seed + 0.5, "seconds": 1.0, "curve": [[10, 0.0], [20, 0.5]]}
        program = broken.get(job.name, f"print('on the way'); print({json.dumps(result)!r})")
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(learning, "start", start)
    with pytest.raises(SystemExit, match="2 runs failed: .*recall-dqn-rlsurreal-1"):
        learning.run(queue(tmp_path))
    assert len(started) == 4 and len(list((tmp_path / "runs").iterdir())) == 2
    started.clear()
    failures = sorted(broken)
    broken.clear()
    rows = learning.run(queue(tmp_path))
    assert sorted(started) == failures and rows
    assert {path.name for path in tmp_path.glob("*.png")} == {"recall-dqn.png", "cartpole.png"}


def test_tasks_that_are_compared_share_a_picture(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in (
        "minatar-breakout-dqn-rlsurreal-0",
        "minatar-breakout-c51-rlsurreal-0",
        "sac-sb3-0",
        "sac-rlsurreal-0",
    ):
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps({"curve": [[10, 0.0], [20, 0.5]]}))
    assert learning.picture_of("minatar-breakout-c51") == "minatar-breakout"
    assert list(learning.curves_of("minatar-breakout", tmp_path)) == ["DQN", "C51"]
    assert list(learning.curves_of("sac", tmp_path)) == ["rlsurreal", "sb3"]


@pytest.mark.processes
def test_no_run_goes_on_without_its_queue(tmp_path, monkeypatch):
    children = []

    def start(job: Any) -> subprocess.Popen[str]:
        if children:
            raise KeyboardInterrupt  # or whatever ends the queue
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return children[0]

    monkeypatch.setattr(learning, "start", start)
    with pytest.raises(KeyboardInterrupt):
        learning.run(queue(tmp_path))
    assert children[0].poll() is not None
