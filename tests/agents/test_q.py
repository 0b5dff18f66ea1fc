"""Epsilon-greedy agents: who explores how much, and what their networks' outputs mean."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rlsurreal.agents import Categorical, Expected, ModelSpec, QAgent, Quantile
from rlsurreal.models import QNetwork
from rlsurreal.structs import AgentInputs, Noise, Spaces
from rlsurreal.utils.schedules import Linear

torch.set_num_threads(1)
SPACES = Spaces(gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.Discrete(4))


class Table(nn.Module):
    """Whatever it sees, action 2 is the best."""

    recurrent, normalizer, num_noise, num_atoms, num_cosines = False, None, 0, None, None

    def __init__(self, observation_space: Any, num_actions: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.0, 1.0, 5.0, 2.0]))

    def initial_state(self, num_envs: int) -> None:
        return None

    def forward(self, inputs: AgentInputs, state: Any, first: Any = None, noise: Any = None, taus: Any = None) -> Any:
        return self.values.expand(len(inputs.observation), -1), state


def make(**settings: Any) -> QAgent:
    agent = QAgent(**{"model": ModelSpec(cls=Table), **settings})
    agent.initialize(SPACES, seed=0)
    return agent


def frequencies(agent: QAgent, num_envs: int, num_rows: int = 4000) -> torch.Tensor:
    """How often each environment took each action: ``[num_envs, 4]``."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(num_envs, 4)
    state = agent.initial_state(num_envs)
    inputs = AgentInputs(torch.zeros(num_envs, 3))
    for _ in range(num_rows):
        step, state = agent.act(inputs, state, Noise(uniform=torch.rand(num_envs, 2, generator=generator)))
        counts[torch.arange(num_envs), step.action] += 1
    return counts / num_rows


def test_epsilon_is_how_often_any_action_is_taken():
    agent = make(epsilon=0.4)
    agent.explore(0.5, 2, at_random=False)
    found = frequencies(agent, 2)
    expected = torch.tensor([0.1, 0.1, 0.7, 0.1]).expand(2, 4)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_environments_explore_by_their_place_among_all():
    agent = make(epsilon=0.4, epsilon_spread=7.0)
    agent.explore(0.0, 8, at_random=False)
    found = frequencies(agent, 8)[:, [0, 1, 3]].sum(1)
    expected = 0.75 * torch.tensor([0.4 ** (1 + 7 * i / 7) for i in range(8)])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    part = agent.initial_state(3, first_env=5)
    assert part.env.tolist() == [5, 6, 7], "the same whatever the split over workers"


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_each_environments_epsilon_falls_from_one_to_its_own(progress):
    """As rlpyt has it: ends spaced evenly in logarithm, each gone to along a line, over the first half of the run."""
    ends = np.geomspace(0.3, 0.01, 6)
    agent = make(epsilon=Linear(1.0, 0.3, until=0.5), epsilon_spread=math.log(0.01) / math.log(0.3) - 1)
    metrics = agent.explore(progress, 6, at_random=False)
    done = min(1.0, progress / 0.5)
    expected = torch.tensor(0.75 * (1 + done * (ends - 1)), dtype=torch.float32)
    assert metrics["policy/epsilon"] == pytest.approx(1 + done * (ends[0] - 1))
    torch.testing.assert_close(frequencies(agent, 6, num_rows=2000)[:, [0, 1, 3]].sum(1), expected, atol=0.04, rtol=0)


def test_an_epsilon_may_fall_from_less_than_one_and_rise():
    for schedule in (Linear(0.5, 0.1), Linear(0.1, 0.5), Linear(0.3, 1.0), Linear(1.0, 0.0)):
        agent = make(epsilon=schedule)
        agent.explore(0.3, 40, at_random=False)
        found = frequencies(agent, 40, num_rows=100)[:, [0, 1, 3]].sum(1).mean().item()
        assert found == pytest.approx(0.75 * schedule(0.3), abs=0.03)


