"""DQN's loss and targets against numbers worked out by hand, and R2D2's against a slow definition."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rlsurreal.agents import Categorical, Expected, ModelSpec, QAgent, Quantile
from rlsurreal.agents.q import QInfo, QState
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
        algo._learn(batch(), 0.0)
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


HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "expected": (Expected(delta_clip=0.5), {}),
    "categorical": (Categorical(-2.0, 2.0), {"num_atoms": 5}),
    "quantiles": (Quantile(kappa=0.7), {"num_atoms": 4}),
    "implicit quantiles": (Quantile(), {"num_cosines": 6}),
    "rainbow": (Categorical(-2.0, 2.0), {"num_atoms": 5, "dueling": True, "noisy": True}),
}


def slow_loss(name: str, mine: Any, after: Any, reward: float, discount: float, taus: Any) -> tuple[float, float]:
    """Loss and priority of one row from the outputs for its action, and those for the best action after it."""
    if name == "expected":
        error = abs(reward + discount * after - mine)
        return (error**2 / 2 if error < 0.5 else 0.5 * (error - 0.25)), error
    if "quantiles" in name:
        kappa, loss = HEADS[name][0].kappa, 0.0
        for tau, quantile in zip(taus, mine):
            for z in after:
                u = reward + discount * z - quantile
                huber = u**2 / 2 if abs(u) < kappa else kappa * (abs(u) - kappa / 2)
                loss += abs(tau - (u < 0)) * huber / kappa / len(after)
        return loss, abs(reward + discount * np.mean(after) - np.mean(mine))
    target = np.zeros(5)
    for probability, z in zip(np.exp(after) / np.exp(after).sum(), np.linspace(-2, 2, 5)):
        place = np.clip(reward + discount * z, -2, 2) + 2
        low, part = int(np.floor(place)), place - np.floor(place)
        target[low] += probability * (1 - part)
        if part:
            target[low + 1] += probability * part
    log_probability = mine - np.log(np.exp(mine).sum())
    entropy = -sum(t * np.log(t) for t in target if t)
    return -(target * log_probability).sum(), -(target * log_probability).sum() - entropy


def slow_expected(name: str, outputs: np.ndarray) -> np.ndarray:
    """Expected returns ``[A]`` of outputs ``[A]`` or ``[A, Z]``."""
    if name == "expected":
        return outputs
    if "quantiles" in name:
        return outputs.mean(-1)
    return (np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True) * np.linspace(-2, 2, 5)).sum(-1)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_priorities_by_loops(name, double):
    """Each pass (the network, its target, the choice of actions) with its own noise and its own quantiles."""
    head, kwargs = HEADS[name]
    num_taus = 5 if double and "num_cosines" in kwargs else None
    own = {"num_taus": 3} if "num_cosines" in kwargs else {}
    agent = QAgent(model=ModelSpec(cls=QNetwork, kwargs={"hidden_sizes": (4,), **kwargs}), head=head, **own)
    agent.initialize(SPACES, seed=0)
    algo = DQN(batch_size=3, double=double, num_taus=num_taus)
    algo.initialize(agent, BatchSpec(4, 1), seed=0)
    spread(agent.module, 7), spread(algo._target.module, 5)
    data, noise = batch(), algo._noise()
    assert noise.uniform is None or noise.uniform.shape == (3, 3, num_taus or 3)

    def outputs(module: nn.Module, observation: torch.Tensor, which: int, i: int) -> np.ndarray:
        normal, taus = (None if x is None else x[which, i : i + 1] for x in (noise.normal, noise.uniform))
        with torch.no_grad():
            found: np.ndarray = module(AgentInputs(observation[i : i + 1]), None, noise=normal, taus=taus)[0][0].numpy()
        return found

    losses, errors, values, choices = [], [], [], []
    for i in range(3):
        mine = outputs(agent.module, data.observation, 0, i)[data.action[i]]
        after = outputs(algo._target.module, data.next_observation, 1, i)
        chooser = outputs(agent.module if double else algo._target.module, data.next_observation, 2, i)
        if not double and noise.uniform is None:  # one draw of the weights serves both
            chooser = after
        choices.append(slow_expected(name, chooser).argmax())
        taus = np.array([0.125, 0.375, 0.625, 0.875]) if noise.uniform is None else noise.uniform[0, i].numpy()
        found = slow_loss(name, mine, after[choices[-1]], float(data.reward[i]), float(data.discount[i]), taus)
        losses.append(float(data.weight[i]) * found[0])
        errors.append(found[1])
        values.append(slow_expected(name, mine[None])[0] if name == "expected" else slow_expected(name, mine))
    loss, metrics, error = algo._loss(data, noise)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert error.tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)
    assert metrics.tolist() == pytest.approx([np.mean(losses), np.mean(values), np.mean(errors)], rel=1e-4, abs=1e-6)


def spread(module: nn.Module, seed: int) -> None:
    """Move all parameters, so that networks differ, and values are not alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))


# ---------------------------------------------------------------- R2D2


WINDOWS = Windows(burn_in=2, num_steps=4, num_ahead=3, interval=2)


def make_r2d2(noisy: bool = False, delta_clip: float | None = None, **settings: Any) -> tuple[QAgent, R2D2]:
    kwargs = {"hidden_sizes": (4,), "recurrent": "lstm", "recurrent_size": 3, "noisy": noisy}
    agent = QAgent(model=ModelSpec(cls=QNetwork, kwargs=kwargs), head=Expected(delta_clip=delta_clip))
    agent.initialize(SPACES, seed=0)
    options = {
        "batch_size": 5,
        "discount": 0.9,
        "replay": Replay(capacity=200, extractor=WINDOWS),
        "limiter": ReplayRatio(ratio=1),
    }
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


