"""Encoders of the user's own, in every model."""

from __future__ import annotations

import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlsurreal.agents import DeterministicAgent, ModelSpec, PolicyAgent
from rlsurreal.algos import DDPG, SAC
from rlsurreal.distributions import make_distribution
from rlsurreal.models import (
    ActorCritic,
    CriticEnsemble,
    DeterministicPolicy,
    ObservationEncoder,
    QEnsemble,
    QNetwork,
    RecurrentCritics,
    StochasticPolicy,
)
from rlsurreal.structs import AgentInputs, BatchSpec, Spaces
from rlsurreal.utils import config
from rlsurreal.utils.namedarraytuple import leaves
from rlsurreal.utils.spaces import map_spaces

torch.set_num_threads(1)
T, B, K = 4, 3, 2
CAMERA, STATE = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8), gym.spaces.Box(-1, 1, (2,), np.float32)
OBSERVATION = gym.spaces.Dict({"camera": CAMERA, "state": STATE})
ACTION, DISCRETE = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(5)


class Eye(nn.Module):
    """Takes one leading dimension only, as most layers do."""

    def __init__(self, observation_space: Any, num_features: int = 6) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, num_features, 8)
        self.out_features = num_features + observation_space["state"].shape[0]

    def forward(self, observation: Any) -> Tensor:
        assert observation.camera.dim() == 4 and observation.state.dim() == 2
        seen = self.convolution(observation.camera / 255).flatten(1)
        return torch.cat([torch.relu(seen), observation.state], -1)


class Wide(Eye):
    def forward(self, observation: Any) -> Tensor:
        return torch.cat([super().forward(observation), observation.state], -1)


class NoFeatures(nn.Module):
    def __init__(self, observation_space: Any) -> None:
        super().__init__()


EYE = ModelSpec(cls=Eye, kwargs={"num_features": 5})


def random_observation(*leading: int) -> Any:
    camera = torch.randint(0, 256, (*leading, 3, 8, 8), dtype=torch.uint8)
    return map_spaces(lambda space: camera if space is CAMERA else torch.randn(*leading, 2), OBSERVATION)


def test_leading_dimensions_are_one_to_it() -> None:
    encoder, observation = ObservationEncoder(OBSERVATION, EYE), random_observation(T, B)
    assert encoder.out_features == 7
    found = encoder(observation)
    assert found.shape == (T, B, 7)
    for t in range(T):
        torch.testing.assert_close(found[t], encoder(observation[t]))
        torch.testing.assert_close(found[t, 0], encoder(observation[t, 0]))


@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_it_is_in_every_agents_model(recurrent: Any) -> None:
    options: Any = {"encoder": EYE, "normalize_observation": True, "recurrent": recurrent}
    inputs = AgentInputs(random_observation(T, B), torch.zeros(T, B, 2), torch.zeros(T, B))
    first = torch.zeros(T, B, dtype=torch.bool)
    models: Any = [cls(OBSERVATION, ACTION, **options) for cls in (DeterministicPolicy, StochasticPolicy)]
    for model in [*models, ActorCritic(OBSERVATION, make_distribution(ACTION), **options)]:
        found, _ = model(inputs, model.initial_state(B), first)
        assert leaves(found[-1] if isinstance(model, ActorCritic) else found)[0].shape[:2] == (T, B)
    network, choice = QNetwork(OBSERVATION, 5, **options), torch.zeros(T, B, dtype=torch.int64)
    values, _ = network(inputs._replace(prev_action=choice), network.initial_state(B), first)
    assert values.shape == (T, B, 5)


def test_it_is_in_every_algorithms_critics() -> None:
    options: Any = {"encoder": EYE, "normalize_observation": True}
    observation, action = random_observation(T, B), torch.zeros(T, B, 2)
    assert CriticEnsemble(OBSERVATION, ACTION, K, **options)(observation, action).shape == (K, T, B)
    ensemble, critics = QEnsemble(OBSERVATION, DISCRETE, K, **options), RecurrentCritics(OBSERVATION, ACTION, **options)
    assert ensemble(observation).shape == (K, T, B, 5)
    assert sum(isinstance(part, Eye) for part in ensemble.modules()) == K
    inputs = AgentInputs(observation, action, torch.zeros(T, B))
    features, _ = critics.remember(inputs, critics.initial_state(B), torch.zeros(T, B, dtype=torch.bool))
    assert critics(features, action).shape == (2, T, B)


def test_layers_after_it_are_chosen_as_for_images_with_vectors() -> None:
    built_in, own = ({"encoder": encoder} for encoder in ("impala", EYE))
    for options in ({}, {"recurrent": "lstm"}):
        sizes = []
        for kwargs in (built_in, own):
            actor = ActorCritic(OBSERVATION, make_distribution(ACTION), **kwargs, **options)  # type: ignore[arg-type]
            q = QNetwork(OBSERVATION, 5, **kwargs, **options)  # type: ignore[arg-type]
            layers = [*actor.actor.mlp.parameters(), *q.trunk.mlp.parameters(), *q.action_stream.parameters()]
            sizes.append((actor.shared, [len(layer) for layer in layers]))
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("algo", "agent", "policy"), [
    (SAC, PolicyAgent, StochasticPolicy), (DDPG, DeterministicAgent, DeterministicPolicy),
])  # fmt: skip
def test_a_policy_sees_through_its_critics_own_encoder(algo: Any, agent: Any, policy: Any) -> None:
    agent = agent(model=ModelSpec(cls=policy, kwargs={"encoder": EYE}))
    algo = algo(critic=ModelSpec(cls=CriticEnsemble, kwargs={"encoder": EYE, "num_critics": 1}), share_encoder=True)
    agent.initialize(Spaces(OBSERVATION, ACTION), seed=0)
    algo.initialize(agent, BatchSpec(4, 1), seed=1)
    own, theirs = agent.module.trunk.encoder, algo._critics.encoder
    assert isinstance(own.encoders[0].encoder, Eye)
    assert all(torch.equal(parameter, theirs.get_parameter(name)) for name, parameter in own.named_parameters())
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_it_is_written_down_by_name_and_overridden() -> None:
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"encoder": EYE}))
    again = config.from_tree(json.loads(json.dumps(config.to_tree(agent))))
    key = "model.kwargs.encoder.kwargs.num_features"
    assert config.flatten(again)[key] == 5
    changed = config.override(pickle.loads(pickle.dumps(again)), {key: "9"})
    changed.initialize(Spaces(OBSERVATION, ACTION), seed=0)
    assert changed.module.trunk.encoder.out_features == 11


def test_the_same_seed_gives_the_same_encoder() -> None:
    spec = ModelSpec(cls=StochasticPolicy, kwargs={"encoder": EYE})
    one, same, other = (spec.build(observation_space=OBSERVATION, action_space=ACTION, seed=s) for s in (0, 0, 1))
    name = "trunk.encoder.encoders.0.encoder.convolution.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize(("encoder", "message"), [
    (Eye, r"encoder is <class .*Eye'>; use 'auto', .* or ModelSpec\(cls=...\) with a class of your own"),
    (ModelSpec(cls=Wide), r"Wide.forward gave features of shape \(2, 10\); an encoder gives \(2, 8\)"),
    (ModelSpec(cls=NoFeatures), "NoFeatures has no out_features, and an encoder has"),
])  # fmt: skip
def test_what_is_no_encoder_is_refused(encoder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StochasticPolicy(OBSERVATION, ACTION, encoder=encoder)
