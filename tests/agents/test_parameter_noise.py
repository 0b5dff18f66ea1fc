"""A policy that explores with noise on its parameters."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlsurreal.agents import DeterministicAgent, ModelSpec, ParameterNoise
from rlsurreal.algos import DDPG
from rlsurreal.models import DeterministicPolicy
from rlsurreal.replays import Transitions
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces

torch.set_num_threads(1)
SPACES = Spaces(gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32))
NOTHING = Noise(torch.zeros(4, 2), torch.full((4, 2), 0.5))


def make_agent(noise: ParameterNoise, **kwargs: Any) -> Any:
    model = ModelSpec(cls=DeterministicPolicy, kwargs={"hidden_sizes": (16, 16), **kwargs})
    agent = DeterministicAgent(model=model, noise=0.0, parameter_noise=noise)
    agent.initialize(SPACES, seed=0)
    agent.explore(0.0, 1, at_random=False)
    return agent


def draw(agent: Any, seed: int = 0, num_rows: int = 64) -> None:
    observation = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(1))
    agent.parameter_noise.draw(agent.module, observation, torch.Generator().manual_seed(seed))


def act(agent: Any, noise: Noise | None) -> torch.Tensor:
    inputs = AgentInputs(torch.linspace(-2, 2, 12).view(4, 3))
    return agent.act(inputs, agent.initial_state(4), noise)[0].action


def test_the_noisy_policy_explores_and_the_policy_itself_is_evaluated() -> None:
    agent = make_agent(ParameterNoise(std=0.3))
    assert torch.equal(act(agent, NOTHING), act(agent, None))  # none has been drawn
    own = act(agent, None)
    draw(agent)
    assert torch.equal(act(agent, None), own)
    assert (act(agent, NOTHING) - own).abs().max() > 0.01
    assert torch.equal(act(agent, NOTHING), act(agent, NOTHING))  # one noise holds until the next
    first = act(agent, NOTHING)
    draw(agent, seed=1)
    assert not torch.equal(act(agent, NOTHING), first)


def test_noise_has_the_size_that_it_should_and_leaves_normalisations_alone() -> None:
    agent = make_agent(ParameterNoise(std=0.2, target_distance=None), layer_norm=True, hidden_sizes=(64, 64))
    draw(agent)
    noises = []
    for name, parameter in agent.module.explorer.named_parameters():
        change = parameter - agent.module.get_parameter(name)
        owner = agent.module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, torch.nn.LayerNorm):
            assert (change == 0).all()
        else:
            noises.append(change.detach().flatten())
    noise = torch.cat(noises)
    assert noise.std().item() == pytest.approx(0.2, rel=0.05) and abs(noise.mean().item()) < 0.01
    assert agent.module.parameter_std.item() == pytest.approx(0.2)


@pytest.mark.parametrize(("std", "grows"), [(1e-3, True), (3.0, False)])
def test_the_size_adapts_to_the_distance_of_actions(std: float, grows: bool) -> None:
    agent = make_agent(ParameterNoise(std=std, target_distance=0.2, factor=1.5))
    distances = []
    for seed in range(200):
        draw(agent, seed)
        distances.append((act(agent, None) - act(agent, NOTHING)).square().mean().sqrt().item())
    assert (agent.module.parameter_std.item() > std) == grows
    assert np.median(distances[100:]) == pytest.approx(0.2, rel=0.4)


def test_statistics_of_observations_are_those_of_the_policy() -> None:
    agent = make_agent(ParameterNoise(), normalize_observation=True)
    agent.module.normalizer.update(torch.randn(50, 3) * 7 + 3, torch.ones(50, dtype=torch.bool))
    draw(agent)
    for name, buffer in agent.module.explorer.normalizer.named_buffers():
        assert torch.equal(buffer, agent.module.normalizer.get_buffer(name)), name


def test_ddpg_draws_at_its_interval_learns_the_policy_alone_and_logs_the_size() -> None:
    agent = make_agent(ParameterNoise(interval=3))
    algo = DDPG(batch_size=5)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = Transitions(
        torch.randn(5, 3, generator=generator),
        torch.zeros(5, 2),
        torch.ones(5),
        torch.full((5,), 0.9),
        torch.randn(5, 3, generator=generator),
        torch.ones(5),
    )
    explorers = []
    for _ in range(7):
        algo._update(batch, 0.0)
        algo._num_updates += 1
        explorers.append(torch.cat([p.flatten().clone() for p in agent.module.explorer.parameters()]))
    changed = [not torch.equal(one, other) for one, other in zip(explorers, explorers[1:])]
    assert changed == [False, False, True, False, False, True]
    assert float(algo.take_metrics()["exploration/parameter_std"]) == agent.module.parameter_std.item()


def test_copies_explore_alike() -> None:
    agent = make_agent(ParameterNoise(std=0.3))
    link = agent.share()
    copy = make_agent(ParameterNoise(std=0.3))
    copy.follow(link)
    draw(agent)
    agent.publish(1)
    copy.pull()
    assert torch.equal(act(copy, NOTHING), act(agent, NOTHING))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"std": 0.0}, "std is 0.0"),
        ({"target_distance": -1.0}, "target_distance is -1.0"),
        ({"factor": 1.0}, "factor is 1.0"),
        ({"interval": 0}, "interval is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParameterNoise(**settings)
