"""The losses of SAC, DDPG, TD3 and D4PG against slow definitions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from rlsurreal.agents import Categorical, DeterministicAgent, ModelSpec, PolicyAgent
from rlsurreal.algos import D4PG, DDPG, SAC, TD3, DiscreteSAC
from rlsurreal.models import CriticEnsemble, DeterministicPolicy, QEnsemble, StochasticPolicy
from rlsurreal.replays import Transitions
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces

torch.set_num_threads(1)
SPACES = Spaces(gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32))
N = 7


def batch(seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    return Transitions(
        observation=torch.randn(N, 3, generator=generator),
        action=2 * torch.rand(N, 2, generator=generator) - 1,
        reward=torch.randn(N, generator=generator),
        discount=torch.tensor([0.9, 0.9, 0.0, 0.9, 0.81, 0.9, 0.0]),
        next_observation=torch.randn(N, 3, generator=generator),
        weight=torch.rand(N, generator=generator),
    )


def set_up(agent: Any, algo: Any) -> Any:
    agent.initialize(SPACES, seed=0)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    for target in [
        value for key, value in vars(algo).items() if key.startswith("_target") and hasattr(value, "module")
    ]:
        target._flat.add_(0.05 * torch.randn(target._flat.shape, generator=torch.Generator().manual_seed(3)))
    return algo


def critic(**kwargs: Any) -> ModelSpec:
    return ModelSpec(cls=CriticEnsemble, kwargs={"hidden_sizes": (5,), **kwargs})


def make_sac(**settings: Any) -> SAC:
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
    return set_up(agent, SAC(batch_size=N, critic=critic(), **settings))


def make_deterministic(cls: Any, **settings: Any) -> Any:
    agent = DeterministicAgent(model=ModelSpec(cls=DeterministicPolicy, kwargs={"hidden_sizes": (5,)}))
    return set_up(agent, cls(batch_size=N, **settings))


def slow_sac_action(algo: SAC, observation: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    params = algo._agent.module(AgentInputs(observation), None)[0]
    policy = TransformedDistribution(Normal(params.mean, params.log_std.exp()), [TanhTransform()])
    action = torch.tanh(params.mean + params.log_std.exp() * noise)
    return action, policy.log_prob(action.clamp(-1 + 1e-6, 1 - 1e-6)).sum(-1)


def test_sac_critics_by_a_slow_definition():
    algo, data = make_sac(temperature=0.3), batch()
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(9))
    loss, metrics, error = algo._critic_loss(data, noise)
    with torch.no_grad():
        action, log_prob = slow_sac_action(algo, data.next_observation, noise)
        after = algo._target.module(data.next_observation, action)
        target = data.reward + data.discount * (torch.minimum(after[0], after[1]) - 0.3 * log_prob)
        errors = algo._critics(data.observation, data.action) - target
    expected = sum((data.weight * errors[k] ** 2).mean() / 2 for k in range(2))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(error, errors.abs().mean(0), rtol=1e-4, atol=1e-5)


def test_sac_policy_and_temperature_by_a_slow_definition():
    algo, data = make_sac(initial_temperature=0.5), batch()
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(9))
    loss, metrics = algo._policy_loss(data.observation, noise)
    action, log_prob = slow_sac_action(algo, data.observation, noise)
    value = algo._critics(data.observation, action).amin(0)
    policy_loss = (0.5 * log_prob - value).mean()
    torch.testing.assert_close(metrics[0], policy_loss.detach(), rtol=1e-4, atol=1e-5)
    parameters = [*algo._agent.module.parameters(), algo._temperature.log]
    own = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(policy_loss, parameters[:-1])
    for one, other in zip(own, theirs):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    # The temperature rises while the policy's entropy is below its target (-2), and falls above it.
    assert own[-1].item() == pytest.approx(-(log_prob.mean().item() - 2.0), rel=1e-4)


@pytest.mark.parametrize(("entropy", "rises"), [(100.0, True), (-100.0, False)])
def test_sac_temperature_goes_where_the_entropy_is_wanted(entropy, rises):
    algo = make_sac(target_entropy=entropy, learning_rate=0.1)
    before = algo._temperature.value.item()
    algo._update(batch(), 0.0)
    assert (algo._temperature.value.item() > before) == rises


def test_sac_steps_change_only_their_own_parameters():
    algo, data = make_sac(), batch()
    noise = torch.zeros(N, 2)
    for step, inputs in ((algo._critic_step, (data, noise)), (algo._policy_step, (data.observation, noise))):
        step.learning_rate.fill_(0.1)
        before = {"critic": algo._critic_step.flat.clone(), "policy": algo._policy_step.flat.clone()}
        step(*inputs)
        changed = {
            name
            for name, flat in (("critic", algo._critic_step.flat), ("policy", algo._policy_step.flat))
            if not torch.equal(flat, before[name])
        }
        assert changed == {"critic" if step is algo._critic_step else "policy"}


def test_fixed_temperature_stays_and_zero_is_allowed():
    for temperature in (0.0, 0.2):
        algo = make_sac(temperature=temperature, learning_rate=0.1)
        algo._update(batch(), 0.0)
        assert algo._temperature.value.item() == pytest.approx(temperature)
        assert torch.isfinite(algo._policy_step.flat).all()


@pytest.mark.parametrize("cls", [DDPG, TD3])
def test_critics_of_ddpg_and_td3_by_a_slow_definition(cls):
    algo = make_deterministic(cls, critic=critic(num_critics=2 if cls is TD3 else 1))
    data = batch()
    noise = 3 * torch.randn(N, 2, generator=torch.Generator().manual_seed(9)) if cls is TD3 else None
    loss, _, error = algo._critic_loss(data, noise)
    with torch.no_grad():
        action = algo._target_policy.module(AgentInputs(data.next_observation), None)[0]
        if noise is not None:
            action = (action + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
        after = algo._target.module(data.next_observation, action).amin(0)
        errors = algo._critics(data.observation, data.action) - (data.reward + data.discount * after)
    torch.testing.assert_close(loss, (data.weight * errors**2 / 2).sum(0).mean())
    torch.testing.assert_close(error, errors.abs().mean(0))


def test_policy_climbs_the_first_critic():
    algo, data = make_deterministic(TD3, critic=critic()), batch()
    loss, _ = algo._policy_loss(data.observation)
    action = algo._agent.module(AgentInputs(data.observation), None)[0]
    torch.testing.assert_close(loss, -algo._critics(data.observation, action)[0].mean())


def test_td3_delays_policy_and_targets():
    algo = make_deterministic(TD3, critic=critic(), learning_rate=0.1)
    for i in range(1, 5):
        before = algo._policy_step.flat.clone(), algo._target.state_dict(), algo._target_policy.state_dict()
        critics = algo._critic_step.flat.clone()
        algo._update(batch(i), 0.0)
        algo._num_updates += 1
        after = algo._policy_step.flat, algo._target.state_dict(), algo._target_policy.state_dict()
        assert not torch.equal(critics, algo._critic_step.flat)
        assert [torch.equal(a, b) for a, b in zip(before, after)] == [bool(i % 2)] * 3


def test_each_network_has_its_own_learning_rate():
    algo = make_deterministic(DDPG, critic=critic(num_critics=1), learning_rate=0.01, critic_learning_rate=0.2)
    before = algo._policy_step.flat.clone(), algo._critic_step.flat.clone()
    algo._update(batch(), 0.0)
    after = algo._policy_step.flat, algo._critic_step.flat
    moved = [(a - b).abs().max().item() for a, b in zip(after, before)]
    assert moved == pytest.approx([0.01, 0.2], rel=0.05)  # Adam's first step


def test_l2_pulls_the_critics_towards_zero():
    data = batch()._replace(weight=torch.zeros(N))
    algo = make_deterministic(DDPG, critic=critic(num_critics=1), critic_l2=0.5)
    loss, _, _ = algo._critic_loss(data, None)
    assert loss.item() == pytest.approx(
        0.25 * sum(p.square().sum().item() for p in algo._critics.parameters()), rel=1e-5
    )


def test_d4pg_learns_a_distribution_and_climbs_its_mean():
    algo = make_deterministic(D4PG, critic=critic(num_critics=1, num_atoms=5), head=Categorical(-2.0, 2.0))
    data = batch()
    loss, _, error = algo._critic_loss(data, None)
    with torch.no_grad():
        action = algo._target_policy.module(AgentInputs(data.next_observation), None)[0]
        after = algo._target.module(data.next_observation, action)[0].softmax(-1)
        log_probability = algo._critics(data.observation, data.action)[0].log_softmax(-1)
    expected = 0.0
    for i in range(N):
        for j in range(5):
            place = float((data.reward[i] + data.discount[i] * (j - 2.0)).clamp(-2, 2)) + 2
            low = min(int(place), 3)
            for atom, part in ((low, low + 1 - place), (low + 1, place - low)):
                expected -= float(data.weight[i] * after[i, j] * part * log_probability[i, atom]) / N
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    policy_loss, _ = algo._policy_loss(data.observation)
    own = algo._agent.module(AgentInputs(data.observation), None)[0]
    mean = (algo._critics(data.observation, own)[0].softmax(-1) * torch.linspace(-2, 2, 5)).sum(-1).mean()
    torch.testing.assert_close(policy_loss, -mean)


def test_deterministic_agents_explore_as_told():
    model = ModelSpec(cls=DeterministicPolicy, kwargs={"hidden_sizes": (5,)})
    agent = DeterministicAgent(model=model, noise=0.1, noise_spread=3.0, process="ornstein_uhlenbeck", theta=0.25)
    agent.initialize(SPACES, seed=0)
    state, inputs = agent.initial_state(4, first_env=0), AgentInputs(torch.zeros(4, 3))
    own = agent.act(inputs, state, None)[0].action
    noise = Noise(normal=torch.full((4, 2), 0.5), uniform=torch.full((4, 2), 0.75))
    assert agent.act(inputs, state, noise)[0].action.tolist() == [[0.5, 0.5]] * 4, "at random, before learning"
    agent.explore(0.0, 4, at_random=False)
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4]).unsqueeze(-1)
    drift = 0.0
    for _ in range(3):
        step, state = agent.act(inputs, state, noise)
        drift = 0.75 * drift + 0.5
        torch.testing.assert_close(step.action, own + scale * drift)


def test_policy_agents_draw_and_take_the_median():
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
    agent.initialize(SPACES, seed=0)
    inputs, noise = AgentInputs(torch.zeros(4, 3)), Noise(normal=torch.randn(4, 2), uniform=torch.full((4, 2), 0.25))
    assert agent.act(inputs, None, noise)[0].action.tolist() == [[-0.5, -0.5]] * 4, "at random, before learning"
    agent.explore(0.0, 1, at_random=False)
    params = agent.learn(inputs)
    torch.testing.assert_close(agent.act(inputs, None, None)[0].action, params.mean.tanh())
    drawn = (params.mean + params.log_std.exp() * noise.normal).tanh()
    torch.testing.assert_close(agent.act(inputs, None, noise)[0].action, drawn)


def test_discrete_sac_by_a_slow_definition():
    spaces = Spaces(SPACES.observation, gym.spaces.Discrete(3))
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
    agent.initialize(spaces, seed=0)
    algo = DiscreteSAC(
        batch_size=N, critic=ModelSpec(cls=QEnsemble, kwargs={"hidden_sizes": (5,)}), initial_temperature=0.5
    )
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    algo._target._flat.add_(0.05 * torch.randn(algo._target._flat.shape, generator=torch.Generator().manual_seed(3)))
    data = batch()._replace(action=torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    loss, _, error = algo._critic_loss(data, torch.zeros(N, 0))
    policy_loss, metrics = algo._policy_loss(data.observation, torch.zeros(N, 0))
    expected, expected_policy, entropies = 0.0, 0.0, []
    with torch.no_grad():
        for i in range(N):
            one = slice(i, i + 1)
            pi = agent.module(AgentInputs(data.next_observation[one]), None)[0].logits.exp()[0]
            after = torch.stack(
                [net(AgentInputs(data.next_observation[one]), None)[0][0] for net in algo._target.module.networks]
            )
            value = sum(float(pi[a]) * (float(after[:, a].min()) - 0.5 * float(pi[a].log())) for a in range(3))
            target = float(data.reward[i]) + float(data.discount[i]) * value
            values = [
                float(net(AgentInputs(data.observation[one]), None)[0][0][data.action[i]])
                for net in algo._critics.networks
            ]
            expected += float(data.weight[i]) * sum((v - target) ** 2 / 2 for v in values) / N
            assert float(error[i]) == pytest.approx(np.mean([abs(v - target) for v in values]), rel=1e-4)
            pi = agent.module(AgentInputs(data.observation[one]), None)[0].logits.exp()[0]
            q = torch.stack(
                [net(AgentInputs(data.observation[one]), None)[0][0] for net in algo._critics.networks]
            ).amin(0)
            expected_policy += sum(float(pi[a]) * (0.5 * float(pi[a].log()) - float(q[a])) for a in range(3)) / N
            entropies.append(-sum(float(p) * float(p.log()) for p in pi))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics.tolist() == pytest.approx([expected_policy, np.mean(entropies), 0.5], rel=1e-4)
    (slope,) = torch.autograd.grad(policy_loss, [algo._temperature.log])
    assert slope.item() == pytest.approx(np.mean(entropies) - 0.98 * np.log(3), rel=1e-3)


def test_each_sac_refuses_the_other_ones_actions():
    for algo, space, message in [
        (SAC(), gym.spaces.Discrete(3), "use DiscreteSAC"),
        (DiscreteSAC(), SPACES.action, "Discrete actions"),
    ]:
        agent = PolicyAgent()
        agent.initialize(Spaces(SPACES.observation, space), seed=0)
        with pytest.raises(ValueError, match=message):
            algo.initialize(agent, BatchSpec(4, 1), seed=0)
