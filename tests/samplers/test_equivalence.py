"""Same seeds, same trajectories: every way of sampling against the serial sampler, bit for bit."""

from typing import Any

import numpy as np
import pytest

from rlsurreal.envs import AleEnv, EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.samplers import AsyncSampler, EvalSpec, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import NestedEnv
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map

pytestmark = pytest.mark.processes

NUM_STEPS = 24
CARRIED = (
    "env.observation",
    "env.first",
    "env.prev_reward",
    "agent.prev_action",
    "agent.agent_state",
)  # filled in row T
PARALLEL = {
    "worker": dict(num_workers=2),
    "worker-two-slots": dict(num_workers=3, num_slots=2),
    "more-workers-than-environments": dict(num_workers=9),
    "lock-step": dict(num_workers=2, inference=InferenceServer()),
    "lock-step-two-slots": dict(num_workers=2, num_slots=2, inference=InferenceServer()),
    "alternating": dict(num_workers=2, inference=InferenceServer(schedule="alternating")),
    "alternating-two-slots": dict(num_workers=3, num_slots=2, inference=InferenceServer(schedule="alternating")),
    "dynamic": dict(num_workers=3, inference=InferenceServer(schedule="dynamic", min_batch=3)),
    "dynamic-at-once": dict(num_workers=3, inference=InferenceServer(schedule="dynamic", max_wait_s=0.0)),
    "two-servers-three-slots": dict(
        num_workers=3, num_slots=3, inference=InferenceServer(schedule="dynamic", devices=("cpu", "cpu"))
    ),
}


def settings(env: Any, **changes: Any) -> dict[str, Any]:
    return {
        "env": env,
        "batch": BatchSpec(NUM_STEPS, 7, first_env=3),
        "state_interval": 8,
        "evaluation": EvalSpec(num_envs=3, episodes_per_env=2, num_steps=16),
        **changes,
    }


def run(sampler: Any, num_slots: int = 4, memory: bool = True) -> tuple[list[Samples], list[Any], list[Any]]:
    """Copies of the slots, the games that ended, and those of an evaluation after the second slot."""
    agent = TapeAgent(memory=memory)
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
        slots, evaluation = [], []
        for i in range(num_slots):
            samples = sampler.obtain()
            slots.append(tree_map(lambda leaf: leaf.numpy().copy(), samples))
            sampler.release(samples)
            if i == 1:
                evaluation = sampler.evaluate()
        return slots, sampler.pop_trajectories(), evaluation
    finally:
        sampler.close()


def assert_same(
    ours: tuple[list[Samples], list[Any], list[Any]], theirs: tuple[list[Samples], list[Any], list[Any]]
) -> None:
    for i, (one, other) in enumerate(zip(ours[0], theirs[0], strict=True)):
        for (name, x), (_, y) in zip(named_leaves(one), named_leaves(other), strict=True):
            if name != "policy_version":
                rows = len(x) if name.startswith(CARRIED) else NUM_STEPS
                np.testing.assert_array_equal(x[:rows], y[:rows], err_msg=f"slot {i}, {name}")
    assert ours[1] == theirs[1]
    assert sorted(ours[2], key=repr) == sorted(theirs[2], key=repr)


WAITING = ("worker-two-slots", "lock-step", "alternating", "dynamic")  # what waits is the collector, the same in all


@pytest.mark.parametrize(
    ("name", "mid_batch_reset"), [*((name, True) for name in PARALLEL), *((name, False) for name in WAITING)]
)
def test_parallel_equals_serial(name, mid_batch_reset):
    shared = settings(GymnasiumEnv(factory="CartPole-v1"), mid_batch_reset=mid_batch_reset, max_decorrelation_steps=13)
    serial = run(SerialSampler(**shared))
    assert len(serial[1]) > 10 and len(serial[2]) == 6, "the test must see episodes end"
    assert_same(serial, run(ParallelSampler(**shared, **PARALLEL[name])))


@pytest.mark.parametrize("name", ["worker", "alternating", "dynamic"])
def test_continuous_actions_without_memory(name):
    shared = settings(GymnasiumEnv(factory="Pendulum-v1"), state_interval=None)
    assert_same(
        run(SerialSampler(**shared), memory=False), run(ParallelSampler(**shared, **PARALLEL[name]), memory=False)
    )


