"""Every example runs, and teaches what it says."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Import an example as workers can import it, too."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name.removesuffix(".py"))


def mean_return(trainer, tmp_path) -> float:
    """Mean return of the last twenty games of a quiet run."""
    trainer.root, trainer.console, trainer.tensorboard = str(tmp_path), "off", False
    ended = []
    pop = trainer.sampler.pop_trajectories
    trainer.sampler.pop_trajectories = lambda: ended.append(pop()) or ended[-1]
    trainer.train()
    return float(np.mean([game.total_reward for games in ended for game in games][-20:]))


def test_every_example_is_tested_here():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "1_serial_ppo.py",
        "2_parallel.py",
        "3_custom_env_and_model.py",
        "4_recurrent_ppo.py",
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
    assert mean_return(example.make_trainer("lstm", 60_000), tmp_path) > 0.9
    assert mean_return(example.make_trainer(None, 30_000), tmp_path) < 0.9


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
