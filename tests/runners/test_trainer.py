"""The loop, its logs and checkpoints; resuming; stopping."""

import csv
import io
import json
import operator
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec, QAgent
from rlsurreal.algos import A2C, DQN, PPO
from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.models import ActorCritic, QNetwork
from rlsurreal.replays import Prioritized, Replay, ReplayRatio
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import CountingEnv, FailingEnv
from rlsurreal.utils import config
from rlsurreal.utils.files import list_checkpoints, load_checkpoint
from rlsurreal.utils.namedarraytuple import named_leaves
from rlsurreal.utils.schedules import Linear


def trainer(
    root: Path,
    env: str | GymnasiumEnv = "CartPole-v1",
    *,
    total: int = 1600,
    algo: Any = None,
    recurrent: Any = None,
    **changes: Any,
) -> Trainer:
    env = GymnasiumEnv(factory=env) if isinstance(env, str) else env
    kwargs = {"hidden_sizes": (16,), "normalize_observation": True, "recurrent": recurrent, "recurrent_size": 8}
    sampler = SerialSampler(
        env=env,
        batch=BatchSpec(20, 4),
        max_decorrelation_steps=5 if isinstance(env, GymnasiumEnv) else 0,
        evaluation=EvalSpec(num_envs=2, episodes_per_env=1, num_steps=20),
    )
    settings: dict[str, Any] = dict(
        agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs)),
        sampler=sampler,
        algo=algo or PPO(num_epochs=2, num_minibatches=2, learning_rate=Linear(1e-3, 1e-4), scale_rewards=True),
        total_env_steps=total,
        log_interval_steps=400,
        checkpoints=CheckpointPolicy(interval_steps=400, keep="all"),
        root=str(root),
        console="off",
        tensorboard=False,
    )
    return Trainer(**{**settings, **changes})


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_times(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.startswith(("time/", "rate/env_steps"))}


