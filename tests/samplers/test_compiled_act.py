"""Actions that a compiled program chooses are those that the agent itself chooses."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.samplers.actor import Actor
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.testing.envs import NestedEnv
from rlsurreal.utils.namedarraytuple import leaves, tree_map

torch.set_num_threads(1)
CARTPOLE = GymnasiumEnv(factory="CartPole-v1", kwargs={"max_episode_steps": 9})
PENDULUM = GymnasiumEnv(factory="Pendulum-v1", kwargs={"max_episode_steps": 7})
CASES: dict[str, Any] = {
    "categorical": (CARTPOLE, {}),
    "gaussian": (PENDULUM, {"normalize_observation": True}),
    "dict": (GymnasiumEnv(factory=NestedEnv, kwargs={"length": 5}), {}),
    "lstm": (CARTPOLE, {"recurrent": "lstm", "recurrent_size": 5}),
}


@dataclass(kw_only=True, eq=False)
class ActsHereOnly(ActorCriticAgent):
    """Its copies in other processes must not be asked in Python."""

    home: int = field(default_factory=os.getpid)

    def act(self, inputs: Any, state: Any, noise: Any) -> Any:
        assert os.getpid() == self.home, "a worker acts eagerly"
        return super().act(inputs, state, noise)


def play(sampler: Any, compile: Any, model: Any, num_slots: int = 2, strict: bool = True) -> list[Samples]:
    cls = ActsHereOnly if compile == "on" and strict else ActorCriticAgent
    agent = cls(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (8,), **model}))
    try:
        agent.initialize(sampler.connect(seed=0), seed=0)
        sampler.initialize(agent, discount=0.9, compile=compile)
        if isinstance(sampler, SerialSampler) and strict:
            assert list(sampler._train.actor._programs) == ([sampler.batch.num_envs] if compile == "on" else [])
        slots = []
        for i in range(num_slots):
            samples = sampler.obtain()
            slots.append(tree_map(torch.clone, samples))
            with torch.no_grad():  # the next slot must be played with what has been learned
                for parameter in agent.module.parameters():
                    parameter.mul_(1.1)
            agent.publish(i + 1)
            sampler.release(samples)
        return slots
    finally:
        sampler.close()


@pytest.mark.parametrize("name", CASES)
def test_graphs_choose_the_actions_of_the_agent(name, interpreted):
    programs_act_like_the_agent(name)


@pytest.mark.compiles
@pytest.mark.timeout(300)
def test_compiled_actions_are_those_of_the_agent():
    programs_act_like_the_agent("gaussian")


def programs_act_like_the_agent(name: str) -> None:
    env, model = CASES[name]
    plain, compiled = (
        play(SerialSampler(env=env, batch=BatchSpec(16, 3), state_interval=4), compile, model)
        for compile in ("off", "on")
    )
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(leaves(ours), leaves(theirs), atol=1e-4, rtol=1e-4)


def test_one_environment_is_enough(interpreted):
    plain, compiled = (play(SerialSampler(env=PENDULUM, batch=BatchSpec(16, 1)), c, {}) for c in ("off", "on"))
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(leaves(ours), leaves(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.compiles
@pytest.mark.timeout(300)
@pytest.mark.processes
@pytest.mark.parametrize("inference", [None, InferenceServer(), InferenceServer(schedule="alternating")])
def test_workers_and_servers_run_programs(inference):
    together = inference is not None and inference.schedule == "lock_step"
    batch = BatchSpec(16, 2 if together else 4)  # two are served at a time, by one program for all cases
    plain = play(SerialSampler(env=PENDULUM, batch=batch), "off", {})
    sampler = ParallelSampler(env=PENDULUM, batch=batch, num_workers=2, inference=inference)
    compiled = play(sampler, "on", {})
    assert sampler._programs.keys() == {2}
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours.env.observation, theirs.env.observation, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(leaves(ours.agent.agent_info), leaves(theirs.agent.agent_info), atol=1e-3, rtol=1e-3)


def test_programs_are_used_and_hide_no_errors(monkeypatch, interpreted):
    def never(*arguments: Any) -> Any:
        raise AssertionError("the agent itself was asked")

    sampler = SerialSampler(env=CARTPOLE, batch=BatchSpec(16, 3))
    monkeypatch.setattr(Actor, "_decide", never)
    play(sampler, "on", {})
    monkeypatch.undo()
    # The plain path runs the same model, and says what is wrong with it.
    forward = ActorCritic.forward

    def broken(self: ActorCritic, inputs: Any, state: Any) -> Any:
        if len(inputs.observation) == 3:  # not when it is built
            raise TypeError(f"not of {float(inputs.observation.sum())}")
        return forward(self, inputs, state)

    monkeypatch.setattr(ActorCritic, "forward", broken)
    with pytest.raises(TypeError, match="not of"):
        play(SerialSampler(env=CARTPOLE, batch=BatchSpec(16, 3)), "on", {}, num_slots=1, strict=False)
