"""Training in several ranks: counts, logs, checkpoints of all; failures that every rank names."""

from __future__ import annotations

import ast
import contextlib
import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces as gs

from rlsurreal.distributed import group
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.recipes import debug, dqn_cartpole, ppo_cartpole, sac_pendulum
from rlsurreal.runners.agreement import check_parameters, check_settings
from rlsurreal.runners.division import divide, divided_batch, plays
from rlsurreal.runners.run import Run
from rlsurreal.structs import BatchSpec, Spaces
from rlsurreal.testing.ranks import run_ranks
from rlsurreal.utils import config
from rlsurreal.utils.affinity import usable_cpus
from rlsurreal.utils.files import list_checkpoints, load_checkpoint
from tests.runners.test_trainer import assert_equal
from tests.torchrun import environment, torchrun

SCRIPT = """
import os, signal, sys, time
import gymnasium as gym
from rlsurreal.distributed.group import in_group
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.recipes import RECIPES
from rlsurreal.utils import config

recipe, folder, trouble, *words = sys.argv[1:]
trouble, _, troubled_rank = trouble.partition("@")

def say(text):
    print(f"{text}\\n", end="", flush=True)  # in one piece

class Troubled(gym.Wrapper):
    steps = 0

    def step(self, action):
        if trouble == "cpus" and type(self).steps == 0:
            say(f"cpus of a rank: {sorted(os.sched_getaffinity(0))}")
        type(self).steps += 1
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        is_here = os.environ.get("RANK") == (troubled_rank or "1")
        if trouble and type(self).steps == 600 and is_here and restarts < 2:
            if trouble == "raise":
                raise RuntimeError("the simulator is broken")
            if trouble == "hang":
                time.sleep(1000)
            if trouble in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, trouble))
        return self.env.step(action)

def make():
    return Troubled(gym.make("CartPole-v1"))

trainer = config.override(RECIPES[recipe](), config.parse_overrides(words))
if trouble:
    trainer.sampler.env = GymnasiumEnv(factory=make)
path = trainer.train(folder=folder)
say(f"trained {path} {trainer.interrupted_by}")
"""
FAST = [
    "compile=off",
    "tensorboard=false",
    "console=off",
    "sampler.batch.num_envs=4",
    "sampler.batch.num_steps=16",
    "log_interval_steps=200",
]
PPO = [
    *FAST,
    "algo.num_epochs=2",
    "algo.num_minibatches=2",
    "sampler.evaluation.num_envs=3",
    "eval_interval_steps=1500",
]
DQN = [*FAST, "algo.batch_size=16", "algo.replay.capacity=4000", "algo.limiter.min_steps=100", "algo.limiter.ratio=2"]
IN_RANKS = ["ranks=2"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def train(script: Path, recipe: str, folder: str, *words: str, trouble: str = "", **more: Any) -> Any:
    """A plain script that trains, in ranks if the words say so."""
    command = [sys.executable, str(script), recipe, str(script.parent / folder), trouble, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(), **more)
    done.folder = script.parent / folder  # type: ignore[attr-defined]
    return done


def start(script: Path, recipe: str, folder: str, *words: str) -> subprocess.Popen[str]:
    """The same, not waited for."""
    command = [sys.executable, str(script), recipe, str(script.parent / folder), "", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def num_rows(folder: Path) -> int:
    progress = folder / "progress.csv"
    return progress.read_text().count("\n") - 1 if progress.exists() else 0


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])
    state["counter"] = {key: value for key, value in state["counter"].items() if "seconds" not in key}
    state["log"].pop("rate_from")
    return state


