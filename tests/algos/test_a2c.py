"""A2C against a gradient step worked out with plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor, nn

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import A2C
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import AgentInputs, AgentSamples, BatchSpec, EnvSamples, Samples, Spaces
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.schedules import Linear

torch.set_num_threads(1)
DISCOUNT, VALUE_COEFF, ENTROPY_COEFF = 0.9, 0.5, 0.02
POLICY, CRITIC = (0.3, -0.2), 0.5  # weights: logits are POLICY[k] * x, the value is CRITIC * x


class Linear1(nn.Module):
    """Two actions, one number as observation, no biases."""

    recurrent = False

    def __init__(self, observation_space: Any, distribution: Any) -> None:
        super().__init__()
        self.distribution = distribution
        self.policy = nn.Parameter(torch.tensor(POLICY))
        self.critic = nn.Parameter(torch.tensor(CRITIC))

    def initial_state(self, num_envs: int) -> None:
        return None

    def forward(self, inputs: AgentInputs, state: Any = None, first: Tensor | None = None) -> Any:
        params = self.distribution.params(inputs.observation * self.policy)
        return (params, self.value(inputs)), state

    def value(self, inputs: AgentInputs, state: Any = None, first: Tensor | None = None) -> Tensor:
        return self.critic * inputs.observation.squeeze(-1)


#    observation, action, reward, terminated, truncated, valid
ROWS = [
    (1.0, 0, 1.0, False, False, True),
    (2.0, 1, -0.5, True, False, True),
    (-1.0, 0, 99.0, False, False, False),  # a reset row
    (0.5, 1, 2.0, False, True, True),
    (3.0, 0, 99.0, False, False, False),  # the end's true observation, bootstrapped from
    (-2.0, 1, 0.25, False, False, True),
]
LAST_OBSERVATION = 1.5


def make_slot() -> tuple[ActorCriticAgent, Samples]:
    agent = ActorCriticAgent(model=ModelSpec(cls=Linear1))
    agent.initialize(Spaces(observation=gs.Box(-10, 10, (1,)), action=gs.Discrete(2)), seed=0)
    observation, action, reward, terminated, truncated, valid = (
        torch.tensor([*column, column[-1]]).unsqueeze(1) for column in zip(*ROWS)
    )
    observation[-1] = LAST_OBSERVATION
    inputs = AgentInputs(observation.unsqueeze(-1))
    with torch.no_grad():
        (params, value), _ = agent.module(inputs)
        info = agent.act(inputs, None, None)[0].agent_info._replace(
            params=params, value=value, log_prob=agent.distribution.log_prob(params, action)
        )
    env = EnvSamples(
        inputs.observation, reward, None, terminated, truncated, valid, torch.zeros_like(valid), env_info=None
    )
    return agent, Samples(AgentSamples(action, None, info, None), env, torch.zeros_like(action))


def gradient_by_hand(normalize: bool) -> tuple[list[float], float, list[float]]:
    """Of the policy's two weights and the critic's, and the three parts of the loss."""
    values = [CRITIC * x for x in [row[0] for row in ROWS] + [LAST_OBSERVATION]]
    advantages, following = [0.0] * len(ROWS), 0.0
    for t in reversed(range(len(ROWS))):
        _, _, reward, terminated, truncated, valid = ROWS[t]
        if valid:
            going_on = not (terminated or truncated) and t + 1 < len(ROWS) and ROWS[t + 1][5]
            tail = following if going_on else (0.0 if terminated else values[t + 1])
            following = reward + DISCOUNT * tail  # the discounted return
            advantages[t] = following - values[t]
    valid_rows = [t for t, row in enumerate(ROWS) if row[5]]
    n = len(valid_rows)
    weights = dict.fromkeys(valid_rows, 0.0) | {t: advantages[t] for t in valid_rows}
    if normalize:
        mean = sum(weights.values()) / n
        std = math.sqrt(sum((a - mean) ** 2 for a in weights.values()) / n)
        weights = {t: (a - mean) / std for t, a in weights.items()}
    d_policy, d_critic, parts = [0.0, 0.0], 0.0, [0.0, 0.0, 0.0]
    for t in valid_rows:
        x, action = ROWS[t][:2]
        exps = [math.exp(w * x) for w in POLICY]
        probs = [e / sum(exps) for e in exps]
        entropy = -sum(p * math.log(p) for p in probs)
        parts[0] -= weights[t] * math.log(probs[action]) / n
        parts[1] += 0.5 * advantages[t] ** 2 / n
        parts[2] += entropy / n
        for k in range(2):
            d_log_prob = (float(k == action) - probs[k]) * x
            d_entropy = -probs[k] * (math.log(probs[k]) + entropy) * x
            d_policy[k] -= (weights[t] * d_log_prob + ENTROPY_COEFF * d_entropy) / n
        d_critic -= VALUE_COEFF * advantages[t] * x / n
    return d_policy, d_critic, parts


@pytest.mark.parametrize("normalize", ["off", "batch", "minibatch"])
@pytest.mark.parametrize("max_grad_norm", [float("inf"), 0.1])
def test_one_step_by_hand(normalize, max_grad_norm):
    agent, samples = make_slot()
    algo = A2C(
        discount=DISCOUNT,
        learning_rate=Linear(0.02, 0.0),
        value_loss_coeff=VALUE_COEFF,
        entropy_coeff=ENTROPY_COEFF,
        normalize_advantage=normalize,
        max_grad_norm=max_grad_norm,
    )
    algo.initialize(agent, BatchSpec(len(ROWS), 1), seed=0)
    metrics = algo.update(samples, 0.5)
    d_policy, d_critic, parts = gradient_by_hand(normalize != "off")
    norm = math.sqrt(sum(d**2 for d in (*d_policy, d_critic)))
    assert [float(metrics[f"loss/{name}"]) for name in ("policy", "value", "entropy")] == pytest.approx(parts, abs=1e-6)
    assert float(metrics["update/grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert metrics["update/learning_rate"] == pytest.approx(0.01)
    shrink = min(1.0, max_grad_norm / norm)
    assert norm > 0.1
    for before, gradient, parameter in [
        *zip(POLICY, d_policy, agent.module.policy),
        (CRITIC, d_critic, agent.module.critic),
    ]:
        clipped = gradient * shrink
        # Adam's first step: both moments, after the correction of their bias, are those of this one gradient.
        expected = before - 0.01 * clipped / (abs(clipped) + 1e-5)
        assert parameter.item() == pytest.approx(expected, abs=1e-6)
    grads = [*agent.module.policy.grad.tolist(), agent.module.critic.grad.item()]
    assert grads == pytest.approx([d * shrink for d in (*d_policy, d_critic)], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("state_interval", [1, 4, 12])
def test_recurrent_gradient_is_cut_at_recorded_states(state_interval):
    """The loss is that of a loop over rows in which the state, where it was recorded, is a constant."""
    kwargs = {"hidden_sizes": (6,), "recurrent": "lstm", "recurrent_size": 5}
    agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))
    env = GymnasiumEnv(factory="CartPole-v1", kwargs={"max_episode_steps": 5})
    sampler = SerialSampler(env=env, batch=BatchSpec(12, 3), state_interval=state_interval)
    agent.initialize(sampler.connect(seed=0), seed=0)
    algo = A2C(learning_rate=0.0, max_grad_norm=float("inf"), entropy_coeff=0.1, normalize_advantage="off")
    algo.initialize(agent, sampler.batch, seed=0)
    sampler.initialize(agent, discount=algo.discount)
    samples = sampler.obtain()
    assert samples.env.first[1:].any()
    algo.update(samples, 0.0)
    ours = [parameter.grad.clone() for parameter in agent.module.parameters()]
    _, rollout = algo._prepare(samples)
    total, count = torch.zeros(()), 0
    for t in range(12):
        if t % state_interval == 0:
            state = tree_map(lambda s, t=t: s[t // state_interval], samples.agent.agent_state)
        reset = samples.env.first[t].unsqueeze(-1)
        state = tree_map(lambda s, reset=reset: torch.where(reset, 0.0, s), state)
        (params, value), state = agent.module(rollout.inputs[t], state)
        log_prob = agent.distribution.log_prob(params, rollout.action[t])
        entropy = agent.distribution.entropy(params)
        for b in range(3):
            if rollout.valid[t, b]:
                total = total - rollout.advantage[t, b] * log_prob[b] - 0.1 * entropy[b]
                total = total + 0.5 * 0.5 * (value[b] - rollout.target[t, b]) ** 2
                count += 1
    expected = torch.autograd.grad(total / count, list(agent.module.parameters()))
    for gradient, by_loop in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, by_loop, atol=1e-5, rtol=1e-4)


def test_a_slot_of_one_row_is_refused_where_advantages_are_normalized():
    agent = ActorCriticAgent()
    agent.initialize(Spaces(gs.Box(-1, 1, (3,)), gs.Discrete(2)), seed=0)
    with pytest.raises(ValueError, match="batch is a single row, whose advantage is normalized to nothing"):
        A2C().initialize(agent, BatchSpec(1, 1), seed=0)
    A2C(normalize_advantage="off").initialize(agent, BatchSpec(1, 1), seed=0)
