"""Recurrent SAC, and SAC with state values, against slow definitions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rlsurreal.agents import ModelSpec, PolicyAgent
from rlsurreal.algos import SAC, RecurrentSAC, StateValueSAC
from rlsurreal.models import CriticEnsemble, QNetwork, RecurrentCritics, StochasticPolicy
from rlsurreal.replays import Replay, Sequences, Transitions, Windows
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces
from rlsurreal.utils.namedarraytuple import tree_map

torch.set_num_threads(1)
SPACES = Spaces(gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32))
N, BURN_IN, NUM_STEPS, AHEAD = 4, 3, 5, 2
ROWS = BURN_IN + NUM_STEPS + AHEAD
ALPHA, DISCOUNT = 0.3, 0.9


def make(burn_in: int = BURN_IN, num_steps: int = NUM_STEPS, **kwargs: Any) -> RecurrentSAC:
    policy = {"hidden_sizes": (6,), "recurrent": "lstm", "recurrent_size": 5, **kwargs}
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs=policy))
    agent.initialize(SPACES, seed=0)
    critics = {"encoder_sizes": (6,), "hidden_sizes": (6,), "recurrent": "gru", "recurrent_size": 5}
    windows = Windows(burn_in=burn_in, num_steps=num_steps, num_ahead=AHEAD, interval=1)
    algo = RecurrentSAC(
        batch_size=N,
        discount=DISCOUNT,
        temperature=ALPHA,
        replay=Replay(extractor=windows),
        critic=ModelSpec(cls=RecurrentCritics, kwargs=critics),
    )
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    algo._target._flat.add_(0.05 * torch.randn(algo._target._flat.shape, generator=torch.Generator().manual_seed(3)))
    return algo


def sequences(algo: RecurrentSAC) -> Sequences:
    """Column 1 ends and begins anew in the learned part, column 2 in the burn-in, column 3 is cut off."""
    g = torch.Generator().manual_seed(5)
    flags = {name: torch.zeros(ROWS, N, dtype=torch.bool) for name in ("terminated", "truncated", "first")}
    valid = torch.ones(ROWS, N, dtype=torch.bool)
    for row, env, end in ((BURN_IN + 1, 1, "terminated"), (0, 2, "terminated"), (BURN_IN + 2, 3, "truncated")):
        flags[end][row, env] = True
        valid[row + 1, env] = False
        flags["first"][row + 2, env] = True
    state = algo._agent.initial_state(N)
    return Sequences(
        observation=torch.randn(ROWS, N, 3, generator=g),
        prev_action=2 * torch.rand(ROWS, N, 2, generator=g) - 1,
        prev_reward=torch.randn(ROWS, N, generator=g),
        action=2 * torch.rand(ROWS, N, 2, generator=g) - 1,
        reward=torch.randn(ROWS, N, generator=g),
        valid=valid,
        state=tree_map(lambda s: torch.randn(s.shape, generator=g), state),
        weight=torch.rand(N, generator=g),
        **flags,
    )


def row_by_row(step: Any, batch: Sequences, state: Any, null: Any) -> list[Any]:
    """What ``step(inputs, state)`` gives in each row, with the null state where an episode begins."""
    outputs = []
    for t in range(ROWS):
        state = tree_map(lambda s, z, t=t: torch.where(batch.first[t].unsqueeze(-1), z, s), state, null)
        output, state = step(AgentInputs(batch.observation[t], batch.prev_action[t], batch.prev_reward[t]), state)
        outputs.append(output)
    return outputs


def remember(critics: Any, batch: Sequences) -> Tensor:
    nothing = torch.zeros(1, N, dtype=torch.bool)

    def step(inputs: AgentInputs, state: Any) -> Any:
        features, state = critics.remember(inputs[None], state, nothing)
        return features[0], state

    return torch.stack(row_by_row(step, batch, critics.initial_state(N), critics.initial_state(N)))


def slow_actions(algo: RecurrentSAC, batch: Sequences, noise: Tensor) -> tuple[Tensor, Tensor]:
    agent = algo._agent
    params = row_by_row(lambda i, s: agent.module(i, s), batch, batch.state, agent.initial_state(N))
    drawn = [
        agent.distribution.sample_with_log_prob(params[t], Noise(normal=noise[t - BURN_IN]))
        for t in range(BURN_IN, ROWS)
    ]
    return torch.stack([a for a, _ in drawn]), torch.stack([p for _, p in drawn])


def noise_of(algo: RecurrentSAC) -> Tensor:
    noise = algo._noise()
    assert noise.shape == (NUM_STEPS + AHEAD, N, 2)
    return noise


def test_critics_by_a_slow_definition() -> None:
    algo = make()
    batch, noise = sequences(algo), noise_of(algo)
    loss, metrics, priority = algo._critic_loss(batch, noise)
    with torch.no_grad():
        action, log_prob = slow_actions(algo, batch, noise)
        target = algo._target.module
        soft = target(remember(target, batch)[BURN_IN:], action).amin(0) - ALPHA * log_prob
        values = algo._critics(remember(algo._critics, batch)[BURN_IN:], batch.action[BURN_IN:])
        total, count, errors = 0.0, 0, torch.zeros(NUM_STEPS, N)
        for n in range(N):
            for t in range(NUM_STEPS):
                row = BURN_IN + t
                if not batch.valid[row, n]:
                    continue
                wanted, factor, k = 0.0, 1.0, t
                for _ in range(AHEAD):
                    wanted += factor * batch.reward[BURN_IN + k, n].item()
                    factor *= DISCOUNT
                    k += 1
                    if batch.terminated[BURN_IN + k - 1, n] or batch.truncated[BURN_IN + k - 1, n]:
                        break
                    if not batch.valid[BURN_IN + k, n]:
                        break
                if not batch.terminated[BURN_IN + k - 1, n]:
                    wanted += factor * soft[k, n].item()
                both = values[:, t, n] - wanted
                errors[t, n] = both.abs().mean()
                total += batch.weight[n].item() * both.square().sum().item() / 2
                count += 1
    assert count < NUM_STEPS * N
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert metrics[2].item() == pytest.approx((errors.sum() / count).item(), rel=1e-4)
    mean = errors.sum(0) / batch.valid[BURN_IN : BURN_IN + NUM_STEPS].sum(0)
    torch.testing.assert_close(priority, 0.9 * errors.amax(0) + 0.1 * mean, rtol=1e-4, atol=1e-5)


def test_policy_by_a_slow_definition() -> None:
    algo = make()
    batch, noise = sequences(algo), noise_of(algo)
    loss, metrics = algo._policy_loss(batch, noise)
    loss.backward(inputs=[*algo._agent.module.parameters()])
    action, log_prob = slow_actions(algo, batch, noise)
    value = algo._critics(remember(algo._critics, batch)[BURN_IN:].detach(), action).amin(0)
    valid = batch.valid[BURN_IN:]
    expected = (ALPHA * log_prob - value)[valid].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics[1].item() == pytest.approx(-log_prob[valid].mean().item(), rel=1e-4)
    assert all(p.grad.abs().sum() > 0 for p in algo._agent.module.parameters())


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="RecurrentSAC needs a recurrent policy"):
        make(recurrent=None)
    with pytest.raises(ValueError, match="needs Replay\\(extractor=Windows"):
        RecurrentSAC(replay=Replay())
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"recurrent": "gru"}))
    agent.initialize(SPACES, seed=0)
    with pytest.raises(ValueError, match="with RecurrentSAC"):
        SAC().initialize(agent, BatchSpec(4, 1), seed=0)


def test_state_values_by_a_slow_definition() -> None:
    agent = PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": (5,)}))
    agent.initialize(SPACES, seed=0)
    small: Any = {"hidden_sizes": (5,)}
    algo = StateValueSAC(
        batch_size=N,
        temperature=ALPHA,
        critic=ModelSpec(cls=CriticEnsemble, kwargs=small),
        value=ModelSpec(cls=QNetwork, kwargs=small),
    )
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    algo._target._flat.add_(0.05)
    g = torch.Generator().manual_seed(1)
    batch = Transitions(
        observation=torch.randn(N, 3, generator=g),
        action=2 * torch.rand(N, 2, generator=g) - 1,
        reward=torch.randn(N, generator=g),
        discount=torch.tensor([0.9, 0.0, 0.9, 0.9]),
        next_observation=torch.randn(N, 3, generator=g),
        weight=torch.rand(N, generator=g),
    )
    noise = torch.randn(N, 2, generator=g)
    with torch.no_grad():
        action, log_prob = algo._act(batch.observation, noise)
        wanted = algo._critics(batch.observation, action).amin(0) - ALPHA * log_prob
        state_value = algo._value(AgentInputs(batch.observation))[0][:, 0]
        after = algo._target.module(AgentInputs(batch.next_observation))[0][:, 0]
        errors = algo._critics(batch.observation, batch.action) - (batch.reward + batch.discount * after)
    loss, metrics = algo._value_loss(batch.observation, noise)
    assert loss.item() == pytest.approx(((state_value - wanted) ** 2).mean().item() / 2, rel=1e-5)
    loss, _, error = algo._critic_loss(batch, noise)
    assert loss.item() == pytest.approx((batch.weight * (errors**2).sum(0)).mean().item() / 2, rel=1e-5)
    before = algo._value_step.flat.clone(), algo._target._flat.clone()
    algo._learn(batch, 0.0)
    assert not torch.equal(algo._value_step.flat, before[0]) and not torch.equal(algo._target._flat, before[1])