def final_state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through dictionaries, sequences, structures and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif hasattr(one, "_fields"):
        for (name, x), (_, y) in zip(named_leaves(one), named_leaves(other), strict=True):
            assert_equal(x, y, f"{where}.{name}")
    elif isinstance(one, np.random.Generator):
        assert_equal(one.bit_generator.state, other.bit_generator.state, where)
    elif isinstance(one, (list, tuple, deque)):
        assert len(one) == len(other), where
        for i, (x, y) in enumerate(zip(one, other)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f"), where
    else:
        assert one == other or (one != one and other != other), where


def dqn(**changes: Any) -> dict[str, Any]:
    """What replays exactly."""
    return {
        "agent": QAgent(model=ModelSpec(cls=QNetwork, kwargs={"hidden_sizes": (8,)}), epsilon=Linear(1.0, 0.1)),
        "algo": lambda: DQN(
            batch_size=16,
            target_interval=7,
            replay=Replay(capacity=1_000, selector=Prioritized()),
            limiter=ReplayRatio(ratio=2, min_steps=100),
            save_replay=True,
        ),
        **changes,
    }


def wrapped(*wrappers: Any) -> GymnasiumEnv:
    """CartPole in wrappers that have a state."""

    def make() -> gym.Env:
        env = gym.make("CartPole-v1")
        for wrapper in wrappers:
            env = wrapper(env)
        return env

    return GymnasiumEnv(factory=make)


CASES = {
    "cartpole": ("CartPole-v1", {}),
    "pendulum": ("Pendulum-v1", {}),
    "mujoco": ("HalfCheetah-v5", {}),
    "gru": ("CartPole-v1", {"recurrent": "gru"}),
    "kl-penalty": (
        "Pendulum-v1",
        {"algo": lambda: PPO(objective="kl_penalty", num_epochs=2, num_minibatches=2, kl_target=1e-4)},
    ),
    "adaptive-clip": (
        "Pendulum-v1",
        {"algo": lambda: PPO(adaptive_clip=True, num_epochs=2, num_minibatches=2, kl_target=1e-4)},
    ),
    "a2c": ("CartPole-v1", {"algo": lambda: A2C(scale_rewards=True)}),
    "dqn": ("CartPole-v1", dqn()),
    "statistics": (wrapped(gym.wrappers.RecordEpisodeStatistics), dqn(total=800)),
    "frame stack": (wrapped(partial(gym.wrappers.FrameStackObservation, stack_size=3)), {"total": 800}),
    "delay": (wrapped(partial(gym.wrappers.DelayObservation, delay=2)), {"total": 800}),
    "normalized": (wrapped(gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward), {"total": 800}),
    "blackjack": ("Blackjack-v1", {"total": 800}),
    "frozen lake": ("FrozenLake-v1", {"total": 800}),
    "pong": (GymnasiumEnv(factory=make_atari, kwargs={"game": "Pong", "size": 36}), {"total": 480}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, case):
    env, changes = CASES[case]
    total = changes.get("total", 1600)
    make = changes.get("algo", lambda: None)
    changes = {key: value for key, value in changes.items() if key not in ("algo", "total")}
    if case == "pong":
        changes["agent"] = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (8,)}))
    else:
        changes["eval_interval_steps"] = 800
    whole = trainer(tmp_path / "whole", env, total=total, algo=make(), **changes).train()
    torch.manual_seed(77)  # a run must not depend on what the process did before
    np.random.seed(77)
    first = trainer(tmp_path / "parts", env, total=total, algo=make(), **changes)
    stop_halfway(first, total // 2)
    parts = first.train()
    assert list_checkpoints(parts / "checkpoints")[-1][0] < total
    resumed = trainer(tmp_path / "parts", env, total=total, algo=make(), **changes)
    assert resumed.train(resume=parts) == parts
    assert_equal(_timeless(final_state(whole)), _timeless(final_state(parts)))
    assert "cannot be saved" not in (parts / "log.txt").read_text()
    assert [without_times(r) for r in rows(whole)] == [without_times(r) for r in rows(parts)]


def stop_halfway(run: Trainer, steps: int) -> None:
    """Interrupt the run, as Ctrl-C would, once it has made ``steps``."""
    update, seen = run.algo.update, 0

    def update_and_stop(samples: Any, progress: float) -> Any:
        nonlocal seen
        seen += int(samples.env.valid[:-1].sum())
        if seen >= steps:
            signal.raise_signal(signal.SIGINT)
        return update(samples, progress)

    run.algo.update = update_and_stop  # type: ignore[method-assign]


def _timeless(state: dict[str, Any]) -> dict[str, Any]:
    state["counter"] = {key: value for key, value in state["counter"].items() if "seconds" not in key}
    state["log"].pop("rate_from")
    stations = [own["sampler"][station] for own in state["ranks"] for station in ("train", "eval")]
    for link in (link for station in filter(None, stations) for env in station["env"]["envs"] for link in env):
        for name in ("time_queue", "episode_start_time"):  # of RecordEpisodeStatistics
            link.get("plain", {}).pop(name, None)  # Atari saves itself
        link.pop("spaces", None)  # some of wrappers are seeded by nobody
    return state


def test_environments_without_state_start_new_episodes_and_say_so(tmp_path):
    env = EnvPoolEnv(task_id="CartPole-v1")
    first = trainer(tmp_path, env)
    stop_halfway(first, 800)
    folder = first.train()
    trainer(tmp_path, env).train(resume=folder)
    assert "start new episodes" in (folder / "log.txt").read_text()
    assert int(rows(folder)[-1]["step"]) >= 1600


def test_why_environments_cannot_be_saved_is_said_once(tmp_path, caplog):
    class Locked(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    policy = CheckpointPolicy(interval_steps=200)
    trainer(tmp_path, GymnasiumEnv(factory=Locked), checkpoints=policy, eval_interval_steps=400).train()
    said = [record for record in caplog.records if "cannot be saved: attribute 'lock' of Locked" in record.message]
    assert [record.levelname for record in said] == ["WARNING"]


def test_run_folder_has_configuration_versions_and_log(tmp_path):
    folder = trainer(tmp_path, eval_interval_steps=400).train()
    configuration = json.loads((folder / "config.json").read_text())
    assert configuration["fields"]["algo"]["fields"]["num_epochs"] == 2
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0] or environment["versions"]["torch"]
    table = rows(folder)
    assert [int(row["step"]) for row in table] == sorted(int(row["step"]) for row in table)
    for name in (
        "return/mean",
        "length/median",
        "loss/policy",
        "loss/value",
        "rate/env_steps_per_s",
        "rate/policy_lag",
        "time/sample_share",
        "eval/return/mean",
    ):
        assert name in table[-1], name
    assert float(table[-1]["rate/policy_lag"]) == 0


class Winning(CountingEnv):
    """Games are won and lost in turn, and of every third nothing is said; `distance` is known in the middle only."""

    info_fields = {"won": 0.0, "distance": 0.0}

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        said = {"distance": 2.0}
        if info["game_over"]:
            said = {"won": self.game % 2} if self.game % 3 else {}
        return *rest, said


def test_what_environments_say_at_the_end_of_games_is_logged(tmp_path):
    env = GymnasiumEnv(factory=Winning, kwargs={"lengths": 4})
    changes = {"sampler.evaluation": EvalSpec(num_envs=2, episodes_per_env=4, num_steps=20)}
    folder = config.override(trainer(tmp_path, env, total=240, eval_interval_steps=200), changes).train()
    last, games = rows(folder)[-1], [game[-1] for game in final_state(folder)["log"]["recent"]]
    assert {} in games and {"won": 0.0} in games and {"won": 1.0} in games
    assert float(last["info/won"]) == pytest.approx(np.mean([game["won"] for game in games if game]))
    assert not [name for name in last if "distance" in name]
    assert float(last["eval/info/won"]) == pytest.approx(0.5, abs=0.25)


def test_counts_are_those_of_valid_rows(tmp_path):
    folder = trainer(tmp_path, GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 3}), total=300).train()
    state = final_state(folder)
    # Episodes of three steps and a reset row: three of four rows are steps.
    iterations = state["counter"]["iterations"]
    assert abs(state["counter"]["env_steps"] - iterations * 20 * 4 * 3 / 4) <= 4
    assert abs(state["counter"]["trajectories"] - state["counter"]["env_steps"] / 3) <= 8


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"keep": "none"}, set()),
        ({"keep": "last", "best": False}, {"last"}),
        ({"keep": "last", "interval_steps": 400}, {"last", "best.pt"}),
        ({"keep": "all", "interval_steps": 400, "best": False}, {400, 800, 1200, "last"}),
        ({"keep": "last", "interval_steps": 400, "keep_every_steps": 800, "best": False}, {400, 800, "last"}),
    ],
)
def test_each_policy_leaves_the_files_it_says(tmp_path, policy, expected):
    folder = trainer(tmp_path, checkpoints=CheckpointPolicy(**policy), eval_interval_steps=800).train() / "checkpoints"
    steps = [step for step, _ in list_checkpoints(folder)] if folder.exists() else []
    found: set[Any] = {path.name for path in folder.glob("*.pt") if not path.name.startswith("checkpoint_")}
    found |= {step // 400 * 400 for step in steps[:-1]} | ({"last"} if steps else set())
    assert found == expected


def test_two_runs_in_one_process_do_not_mix(tmp_path):
    folders = [trainer(tmp_path, seed=seed).train() for seed in (0, 1)]
    assert folders[0] != folders[1]
    assert all(len(rows(folder)) == 4 for folder in folders)


def test_same_seed_same_run_and_other_seed_another(tmp_path):
    states = [final_state(trainer(tmp_path, seed=seed).train()) for seed in (5, 5, 6)]
    assert_equal(_timeless(states[0]), _timeless(states[1]))
    with pytest.raises(AssertionError):
        assert_equal(states[0]["agent"], states[2]["agent"])


def test_nan_in_a_loss_stops_the_run_and_says_what_and_where(tmp_path):
    run = trainer(tmp_path, algo=A2C(learning_rate=1e38))
    with pytest.raises(
        FloatingPointError, match=r"not finite in update \d+ \(after \d+ environment steps\).*parameters not finite"
    ):
        run.train()


def test_nan_in_an_observation_stops_the_run_and_names_the_environment(tmp_path):
    with pytest.raises(RuntimeError, match=r"environment \d.*FailingEnv.*finite"):
        trainer(tmp_path, GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "nan", "at": 30})).train()


