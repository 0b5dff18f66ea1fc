"""Whatever goes wrong surfaces in the master within seconds, with its cause, and leaves nothing behind."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import psutil
import pytest

from rlsurreal.distributed.processes import ChildError
from rlsurreal.envs import GymnasiumEnv, env_seed
from rlsurreal.envs.base import EnvError
from rlsurreal.samplers import EvalSpec, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.samplers import parallel as parallel_sampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import CountingEnv, FailingEnv
from rlsurreal.utils.affinity import Affinity
from rlsurreal.utils.namedarraytuple import tree_map

pytestmark = pytest.mark.processes
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # child processes cannot import this file

KINDS = {
    "worker": dict(),
    "overlapped": dict(num_slots=2),
    "served": dict(inference=InferenceServer()),
    "served-elsewhere": dict(num_slots=2, inference=InferenceServer(schedule="dynamic")),
}
CAUSES = {
    "raise_in_reset": "raised in reset.*FailingEnv fails in reset",
    "raise_in_step": "raised in step.*FailingEnv fails in step",
    "wrong_shape": "returned from step an observation.*shape",
    "wrong_dtype": "returned from step an observation",
    "nan": "returned from step an observation.*finite",
    "nan_reward": "returned from step.*reward",
    "old_api": "returned from step.*4",
    "die": "killed by SIGKILL",
}


def failing(mode: str, at: int = 3, **kwargs: object) -> GymnasiumEnv:
    # Environment 2 of four fails: it is in the second of two workers.
    return GymnasiumEnv(
        factory=FailingEnv, kwargs={"mode": mode, "at": at, "only_seed": env_seed(3, 2), "lengths": 2, **kwargs}
    )


def sample(sampler: object, num_slots: int = 3) -> None:
    agent = TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
        for _ in range(num_slots):
            sampler.release(sampler.obtain())
    finally:
        sampler.close()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def shared_names() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def assert_nothing_is_left_since(before: set[str]) -> None:
    deadline = time.monotonic() + 5  # another test's may come and go
    while (left := shared_names() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


# What environments do wrong is found where they are stepped, the same way everywhere; how it comes out differs.
WAYS_OUT = [(kind, mode) for kind in KINDS for mode in CAUSES if kind == "served" or mode.startswith(("raise", "die"))]


@pytest.mark.parametrize(("kind", "mode"), WAYS_OUT)
def test_cause_surfaces_within_seconds(kind, mode):
    names = shared_names()
    before = children()
    sampler = ParallelSampler(env=failing(mode), batch=BatchSpec(8, 4), num_workers=2, **KINDS[kind])
    start = time.monotonic()
    with pytest.raises(ChildError, match=rf"(?s)worker-1 \(environments 2 to 3\).*{CAUSES[mode]}") as caught:
        sample(sampler)
    assert time.monotonic() - start < 15
    if mode not in ("die",):
        assert "environment 2 (FailingEnv)" in str(caught.value) and "Traceback" in str(caught.value)
    assert children() == before
    assert_nothing_is_left_since(names)


@pytest.mark.parametrize("mode", [mode for mode in CAUSES if mode != "die"])
def test_serial_sampler_raises_the_environments_error(mode):
    with pytest.raises(EnvError, match=rf"(?s)environment 2 \(FailingEnv\).*{CAUSES[mode]}"):
        sample(SerialSampler(env=failing(mode), batch=BatchSpec(8, 4)))


def test_worker_killed_from_outside():
    sampler = ParallelSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(8, 4), num_workers=2)
    agent = TapeAgent()
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    try:
        sampler.release(sampler.obtain())
        os.kill(sampler._crew.members[1].child.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(ChildError, match=r"worker-1 \(environments 2 to 3\).*killed by SIGKILL"):
            for _ in range(3):
                sampler.release(sampler.obtain())
        assert time.monotonic() - start < 5
    finally:
        sampler.close()


def test_failure_in_an_evaluation_environment():
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 10**9}),
        batch=BatchSpec(8, 4),
        num_workers=2,
        evaluation=EvalSpec(env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step"})),
    )
    agent = TapeAgent()
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    try:
        sampler.release(sampler.obtain())
        with pytest.raises(ChildError, match="FailingEnv fails in step"):
            sampler.evaluate()
    finally:
        sampler.close()


@pytest.mark.parametrize("kind", ["worker", "served"])
def test_blocking_environment_is_named_with_where_it_is(kind):
    sampler = ParallelSampler(
        env=failing("block"), batch=BatchSpec(8, 4), num_workers=2, step_timeout_s=1.5, **KINDS[kind]
    )
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"(?s)no step for 1.5 s.*worker-1.*environment 2.*in step") as caught:
        sample(sampler)
    assert "testing/envs.py" in str(caught.value), "the message should show the stack of the worker"
    assert time.monotonic() - start < 20


SCRIPT = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with Ctrl-C ignored
    from rlsurreal.envs import GymnasiumEnv
    from rlsurreal.samplers import InferenceServer, ParallelSampler
    from rlsurreal.structs import BatchSpec
    from rlsurreal.testing.agents import TapeAgent
    sampler = ParallelSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(8, 4), num_workers=2, {kind})
    agent = TapeAgent()
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    samples = sampler.obtain()
    print(sampler._launcher._zygote.pid, *[member.child.pid for member in sampler._crew.members], flush=True)
    while True:
        sampler.release(samples)
        samples = sampler.obtain()
"""