@pytest.mark.parametrize("at_random", [True, False])
def test_nothing_but_chance_before_learning_begins_and_schedules_after(at_random):
    agent = make(epsilon=Linear(0.5, 0.0))
    agent.explore(1.0, 1, at_random=at_random)
    found = frequencies(agent, 1)[0]
    expected = torch.full((4,), 0.25) if at_random else torch.tensor([0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_without_noise_it_is_greedy_and_records_values():
    agent = make(epsilon=1.0)
    step, _ = agent.act(AgentInputs(torch.zeros(5, 3)), agent.initial_state(5), None)
    assert step.action.tolist() == [2] * 5
    assert step.agent_info.value.tolist() == step.agent_info.best.tolist() == [5.0] * 5


def test_evaluations_have_an_epsilon_of_their_own():
    agent, other = make(epsilon=0.0, eval_epsilon=0.4), make(epsilon=0.9, epsilon_spread=7.0)
    assert (agent.noise_spec.evaluation, other.noise_spec.evaluation) == (2, 0), "greedy if nothing is said"
    agent.explore(0.0, 2, at_random=True)  # which is how training goes
    generator = torch.Generator().manual_seed(0)
    noise = Noise(evaluation=torch.rand(4000, 2, generator=generator))
    action = agent.act(AgentInputs(torch.zeros(4000, 3)), agent.initial_state(4000), noise)[0].action
    expected = torch.tensor([0.1, 0.1, 0.7, 0.1])
    torch.testing.assert_close(action.bincount(minlength=4) / 4000, expected, atol=0.03, rtol=0)


def test_exploration_is_published_with_the_parameters():
    agent = make(epsilon=0.1)
    agent.explore(0.0, 1, at_random=False)
    assert "exploration" in agent.tensors()
    other = make(epsilon=0.9)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(agent.module.exploration, other.module.exploration)


@pytest.mark.parametrize(
    ("kwargs", "head"),
    [
        ({"num_atoms": 11}, Categorical(-1, 1)),
        ({"num_atoms": 7}, Quantile()),
        ({"num_cosines": 8}, Quantile()),
        ({"noisy": True, "dueling": True}, Expected()),
        ({"recurrent": "lstm", "recurrent_size": 5}, Expected()),
    ],
)
def test_every_kind_of_network_acts(kwargs, head):
    model = ModelSpec(cls=QNetwork, kwargs={"hidden_sizes": (8,), **kwargs})
    agent = QAgent(model=model, head=head)
    agent.initialize(SPACES, seed=0)
    agent.explore(0.0, 1, at_random=False)
    spec = agent.noise_spec
    noise = Noise(torch.randn(6, spec.normal) if spec.normal else None, torch.rand(6, spec.uniform))
    previous = (torch.zeros(6, dtype=torch.int64), torch.zeros(6)) if agent.uses_previous else (None, None)
    inputs = AgentInputs(torch.randn(6, 3), *previous)
    greedy, _ = agent.act(inputs, agent.initial_state(6), None)
    unmoved, _ = agent.act(inputs, agent.initial_state(6), Noise(evaluation=torch.full((6, 2), 0.99)))
    assert torch.equal(unmoved.agent_info.best, greedy.agent_info.best), "evaluated by the means of its networks"
    for each in (noise, None):
        step, state = agent.act(inputs, agent.initial_state(6), each)
        assert step.action.shape == (6,) and step.action.dtype == torch.int64
        assert step.agent_info.value.shape == (6,) and bool((step.agent_info.best >= step.agent_info.value).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ModelSpec(cls=QNetwork, kwargs={"num_atoms": 5})}, "num_atoms=5.*Expected"),
        ({"model": ModelSpec(cls=QNetwork), "head": Categorical()}, "num_atoms=None.*Categorical"),
        ({"model": ModelSpec(cls=QNetwork), "head": Quantile()}, "num_atoms.*Quantile"),
        *(
            ({"model": ModelSpec(cls=QNetwork, kwargs={"num_cosines": 8}), **head}, "num_cosines=8.*Quantile")
            for head in ({"head": Categorical()}, {})
        ),
    ],
)
def test_heads_that_cannot_read_the_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_bad_settings_and_spaces_are_refused():
    with pytest.raises(ValueError, match="epsilon is 2"):
        QAgent(epsilon=2.0)
    with pytest.raises(ValueError, match="eval_epsilon is -0.1"):
        QAgent(eval_epsilon=-0.1)
    with pytest.raises(ValueError, match="num_taus is 0"):
        QAgent(num_taus=0)
    with pytest.raises(ValueError, match="QAgent.num_taus is 8, and the Q-network draws no quantiles; give it num_cos"):
        QAgent(num_taus=8).initialize(SPACES, seed=0)
    with pytest.raises(ValueError, match="epsilon_spread is -1"):
        QAgent(epsilon_spread=-1)
    with pytest.raises(ValueError, match="Discrete"):
        QAgent().initialize(Spaces(SPACES.observation, gym.spaces.Box(-1, 1, (2,))), seed=0)
    with pytest.raises(ValueError, match="low must be the smaller"):
        Categorical(1, -1)