def test_two_runs_do_not_work_in_one_folder(tmp_path):
    first = trainer(tmp_path)
    update, refused = first.algo.update, []

    def while_it_runs(*arguments: Any) -> Any:
        if not refused:
            with pytest.raises(
                ValueError, match=rf"another run \(process {os.getpid()}\) works on .*folder; wait for it"
            ):
                trainer(tmp_path).train(folder=tmp_path / "folder")
            refused.append(True)
        return update(*arguments)

    first.algo.update = while_it_runs  # type: ignore[method-assign]
    folder = first.train(folder=tmp_path / "folder")
    assert refused and int(rows(folder)[-1]["step"]) >= 1600
    trainer(tmp_path, total=2000).train(folder=folder)  # afterwards it is free


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler.batch.num_envs": 6},
        {"sampler.batch.num_envs": 1},
        {"sampler.evaluation.num_envs": 3},
        {"algo.scale_rewards": False},
        {"algo.normalize_advantage": "off"},
    ],
    ids=str,
)
def test_a_run_goes_on_with_other_settings(tmp_path, changes):
    folder = trainer(tmp_path, eval_interval_steps=800).train()
    (folder / "config_backup.json").write_text("{}")  # a user's own
    later = config.override(trainer(tmp_path, total=3200, eval_interval_steps=800), changes)
    assert later.train(resume=folder) == folder
    assert int(rows(folder)[-1]["step"]) >= 3200 and (folder / "config_0.json").exists()
    trainer(tmp_path, total=4800, eval_interval_steps=800).train(resume=folder)  # and back
    assert int(rows(folder)[-1]["step"]) >= 4800


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    folder = trainer(tmp_path, console="line").train()
    assert int(rows(folder)[-1]["step"]) >= 1600


