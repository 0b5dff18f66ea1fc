"""Real networks in every sampler: what was recorded is what the master's model says of the recorded inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.algos.pg.on_policy import sequences_of
from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import AsyncSampler, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec, Samples, inputs_of
from rlsurreal.testing.envs import NestedEnv
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves, tree_map
from rlsurreal.utils.torch_tree import where_first

torch.set_num_threads(1)
pytestmark = pytest.mark.processes

T, B = 16, 5
CARTPOLE = GymnasiumEnv(factory="CartPole-v1", kwargs={"max_episode_steps": 13})
SAMPLERS: dict[str, Any] = {
    "serial": lambda **s: SerialSampler(**s),
    "worker": lambda **s: ParallelSampler(num_workers=2, **s),
    "served": lambda **s: ParallelSampler(num_workers=2, inference=InferenceServer(), **s),
    "alternating": lambda **s: ParallelSampler(num_workers=2, inference=InferenceServer(schedule="alternating"), **s),
    "dynamic": lambda **s: ParallelSampler(num_workers=2, inference=InferenceServer(schedule="dynamic"), **s),
    "dynamic-apart": lambda **s: ParallelSampler(
        num_workers=2, inference=InferenceServer(schedule="dynamic", devices=("cpu", "cpu")), **s
    ),
}


class Run:
    """Slots of an agent that learns in between, and its parameters by version."""

    def __init__(self, make: Any, env: Any, recurrent: str | None, *, num_slots: int = 3) -> None:
        kwargs = {"hidden_sizes": (16,), "recurrent": recurrent, "recurrent_size": 8, "normalize_observation": True}
        self.agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))
        self.algo = PPO(num_epochs=1, num_minibatches=2, learning_rate=1e-2)
        self.slots: list[Samples] = []
        self.parameters: list[Any] = []
        sampler = make(env=env, batch=BatchSpec(T, B), state_interval=4 if recurrent else None)
        try:
            self.agent.initialize(sampler.connect(seed=0), seed=1)
            self.algo.initialize(self.agent, sampler.batch, seed=2)
            sampler.initialize(self.agent, discount=self.algo.discount)
            for version in range(num_slots):
                self.parameters.append(self.agent.state_dict()["module"])
                samples = sampler.obtain()
                self.slots.append(tree_map(torch.clone, samples))
                self.algo.update(samples, 0.0)
                self.agent.publish(version + 1)
                sampler.release(samples)
        finally:
            sampler.close()

    @torch.no_grad()
    def act(self, inputs: AgentInputs, state: Tree, versions: Tensor) -> Any:
        """One row, each column with the parameters of its version."""
        answer = None
        for version in versions.unique().tolist():
            self.agent.module.load_state_dict(self.parameters[version])
            (params, value), after = self.agent.module(inputs, state)
            new = Row(params, value, after)
            answer = new if answer is None else where_first(versions == version, new, answer)
        return answer

    def assert_replayed(self, samples: Samples) -> None:
        """Row by row: parameters, values, log-probabilities and states."""
        inputs, info = inputs_of(samples), samples.agent.agent_info
        state = tree_map(lambda s: s[0].clone(), samples.agent.agent_state)
        for t in range(T + 1):
            for leaf in leaves(state):
                leaf[samples.env.first[t]] = 0
            if state is not None and t % 4 == 0:
                assert_close(tree_map(lambda s, t=t: s[t // 4], samples.agent.agent_state), state)
            if t == T:
                return
            row = self.act(inputs[t], state, samples.policy_version[t])
            assert_close(info.params[t], row.params)
            assert_close(info.value[t], row.value)
            action = tree_map(lambda a, t=t: a[t], samples.agent.action)
            assert_close(info.log_prob[t], self.agent.distribution.log_prob(row.params, action))
            state = row.state

    def assert_replayed_as_sequences(self, samples: Samples, version: int) -> None:
        """What an update sees: sequences from recorded states."""
        self.agent.module.load_state_dict(self.parameters[version])
        data = sequences_of(self.algo._prepare(samples)[1])
        inputs, params, value, first = (
            tree_map(lambda x: x.transpose(0, 1), tree)
            for tree in (data.inputs, data.old_params, data.old_value, data.first)
        )
        with torch.no_grad():
            (new_params, new_value), _ = self.agent.module(inputs, data.state, first)
        assert_close(params, new_params)
        assert_close(value, new_value)


class Row(NamedArrayTuple):
    params: Any
    value: Any
    state: Any


def assert_close(got: Tree, expected: Tree) -> None:
    for x, y in zip(leaves(got), leaves(expected), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


CASES = [(name, recurrent) for name in SAMPLERS for recurrent in (None, "lstm") if recurrent or name != "dynamic-apart"]


@pytest.mark.parametrize(("name", "recurrent"), CASES)
def test_master_reproduces_what_every_sampler_recorded(name, recurrent):
    run = Run(SAMPLERS[name], CARTPOLE, recurrent)
    assert any(samples.env.first[1:T].any() for samples in run.slots), "the test must see episodes end"
    for version, samples in enumerate(run.slots):
        assert (samples.policy_version[:T] == version).all()
        run.assert_replayed(samples)
        if recurrent:
            run.assert_replayed_as_sequences(samples, version)


def test_nested_spaces_with_memory():
    run = Run(SAMPLERS["alternating"], GymnasiumEnv(factory=NestedEnv, kwargs={"length": 6}), "gru", num_slots=2)
    for samples in run.slots:
        run.assert_replayed(samples)


@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_asynchronous_engine(recurrent):
    """Environments that run ahead act with the parameters before the update, and say so."""
    run = Run(lambda **s: AsyncSampler(num_ready=2, **s), EnvPoolEnv(task_id="CartPole-v1"), recurrent)
    assert any(len(samples.policy_version[:T].unique()) > 1 for samples in run.slots)
    for samples in run.slots:
        run.assert_replayed(samples)


@pytest.mark.parametrize("name", ["worker", "served"])
def test_first_slot_is_that_of_the_serial_sampler(name):
    """Same seeds and parameters: the same games, while rounding picks no other action."""
    serial, parallel = (Run(SAMPLERS[n], CARTPOLE, "lstm", num_slots=1).slots[0] for n in ("serial", name))
    assert torch.equal(serial.agent.action[:T], parallel.agent.action[:T])
    assert_close(serial.env.observation, parallel.env.observation)
    assert_close(serial.agent.agent_info[:T], parallel.agent.agent_info[:T])
    assert_close(serial.agent.agent_state, parallel.agent.agent_state)
