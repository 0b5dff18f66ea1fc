"""What a worker process is made of."""

import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.samplers import InferenceServer, ParallelSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.agents import TapeAgent

pytestmark = pytest.mark.processes


def modules_env() -> gym.Env:
    """An environment that observes whether torch and the master's main script are loaded where it steps.

    It travels by value: a worker that imported this module would get torch with it.
    """

    class ModulesEnv(gym.Env):
        observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def observe(self):
            return np.array(["torch" in sys.modules, hasattr(sys.modules["__main__"], "__file__")], np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observe(), {}

        def step(self, action):
            return self.observe(), 0.0, False, False, {}

    return ModulesEnv()


BY_VALUE = GymnasiumEnv(factory=types.FunctionType(modules_env.__code__, {"gym": gym, "np": np, "sys": sys}))


def start(**settings: Any) -> ParallelSampler:
    sampler = ParallelSampler(**settings)
    agent = TapeAgent()
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    return sampler


@pytest.mark.parametrize("num_slots", [1, 2])
def test_workers_that_do_not_act_never_import_torch_nor_the_main_script(num_slots):
    sampler = start(
        env=BY_VALUE, batch=BatchSpec(4, 2), num_workers=2, num_slots=num_slots, inference=InferenceServer()
    )
    try:
        assert (sampler.obtain().env.observation == 0).all()
    finally:
        sampler.close()


def test_workers_that_act_do_import_torch():
    """The other side of the test above: the observation tells."""
    sampler = start(env=BY_VALUE, batch=BatchSpec(4, 2), num_workers=2)
    try:
        assert (sampler.obtain().env.observation[1:, :, 0] == 1).all()
    finally:
        sampler.close()


def test_a_served_worker_is_small():
    sampler = start(
        env=GymnasiumEnv(factory="HalfCheetah-v5"), batch=BatchSpec(4, 8), num_workers=4, inference=InferenceServer()
    )
    try:
        sampler.obtain()
        private = [psutil.Process(member.child.pid).memory_full_info().uss for member in sampler._crew.members]
        assert max(private) < 60e6
    finally:
        sampler.close()


def test_factories_defined_in_a_function_travel():
    made = []

    def factory() -> gym.Env:
        made.append(1)
        return gym.make("CartPole-v1")

    sampler = start(
        env=GymnasiumEnv(factory=factory), batch=BatchSpec(4, 2), num_workers=2, inference=InferenceServer()
    )
    try:
        assert sampler.obtain().env.valid[:-1].all()
    finally:
        sampler.close()


def test_workers_are_pinned_apart():
    cpus = psutil.Process().cpu_affinity()
    if len(cpus) < 2:
        pytest.skip("one CPU: nothing to keep apart")
    sampler = start(env=BY_VALUE, batch=BatchSpec(4, 2), num_workers=2, inference=InferenceServer())
    try:
        sampler.obtain()
        pinned = [set(psutil.Process(member.child.pid).cpu_affinity()) for member in sampler._crew.members]
        assert not pinned[0] & pinned[1] and pinned[0] | pinned[1] <= set(cpus)
    finally:
        sampler.close()