def test_a_terminal_shows_what_the_algorithm_says_of_itself(tmp_path, capsys):
    folder = trainer(tmp_path, console="line").train()
    lines = capsys.readouterr().out.splitlines()
    titles = next(line for line in lines if line.split()[:2] == ["step", "return"]).split()
    assert titles[-2:] == ["kl", "explained"] == list(PPO.console_columns)
    assert all(rows(folder)[-1][name] for name in PPO.console_columns.values())


def test_the_best_checkpoint_is_what_acts_and_no_more(tmp_path):
    folder = trainer(tmp_path, eval_interval_steps=400).train()
    assert load_checkpoint(folder / "checkpoints" / "best.pt").keys() == {"best", "agent", "saved_at"}


def test_names_may_have_ids_of_environments():
    assert trainer(Path(), name="ppo_my_package:Mine-v0").name == "ppo_my_package_Mine-v0"


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99"])
def test_devices_that_there_are_not_are_refused_at_once(tmp_path, device):
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        trainer(tmp_path, device=device).check()


class NoSpec(gym.Env):
    pass


@pytest.mark.parametrize(
    ("part", "name", "value", "complaint"),
    [
        ("algo", "batch_size", 32.0, "algo.batch_size is 32.0, a float; it must be an int: write 32"),
        (
            "algo.replay",
            "selector",
            "prioritized",
            "algo.replay.selector is 'prioritized', a str; it must be a Selector",
        ),
        ("algo.replay", "selector", Prioritized, "algo.replay.selector is the class Prioritized; write Prioritized()"),
        ("algo", "limiter", 8, "algo.limiter is 8, an int; write ReplayRatio(ratio=8)"),
        ("agent", "model", QNetwork, "agent.model is the class QNetwork; write ModelSpec(cls=QNetwork)"),
        ("", "agent", QAgent, "agent is the class QAgent; write QAgent()"),
        ("", "device", torch.device("cpu"), "device is a device; it must be a str"),
        ("sampler", "env", "CartPole-v1", "sampler.env is 'CartPole-v1'; write GymnasiumEnv(factory='CartPole-v1')"),
        ("sampler.evaluation", "env", NoSpec, "sampler.evaluation.env is NoSpec; write GymnasiumEnv(factory=NoSpec)"),
        ("sampler", "env", NoSpec(), "sampler.env is a NoSpec; it must be an EnvSpec"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_before_there_is_a_folder(tmp_path, part, name, value, complaint):
    experiment = trainer(tmp_path, agent=QAgent(), algo=DQN())
    experiment.check()
    setattr(operator.attrgetter(part)(experiment) if part else experiment, name, value)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        experiment.train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, None, 0.5])
def test_a_seed_is_a_whole_number(tmp_path, seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; it must be a whole number"):
        trainer(tmp_path, seed=seed)


def test_damaged_checkpoint_is_named_with_the_one_before(tmp_path):
    folder = trainer(tmp_path).train()
    checkpoints = list_checkpoints(folder / "checkpoints")
    checkpoints[-1][1].write_bytes(checkpoints[-1][1].read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{checkpoints[-1][1].name}.*damaged.*{checkpoints[-2][1].name}"):
        trainer(tmp_path).train(resume=folder)


def test_what_could_not_be_found_again_is_said_once_at_the_beginning(tmp_path):
    folder = trainer(tmp_path).train()
    assert "WARNING" not in (folder / "log.txt").read_text()
    folder = trainer(tmp_path, GymnasiumEnv(factory=lambda: CountingEnv())).train()
    first, *others = (folder / "log.txt").read_text().splitlines()
    assert "will not find all of this experiment again: sampler.env.factory: " in first and "WARNING" in first
    assert "<lambda> cannot be found by its name; define it at the top of a module" in first
    assert first.endswith("load_agent(run, experiment=...)") and not any("again" in line for line in others)


def test_resuming_what_was_not_saved(tmp_path):
    folder = trainer(tmp_path, checkpoints=CheckpointPolicy(keep="none")).train()
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        trainer(tmp_path).train(resume=folder)


def test_training_works_outside_the_main_thread(tmp_path):
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(trainer(tmp_path, total=200).train()))
    thread.start()
    thread.join(60)
    assert done and rows(done[0])


@pytest.mark.parametrize("field", ["total_env_steps", "log_interval_steps", "eval_interval_steps", "num_threads"])
def test_bad_settings_name_the_field(tmp_path, field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least 1"):
        trainer(tmp_path, **{field: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"console": "tabel"}, "console is 'tabel'; choose 'line', 'table' or 'off'"),
        ({"seed": -1}, "seed is -1"),
        ({"stop_at_return": float("nan")}, "stop_at_return is nan"),
    ],
)
def test_other_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("Acrobot-v9", r"sampler.evaluation.env cannot be found.*Acrobot"), ("Pendulum-v1", "evaluation.env has obs")],
)
def test_evaluation_environments_are_looked_at_before_training(tmp_path, env_id, message):
    evaluation = EvalSpec(env=GymnasiumEnv(factory=env_id))
    sampler = SerialSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(20, 4), evaluation=evaluation)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, sampler=sampler).train()


