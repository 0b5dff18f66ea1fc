"""The commands of launchers/, run as a user runs them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlsurreal.envs import EnvError
from rlsurreal.trained import TrainedAgent

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*words: object, status: int = 0, cwd: Path | None = None) -> str:
    """Output of a launcher, which must end with ``status``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launchers" / str(words[0])), *map(str, words[1:])],
        text=True,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=100,
        cwd=cwd,
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def call(capsys):
    """The same in this process, which has imported PyTorch already."""

    def launch(*words: object, status: int = 0) -> str:
        launchers = str(ROOT / "launchers")
        sys.path.insert(0, launchers)
        try:
            main = importlib.import_module(str(words[0]).removesuffix(".py")).main
            found = main([str(word) for word in words[1:]])
        except SystemExit as parser_error:
            found = parser_error.code
        finally:
            sys.path.remove(launchers)
        said = capsys.readouterr()
        assert found == status, f"{found}\n{said.out}\n{said.err}"
        return said.out + said.err

    return launch


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    output = run("train.py", "debug", f"root={root}", "seed=3")
    return root / "debug_0", output


def test_list_names_every_recipe_with_its_arguments(call):
    output = call("train.py", "--list")
    for name in ("ppo_mujoco", "ppo_atari", "ppo_cartpole", "a2c_mujoco", "debug"):
        assert name in output
    assert "env_id=HalfCheetah-v5" in output


@pytest.mark.parametrize("launcher", ["train.py", "evaluate.py", "plot.py"])
def test_help(launcher):
    assert "usage:" in run(launcher, "--help")


def test_print_config_shows_overrides(call):
    output = call(
        "train.py",
        "ppo_mujoco",
        "env_id=Hopper-v5",
        "algo.learning_rate=1e-4",
        "sampler.batch.num_envs=32",
        "agent.model.kwargs.hidden_sizes=(256,256)",
        "--print-config",
    )
    for line in (
        "sampler.env.factory=Hopper-v5",
        "algo.learning_rate=0.0001",
        "sampler.batch.num_envs=32",
        "agent.model.kwargs.hidden_sizes=(256, 256)",
        "name=ppo_Hopper-v5",
    ):
        assert line in output.splitlines(), output


def test_settings_may_stand_behind_options(call):
    output = call("train.py", "debug", "seed=3", "--print-config", "algo.num_epochs=7")
    assert "algo.num_epochs=7" in output and "seed=3" in output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ppo_mojuco"], "there is no recipe 'ppo_mojuco'; choose one of ppo_mujoco"),
        (["debug", "algo.learning_rat=1"], "learning_rate"),
        (["debug", "algo.num_epochs=many"], "num_epochs"),
        (["debug", "algo.num_epochs=0"], "num_epochs is 0; it must be at least 1"),
        (["debug", "algo.num_epochs"], "algo.num_epochs"),
        (["sac_mujoco", "seed=x"], "seed=x: 'x' is not int"),
        (["debug", "agent.model.kwargs.size=3"], "does not fit ActorCritic: got an unexpected keyword argument 'size'"),
        (["debug", "--resume", "/no/such/run"], "--resume takes no recipe, and there is debug"),
        (["ppo_mujoco", "env_id=HalfChetah-v5"], "sampler.env cannot be found: "),
        (["debug", "device=cuda"], "device is 'cuda', and torch finds no GPU"),
        (["no_such_module:make"], "(No module named 'no_such_module'); launchers find modules of yours"),
        (["pathlib:Path"], "returned PosixPath('.'); a recipe returns a Trainer"),
        (["inspect:signature"], "inspect:signature: missing a required argument: 'obj'; give it as name=value"),
        (["--resume", "/no/such/run"], "no run folder"),
        (["debug", "--resume", "/no/such/run", "--folder", "here"], "--resume and --folder name a folder each"),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_fix(words, complaint, tmp_path, call, monkeypatch):
    if "device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    output = call("train.py", *words, status=2)
    assert complaint in output and "Traceback" not in output
    assert not list(tmp_path.iterdir()), "no folder of a run that cannot begin"


def test_an_error_is_a_status_and_no_traceback(tmp_path):
    output = run("train.py", "debug", "algo.num_epochs=0", status=2, cwd=tmp_path)
    assert "num_epochs is 0; it must be at least 1" in output and "Traceback" not in output


OWN_EXPERIMENT = """
from dataclasses import replace
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.recipes import debug
from rlsurreal.runners import Trainer
from rlsurreal.samplers import ParallelSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import CountingEnv

class MyEnv(CountingEnv):
    pass

def make_trainer(seed: int = 0, length=5) -> Trainer:
    env = GymnasiumEnv(factory=MyEnv, kwargs={"lengths": length})
    sampler = ParallelSampler(env=env, batch=BatchSpec(num_steps=32, num_envs=2), num_workers=1)
    return replace(debug(seed), name="dm_control/mine", total_env_steps=512, sampler=sampler)
"""


