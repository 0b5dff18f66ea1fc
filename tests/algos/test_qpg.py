"""The losses of SAC, DDPG, TD3 and D4PG against slow definitions, and against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from rlsurreal.agents import Categorical, DeterministicAgent, ModelSpec, PolicyAgent
from rlsurreal.algos import D4PG, DDPG, SAC, TD3, DiscreteSAC
from rlsurreal.distributions.discrete import CategoricalParams
from rlsurreal.distributions.gaussian import GaussianParams
from rlsurreal.models import CriticEnsemble, DeterministicPolicy, QEnsemble, StochasticPolicy
from rlsurreal.replays import Transitions
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces
from rlsurreal.utils.schedules import Linear

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


def test_droq_drops_other_units_in_each_pass_and_climbs_the_mean():
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
    settings: Any = {"temperature": 0.3, "policy_value": "mean"}
    algo = set_up(agent, SAC(batch_size=N, critic=critic(dropout=0.4, layer_norm=True), **settings))
    data, noise = batch(), torch.randn(N, 2, generator=torch.Generator().manual_seed(9))
    target_mask, own_mask = algo._dropout(2)
    assert target_mask.shape == (2, N, 5) and not torch.equal(target_mask < 0.4, own_mask < 0.4)
    loss, _, _ = algo._critic_loss(data, noise, torch.stack([target_mask, own_mask]))
    with torch.no_grad():
        action, log_prob = slow_sac_action(algo, data.next_observation, noise)
        after = algo._target.module(data.next_observation, action, target_mask)
        target = data.reward + data.discount * (torch.minimum(after[0], after[1]) - 0.3 * log_prob)
        errors = algo._critics(data.observation, data.action, own_mask) - target
    torch.testing.assert_close(loss, (data.weight * errors**2).sum(0).mean() / 2, rtol=1e-4, atol=1e-5)
    loss, _ = algo._policy_loss(data.observation, noise, own_mask[None])
    action, log_prob = slow_sac_action(algo, data.observation, noise)
    values = algo._critics(data.observation, action, own_mask)
    torch.testing.assert_close(loss, (0.3 * log_prob - (values[0] + values[1]) / 2).mean(), rtol=1e-4, atol=1e-5)


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
        algo._learn(batch(i), 0.0)
        after = algo._policy_step.flat, algo._target.state_dict(), algo._target_policy.state_dict()
        assert not torch.equal(critics, algo._critic_step.flat)
        assert [torch.equal(a, b) for a, b in zip(before, after)] == [bool(i % 2)] * 3


def test_hard_targets_stand_still_between_copies_while_the_policy_learns():
    """As SURREAL's DDPG has them: all the way, every so many updates."""
    algo = make_deterministic(DDPG, critic=critic(num_critics=1), learning_rate=0.1, target_interval=3, target_tau=1.0)
    copied = algo._target.state_dict(), algo._target_policy.state_dict()
    for i in range(1, 7):
        policy = algo._policy_step.flat.clone()
        algo._learn(batch(i), 0.0)
        assert not torch.equal(policy, algo._policy_step.flat)
        if i % 3 == 0:
            copied = algo._critic_step.flat.clone(), algo._policy_step.flat.clone()
        assert torch.equal(algo._target.state_dict(), copied[0])
        assert torch.equal(algo._target_policy.state_dict(), copied[1])


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


def test_noise_of_actions_is_added_and_stays_in_bounds():
    model = ModelSpec(cls=DeterministicPolicy, kwargs={"hidden_sizes": (5,)})
    agent = DeterministicAgent(model=model, noise=Linear(0.8, 0.2), noise_spread=1.0)
    agent.initialize(SPACES, seed=0)
    assert agent.explore(0.5, 3, at_random=False) == {"policy/noise": 0.5}
    state, inputs = agent.initial_state(3), AgentInputs(torch.zeros(3, 3))
    own = agent.act(inputs, state, None)[0].action
    normal = torch.tensor([[0.3, -0.2], [9.0, -9.0], [-0.1, 0.4]])
    found = agent.act(inputs, state, Noise(normal=normal, uniform=torch.zeros(3, 2)))[0].action
    torch.testing.assert_close(found[0], own[0] + 0.5 * normal[0])
    assert found[1].tolist() == [1.0, -1.0]
    torch.testing.assert_close(found[2], own[2] + 0.5 * 2.0 * normal[2])


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
    recurrent = ModelSpec(cls=StochasticPolicy, kwargs={"recurrent": "gru"})
    for algo, space, model, message in [
        (SAC(), gym.spaces.Discrete(3), {}, "use DiscreteSAC"),
        (SAC(target_entropy=-1.0), gym.spaces.Discrete(3), {}, "use DiscreteSAC"),
        (DiscreteSAC(), SPACES.action, {}, "Discrete actions"),
        (DiscreteSAC(target_entropy=0.5), SPACES.action, {}, "Discrete actions"),
        (DiscreteSAC(), gym.spaces.Discrete(3), {"model": recurrent}, "which DiscreteSAC does not learn"),
    ]:
        agent = PolicyAgent(**model)
        agent.initialize(Spaces(SPACES.observation, space), seed=0)
        with pytest.raises(ValueError, match=message):
            algo.initialize(agent, BatchSpec(4, 1), seed=0)