SCRIPT = """
    import sys
    from rlsurreal.recipes import debug
    from rlsurreal.samplers import ParallelSampler
    from rlsurreal.utils.config import override
    quiet = {{"root": {root!r}, "console": "off", "compile": "off", "tensorboard": False}}
    run = override(debug(), {{"total_env_steps": 10**9, **quiet}})
    if {parallel}:
        run.sampler = ParallelSampler(env=run.sampler.env, batch=run.sampler.batch, num_workers=2)
    print("started", flush=True)
    folder = run.train()
    print("left", run.interrupted_by, folder, flush=True)
"""


@pytest.mark.processes
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "workers"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_leaves_cleanly(tmp_path, number, parallel):
    """To all processes of the job, as a terminal sends it."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(root=str(tmp_path), parallel=parallel)))
    master = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert master.stdout.readline() == "started\n"
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("debug_0/progress.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(master.pid, number)
    left, name, folder = master.stdout.readline().split()
    assert (left, name) == ("left", signal.Signals(number).name)
    assert master.wait(20) == 0
    assert list_checkpoints(Path(folder) / "checkpoints")


@pytest.mark.processes
def test_parallel_training_learns_from_fresh_parameters(tmp_path):
    sampler = ParallelSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(20, 4), num_workers=2)
    folder = trainer(tmp_path, sampler=sampler).train()
    assert [float(row["rate/policy_lag"]) for row in rows(folder)] == [0.0] * len(rows(folder))
    overlapped = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(20, 4), num_workers=2, num_slots=2
    )
    lags = [float(row["rate/policy_lag"]) for row in rows(trainer(tmp_path, sampler=overlapped).train())]
    assert all(0 <= lag <= 2 for lag in lags) and max(lags) > 0


class CountingThreads(A2C):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def wants_threads(self, num_rows: int) -> bool:
        return True

    def update(self, *arguments: Any) -> Any:
        self.seen.add(torch.get_num_threads())
        return super().update(*arguments)


def test_the_caller_keeps_its_number_of_threads(tmp_path):
    before, algo = torch.get_num_threads(), CountingThreads()
    trainer(tmp_path, algo=algo, total=80, num_threads=before + 1).train()
    assert (algo.seen, torch.get_num_threads()) == ({before + 1}, before)


@pytest.mark.parametrize("allowed, expected", [(1, 1), (2, 2), (4, 3)])
def test_no_more_threads_than_the_caller_allows(tmp_path, monkeypatch, allowed, expected):
    """`OMP_NUM_THREADS` and torch.set_num_threads: where something else runs beside, one more costs tenfold."""
    monkeypatch.setattr("rlsurreal.runners.run.count_cpus", lambda: 3)
    before, algo = torch.get_num_threads(), CountingThreads()
    try:
        torch.set_num_threads(allowed)
        trainer(tmp_path, algo=algo, total=80).train()
        assert algo.seen == {expected}
    finally:
        torch.set_num_threads(before)


def test_threads_are_for_arithmetic():
    from rlsurreal.algos import A2C, PPO, SAC

    assert not PPO(num_minibatches=32).wants_threads(2048) and PPO(num_minibatches=4).wants_threads(4096)
    assert not A2C().wants_threads(256) and A2C().wants_threads(4096)
    assert SAC().wants_threads(1)


def test_a_budget_that_is_used_already_is_refused(tmp_path):
    folder = trainer(tmp_path).train()
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match=f"total_env_steps is 800, and the run in {folder} has made 16.. steps"):
        trainer(tmp_path, total=800).train(resume=folder)
    with pytest.raises(ValueError, match="total_env_steps is 800"):
        trainer(tmp_path, total=800).train(folder=folder)
    assert (folder / "config.json").read_text() == before
    assert trainer(tmp_path).train(folder=folder) == folder, "the same call again does nothing"


def test_resume_and_folder_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="resume is 'a' and folder 'b'; folder alone"):
        trainer(tmp_path).train(resume="a", folder="b")


def test_a_folder_goes_on_with_its_own_experiment_alone(tmp_path, caplog):
    def make(**changes: Any) -> Trainer:
        return trainer(tmp_path, **{"total": 400, **changes})

    folder = make().train(folder=tmp_path / "run")
    config_before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match=r"run has a run with seed=0, and this one has 3: give it another folder, or"):
        make(seed=3).train(folder=folder)
    with pytest.raises(ValueError, match=r"has a run with sampler.env.factory=CartPole-v1, and this one has Acrobot"):
        make(env="Acrobot-v1").train(folder=folder)
    assert (folder / "config.json").read_text() == config_before
    make(total=800, log_interval_steps=100).train(folder=folder)
    assert "goes on with other settings: " in caplog.text and "log_interval_steps was 400 and is 100" in caplog.text