def test_an_experiment_of_ones_own_is_trained_continued_and_evaluated(tmp_path):
    (tmp_path / "my_experiments.py").write_text(OWN_EXPERIMENT)
    output = run("train.py", "my_experiments:make_trainer", "length=7", "algo.num_epochs=1", cwd=tmp_path)
    assert "mean return of the last games: 28" in output and "--video" not in output
    folder = tmp_path / "runs" / "dm_control_mine_0"
    run("train.py", "--resume", folder, "total_env_steps=1024", "console=off", cwd=tmp_path)
    assert "return over 10 episodes: mean 280.0" in run(
        "evaluate.py", folder, cwd=tmp_path
    )  # the score is ten times it
    output = run("evaluate.py", folder, "--video", status=1, cwd=tmp_path)
    assert "error: no film: MyEnv takes no render_mode; " in output and "Traceback" not in output


def test_training_says_what_came_out_and_where(finished_run):
    folder, output = finished_run
    assert "mean return of the last games" in output and str(folder) in output
    assert (folder / "learning_curve.png").stat().st_size > 5_000
    assert {"config.json", "environment.json", "progress.csv", "log.txt", "checkpoints"} <= {
        p.name for p in folder.iterdir()
    }


def test_resume_continues_to_a_larger_budget(finished_run):
    folder, _ = finished_run
    output = run("train.py", "--resume", folder, "total_env_steps=6000", "console=off")
    assert "resumed after" in (folder / "log.txt").read_text()
    steps = [int(line.split(",")[0]) for line in (folder / "progress.csv").read_text().splitlines()[1:]]
    assert steps[-1] >= 6000 and steps == sorted(set(steps)), output


def test_evaluate_plays_the_episodes_it_was_asked_for(finished_run, call):
    folder, _ = finished_run
    assert "return over 7 episodes" in run("evaluate.py", folder, "--episodes", 7)
    assert "return over 3 episodes" in run(
        "evaluate.py", folder, "--episodes", 3, "--stochastic", "--checkpoint", "latest"
    )
    assert "no run folder" in call("evaluate.py", "/no/such/run", status=2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (gym.error.DependencyNotInstalled("run `pip install pygame`"), "run `pip install pygame`"),
        (EnvError("environment 0 could not be made"), "environment 0 could not be made"),
        (NotImplementedError(), "the environment does not render"),
    ],
)
def test_what_cannot_be_rendered_is_said_in_a_line(finished_run, call, monkeypatch, error, said):
    def film(*args, **options):
        raise error
        yield

    monkeypatch.setattr(TrainedAgent, "film", film)
    assert f"error: no film: {said}" in call("evaluate.py", finished_run[0], "--episodes", 1, "--video", status=1)


def test_what_a_run_did_not_keep_is_not_recommended(tmp_path, call):
    words = ["debug", f"root={tmp_path}", "total_env_steps=256", "console=off", "tensorboard=false"]
    output = call("train.py", *words)
    assert "evaluate.py" in output and "--video" in output and "tensorboard --logdir" not in output
    output = call("train.py", *words, "checkpoints.keep=none")
    assert "evaluate.py" not in output and "checkpoints/" not in output


def test_video_is_a_film_of_an_episode(tmp_path):
    run(
        "train.py",
        "ppo_atari",
        f"root={tmp_path}",
        "total_env_steps=64",
        "sampler.batch.num_steps=8",
        "sampler.batch.num_envs=2",
        "sampler.num_workers=1",
        "algo.num_epochs=1",
        "agent.model.kwargs.hidden_sizes=(16,)",
    )
    folder = tmp_path / "ppo_Pong_0"
    run("evaluate.py", folder, "--episodes", 1, "--video", "--max-steps", 50)
    import cv2

    film = cv2.VideoCapture(str(folder / "video.mp4"))
    frames = 0
    while film.read()[0]:
        frames += 1
    assert frames >= 45


def test_plot_groups_seeds_and_separates_experiments(tmp_path, call):
    for words in (["seed=0"], ["seed=1"], ["seed=0", "algo.learning_rate=1e-4", "name=slow"]):
        call(
            "train.py",
            "debug",
            f"root={tmp_path}",
            "total_env_steps=2048",
            "console=off",
            "tensorboard=false",
            *words,
        )
    out = tmp_path / "curves.png"
    assert str(out) in run("plot.py", tmp_path, "--out", out)
    assert out.stat().st_size > 5_000
    plot = importlib.import_module("plot")
    groups = plot.group_by_experiment(sorted(path for path in tmp_path.iterdir() if path.is_dir()))
    assert {name: len(members) for name, members in groups.items()} == {"debug": 2, "slow": 1}
    assert "no column" in call("plot.py", tmp_path, "--y", "nothing", status=2)