@pytest.mark.parametrize("kind", ["ddpg", "sac"])
def test_a_policy_sees_through_its_critics_encoder(kind):
    images = Spaces(gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), gym.spaces.Box(-1, 1, (2,), np.float32))
    settings: Any = {"batch_size": 4, "share_encoder": True}
    if kind == "ddpg":
        agent: Any = DeterministicAgent(model=ModelSpec(cls=DeterministicPolicy, kwargs={"hidden_sizes": (5,)}))
        algo: Any = DDPG(critic=critic(num_critics=1), **settings)
    else:
        agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
        algo = SAC(critic=critic(), **settings)
    agent.initialize(images, seed=0)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    own, theirs = agent.module.trunk.encoder, algo._critics.encoder
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 4, 3, 36, 36), generator=generator, dtype=torch.uint8)
    data = batch()[:4]._replace(observation=pixels[0], next_observation=pixels[1])
    before = {name: p.clone() for name, p in theirs.named_parameters()}
    assert len(before) >= 6 and all(torch.equal(before[name], p) for name, p in own.named_parameters())
    policy = [p for name, p in agent.module.named_parameters() if "encoder" not in name]
    assert algo._policy_step.flat.numel() == sum(p.numel() for p in policy) + (kind == "sac")
    for _ in range(2):
        algo._update(data, 0.0)
        algo._num_updates += 1
        for name, parameter in own.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name)), name
    assert not any(torch.equal(before[name], p) for name, p in own.named_parameters())
    if kind == "ddpg":
        assert algo._target_policy.module.trunk.encoder is algo._target.module.encoder
        assert not torch.equal(next(algo._target.module.encoder.parameters()), next(own.parameters()))
    algo.take_metrics()  # refuses parameters that were replaced


def test_no_encoder_to_share_is_an_error():
    for algo, agent in ((SAC(share_encoder=True), PolicyAgent()), (TD3(share_encoder=True), DeterministicAgent())):
        agent.initialize(SPACES, seed=0)
        with pytest.raises(ValueError, match="share_encoder is True.*the same encoder"):
            algo.initialize(agent, BatchSpec(4, 1), seed=0)


# ---------------------------------------------------------------- by hand: lines for networks, and two rows


def by_hand(agent: Any, algo: Any) -> Any:
    """Q_1 = s + a, Q_2 = 2 s; target networks Q'_1 = s + 2 a, Q'_2 = s; the target policy takes -1/2."""
    action = gym.spaces.Box(-1, 1, (1,), np.float32)
    agent.initialize(Spaces(gym.spaces.Box(-9, 9, (1,), np.float32), action), seed=0)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    num_critics = algo._critics.num_critics
    algo._critics = lambda s, a, dropout=None: torch.stack([s + a, 2 * s])[:num_critics, :, 0]
    algo._target.module = lambda s, a, dropout=None: torch.stack([s + 2 * a, s])[:num_critics, :, 0]
    return algo


ROWS = Transitions(
    observation=torch.tensor([[1.0], [2.0]]),
    action=torch.tensor([[0.5], [-1.0]]),
    reward=torch.tensor([1.0, 2.0]),
    discount=torch.tensor([0.5, 0.0]),
    next_observation=torch.tensor([[4.0], [100.0]]),
    weight=torch.tensor([1.0, 0.5]),
)


@pytest.mark.parametrize(
    ("cls", "noise", "loss", "error"),
    [
        # y = 1 + (4 - 1) / 2, 2; Q_1 = 1.5, 1
        (DDPG, None, (1.0 + 0.5 * 1.0) / 2 / 2, [1.0, 1.0]),
        # and Q_2 = 2, 4
        (TD3, 0.0, (1.0 + 0.25 + 0.5 * (1.0 + 4.0)) / 2 / 2, [0.75, 1.5]),
        # noise of 5 standard deviations, 1, is cut to 1/2: the action is 0, both critics say 4, y = 1 + 4 / 2
        (TD3, 5.0, (2.25 + 1.0 + 0.5 * (1.0 + 4.0)) / 2 / 2, [1.25, 1.5]),
    ],
)
def test_ddpg_and_td3_by_hand(cls, noise, loss, error):
    algo = by_hand(DeterministicAgent(), cls(batch_size=2))
    algo._target_policy.module = lambda inputs, state: (torch.full_like(inputs.observation, -0.5), None)
    found, _, magnitude = algo._critic_loss(ROWS, None if noise is None else torch.full((2, 1), noise))
    assert found.item() == pytest.approx(loss) and magnitude.tolist() == pytest.approx(error)
    x = torch.zeros((), requires_grad=True)
    algo._agent.learn = lambda inputs: x.tanh() + 0.5 + 0 * inputs.observation
    policy_loss, _ = algo._policy_loss(ROWS.observation)
    assert policy_loss.item() == pytest.approx(-(1.5 + 2.5) / 2)
    policy_loss.backward()
    assert x.grad.item() == pytest.approx(-1.0), "Q_1 rises by 1 with the action, and that with x"


