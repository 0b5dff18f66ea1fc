"""Settings do what they say, and calls that cannot be right are errors that name the fix."""

import os
import time
from typing import Any

import numpy as np
import psutil
import pytest

from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.samplers import AsyncSampler, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.utils.affinity import Affinity
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map

CARTPOLE = GymnasiumEnv(factory="CartPole-v1")
ENVPOOL = EnvPoolEnv(task_id="CartPole-v1")
BATCH = BatchSpec(8, 4)
CARRIED = ("env.observation", "env.first", "env.prev_reward", "agent.prev_action", "agent.agent_state")
processes = pytest.mark.processes


def start(sampler: Any) -> Any:
    agent = TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
    except BaseException:
        sampler.close()
        raise
    return sampler


def copied(samples: Samples) -> Samples:
    return tree_map(lambda leaf: leaf.numpy().copy(), samples)


def assert_equal(ours: Samples, theirs: Samples) -> None:
    for (name, x), (_, y) in zip(named_leaves(ours), named_leaves(theirs), strict=True):
        rows = len(x) if name.startswith(CARRIED) else BATCH.num_steps
        np.testing.assert_array_equal(x[:rows], y[:rows], err_msg=name)


SAMPLERS = {
    "serial": lambda: SerialSampler(env=CARTPOLE, batch=BATCH),
    "asynchronous": lambda: AsyncSampler(env=ENVPOOL, batch=BATCH, num_ready=2),
    "parallel": lambda: ParallelSampler(env=CARTPOLE, batch=BATCH, num_workers=2, inference=InferenceServer()),
}
one_slot = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=processes if kind == "parallel" else ()) for kind in SAMPLERS]
)


@one_slot
def test_obtain_before_release_is_refused_and_leaves_the_samples_alone(kind):
    sampler = start(SAMPLERS[kind]())
    try:
        samples = sampler.obtain()
        before = copied(samples)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"still in use; release\(\)"):
                sampler.obtain()
        assert_equal(before, copied(samples))
        sampler.release(samples)
        following = sampler.obtain()
        np.testing.assert_array_equal(before.env.observation[-1], following.env.observation[0])
    finally:
        sampler.close()


@one_slot
def test_release_wants_what_obtain_returned_once(kind):
    sampler = start(SAMPLERS[kind]())
    try:
        samples = sampler.obtain()
        for other in (samples[:], copied(samples), None):
            with pytest.raises(ValueError, match=r"the very samples that obtain\(\) returned, once"):
                sampler.release(other)
        sampler.release(samples)
        with pytest.raises(ValueError, match="once"):
            sampler.release(samples)
        sampler.release(sampler.obtain())
    finally:
        sampler.close()


@processes
def test_slots_may_be_released_in_any_order():
    reference = start(SerialSampler(env=CARTPOLE, batch=BATCH))
    sampler = start(ParallelSampler(env=CARTPOLE, batch=BATCH, num_workers=1, num_slots=3))
    try:
        for order in ((2, 0, 1), (1, 2, 0), (2, 1, 0)):
            leased = [sampler.obtain() for _ in range(3)]
            for samples in leased:
                expected = reference.obtain()
                assert_equal(copied(expected), copied(samples))
                reference.release(expected)
            for i in order:
                sampler.release(leased[i])
    finally:
        sampler.close()
        reference.close()


@processes
def test_a_named_device_gets_a_server_process_with_one_slot_too():
    sampler = start(
        ParallelSampler(env=CARTPOLE, batch=BATCH, num_workers=2, inference=InferenceServer(devices=("cpu",)))
    )
    reference = start(SerialSampler(env=CARTPOLE, batch=BATCH))
    try:
        sampler._agent.act = None  # this process must not choose any action
        for _ in range(3):
            ours, theirs = sampler.obtain(), reference.obtain()
            assert_equal(copied(ours), copied(theirs))
            sampler.release(ours)
            reference.release(theirs)
        children = [member.child for member in sampler._crew.members]
        assert [child.name.split(" (")[0] for child in children] == ["worker-0", "worker-1", "inference-server-0"]
        assert psutil.pid_exists(children[2].pid) and children[2].pid != os.getpid()
        time.sleep(0.2)  # nobody has anything to do
        assert sampler.wait_shares()["servers"] > 0
    finally:
        sampler.close()
        reference.close()


@pytest.mark.parametrize("setting", [{"mid_batch_reset": False}, {"max_decorrelation_steps": 5}], ids=str)
@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=processes)], ids=["serial", "parallel"])
def test_engines_that_go_on_by_themselves_are_not_asked_to_wait(parallel, setting):
    settings: dict[str, Any] = dict(env=ENVPOOL, batch=BATCH, **setting)
    sampler = ParallelSampler(**settings, inference=InferenceServer()) if parallel else SerialSampler(**settings)
    with pytest.raises(ValueError, match="EnvPoolEnv steps all.*mid_batch_reset=True and max_decorrelation_steps=0"):
        try:
            sampler.connect(seed=0)
        finally:
            sampler.close()


def test_settings_that_would_do_nothing_are_refused():
    for own in ({"min_batch": 3}, {"max_wait_s": 0.01, "schedule": "alternating"}):
        with pytest.raises(ValueError, match="are for schedule='dynamic', and schedule is"):
            InferenceServer(**own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"affinity": Affinity((), ((0,),))}, "affinity names CPUs, which all ranks would use"),
        ({"inference": InferenceServer(devices=("cuda:0",))}, r"inference.devices is \('cuda:0',\), which all ranks"),
    ],
)
def test_what_all_ranks_would_use_is_refused(settings, message):
    sampler = ParallelSampler(env=CARTPOLE, batch=BATCH, **settings)
    with pytest.raises(ValueError, match=message):
        sampler.divided(BATCH, sampler.evaluation)