def runs_of(folder, *curves):
    """Run folders of one experiment: seed, and steps of the rows."""
    for i, (seed, steps) in enumerate(curves):
        run = folder / f"run_{i}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"fields": {"name": "same", "seed": seed}}))
        rows = [f"{step},{step / 10}" for step in steps]
        (run / "progress.csv").write_text("\n".join(["step,return/mean", *rows, ""]))
    return sorted(folder.iterdir())


def test_curves_of_seeds_need_not_overlap(tmp_path, call):
    for name, curves in {
        "short": [(0, [5_031]), (1, [5_054])],
        "begun": [(0, [10_240, 20_000]), (1, [10_210])],
        "apart": [(0, [1, 10]), (1, [20, 30])],
    }.items():
        out = tmp_path / f"{name}.png"
        assert call("plot.py", *runs_of(tmp_path / name, *curves), "--out", out).split()[-1] == str(out)
        assert out.stat().st_size > 5_000


def test_a_mean_is_of_the_seeds_that_have_come_so_far():
    plot = importlib.import_module("plot")
    line = np.array([0.0, 100.0])
    grid, rows = plot.on_common_grid([(line, line), (np.array([0.0, 50.0]), np.array([10.0, 60.0]))])
    assert grid[0] == 0 and grid[-1] == 100
    mean = np.nanmean(rows, 0)
    np.testing.assert_allclose(mean[grid <= 50], grid[grid <= 50] + 5)
    np.testing.assert_allclose(mean[grid > 50], grid[grid > 50])
    # Rows of several runs stand at slightly different steps: no single one of them is the beginning or the end.
    grid, rows = plot.on_common_grid([(line + shift, line) for shift in (0.0, 0.3)])
    assert (grid[0], grid[-1]) == (0.3, 100) and not np.isnan(rows).any()


def test_of_several_runs_of_a_seed_the_longest_is_drawn(tmp_path, call):
    first, longer, other = runs_of(tmp_path / "runs", (0, [1, 20]), (0, [1, 40]), (1, [1, 40]))
    said = call("plot.py", first, longer, other, "--out", tmp_path / "curves.svg")
    assert f"left out: {first}: {longer} is a longer run of the same seed" in said
    assert "same (2 seeds)" in (tmp_path / "curves.svg").read_text()


def test_curves_of_equal_names_are_all_drawn_in_the_format_asked_for(tmp_path, call):
    folders = [tmp_path / part / "run_0" for part in ("a", "b", "c")]
    for rate, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"fields": {"name": "same", "rate": rate}}))
        (folder / "progress.csv").write_text("step,return/mean\n1,0.5\n2,1.5\n")
    call("plot.py", *folders, "--out", tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert sum(map(len, importlib.import_module("plot").group_by_experiment(folders).values())) == 3


def test_runs_that_have_nothing_to_draw_are_left_out_and_named(tmp_path, call):
    rows = {
        "good": "step,return/mean\n1,0.5\n2,1.5\n",
        "new": "step\n",
        "no_game": "step,loss/value\n1,0.5\n",
        "no_value": "step,return/mean\n1,\n",
    }
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_text(text)
    out = tmp_path / "curves.png"
    said = call("plot.py", *(tmp_path / name for name in rows), "--out", out)
    assert [name for name in rows if f"left out: {tmp_path / name}/progress.csv has no" in said] == list(rows)[1:]
    assert out.exists()
    said = call("plot.py", tmp_path / "new", tmp_path / "no_value", "--out", out, status=2)
    assert said.count("error: ") == 2 and "no value yet; wait" in said


def test_a_reader_that_leaves_ends_no_run(tmp_path):
    train = [sys.executable, str(ROOT / "launchers" / "train.py")]
    command = [*train, "debug", f"root={tmp_path}", "log_interval_steps=256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 0, said
    assert "Traceback" not in said and "Exception ignored" not in said
    last = (tmp_path / "debug_0" / "progress.csv").read_text().splitlines()[-1]
    assert int(last.split(",")[0]) >= 4_000


def test_settings_changed_at_a_resume_stay_changed(tmp_path, call):
    quiet = ["console=off", "tensorboard=false"]
    call("train.py", "debug", f"root={tmp_path}", "total_env_steps=512", *quiet)
    folder = tmp_path / "debug_0"

    def budget(name: str) -> int:
        return json.loads((folder / name).read_text())["fields"]["total_env_steps"]

    call("train.py", "--resume", folder, "total_env_steps=1024", *quiet)
    assert (budget("config.json"), budget("config_0.json")) == (1024, 512)
    call("train.py", "--resume", folder)
    assert budget("config.json") == 1024
    assert [path.name for path in folder.glob("config_*.json")] == ["config_0.json"], "nothing was changed this time"
    steps = [int(line.split(",")[0]) for line in (folder / "progress.csv").read_text().splitlines()[1:]]
    assert 1024 <= steps[-1] < 1024 + 256
