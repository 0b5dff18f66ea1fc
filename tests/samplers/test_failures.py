"""Whatever goes wrong surfaces in the master within seconds, with its cause, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from rlsurreal.distributed.processes import ChildError
from rlsurreal.envs import GymnasiumEnv, env_seed
from rlsurreal.envs.base import EnvError
from rlsurreal.samplers import EvalSpec, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import FailingEnv
from rlsurreal.utils.namedarraytuple import tree_map

pytestmark = pytest.mark.processes

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", CAUSES)
def test_cause_surfaces_within_seconds(kind, mode):
    names = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    before = children()
    sampler = ParallelSampler(env=failing(mode), batch=BatchSpec(8, 4), num_workers=2, **KINDS[kind])
    start = time.monotonic()
    with pytest.raises(ChildError, match=rf"(?s)worker-1 \(environments 2 to 3\).*{CAUSES[mode]}") as caught:
        sample(sampler)
    assert time.monotonic() - start < 15
    if mode not in ("die",):
        assert "environment 2 (FailingEnv)" in str(caught.value) and "Traceback" in str(caught.value)
    assert children() == before
    assert (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) == names


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
    import sys, time
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


@pytest.mark.parametrize(
    "kind", ["num_slots=2", "inference=InferenceServer()", "num_slots=2, inference=InferenceServer()"]
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_master_is_killed(tmp_path, number, kind):
    names = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(kind=kind)))
    master = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids = [int(word) for word in master.stdout.readline().split()]
    assert len(pids) >= 3
    time.sleep(0.2)
    master.send_signal(number)
    assert master.wait(10) != 0
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) == names


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
