"""Models of the user's own are refused where they are built, with what is wrong in their own terms."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlsurreal.agents import ActorCriticAgent, DeterministicAgent, ModelSpec, PolicyAgent, QAgent
from rlsurreal.algos import SAC, TD3, DiscreteSAC, RecurrentSAC, StateValueSAC
from rlsurreal.models import (
    ActorCritic,
    CriticEnsemble,
    DeterministicPolicy,
    QEnsemble,
    QNetwork,
    RecurrentCritics,
    StochasticPolicy,
)
from rlsurreal.structs import AgentInputs, BatchSpec, Spaces

torch.set_num_threads(1)
OBSERVATION = gym.spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = Spaces(OBSERVATION, gym.spaces.Discrete(2))
BOX = Spaces(OBSERVATION, gym.spaces.Box(-1, 1, (2,), np.float32))


class MyQ(nn.Module):
    """As many values as it is told to give; ``answer`` makes a result of them and the state."""

    recurrent, normalizer, num_noise, num_atoms = False, None, 0, None
    num_cosines: int | None = None

    def __init__(self, observation_space: Any, num_actions: int, num_values: int = 2, answer: str = "pair") -> None:
        super().__init__()
        self.linear, self.answer = nn.Linear(3, num_values), answer

    def initial_state(self, num_envs: int) -> None:
        return None

    def forward(self, inputs: AgentInputs, state: Any, first: Any = None, noise: Any = None, taus: Any = None) -> Any:
        values = self.linear(inputs.observation)
        return {"pair": (values, state), "values": values, "list": [values, state]}[self.answer]


class NoCosines(MyQ):
    num_cosines = property()  # type: ignore[assignment]


class NoInit(nn.Module):
    pass


class NoModule:
    def __init__(self, observation_space: Any, num_actions: int) -> None:
        pass


class Fails(MyQ):
    def forward(self, inputs: AgentInputs, *args: Any, **kwargs: Any) -> Any:
        return self.linear(inputs.observation[:, :2]), None


class OneState(MyQ):
    recurrent = True

    def initial_state(self, num_envs: int) -> Any:
        return (torch.zeros(num_envs, 4), torch.zeros(num_envs, 4))


class ForgetsSequences(MyQ):
    recurrent = True

    def initial_state(self, num_envs: int) -> Any:
        return torch.zeros(num_envs, 4)

    def forward(self, inputs: AgentInputs, state: Any, first: Any = None, noise: Any = None, taus: Any = None) -> Any:
        return self.linear(inputs.observation)[-2:], state


def initialize(agent: Any, spaces: Spaces) -> Any:
    agent.initialize(spaces, seed=0)
    return agent


def test_a_sound_model_is_taken() -> None:
    initialize(QAgent(model=ModelSpec(cls=MyQ)), DISCRETE)


@pytest.mark.parametrize(("cls", "kwargs", "message"), [
    (MyQ, {"num_values": 7}, r"MyQ.forward gave values of shape \(2, 7\); a model of QAgent gives \(2, 2\), one for "
                             r"each action: see docs/adding_a_model.md"),
    (MyQ, {"num_values": 1}, r"of shape \(2, 1\)"),
    (MyQ, {"answer": "values"}, "MyQ.forward gave one Tensor; a model of QAgent gives two results, values and the st"),
    (MyQ, {"answer": "list"}, "MyQ.forward gave one list"),
    (NoCosines, {}, "NoCosines has no num_cosines, and a model of QAgent has: see docs/adding_a_model.md"),
    (NoInit, {}, r"is built as NoInit\(observation_space, num_actions, \*\*kwargs\), and the .* choose are: none"),
    (Fails, {}, "Fails.forward was called with zeros and raised RuntimeError: mat1 and mat2"),
    (OneState, {}, r"OneState.initial_state\(2\) gave \(\(2, 4\), \(2, 4\)\); .* NamedArrayTuple, or None"),
    (ForgetsSequences, {}, r"values of shape \(2, 2, 2\); a model of QAgent gives \(3, 2, 2\)"),
    (NoModule, {}, "NoModule.*; it must be a class of torch.nn.Module"),
])  # fmt: skip
def test_a_q_network_that_is_none_is_refused(cls: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialize(QAgent(model=ModelSpec(cls=cls, kwargs=kwargs)), DISCRETE)


@pytest.mark.parametrize(
    ("cls", "message"), [(MyQ, "the arguments to choose are: num_values, answer"), (NoInit, "to choose are: none")]
)
def test_arguments_that_a_class_does_not_know_are_refused_where_they_are_given(cls: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"'width': 3.* does not fit {cls.__name__}: .*'width'; .*{message}$"):
        ModelSpec(cls=cls, kwargs={"width": 3})


class Wrong(nn.Module):
    """Mixed into a built-in model: gives its answers with one more dimension."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().forward(*args, **kwargs)
        return (answer[0].unsqueeze(-1), *answer[1:]) if isinstance(answer, tuple) else answer.unsqueeze(-1)


class WrongActor(Wrong, DeterministicPolicy):
    pass


class WrongCritics(Wrong, CriticEnsemble):
    pass


class WrongEnsemble(Wrong, QEnsemble):
    pass


class WrongMemory(Wrong, RecurrentCritics):
    pass


class WrongValue(Wrong, QNetwork):
    pass


class OwnDistribution(StochasticPolicy):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.distribution = torch.distributions.Normal


class OtherParams(StochasticPolicy):
    def forward(self, *args: Any) -> Any:  # type: ignore[override]
        params, state = super().forward(*args)
        return params.mean, state


class ValueOfOne(ActorCritic):
    def value(self, *args: Any) -> Tensor:
        return super().value(*args).unsqueeze(-1)