ELSEWHERE = "num_slots=2, inference=InferenceServer()"
ENDS = [(kind, n) for kind in ("num_slots=2", "inference=InferenceServer()", ELSEWHERE) for n in ("SIGKILL", "SIGINT")]


@pytest.mark.parametrize(("kind", "number"), [*ENDS, (ELSEWHERE, "SIGTERM")])
def test_nothing_is_left_when_the_master_is_killed(tmp_path, number, kind):
    names = shared_names()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(kind=kind)))
    master = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        pids = [int(word) for word in master.stdout.readline().split()]
        assert len(pids) >= 3
        time.sleep(0.2)
        master.send_signal(getattr(signal, number))
        assert master.wait(30) != 0
    finally:
        master.kill()
    deadline = time.monotonic() + 15
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if is_running(pid)]
    assert_nothing_is_left_since(names)


def is_running(pid: int) -> bool:
    """Not dead, and not a zombie: process 1 of a container may never ask how its foster children ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("num_slots", [1, 2])
@pytest.mark.parametrize("mode", ["raise_in_step", "die"])
def test_a_lost_worker_is_replaced_where_that_is_asked_for(mode, num_slots, caplog):
    # The counting environment says in each observation which game and step it is: nothing may be mixed up.
    sampler = ParallelSampler(
        env=failing(mode, at=13), batch=BatchSpec(8, 4), num_workers=2, num_slots=num_slots, on_worker_failure="replace"
    )
    agent = TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
        slots = []
        for _ in range(6):
            samples = sampler.obtain()
            slots.append(tree_map(lambda leaf: leaf.numpy().copy(), samples))
            sampler.release(samples)
        trajectories = sampler.pop_trajectories()
    finally:
        sampler.close()
    assert "replacing a worker" in caplog.text
    observation = np.concatenate([slot.env.observation[:-1] for slot in slots])
    valid = np.concatenate([slot.env.valid[:-1] for slot in slots])
    first = np.concatenate([slot.env.first[:-1] for slot in slots])
    ended = np.concatenate([(slot.env.terminated | slot.env.truncated)[:-1] for slot in slots])
    for before, after in zip(slots, slots[1:]):  # row 0 is row T of the slot before, lost or not
        np.testing.assert_array_equal(before.env.observation[-1], after.env.observation[0])
        np.testing.assert_array_equal(before.env.first[-1], after.env.first[0])
    lost = ~valid[1:] & ~ended[:-1]
    assert lost[:, :2].sum() == 0 and (lost[:, 2:].sum(0) == 1).all()
    assert (first[1:] == ~valid[:-1])[:-1].all(), "a reset row leads to a first row"
    steps, identity = observation[..., 2], observation[..., 0]
    follows = valid[:-1]
    assert (steps[1:][follows] == steps[:-1][follows] + 1).all() and (
        identity[1:][follows] == identity[:-1][follows]
    ).all()
    assert len(np.unique(identity[:, 2])) == 2, "the new environments have seeds of their own"
    assert {game.length for game in trajectories} == {2}, "the games that were lost count for nothing"


def test_a_worker_that_fails_again_at_once_ends_the_run():
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 3}),
        batch=BatchSpec(8, 4),
        num_workers=2,
        on_worker_failure="replace",
    )
    with pytest.raises(ChildError, match=r"(?s)lost again before it had filled a slot.*FailingEnv fails in step"):
        sample(sampler)


def test_replacing_needs_workers_that_act():
    with pytest.raises(ValueError, match="on_worker_failure='replace' needs"):
        ParallelSampler(
            env=failing("die"), batch=BatchSpec(8, 4), on_worker_failure="replace", inference=InferenceServer()
        )


# ---------------------------------------------------------------- interrupted calls

CALLS = {
    "obtain": lambda sampler: sampler.obtain(),
    "evaluate": lambda sampler: sampler.evaluate(),
}


def started(sampler: ParallelSampler, agent: TapeAgent | None = None) -> ParallelSampler:
    agent = agent or TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
        sampler.release(sampler.obtain())
    except BaseException:
        sampler.close()
        raise
    return sampler


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def assert_unusable(sampler: ParallelSampler, before: list[psutil.Process]) -> None:
    """Later calls say what to do, and closing takes no time."""
    start = time.monotonic()
    for call in CALLS.values():
        with pytest.raises(RuntimeError, match=r"did not come to its end; close\(\)"):
            call(sampler)
    sampler.close()
    assert time.monotonic() - start < 3
    assert children() == before


@pytest.mark.parametrize("kind", ["served", "overlapped"])
@pytest.mark.parametrize("call", CALLS)
def test_after_an_interrupted_call_only_close_is_left(monkeypatch, call, kind):
    before = children()
    sampler = started(
        ParallelSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(8, 4), num_workers=2, **KINDS[kind])
    )
    try:
        if call == "obtain":
            monkeypatch.setattr(sampler._crew, "wait_all_done", _interrupt)
        else:
            monkeypatch.setattr(sampler, "_fill_evaluation", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            CALLS[call](sampler)
        monkeypatch.undo()
        assert_unusable(sampler, before)
    finally:
        sampler.close()


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_while_an_environment_hangs(call):
    hanging = failing("block", at=3)
    before = children()
    sampler = ParallelSampler(
        env=hanging if call == "obtain" else failing("block", at=10**9),
        batch=BatchSpec(2, 4),
        num_workers=2,
        inference=InferenceServer(),
        evaluation=EvalSpec(env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "block", "at": 30}), num_envs=2),
    )
    previous = signal.signal(signal.SIGUSR2, _interrupt)
    try:
        started(sampler)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        with pytest.raises(KeyboardInterrupt):
            CALLS[call](sampler)
        assert_unusable(sampler, before)
    finally:
        signal.signal(signal.SIGUSR2, previous)
        sampler.close()


def test_samples_can_be_released_after_an_interrupt(monkeypatch):
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(8, 4), num_workers=1, num_slots=2
    )
    try:
        samples = started(sampler).obtain()
        monkeypatch.setattr(sampler, "_fill_evaluation", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            sampler.evaluate()
        sampler.release(samples)
    finally:
        sampler.close()


# ---------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("with_workers", [False, True], ids=["connected-only", "with-workers"])
def test_closing_and_connecting_again_leaves_nothing(with_workers):
    before, counts = children(), []
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"),
        batch=BatchSpec(8, 4),
        num_workers=2,
        inference=InferenceServer(schedule="dynamic"),
        evaluation=EvalSpec(num_envs=2, episodes_per_env=1),
    )
    for _ in range(4):
        agent = TapeAgent()
        try:
            agent.initialize(sampler.connect(seed=0), seed=0)
            assert len(children()) > len(before)
            if with_workers:
                sampler.initialize(agent, discount=0.9)
                sampler.release(sampler.obtain())
                assert len(sampler.evaluate()) == 2
        finally:
            sampler.close()
        assert children() == before
        gc.collect()
        counts.append(psutil.Process().num_fds())
    assert counts[1:] == counts[:1] * 3


class Exclusive(CountingEnv):
    """Two of it cannot be there at a time; closing takes a while."""

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))

    def close(self) -> None:
        if os.path.exists(self.path):
            time.sleep(0.5)
            os.unlink(self.path)


def test_environments_that_were_looked_at_are_closed_before_others_are_built(tmp_path):
    env = GymnasiumEnv(factory=Exclusive, kwargs={"path": str(tmp_path / "port")})
    sampler = started(ParallelSampler(env=env, batch=BatchSpec(4, 1), num_workers=1))
    try:
        sampler.release(sampler.obtain())
    finally:
        sampler.close()
    assert not (tmp_path / "port").exists()


def test_servers_leave_at_once_in_the_middle_of_a_slot():
    sampler = started(
        ParallelSampler(
            env=GymnasiumEnv(factory="CartPole-v1"),
            batch=BatchSpec(2_000, 2),
            num_workers=1,
            num_slots=2,
            inference=InferenceServer(),
        )
    )
    sampler.release(sampler.obtain())  # the servers are at the next slot
    began = time.monotonic()
    sampler.close()
    assert time.monotonic() - began < 3, "it was waited for until it was killed"


def test_workers_that_are_fewer_than_cpus_have_whole_cores(monkeypatch):
    """Of the affinity for so many workers: the first of that for more may be hyperthreads of a few cores."""
    machine = lambda count=None: Affinity(tuple(range(8)), tuple((i,) for i in range(count or 8)))  # noqa: E731
    made = []
    monkeypatch.setattr(parallel_sampler, "make_affinity", lambda count=None: made.append(count) or machine(count))
    sampler = ParallelSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(4, 2))
    try:
        agent = TapeAgent()
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
        assert made == [None, 2] and sampler._affinity.num_workers == sampler._layout.num_workers == 2
    finally:
        sampler.close()


def test_closing_after_a_connect_that_failed_leaves_nothing():
    before = children()
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(8, 4), num_workers=2, inference=InferenceServer()
    )
    started(sampler).close()
    sampler.evaluation = EvalSpec(env=GymnasiumEnv(factory="Pendulum-v1"))
    with pytest.raises(ValueError, match="they must be the same"):
        sampler.connect(seed=0)
    sampler.close()
    assert children() == before


class WithSimulator(FailingEnv):
    """Keeps a process of its own, and ends it when it is closed."""

    def __init__(self, seconds: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.simulator = subprocess.Popen(["sleep", str(seconds)])

    def close(self) -> None:
        self.simulator.kill()


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("kind", ["worker", "served"])
def test_what_environments_started_is_gone_after_another_one_failed(kind, num_workers):
    seconds = 100_000 + os.getpid()  # a command line like no other
    env = GymnasiumEnv(
        factory=WithSimulator,
        kwargs={"seconds": seconds, "mode": "raise_in_step", "at": 3, "only_seed": env_seed(3, 2)},
    )

    def simulators() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", str(seconds)]]

    try:
        with pytest.raises(ChildError, match="FailingEnv fails in step"):
            sample(ParallelSampler(env=env, batch=BatchSpec(5_000, 4), num_workers=num_workers, **KINDS[kind]))
        deadline = time.monotonic() + 2
        while simulators() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not simulators()
    finally:
        for process in simulators():
            process.kill()


# ---------------------------------------------------------------- who is to blame


@dataclass(kw_only=True, eq=False)
class Sleepy(TapeAgent):
    """Falls asleep in its third action."""

    def act(self, inputs: Any, state: Any, noise: Any) -> Any:
        self.num_acts = getattr(self, "num_acts", 0) + 1
        if self.num_acts == 3:
            time.sleep(3600)
        return super().act(inputs, state, noise)


def test_a_hanging_inference_server_is_named_with_where_it_is():
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"),
        batch=BatchSpec(8, 4),
        num_workers=2,
        num_slots=2,
        inference=InferenceServer(),
        step_timeout_s=1.0,
    )
    with pytest.raises(TimeoutError, match=r"no step for 1 s, because of inference-server-0 \(cpu\)") as caught:
        started(sampler, Sleepy())
    assert f'"{__file__}", line' in str(caught.value) and "in act" in str(caught.value), "the stack of the server"


def test_errors_in_evaluation_environments_say_so():
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 10**9}),
        batch=BatchSpec(8, 4),
        num_workers=2,
        inference=InferenceServer(),
        evaluation=EvalSpec(env=GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step"})),
    )
    try:
        started(sampler)
        with pytest.raises(ChildError, match=r"in an evaluation: environment \d.*fails in step"):
            sampler.evaluate()
    finally:
        sampler.close()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_worker_lost_while_it_was_idle_is_replaced_before_an_evaluation(num_slots, caplog):
    games_of = lambda length: GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": length})  # noqa: E731
    sampler = ParallelSampler(
        env=games_of(1000),  # whose end does not fall into what is looked at
        batch=BatchSpec(8, 4),
        num_workers=2,
        num_slots=num_slots,
        on_worker_failure="replace",
        evaluation=EvalSpec(env=games_of(5), num_envs=4, episodes_per_env=1),
    )
    try:
        started(sampler)
        leased = [sampler.obtain() for _ in range(num_slots)]  # nothing is left to do
        lost = sampler._crew.members[1].child
        os.kill(lost.pid, signal.SIGKILL)
        assert lost.join(10)
        games = sampler.evaluate()
        assert sorted(game.env for game in games) == [0, 1, 2, 3] and "replacing a worker" in caplog.text
        for samples in leased:
            sampler.release(samples)
        samples = sampler.obtain()
        np.testing.assert_array_equal(samples.env.valid[0], [True, True, False, False])
        assert samples.env.valid[1, :2].all()
    finally:
        sampler.close()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_worker_lost_after_it_was_done_first_is_replaced(num_slots, caplog):
    # The master waits for the first worker; the second one has filled its part, and is lost.
    slow = GymnasiumEnv(
        factory=FailingEnv, kwargs={"mode": "block", "at": 12, "only_seed": env_seed(3, 0), "block_seconds": 3.0}
    )
    sampler = ParallelSampler(
        env=slow,
        batch=BatchSpec(8, 4),
        num_workers=2,
        num_slots=num_slots,
        on_worker_failure="replace",
        step_timeout_s=20,
        evaluation=EvalSpec(num_envs=4, episodes_per_env=1),
    )
    try:
        started(sampler)
        killer = threading.Timer(1.5, lambda: os.kill(sampler._crew.members[1].child.pid, signal.SIGKILL))
        killer.start()
        for _ in range(5):
            sampler.release(sampler.obtain())
        killer.join()
        assert caplog.text.count("replacing a worker") == 1
        assert len(sampler.evaluate()) == 4
        sampler.release(sampler.obtain())
    finally:
        sampler.close()


@pytest.mark.parametrize("loses_again", [False, True])
def test_a_worker_lost_in_an_evaluation_is_replaced_and_the_games_begin_anew(loses_again, tmp_path, caplog):
    fragile = GymnasiumEnv(factory=Fragile, kwargs={"flag": str(tmp_path / ("always" if loses_again else "once"))})
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"),
        batch=BatchSpec(8, 4),
        num_workers=2,
        on_worker_failure="replace",
        evaluation=EvalSpec(env=fragile, num_envs=4, episodes_per_env=2),
    )
    try:
        started(sampler)
        if loses_again:
            with pytest.raises(ChildError, match="lost again before it had filled a slot"):
                sampler.evaluate()
        else:
            for _ in range(2):
                games = sampler.evaluate()
                assert sorted(game.env for game in games) == [0, 0, 1, 1, 2, 2, 3, 3]
                sampler.release(sampler.obtain())
        assert "replacing a worker" in caplog.text
    finally:
        sampler.close()


class Fragile(gym.Wrapper):
    """CartPole that kills its process at the fourth step: once, or every time."""

    def __init__(self, flag: str) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self._flag, self._steps = Path(flag), 0

    def step(self, action):
        self._steps += 1
        if self._steps == 4 and not self._flag.exists():
            if self._flag.name == "once":
                self._flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)