@pytest.mark.parametrize("name", ["worker-two-slots", "alternating", "dynamic"])
def test_nested_spaces(name):
    shared = settings(GymnasiumEnv(factory=NestedEnv))
    assert_same(run(SerialSampler(**shared)), run(ParallelSampler(**shared, **PARALLEL[name])))


@pytest.mark.parametrize("name", ["worker", "alternating-two-slots"])
def test_atari_with_lives(name):
    env = GymnasiumEnv(factory=make_atari, kwargs={"game": "Breakout", "episodic_life": True, "clip_reward": True})
    shared = settings(env, batch=BatchSpec(NUM_STEPS, 4), evaluation=EvalSpec(num_envs=1, episodes_per_env=1))
    serial = run(SerialSampler(**shared))
    assert any(slot.env.terminated.any() for slot in serial[0])
    assert_same(serial, run(ParallelSampler(**shared, **PARALLEL[name])))


@pytest.mark.parametrize("num_ready", [1, 3, 7])
@pytest.mark.parametrize("task_id", ["CartPole-v1", "Pendulum-v1"])
def test_asynchronous_engine_equals_lock_step(task_id, num_ready):
    shared = settings(EnvPoolEnv(task_id=task_id), evaluation=EvalSpec(num_envs=3, episodes_per_env=1, num_steps=16))
    assert_same(run(SerialSampler(**shared)), run(AsyncSampler(**shared, num_ready=num_ready)))


def test_asynchronous_slots_of_one_row():
    """As algorithms that learn from replay have them."""
    shared = settings(EnvPoolEnv(task_id="CartPole-v1"), batch=BatchSpec(1, 3), state_interval=1)
    serial, ours = SerialSampler(**shared), AsyncSampler(**shared, num_ready=3)
    for sampler in (serial, ours):
        sampler.evaluate = list
    assert_same(run(serial), run(ours))
    with pytest.raises(ValueError, match="batch.num_steps is 1 and num_ready 2: .* use num_ready=3"):
        AsyncSampler(**shared, num_ready=2)


def test_asynchronous_atari_equals_lock_step():
    env = EnvPoolEnv(task_id="Breakout-v5", kwargs={"episodic_life": True})
    shared = settings(env, batch=BatchSpec(NUM_STEPS, 4), evaluation=EvalSpec(env=EnvPoolEnv(task_id="Breakout-v5")))

    def sample(sampler: Any) -> Any:
        sampler.evaluate = list
        return run(sampler)

    assert_same(sample(SerialSampler(**shared)), sample(AsyncSampler(**shared, num_ready=2)))


@pytest.mark.parametrize("env", [EnvPoolEnv(task_id="CartPole-v1"), AleEnv(game="pong")], ids=["envpool", "ale"])
def test_native_engine_in_workers_equals_serial(env):
    shared = settings(
        env,
        batch=BatchSpec(NUM_STEPS, 4),
        evaluation=EvalSpec(
            env=EnvPoolEnv(task_id="CartPole-v1") if isinstance(env, EnvPoolEnv) else env, num_envs=2, num_steps=200
        ),
    )
    serial, parallel = SerialSampler(**shared), ParallelSampler(**shared, num_workers=2, inference=InferenceServer())
    if isinstance(env, AleEnv):
        serial.evaluate = parallel.evaluate = list  # a whole game of Pong takes too long here
    assert_same(run(serial), run(parallel))


def test_split_over_ranks_equals_whole():
    env = GymnasiumEnv(factory="CartPole-v1")
    whole = run(SerialSampler(env=env, batch=BatchSpec(NUM_STEPS, 6)))[0]
    halves = [
        run(SerialSampler(env=env, batch=BatchSpec(NUM_STEPS, 3, first_env=first, total_envs=6)))[0] for first in (0, 3)
    ]
    for i, slot in enumerate(whole):
        for half, columns in ((halves[0][i], slice(0, 3)), (halves[1][i], slice(3, 6))):
            for (name, x), (_, y) in zip(named_leaves(slot), named_leaves(half), strict=True):
                np.testing.assert_array_equal(x[:-1, columns], y[:-1], err_msg=name)