@pytest.mark.processes
def test_ranks_end_together_when_the_return_is_reached(script):
    words = [*PPO, *IN_RANKS, "total_env_steps=100_000", "stop_at_return=5"]
    done = train(script, "ppo_cartpole", "short", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"trained {done.folder} None"
    last = rows(done.folder)[-1]
    assert float(last["eval/return/mean"]) >= 5 and int(last["step"]) < 2_000
    saved = checkpoint(done.folder)["counter"]["env_steps"]
    assert int(last["step"]) <= saved < 2_000


@pytest.mark.processes
@pytest.mark.parametrize(
    "recipe, words, steps", [("ppo_cartpole", PPO, 3000), ("dqn_cartpole", [*DQN, "algo.save_replay=true"], 5000)]
)
def test_resumed_ranks_equal_uninterrupted_ones_bit_for_bit(script, recipe, words, steps):
    words = [*words, *IN_RANKS, f"total_env_steps={steps}"]
    whole = train(script, recipe, "whole", *words)
    assert whole.returncode == 0, whole.stderr
    with start(script, recipe, "parts", *words) as process:
        wait_until(lambda: num_rows(script.parent / "parts") > 2)
        process.send_signal(signal.SIGINT)
        assert f"trained {script.parent / 'parts'} SIGINT" in process.communicate(timeout=60)[0]
    part = train(script, recipe, "parts", *words)
    assert part.returncode == 0, part.stderr
    assert f"trained {part.folder} None" in part.stdout
    one, other = checkpoint(whole.folder), checkpoint(part.folder)
    assert len(one["ranks"]) == 2 and one["counter"]["env_steps"] >= steps
    assert_equal(one, other)
    last = rows(whole.folder)[-1]
    assert int(last["step"]) == one["counter"]["env_steps"] and int(last["trajectories"]) > 20
    assert [row["step"] for row in rows(part.folder)] == [row["step"] for row in rows(whole.folder)]  # one unbroken log
    if recipe == "ppo_cartpole":
        games = [values for _, values in one["ranks"][1]["log"]["ended"]] + one["log"]["recent"]
        assert {game[0] for game in games} == {0, 1, 2, 3}  # of environments of both ranks
        assert float(last["eval/return/mean"]) > 0


@pytest.mark.processes
def test_other_numbers_of_ranks_go_on_from_a_checkpoint(script):
    before = None
    for steps, ranks in ((800, 2), (1200, 1), (1600, 2)):
        done = train(script, "ppo_cartpole", "run", *PPO, f"ranks={ranks}", f"total_env_steps={steps}")
        assert done.returncode == 0, done.stderr
        state = checkpoint(done.folder)
        assert len(state["ranks"]) == ranks and state["counter"]["env_steps"] >= steps
        if before is not None:
            assert state["counter"]["iterations"] > before["counter"]["iterations"]
            assert state["sampler"]["generation"] > before["sampler"]["generation"]  # not the same episodes again
            assert state["algo"]["optimizer"]["step"] > before["algo"]["optimizer"]["step"]
        before = state


@pytest.mark.processes
def test_a_failure_on_one_rank_is_told_by_all_and_what_was_learned_is_saved(script):
    started = time.monotonic()
    done = train(script, "ppo_cartpole", "run", *PPO, *IN_RANKS, "total_env_steps=100000", trouble="raise")
    assert done.returncode != 0 and time.monotonic() - started < 60
    assert re.search(r"RankError: rank 1 on host \S+ \(pid \d+\) failed:", done.stderr)
    assert done.stderr.count("RuntimeError: the simulator is broken") >= 2  # its own, and the other's account of it
    assert "rank 1 on host" in (done.folder / "log.txt").read_text()
    state = checkpoint(done.folder)
    assert 0 < state["counter"]["env_steps"] < 1300 and state["ranks"][1] is None
    again = train(script, "ppo_cartpole", "run", *PPO, *IN_RANKS, "total_env_steps=2000")
    assert again.returncode == 0 and checkpoint(again.folder)["counter"]["env_steps"] >= 2000


@pytest.mark.processes
def test_a_run_with_its_replay_goes_on_after_a_failure_of_the_first_rank(script):
    words = [*DQN, *IN_RANKS, "algo.save_replay=true"]
    done = train(script, "dqn_cartpole", "run", *words, "total_env_steps=100000", trouble="raise@0")
    assert done.returncode != 0
    assert re.search(r"rank1\]: \S+RankError: rank 0 on host \S+ \(pid \d+\) failed:", done.stderr)
    before = checkpoint(done.folder)["counter"]["env_steps"]
    again = train(script, "dqn_cartpole", "run", *words, f"total_env_steps={before + 500}")
    assert again.returncode == 0, again.stderr
    assert checkpoint(again.folder)["counter"]["env_steps"] >= before + 500


@pytest.mark.processes
@pytest.mark.parametrize(
    "recipe, words",
    [
        ("ppo_cartpole", [*PPO, "agent.model.kwargs.recurrent=lstm", "scaling=weak"]),
        ("ppo_cartpole", [*PPO, "agent.model.kwargs.recurrent=lstm", "sampler.batch.num_envs=3"]),
        ("dqn_cartpole", [*DQN, "sampler.batch.num_envs=3", "algo.replay.storage.file=STORED"]),
    ],
)
def test_uneven_recurrent_weak_and_stored_ranks_train(script, recipe, words):
    words = [word.replace("STORED", str(script.parent / "stored")) for word in words]
    if "sampler.batch.num_envs=3" in words:
        words.remove("sampler.batch.num_envs=4")
    done = train(script, recipe, "run", *words, *IN_RANKS, "total_env_steps=800")
    assert done.returncode == 0, done.stderr
    assert checkpoint(done.folder)["counter"]["env_steps"] >= 800
    if recipe == "dqn_cartpole":
        assert sorted(path.name for path in script.parent.glob("stored*")) == ["stored.rank0", "stored.rank1"]


@pytest.mark.processes
def test_a_rank_that_is_killed_is_named(script):
    done = train(script, "ppo_cartpole", "run", *PPO, *IN_RANKS, "total_env_steps=100000", trouble="SIGKILL")
    assert done.returncode != 0
    assert re.search(r"rank 1 on host \S+ \(pid \d+\) has ended without a word", done.stderr)


@pytest.mark.processes
def test_a_rank_that_hangs_is_named_with_where_it_stands_and_ends_the_run(script):
    words = [*PPO, *IN_RANKS, "total_env_steps=100000", "rank_timeout_s=14"]
    done = train(script, "ppo_cartpole", "run", *words, trouble="hang")
    assert done.returncode != 0
    assert re.search(r"for 1\d s ranks have waited for rank 1 on host \S+ \(pid \d+\), which is here:", done.stderr)
    assert "time.sleep(1000)" in done.stderr and "rank_timeout_s=14" in done.stderr


@pytest.mark.processes
def test_a_signal_to_one_rank_stops_all_and_saves(script):
    words = [*PPO, *IN_RANKS, "total_env_steps=100000"]
    done = train(script, "ppo_cartpole", "run", *words, trouble="SIGTERM")
    assert done.returncode == 0, done.stderr
    assert f"trained {done.folder} SIGTERM" in done.stdout
    state = checkpoint(done.folder)
    assert 0 < state["counter"]["env_steps"] < 2000 and all(own is not None for own in state["ranks"])


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_the_script_that_started_them(script, number):
    words = [*PPO, *IN_RANKS, "total_env_steps=10000000"]
    with start(script, "ppo_cartpole", "run", *words) as process:
        wait_until(lambda: num_rows(script.parent / "run") > 2)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert "SIGINT" in said and process.returncode == 0
    wait_until(lambda: not running(script, process.pid))
    assert checkpoint(script.parent / "run")["counter"]["env_steps"] > 0


def wait_until(condition: Any, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(script: Path, starter: int) -> list[str]:
    """Processes that have to do with this test: by its folder, or by who started them, whom ranks name."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    rank = re.compile(rf"rlsurreal.distributed.start .* {starter}$")
    return [line for line in listed.splitlines() if str(script.parent) in line or rank.search(line.rstrip())]


@pytest.mark.processes
def test_torchrun_restarts_a_failed_run_from_its_checkpoint(script):
    words = [*PPO, "checkpoints.interval_steps=200", "total_env_steps=3000"]
    own = [str(script), "ppo_cartpole", str(script.parent / "run"), "raise", *words]
    command = torchrun("--max-restarts", "3", *own)
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment())
    assert done.returncode == 0, done.stderr
    folder = script.parent / "run"
    assert done.stderr.count("RuntimeError: the simulator is broken") >= 2
    steps = [int(row["step"]) for row in rows(folder)]
    assert steps == sorted(set(steps)) and steps[-1] >= 3000
    assert (folder / "environment_resumed.json").exists()


@pytest.mark.processes
@pytest.mark.skipif(len(usable_cpus()) < 2, reason="needs two CPUs")
def test_ranks_of_one_machine_share_its_cpus_out(script):
    done = train(script, "ppo_cartpole", "run", *PPO, *IN_RANKS, "total_env_steps=100", trouble="cpus")
    assert done.returncode == 0, done.stderr
    first, second = (set(ast.literal_eval(text)) for text in re.findall(r"cpus of a rank: (\[.*?\])", done.stdout))
    assert not first & second and first | second == set(usable_cpus())


# ---------------------------------------------------------------- division


def test_environments_and_batches_are_divided_or_not():
    batch = BatchSpec(8, 5)
    assert divided_batch(batch, Ranks(0, 2), "strong") == BatchSpec(8, 2, 0, 5)
    assert divided_batch(batch, Ranks(1, 2), "strong") == BatchSpec(8, 3, 2, 5)
    assert divided_batch(batch, Ranks(1, 2), "weak") == BatchSpec(8, 5, 5, 10)
    with pytest.raises(ValueError, match=r"num_envs is 5, fewer than the 6 ranks.*scaling='weak'"):
        divided_batch(batch, Ranks(0, 6), "strong")
    trainer = dqn_cartpole()
    algo, sampler = divide(trainer.algo, trainer.sampler, ALONE, "strong")
    assert algo is trainer.algo and sampler is trainer.sampler
    trainer = config.override(trainer, {"algo.batch_size": "30", "algo.replay.capacity": "1000"})
    envs = {"sampler.batch.num_envs": "8", "sampler.evaluation.num_envs": "1"}
    trainer = config.override(trainer, envs)
    algo, sampler = divide(trainer.algo, trainer.sampler, Ranks(1, 2), "strong")
    assert (algo.batch_size, algo.replay.capacity, sampler.batch.num_envs) == (15, 500, 4)
    algo, sampler = divide(trainer.algo, trainer.sampler, Ranks(1, 2), "weak")
    assert (algo.batch_size, algo.replay.capacity, sampler.batch.num_envs) == (30, 1000, 8)
    with pytest.raises(ValueError, match=r"algo.batch_size is 30; it must be divisible by the 4 ranks"):
        divide(trainer.algo, trainer.sampler, Ranks(1, 4), "strong")
    assert [plays(1, Ranks(index, 2)) for index in range(2)] == [False, True]


def test_a_rank_s_environments_are_its_part_of_those_of_one():
    def first_slot(ranks: Ranks) -> Any:
        trainer = config.override(ppo_cartpole(), config.parse_overrides(FAST))
        _, sampler = divide(trainer.algo, trainer.sampler, ranks, "strong")
        trainer.agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(trainer.agent, discount=0.99)
        return sampler.obtain()

    whole, parts = first_slot(ALONE), [first_slot(Ranks(index, 2)) for index in range(2)]
    observation = torch.cat([part.env.observation for part in parts], 1)
    torch.testing.assert_close(observation, whole.env.observation, atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([part.agent.action for part in parts], 1)[:-1], whole.agent.action[:-1])


@pytest.mark.parametrize("recipe", [dqn_cartpole, sac_pendulum])
def test_ranks_begin_with_the_same_networks_and_random_numbers_of_their_own(recipe):
    def begun(index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        words = {"compile": "off", "sampler.batch.num_envs": 2, "algo.batch_size": 32}
        run = Run(config.override(recipe(), words), Ranks(index, 2))
        run._initialize()
        run._sampler.close()
        return run._algo.state_dict(), {"agent": dict(run._agent.tensors())}

    (first, agent), (second, other) = begun(0), begun(1)
    own, others = first.pop("own"), second.pop("own")
    torch.testing.assert_close(agent, other, rtol=0, atol=0)
    for name in ("targets", "networks"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert not torch.equal(own["generator"], others["generator"])


def test_ranks_with_different_settings_are_told_so():
    def check(ranks: Ranks) -> None:
        steps = 5_000 if ranks.index else 4_096
        check_settings(config.override(debug(), {"total_env_steps": steps, "algo.num_epochs": 2 + ranks.index}), ranks)

    with pytest.raises(ValueError, match=r"algo.num_epochs is 2 on rank 0 and 3 on rank 1; total_env_steps is 4096 on"):
        run_ranks(2, check)
    run_ranks(2, lambda ranks: check_settings(debug(), ranks))


def test_parameters_that_differ_from_the_start_are_found():
    def agent(seed: int) -> Any:
        made: Any = debug().agent
        made.initialize(Spaces(gs.Box(-1, 1, (3,)), gs.Discrete(2)), seed=seed)
        return made

    alike, apart = [agent(0), agent(0)], [agent(0), agent(1)]
    run_ranks(2, lambda ranks: check_parameters(alike[ranks.index], ranks))
    with pytest.raises(ValueError, match="parameter '.*weight' differs between ranks; draw initial weights from torch"):
        run_ranks(2, lambda ranks: check_parameters(apart[ranks.index], ranks))


def test_a_number_of_ranks_is_not_given_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(group, "in_group", lambda: True)
    monkeypatch.setattr(group, "join", lambda *_, **__: contextlib.nullcontext(Ranks(0, 2)))
    with pytest.raises(ValueError, match="ranks is 4, and 2 were started from outside; leave it out"):
        config.override(debug(), {"ranks": 4, "root": str(tmp_path)}).train()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for device, ranks, expected in [
        ("cuda", Ranks(1, 2), "cuda:1"),
        ("cuda:0", ALONE, "cuda:0"),
        ("cpu", Ranks(1, 2), "cpu"),
    ]:
        assert Run(config.override(ppo_cartpole(), {"device": device}), ranks)._device == expected
    with pytest.raises(ValueError, match="device is 'cuda:0'.*make it 'cuda'"):
        _ = Run(config.override(ppo_cartpole(), {"device": "cuda:0"}), Ranks(1, 2))._device