def test_sac_by_hand():
    # The action is tanh of the mean, 1/2; its log-probability -log(sqrt(2 pi)) - log(1 - 1/4) = -0.91894 + 0.28768.
    for policy_value, climbed in (("min", (1.5 + 2.5) / 2), ("mean", (1.75 + 3.25) / 2)):
        algo = by_hand(
            PolicyAgent(), SAC(batch_size=2, initial_temperature=0.5, target_entropy=-1.0, policy_value=policy_value)
        )
        algo._agent.learn = lambda inputs: GaussianParams(
            torch.full_like(inputs.observation, math.atanh(0.5)), torch.zeros_like(inputs.observation)
        )
        loss, _, error = algo._critic_loss(ROWS, torch.zeros(2, 1))
        wanted = 1 + 0.5 * (4 + 0.5 * 0.63126)  # Q'_1 = 5, Q'_2 = 4; the other row's is 2
        errors = [[1.5 - wanted, 1.0 - 2], [2.0 - wanted, 4.0 - 2]]
        assert error.tolist() == pytest.approx([(2 * wanted - 3.5) / 2, 1.5], abs=1e-4)
        assert loss.item() == pytest.approx((errors[0][0] ** 2 + errors[1][0] ** 2 + 0.5 * (1 + 4)) / 2 / 2, abs=1e-4)
        whole, metrics = algo._policy_loss(ROWS.observation, torch.zeros(2, 1))
        assert metrics.tolist() == pytest.approx([-0.5 * 0.63126 - climbed, 0.63126, 0.5], abs=1e-4)
        (slope,) = torch.autograd.grad(whole, [algo._temperature.log])
        assert slope.item() == pytest.approx(0.63126 + 1.0, abs=1e-4), "there is more entropy than is wanted"


def test_discrete_sac_by_hand():
    agent = PolicyAgent()
    agent.initialize(Spaces(gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)), seed=0)
    algo = DiscreteSAC(batch_size=2, initial_temperature=0.5)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    log_pi = torch.tensor([0.75, 0.25]).log()
    agent.learn = lambda inputs: CategoricalParams(log_pi.expand(2, -1))
    # Q_1 = (s, 0), Q_2 = (2, s); target networks (s, 4), (2, 6)
    algo._critics = lambda s: torch.stack([torch.cat([s, 0 * s], 1), torch.cat([0 * s + 2, s], 1)])
    algo._target.module = lambda s: torch.stack([torch.cat([s, 0 * s + 4], 1), torch.cat([0 * s + 2, 0 * s + 6], 1)])
    data = ROWS._replace(action=torch.tensor([1, 0]))
    entropy = 0.75 * 0.28768 + 0.25 * 1.38629
    wanted = 1 + 0.5 * (0.75 * 2 + 0.25 * 4 + 0.5 * entropy)  # the least of (4, 4) and (2, 6)
    loss, _, error = algo._critic_loss(data, torch.zeros(2, 0))
    # rows: (0 and 1 against y), (2 and 2 against 2)
    assert loss.item() == pytest.approx((wanted**2 + (wanted - 1) ** 2) / 2 / 2, rel=1e-4)
    assert error.tolist() == pytest.approx([wanted - 0.5, 0.0], rel=1e-4)
    _, metrics = algo._policy_loss(ROWS.observation, torch.zeros(2, 0))
    value = (0.75 * 1 + 0.75 * 2) / 2  # the least of (s, 0) and (2, s): (1, 0), (2, 0)
    assert metrics.tolist() == pytest.approx([-0.5 * entropy - value, entropy, 0.5], rel=1e-4)


def test_d4pg_by_hand():
    agent = DeterministicAgent()
    algo = D4PG(
        batch_size=1,
        critic=ModelSpec(cls=CriticEnsemble, kwargs={"num_critics": 1, "num_atoms": 3}),
        head=Categorical(-1.0, 1.0),
    )
    agent.initialize(Spaces(gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)), seed=0)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    algo._critics = lambda s, a: torch.tensor([0.5, 0.25, 0.25]).log().expand(1, len(s), -1)
    algo._target.module = lambda s, a: torch.tensor([0.2, 0.3, 0.5]).log().expand(1, len(s), -1)
    row = ROWS[:1]._replace(reward=torch.tensor([0.25]))
    # Returns -1, 0, 1 become -1/4, 1/4, 3/4: a quarter of 0.2 falls on -1; the rest of it, three quarters of 0.3 and a
    # quarter of 0.5 on 0; what is left on 1.
    target = [0.05, 0.15 + 0.225 + 0.125, 0.075 + 0.375]
    loss, _, error = algo._critic_loss(row, None)
    cross_entropy = target[0] * 0.69315 + (target[1] + target[2]) * 1.38629
    assert loss.item() == pytest.approx(cross_entropy, rel=1e-4)
    entropy = -sum(p * math.log(p) for p in target)
    assert error.item() == pytest.approx(cross_entropy - entropy, rel=1e-3)
    assert algo._policy_loss(row.observation)[0].item() == pytest.approx(0.5 - 0.25)