def slow_values(module: Any, data: Sequences, env: int, noise: torch.Tensor | None) -> list[torch.Tensor]:
    """Q-values of every row of one sequence, row after row; ``noise [L, N, n]``."""
    state = type(data.state.network)(*(x[env : env + 1] for x in data.state.network))
    null, found = module.initial_state(1), []
    for t in range(WINDOWS.num_rows):
        row = AgentInputs(*(x[t, env : env + 1] for x in (data.observation, data.prev_action, data.prev_reward)))
        own = None if noise is None else noise[t, env : env + 1]
        values, state = module(row, null if bool(data.first[t, env]) else state, noise=own)
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


def slow_target(algo: R2D2, data: Sequences, env: int, t: int, after: list[float]) -> float:
    """The target of row ``t``; ``after[k]``: the value that stands for all from row k on."""
    value, factor, k = 0.0, 1.0, t
    while True:
        value += factor * float(data.reward[k, env])
        factor *= algo.discount
        dead = bool(data.terminated[k, env])
        ended = dead or bool(data.truncated[k, env])
        k += 1
        if ended or k == t + algo.replay.extractor.num_ahead or not bool(data.valid[k, env]):
            break
    plain = not algo.rescale_values
    if not dead:
        value += factor * (after[k] if plain else unsquash(after[k]))
    return value if plain else squash(value)


R2D2_SETTINGS: list[dict[str, Any]] = [
    {},
    {"rescale_values": False},
    {"double": False},
    {"delta_clip": 0.5, "eta": 0.3},
    {"noisy": True},
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("settings", R2D2_SETTINGS, ids=str)
def test_r2d2_loss_and_priorities_by_loops(settings, seed):
    agent, algo = make_r2d2(**settings)
    data = random_sequences(agent, seed)
    noise = algo._noise()
    passes = [None] * 3 if noise.normal is None else list(noise.normal)
    loss, _, priority = algo._loss(data, noise)
    clip, total, count = settings.get("delta_clip", np.inf), 0.0, 0
    with torch.no_grad():
        for env in range(5):
            online, chooser = (slow_values(agent.module, data, env, passes[i]) for i in (0, 2))
            target = slow_values(algo._target.module, data, env, passes[1])
            best = [float(x[y.argmax()]) for x, y in zip(target, chooser if algo.double else target)]
            errors = []
            for t in range(2, 6):
                if bool(data.valid[t, env]):
                    wanted = slow_target(algo, data, env, t, best)
                    errors.append(abs(wanted - float(online[t][data.action[t, env]])))
            total += float(data.weight[env]) * sum(e**2 / 2 if e < clip else clip * (e - clip / 2) for e in errors)
            count += len(errors)
            expected = algo.eta * max(errors) + (1 - algo.eta) * sum(errors) / len(errors) if errors else 0.0
            assert priority[env].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_r2d2_first_priorities_are_of_the_values_that_were_recorded(num_ahead):
    windows = Windows(burn_in=2, num_steps=4, num_ahead=num_ahead, interval=2)
    agent, algo = make_r2d2(replay=Replay(capacity=200, extractor=windows))
    data = random_sequences(agent, 3)
    generator = torch.Generator().manual_seed(4)
    info = QInfo(*(torch.randn(WINDOWS.num_rows, 5, generator=generator) for _ in range(2)))
    rows = {name: getattr(data, name)[: windows.num_rows] for name in ("reward", "terminated", "truncated", "valid")}
    rows["agent_info"] = info[: windows.num_rows]
    found = algo._first_priority()(rows.__getitem__)
    for env in range(5):
        errors = [
            abs(slow_target(algo, data, env, t, info.best[:, env].tolist()) - float(info.value[t, env]))
            for t in range(2, 6)
            if bool(data.valid[t, env])
        ]
        expected = 0.9 * max(errors) + 0.1 * sum(errors) / len(errors) if errors else 0.0
        assert found[env] == pytest.approx(expected, rel=1e-4)


def test_r2d2_target_by_hand():
    """Three steps at a discount of one half, to their end, to a terminal row, and to a cut."""
    _, algo = make_r2d2(discount=0.5, rescale_values=False)
    column = lambda *values: torch.tensor(values)[:, None]  # noqa: E731
    off = column(*[False] * 7)
    reward, best = column(1.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0), column(9.0, 9.0, 9.0, 8.0, 16.0, 32.0, 64.0)
    wanted, valid = algo._targets(reward, off, off, ~off, best)
    assert wanted[:, 0].tolist() == [1 + 2 / 2 + 4 / 4 + 8 / 8, 2 + 4 / 2 + 16 / 8, 4 + 32 / 8, 64 / 8]
    ends = column(False, True, False, False, False, False, False)
    assert algo._targets(reward, ends, off, ~off, best)[0][:2, 0].tolist() == [1 + 2 / 2, 2]
    assert algo._targets(reward, off, ends, ~off, best)[0][:2, 0].tolist() == [1 + 2 / 2 + 9 / 4, 2 + 9 / 2]
    _, algo = make_r2d2(discount=0.5)  # h(3) = 1 + 0.003, h(8) = 2 + 0.008, h(0) = 0
    wanted, _ = algo._targets(column(*[0.0] * 2, 8.0, *[0.0] * 4), ends, off, ~off, column(*[0.0] * 7))
    assert wanted[:3, 0].tolist() == pytest.approx([0.0, 0.0, 2.008], abs=1e-5)


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