class BothOfOne(ActorCritic):
    def forward(self, *args: Any) -> Any:
        (params, value), state = super().forward(*args)
        return (params, value.unsqueeze(-1)), state


@pytest.mark.parametrize(("agent", "spaces", "message"), [
    (ActorCriticAgent(model=ModelSpec(cls=ValueOfOne)), DISCRETE, r"value gave values of shape \(2, 1\); .* \(2,\)"),
    (ActorCriticAgent(model=ModelSpec(cls=BothOfOne)), DISCRETE,
     r"BothOfOne.forward gave \(params, value\) of shape \({'logits': \(2, 2\)}, \(2, 1\)\)"),
    (DeterministicAgent(model=ModelSpec(cls=WrongActor)), BOX, r"actions of shape \(2, 2, 1\); .* \(2, 2\)"),
    (PolicyAgent(model=ModelSpec(cls=OtherParams)), BOX, r"params of shape \(2, 2\); .* {'mean': \(2, 2\), 'log_std'"),
    (PolicyAgent(model=ModelSpec(cls=OwnDistribution)), BOX, "has one of rlsurreal.distributions"),
    (PolicyAgent(model=ModelSpec(cls=MyQ)), BOX, "MyQ has no distribution, and a model of PolicyAgent has"),
])  # fmt: skip
def test_models_of_other_agents_are_refused(agent: Any, spaces: Spaces, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialize(agent, spaces)


RECURRENT = ModelSpec(cls=StochasticPolicy, kwargs={"recurrent": "gru"})


@pytest.mark.parametrize(("algo", "agent", "spaces", "message"), [
    (SAC(critic=ModelSpec(cls=WrongCritics)), PolicyAgent(), BOX,
     r"WrongCritics.forward gave values of shape \(2, 2, 1\); a critic of SAC gives \(2, 2\), one for each critic"),
    (TD3(critic=ModelSpec(cls=MyQ)), DeterministicAgent(), BOX, "MyQ has no num_critics, and a critic of TD3 has"),
    (DiscreteSAC(critic=ModelSpec(cls=WrongEnsemble)), PolicyAgent(), DISCRETE, r"\(2, 2, 2, 1\); .* \(2, 2, 2\)"),
    (RecurrentSAC(critic=ModelSpec(cls=WrongMemory)), PolicyAgent(model=RECURRENT), BOX, r"\(2, 3, 2, 1\); .* \(2, 3,"),
    (StateValueSAC(value=ModelSpec(cls=WrongValue)), PolicyAgent(), BOX, r"\(2, 1, 1\); a model of state values"),
])  # fmt: skip
def test_critics_that_are_none_are_refused(algo: Any, agent: Any, spaces: Spaces, message: str) -> None:
    initialize(agent, spaces)
    with pytest.raises(ValueError, match=message):
        algo.initialize(agent, BatchSpec(8, 1), seed=0)


class Layered(MyQ):
    def __init__(self, observation_space: Any, num_actions: int, layer: Any, frozen: bool = False) -> None:
        super().__init__(observation_space, num_actions)
        self.body = nn.Sequential(nn.Linear(3, 4), layer()).train(not frozen)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Dropout(0.1), r"Layered.body.1 is a Dropout, .*CriticEnsemble\(dropout=...\)"),
    (lambda: nn.AlphaDropout(0.1), "body.1 is a AlphaDropout.*LayerNorm"),
    (lambda: nn.TransformerEncoderLayer(4, 2), "body.1.self_attn is a MultiheadAttention.*dropout=0"),
    (lambda: nn.LSTM(4, 4, num_layers=2, dropout=0.2), "body.1 is a LSTM.*dropout=0"),
    (nn.RReLU, "body.1 is a RReLU"),
    (lambda: nn.BatchNorm1d(4), "Layered.body.1 is a BatchNorm1d, .*use LayerNorm, or freeze it"),
    (lambda: nn.LazyLinear(2), "body.1 is a LazyLinear.*give it its sizes"),
])  # fmt: skip
def test_layers_that_train_and_act_in_different_ways_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialize(QAgent(model=ModelSpec(cls=Layered, kwargs={"layer": make})), DISCRETE)


@pytest.mark.parametrize(("make", "frozen"), [
    (lambda: nn.Dropout(0.0), False), (lambda: nn.TransformerEncoderLayer(4, 2, dropout=0), False),
    (lambda: nn.LayerNorm(4), False), (lambda: nn.LSTM(4, 4), False), (lambda: nn.BatchNorm1d(4), True),
])  # fmt: skip
def test_layers_that_do_not_are_taken(make: Any, frozen: bool) -> None:
    initialize(QAgent(model=ModelSpec(cls=Layered, kwargs={"layer": make, "frozen": frozen})), DISCRETE)


class DropsCritics(CriticEnsemble):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.drop = nn.Dropout(0.1)


def test_critics_have_no_such_layers_either() -> None:
    agent = initialize(PolicyAgent(), BOX)
    with pytest.raises(ValueError, match="DropsCritics.drop is a Dropout, which a critic of SAC must not have"):
        SAC(critic=ModelSpec(cls=DropsCritics)).initialize(agent, BatchSpec(8, 1), seed=0)


class Draws(MyQ):
    def forward(self, inputs: AgentInputs, *args: Any, **kwargs: Any) -> Any:
        assert not torch.is_grad_enabled()
        return self.linear(inputs.observation) + torch.rand(2), None


def test_the_check_leaves_random_streams_and_statistics_alone() -> None:
    before = torch.get_rng_state()
    initialize(QAgent(model=ModelSpec(cls=Draws)), DISCRETE)
    assert torch.equal(before, torch.get_rng_state())
    agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"normalize_observation": True}))
    assert initialize(agent, DISCRETE).lacks_statistics()
