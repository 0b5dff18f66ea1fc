"""Every example runs, and teaches what it says."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rlsurreal.utils import config

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Import an example as workers can import it, too."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name.removesuffix(".py"))


def mean_return(trainer, tmp_path, num_games: int = 20) -> float:
    """Mean return of the last games of a quiet run."""
    trainer.root, trainer.console, trainer.tensorboard = str(tmp_path), "off", False
    trainer.num_threads = 1  # whatever else is running
    ended = []
    pop = trainer.sampler.pop_trajectories
    trainer.sampler.pop_trajectories = lambda: ended.append(pop()) or ended[-1]
    trainer.train()
    return float(np.mean([game.total_reward for games in ended for game in games][-num_games:]))


def test_every_example_is_tested_here():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "1_serial_ppo.py",
        "2_parallel.py",
        "3_custom_env_and_model.py",
        "4_recurrent_ppo.py",
        "5_dqn_pong.py",
        "6_sac.py",
        "7_r2d2.py",
        "8_trained_agent.py",
        "9_own_algorithm.py",
    ]


def test_1_serial_ppo(tmp_path):
    assert mean_return(load("1_serial_ppo.py").make_trainer(30_000), tmp_path) > 100


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["workers", "server", "alternating", "overlapped"])
def test_2_parallel(kind, tmp_path):
    assert mean_return(load("2_parallel.py").make_trainer(kind, 20_000), tmp_path) > 50


@pytest.mark.processes
def test_3_custom_env_and_model(tmp_path):
    example = load("3_custom_env_and_model.py")
    assert mean_return(example.make_trainer(60_000), tmp_path) > -10  # standing still gives about -28


def test_4_recurrent_ppo(tmp_path):
    example = load("4_recurrent_ppo.py")
    assert mean_return(example.make_trainer("lstm", 60_000), tmp_path, 200) > 0.9
    assert mean_return(example.make_trainer(None, 30_000), tmp_path, 200) < 0.65  # chance is 0.5


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["dqn", "rainbow"])
def test_5_dqn_pong(kind, tmp_path):
    trainer = load("5_dqn_pong.py").make_trainer(kind, 800, min_steps=500)
    trainer.algo.replay = load("5_dqn_pong.py").make_replay(kind, 2_000)
    mean_return(trainer, tmp_path)
    assert trainer.algo.limiter.num_items >= 0.95 * 300 * 8


def test_6_sac(tmp_path):
    small = {"algo.batch_size": 64, "algo.limiter.ratio": 64.0}
    trainer = config.override(load("6_sac.py").make_trainer(total_env_steps=4_000), small)
    assert mean_return(trainer, tmp_path, 6) > -800  # at random about -1200


def test_7_r2d2(tmp_path):
    def trained(kind: str, steps: int) -> float:
        sooner = {"sampler.env.kwargs": {"delay": 3}}
        return mean_return(config.override(example.make_trainer(kind, steps), sooner), tmp_path, 200)

    example = load("7_r2d2.py")
    assert trained("r2d2", 10_000) > 0.9
    assert trained("dqn", 6_000) < 0.65  # chance is 0.5


def test_8_trained_agent(tmp_path):
    example = load("8_trained_agent.py")
    agent = example.load_agent(example.train(20_000, str(tmp_path)))
    assert np.mean([game.score for game in agent.evaluate(num_episodes=5)]) > 100
    assert example.play_one_episode(agent) > 100


def test_9_own_algorithm(tmp_path):
    assert mean_return(load("9_own_algorithm.py").make_trainer(30_000), tmp_path) > 100


@pytest.mark.processes
@pytest.mark.parametrize("name", ["2_parallel.py", "3_custom_env_and_model.py"])
def test_runs_as_a_script(name, tmp_path):
    """Classes of the main script travel to workers, and the script is not run again there."""
    code = (EXAMPLES / name).read_text().replace("100_000", "4_000")
    script = tmp_path / name
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").is_dir()
