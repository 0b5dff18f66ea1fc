"""DQN's loss and targets against numbers worked out by hand, and R2D2's against a slow definition."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rlsurreal.agents import Categorical, Expected, ModelSpec, QAgent
from rlsurreal.agents.q import QState
from rlsurreal.algos import DQN, R2D2
from rlsurreal.models import QNetwork
from rlsurreal.replays import Replay, ReplayRatio, Sequences, Transitions, Windows
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces

torch.set_num_threads(1)
SPACES = Spaces(gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2))


class Lines(nn.Module):
    """Q(s, a) = slope_a * s."""

    recurrent, normalizer, num_noise, num_atoms, num_cosines = False, None, 0, None, None

    def __init__(self, observation_space: Any, num_actions: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([1.0, 2.0]))

    def initial_state(self, num_envs: int) -> None:
        return None

    def forward(self, inputs: AgentInputs, state: Any, first: Any = None, noise: Any = None, taus: Any = None) -> Any:
        return inputs.observation * self.slope, state


def make(head: Any = None, **settings: Any) -> tuple[QAgent, DQN]:
    agent = QAgent(model=ModelSpec(cls=Lines), head=head or Expected(delta_clip=None))
    agent.initialize(SPACES, seed=0)
    algo = DQN(batch_size=3, max_grad_norm=float("inf"), **settings)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    return agent, algo


def batch(**changes: Any) -> Transitions:
    fields = {
        "observation": torch.tensor([[1.0], [2.0], [3.0]]),
        "action": torch.tensor([0, 1, 0]),
        "reward": torch.tensor([0.5, 1.0, -1.0]),
        "discount": torch.tensor([0.9, 0.0, 0.81]),
        "next_observation": torch.tensor([[2.0], [5.0], [-1.0]]),
        "weight": torch.tensor([1.0, 0.5, 1.0]),
    }
    return Transitions(**{**fields, **changes})


def set_slopes(agent: QAgent, algo: DQN, online: list[float], target: list[float]) -> None:
    with torch.no_grad():
        agent.module.slope.copy_(torch.tensor(online))
        algo._target.module.slope.copy_(torch.tensor(target))


@pytest.mark.parametrize("double", [False, True])
def test_targets_by_hand(double):
    agent, algo = make(double=double)
    set_slopes(agent, algo, online=[1.0, 2.0], target=[3.0, 1.0])
    # successors 2, 5, -1: target network (6, 2), (15, 5), (-3, -1); the network itself prefers 1, 1, 0
    after = [2.0, 5.0, -3.0] if double else [6.0, 15.0, -1.0]
    targets = [0.5 + 0.9 * after[0], 1.0, -1.0 + 0.81 * after[2]]
    values = [1.0, 4.0, 3.0]
    errors = [abs(t - v) for t, v in zip(targets, values)]
    loss, metrics, error = algo._loss(batch(), Noise())
    weights = [1.0, 0.5, 1.0]
    assert loss.item() == pytest.approx(sum(w * e**2 / 2 for w, e in zip(weights, errors)) / 3)
    assert error.tolist() == pytest.approx(errors)
    assert metrics.tolist() == pytest.approx([loss.item(), sum(values) / 3, sum(errors) / 3])
    loss.backward()
    slopes = [-(targets[0] - 1.0) * 1.0 - (targets[2] - 3.0) * 3.0, -0.5 * (targets[1] - 4.0) * 2.0]
    assert agent.module.slope.grad.tolist() == pytest.approx([s / 3 for s in slopes]), "targets are constants"


def test_huber_loss_bounds_the_gradient():
    agent, algo = make(head=Expected(delta_clip=1.0), double=False)
    set_slopes(agent, algo, online=[1.0, 2.0], target=[100.0, 100.0])
    loss, _, _ = algo._loss(batch(weight=torch.ones(3)), Noise())
    loss.backward()
    # errors far above 1 in rows 0 and 2 (the second downwards), -3 in row 1: each pulls with 1 times its observation
    assert agent.module.slope.grad.tolist() == pytest.approx([(-1.0 + 3.0) / 3, 2.0 / 3])


def test_what_follows_a_terminal_row_does_not_matter():
    _, algo = make()
    wild = batch(next_observation=torch.tensor([[2.0], [float("nan")], [-1.0]]))
    for mine, other in zip(algo._loss(wild, Noise()), algo._loss(batch(), Noise())):
        assert torch.equal(mine, other)


def test_target_follows_at_its_interval():
    agent, algo = make(target_interval=3, target_tau=0.5, learning_rate=0.1)
    start = algo._target.state_dict()
    for i in range(1, 7):
        before = algo._target.state_dict()
        algo._update(batch(), 0.0)
        algo._num_updates += 1
        after = algo._target.state_dict()
        if i % 3:
            assert torch.equal(before, after)
        else:
            online = agent.module.slope.detach()
            torch.testing.assert_close(after, (before + online) / 2)
    assert not torch.equal(start, after)


def test_learning_rate_is_that_of_the_schedule():
    agent, algo = make(learning_rate=0.25)
    before = agent.module.slope.detach().clone()
    algo._update(batch(), 0.0)
    moved = (agent.module.slope.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full((2,), 0.25), atol=1e-3, rtol=0)  # Adam's first step


def test_categorical_loss_is_the_cross_entropy_with_the_projected_target():
    model = ModelSpec(cls=QNetwork, kwargs={"hidden_sizes": (4,), "num_atoms": 5})
    agent = QAgent(model=model, head=Categorical(-2.0, 2.0))
    agent.initialize(SPACES, seed=0)
    algo = DQN(batch_size=3, double=False)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    data = batch()
    loss, _, _ = algo._loss(data, Noise())
    support, expected = np.linspace(-2, 2, 5), 0.0
    with torch.no_grad():
        logits = agent.module(AgentInputs(data.observation), None)[0]
        after = agent.module(AgentInputs(data.next_observation), None)[0].softmax(-1).numpy()
    for i in range(3):
        best = (after[i] * support).sum(-1).argmax()
        target = np.zeros(5)
        for probability, z in zip(after[i, best], support):
            place = np.clip(float(data.reward[i]) + float(data.discount[i]) * z, -2, 2) + 2
            low, part = int(np.floor(place)), place - np.floor(place)
            target[low] += probability * (1 - part)
            if part:
                target[low + 1] += probability * part
        log_probability = logits[i, data.action[i]].log_softmax(-1).numpy()
        expected -= float(data.weight[i]) * (target * log_probability).sum() / 3
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- R2D2


WINDOWS = Windows(burn_in=2, num_steps=4, num_ahead=3, interval=2)


def make_r2d2(**settings: Any) -> tuple[QAgent, R2D2]:
    kwargs = {"hidden_sizes": (4,), "recurrent": "lstm", "recurrent_size": 3}
    agent = QAgent(model=ModelSpec(cls=QNetwork, kwargs=kwargs), head=Expected(delta_clip=None))
    agent.initialize(SPACES, seed=0)
    options = {"batch_size": 5, "replay": Replay(capacity=200, extractor=WINDOWS), "limiter": ReplayRatio(ratio=1)}
    algo = R2D2(**{**options, **settings})
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    with torch.no_grad():
        for parameter in algo._target.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return agent, algo


def random_sequences(agent: QAgent, seed: int) -> Sequences:
    generator, size = torch.Generator().manual_seed(seed), (WINDOWS.num_rows, 5)

    def often(probability: float) -> torch.Tensor:
        return torch.rand(size, generator=generator) < probability

    network: Any = agent.module.initial_state(5)
    state = QState(type(network)(*(torch.randn(x.shape, generator=generator) for x in network)), None)
    return Sequences(
        observation=torch.randn(*size, 1, generator=generator),
        prev_action=torch.randint(0, 2, size, generator=generator),
        prev_reward=torch.randn(size, generator=generator),
        action=torch.randint(0, 2, size, generator=generator),
        reward=torch.randn(size, generator=generator),
        terminated=often(0.15),
        truncated=often(0.15),
        valid=~often(0.2),
        first=often(0.2),
        state=state,
        weight=torch.rand(5, generator=generator),
    )


def slow_values(module: Any, data: Sequences, env: int) -> list[torch.Tensor]:
    """Q-values of every row of one sequence, row after row."""
    state = type(data.state.network)(*(x[env : env + 1] for x in data.state.network))
    null, found = module.initial_state(1), []
    for t in range(WINDOWS.num_rows):
        row = AgentInputs(*(x[t, env : env + 1] for x in (data.observation, data.prev_action, data.prev_reward)))
        values, state = module(row, null if bool(data.first[t, env]) else state)
        found.append(values[0])
    return found


def squash(x: float) -> float:
    return float(np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x)


def unsquash(y: float) -> float:
    grid = [-1e4, 1e4]
    for _ in range(200):  # bisection
        middle = sum(grid) / 2
        grid = [middle, grid[1]] if squash(middle) < y else [grid[0], middle]
    return sum(grid) / 2


@pytest.mark.parametrize("seed", range(4))
def test_r2d2_loss_and_priorities_by_loops(seed):
    agent, algo = make_r2d2()
    data = random_sequences(agent, seed)
    loss, _, priority = algo._loss(data, Noise())
    total, count = 0.0, 0
    with torch.no_grad():
        for env in range(5):
            online, target = slow_values(agent.module, data, env), slow_values(algo._target.module, data, env)
            errors = []
            for t in range(2, 6):
                if not bool(data.valid[t, env]):
                    continue
                value, factor, k = 0.0, 1.0, t
                while True:
                    value += factor * float(data.reward[k, env])
                    factor *= algo.discount
                    ended = bool(data.terminated[k, env]) or bool(data.truncated[k, env])
                    dead = bool(data.terminated[k, env])
                    k += 1
                    if ended or k == t + 3 or not bool(data.valid[k, env]):
                        break
                if not dead:
                    value += factor * unsquash(float(target[k][online[k].argmax()]))
                errors.append(abs(squash(value) - float(online[t][data.action[t, env]])))
            total += float(data.weight[env]) * sum(e**2 / 2 for e in errors)
            count += len(errors)
            expected = 0.9 * max(errors) + 0.1 * sum(errors) / len(errors) if errors else 0.0
            assert priority[env].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert loss.item() == pytest.approx(total / count, rel=1e-3)


def test_nothing_is_learned_from_the_burn_in_but_the_state_is():
    agent, algo = make_r2d2()
    data = random_sequences(agent, 1)
    data.first[:] = False
    data.observation.requires_grad_()
    algo._loss(data, Noise())[0].backward()
    gradient = data.observation.grad
    assert not gradient[:2].any() and gradient[2:6].any()
    changed = data._replace(observation=data.observation.detach().clone())
    changed.observation[0] += 1.0
    assert algo._loss(changed, Noise())[0].item() != algo._loss(data, Noise())[0].item()
