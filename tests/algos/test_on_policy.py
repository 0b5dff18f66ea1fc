"""How on-policy algorithms see a slot: returns, recurrent states, minibatches, and rows that are not valid."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent, ModelSpec, QAgent
from rlsurreal.algos import A2C, PPO
from rlsurreal.algos.pg.on_policy import Rollout, minibatch, minibatch_indices, rows_of, sequences_of
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec, Samples, inputs_of
from rlsurreal.utils.namedarraytuple import leaves, named_leaves, tree_map

torch.set_num_threads(1)
T, B = 12, 5
DISCOUNT, LAMBDA = 0.9, 0.8


class Games(gym.Env[np.ndarray, Any]):
    """Random observations and rewards; games of 1 to ``longest`` steps that end in one of two ways."""

    observation_space = gs.Box(-np.inf, np.inf, (3,))
    action_space = gs.Discrete(3)

    def __init__(self, ends: str = "both", longest: int = 6) -> None:
        self.ends, self.longest = ends, longest

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.longest + 1))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        end = self.left == 0
        truncated = end and (self.ends == "truncated" or (self.ends == "both" and self.np_random.random() < 0.5))
        return self._observation(), float(self.np_random.normal()), end and not truncated, truncated, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.normal(size=3).astype(np.float32)


def play(
    algo: Any,
    num_slots: int,
    *,
    ends: str = "both",
    longest: int = 6,
    recurrent: str | None = None,
    model: Any = (),
    learn: bool = False,
    **settings: Any,
) -> tuple[ActorCriticAgent, list[Samples]]:
    """Slots of an agent that stays the same, or learns between them, and ``algo`` ready to learn."""
    kwargs = {"hidden_sizes": (8,), "recurrent": recurrent, "recurrent_size": 6, **dict(model)}
    agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))
    env = GymnasiumEnv(factory=Games, kwargs={"ends": ends, "longest": longest})
    sampler = SerialSampler(env=env, batch=BatchSpec(T, B), **settings)
    agent.initialize(sampler.connect(seed=2), seed=1)
    with torch.no_grad():
        for parameter in agent.module.parameters():
            parameter.copy_(
                0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    algo.initialize(agent, sampler.batch, seed=3)
    sampler.initialize(agent, discount=DISCOUNT)
    slots = []
    for _ in range(num_slots):
        samples = sampler.obtain()
        slots.append(tree_map(torch.clone, samples))
        if learn:
            algo.update(samples, 0.0)
        sampler.release(samples)
    sampler.close()
    return agent, slots


@torch.no_grad()
def values_step_by_step(agent: ActorCriticAgent, samples: Samples) -> Tensor:
    """V of all ``T + 1`` rows, one row after another from the state recorded before row 0."""
    inputs, values = inputs_of(samples), []
    state = tree_map(lambda s: s[0].clone(), samples.agent.agent_state)
    for t in range(T + 1):
        for b in range(B):
            if samples.env.first[t, b]:
                for leaf in leaves(state):
                    leaf[b] = 0
        values.append(agent.module.value(inputs[t], state))
        _, state = agent.module(inputs[t], state)
    return torch.stack(values)


def advantages_by_hand(samples: Samples, values: Tensor) -> Tensor:
    """GAE(lambda), row by row from the end."""
    env = samples.env
    advantage = torch.zeros(T, B)
    for b in range(B):
        for t in reversed(range(T)):
            if not env.valid[t, b]:
                continue
            following = 0.0 if env.terminated[t, b] else float(values[t + 1, b])
            advantage[t, b] = float(env.reward[t, b]) + DISCOUNT * following - float(values[t, b])
            ended = bool(env.terminated[t, b] | env.truncated[t, b])
            if not ended and t + 1 < T and env.valid[t + 1, b]:
                advantage[t, b] += DISCOUNT * LAMBDA * float(advantage[t + 1, b])
    return advantage


# ---------------------------------------------------------------- returns


@pytest.mark.parametrize("mid_batch_reset", [True, False], ids=["mid-batch-reset", "wait-for-reset"])
@pytest.mark.parametrize(
    ("recurrent", "state_interval"), [(None, None), ("lstm", None), ("lstm", 4), ("gru", 1)], ids=str
)
def test_returns_of_a_slot(recurrent, state_interval, mid_batch_reset):
    algo = PPO(discount=DISCOUNT, gae_lambda=LAMBDA, num_minibatches=4)
    agent, slots = play(
        algo,
        20,
        longest=6 if mid_batch_reset else 20,
        recurrent=recurrent,
        state_interval=state_interval,
        mid_batch_reset=mid_batch_reset,
    )
    seen = set()
    for samples in slots:
        _, rollout = algo._prepare(samples)
        values = values_step_by_step(agent, samples)
        advantage = advantages_by_hand(samples, values)
        torch.testing.assert_close(rollout.old_value, values[:T], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.advantage, advantage, atol=1e-5, rtol=1e-5)
        target = torch.where(rollout.valid, advantage + values[:T], values[:T])
        torch.testing.assert_close(rollout.target, target, atol=1e-5, rtol=1e-5)
        env = samples.env
        for t in range(T):
            place = "last row" if t == T - 1 else "mid-slot"
            for kind in ("terminated", "truncated"):
                seen |= {(place, kind)} if getattr(env, kind)[t].any() else set()
            seen |= {(place, "going on")} if (env.valid & ~(env.terminated | env.truncated))[t].any() else set()
    places = [(place, kind) for place in ("last row", "mid-slot") for kind in ("terminated", "truncated", "going on")]
    assert seen == set(places), "the test must see all of these"


@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_bootstrap_value_is_what_the_next_slot_records_first(recurrent):
    algo = PPO(discount=DISCOUNT, gae_lambda=LAMBDA, num_minibatches=4)
    _, slots = play(algo, 6, recurrent=recurrent, state_interval=4)
    num_compared = 0
    for samples, following in zip(slots, slots[1:]):
        _, rollout = algo._prepare(samples)
        env = samples.env[T - 1]
        bootstrap = (rollout.advantage[-1] - env.reward + rollout.old_value[-1]) / DISCOUNT
        used = env.valid & ~env.terminated
        torch.testing.assert_close(bootstrap[used], following.agent.agent_info.value[0][used], atol=1e-5, rtol=1e-5)
        num_compared += int(used.sum())
    assert num_compared > 10


def test_preparing_changes_nothing_in_the_slot():
    algo = PPO(scale_rewards=True, normalize_advantage="batch")
    _, (samples,) = play(algo, 1, recurrent="lstm")
    before = tree_map(torch.clone, samples)
    algo.update(samples, 0.0)
    for (name, x), (_, y) in zip(named_leaves(samples), named_leaves(before), strict=True):
        assert torch.equal(x, y), name


# ---------------------------------------------------------------- recurrent states


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("recurrent", ["lstm", "gru"])
@pytest.mark.parametrize("state_interval", [12, 6, 3, 1])
def test_recorded_states_reproduce_what_was_recorded(recurrent, shared, state_interval):
    algo = PPO()
    agent, slots = play(algo, 3, recurrent=recurrent, model={"shared": shared}, state_interval=state_interval)
    for samples in slots:
        _, rollout = algo._prepare(samples)
        data = sequences_of(rollout)
        assert data.valid.shape == (B * T // state_interval, state_interval)
        for part in minibatches(data, 4, torch.Generator().manual_seed(0)):
            with torch.no_grad():
                (params, value), _ = agent.module(part.inputs, part.state, part.first)
            torch.testing.assert_close(value, part.old_value, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(params.logits, part.old_params.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                agent.distribution.log_prob(params, part.action), part.old_log_prob, atol=1e-5, rtol=1e-5
            )
    assert all(samples.env.first[1:T].any() for samples in slots), "the test must see episodes end"


def test_states_are_null_where_an_episode_begins_and_nowhere_else():
    _, slots = play(PPO(), 3, recurrent="lstm", state_interval=1)
    for samples in slots:
        first = samples.env.first
        for leaf in leaves(samples.agent.agent_state):
            assert torch.equal((leaf == 0).all(-1), first)
        null = (samples.agent.prev_action == 0) & (samples.env.prev_reward == 0)
        assert null[first].all() and first[1:].any() and not first.all()


# ---------------------------------------------------------------- rows, sequences, minibatches


def numbered_rollout(num_chunks: int | None = None, num_steps: int = T, num_envs: int = B) -> Rollout:
    """Every field says which row it is of: 100 * t + b."""
    number = 100 * torch.arange(num_steps)[:, None] + torch.arange(num_envs)
    state = None
    if num_chunks is not None:
        starts = torch.arange(num_chunks + 1) * (num_steps // num_chunks)
        state = 100 * starts[:, None] + torch.arange(num_envs)
    wide = number.unsqueeze(-1).expand(-1, -1, 2)
    inputs = AgentInputs(wide, number, number)
    return Rollout(inputs, number, wide, number, number, number, number, number >= 0, number, state)


def minibatches(data: Rollout, num_minibatches: int, generator: torch.Generator) -> list[Rollout]:
    indices = minibatch_indices(len(data.valid), num_minibatches, generator, torch.device("cpu"))
    return [minibatch(data, index) for index in indices]


def test_rows_are_all_pairs_of_step_and_environment():
    rows = rows_of(numbered_rollout())
    assert rows.first is None and rows.state is None
    assert rows.action.tolist() == [100 * t + b for t in range(T) for b in range(B)]
    assert torch.equal(rows.inputs.observation, rows.action[:, None].expand(-1, 2))


@pytest.mark.parametrize("num_chunks", [1, 3, 12])
def test_sequences_begin_at_recorded_states(num_chunks):
    length = T // num_chunks
    sequences = sequences_of(numbered_rollout(num_chunks))
    expected = [[100 * t + b for t in range(c * length, (c + 1) * length)] for c in range(num_chunks) for b in range(B)]
    assert sequences.action.tolist() == expected == sequences.first.tolist()
    assert sequences.state.tolist() == [sequence[0] for sequence in expected]
    assert torch.equal(sequences.inputs.observation, sequences.action[..., None].expand(-1, -1, 2))


@pytest.mark.parametrize("num_minibatches", [1, 2, 7, 16, 59, 60])
def test_each_row_is_in_one_minibatch(num_minibatches):
    generator = torch.Generator().manual_seed(0)
    parts = minibatches(rows_of(numbered_rollout()), num_minibatches, generator)
    sizes = [len(part.valid) for part in parts]
    assert len(parts) == num_minibatches and max(sizes) - min(sizes) <= 1
    for part in parts:
        for leaf in leaves(part):
            assert torch.equal(leaf if leaf.dtype != torch.bool else part.action, part.action) or leaf.dim() == 2
    order = torch.cat([part.action for part in parts]).tolist()
    assert sorted(order) == [100 * t + b for t in range(T) for b in range(B)] and order != sorted(order)
    again = torch.cat([part.action for part in minibatches(rows_of(numbered_rollout()), num_minibatches, generator)])
    assert again.tolist() != order, "each epoch has an order of its own"


@pytest.mark.parametrize("num_minibatches", [1, 4, 15])
def test_each_sequence_is_in_one_minibatch(num_minibatches):
    parts = minibatches(sequences_of(numbered_rollout(3)), num_minibatches, torch.Generator().manual_seed(0))
    columns = [column for part in parts for column in part.action.T.tolist()]
    assert sorted(columns) == sorted([100 * t + b for t in range(c, c + 4)] for c in (0, 4, 8) for b in range(B))
    for part in parts:
        assert torch.equal(part.state, part.action[0]) and part.inputs.observation.shape[:2] == part.valid.shape


# ---------------------------------------------------------------- rows that are not valid

ALGOS = {
    "a2c": lambda: A2C(discount=DISCOUNT, learning_rate=1e-2),
    "ppo": lambda: PPO(num_epochs=2, num_minibatches=3, learning_rate=1e-2, entropy_coeff=0.01),
    "ppo-batch-recompute": lambda: PPO(
        num_epochs=2,
        num_minibatches=3,
        learning_rate=1e-2,
        normalize_advantage="batch",
        recompute_advantages=True,
        value_clip_range=0.1,
        scale_rewards=True,
    ),
    "kl-penalty": lambda: PPO(
        objective="kl_penalty", num_epochs=2, num_minibatches=3, learning_rate=1e-2, kl_target=1e-4
    ),
}


def spoil(samples: Samples, *, everything: bool) -> Samples:
    """Other contents in all rows that are not valid.

    The final observation of an episode that was cut off is bootstrapped from, and its reset row gives its value: with
    ``everything`` (there are no such episodes) these are changed, too.
    """
    spoiled: Samples = tree_map(torch.clone, samples)
    invalid = ~spoiled.env.valid
    invalid[T] = False
    info = spoiled.agent.agent_info
    spoiled.env.reward[invalid] = torch.nan
    info.log_prob[invalid] = torch.nan
    for leaf in leaves(info.params):
        leaf[invalid] = torch.nan
    spoiled.agent.action[invalid] = 2
    if everything:
        info.value[invalid] = torch.nan
        spoiled.env.observation[invalid] = 1e6
        spoiled.env.terminated[invalid] = True
        spoiled.env.truncated[invalid] = True
    return spoiled


def assert_updates_equal(algo: Any, agent: ActorCriticAgent, one: Samples, other: Samples) -> dict[str, float]:
    """Metrics of the update, which must be the same from both."""
    twin = dataclasses.replace(algo)
    twin.initialize(copy.deepcopy(agent), algo._batch, seed=0)
    twin.load_state_dict(algo.state_dict())
    metrics, twin_metrics = algo.update(one, 0.5), twin.update(other, 0.5)
    for (name, x), y in zip(agent.tensors().items(), twin._agent.tensors().values(), strict=True):
        assert x.isfinite().all() or name.endswith(("low", "high")), name
        assert torch.equal(x, y), name
    numbers = {name: float(value) for name, value in metrics.items()}
    assert numbers == {name: float(value) for name, value in twin_metrics.items()}
    assert all(np.isfinite(number) for number in numbers.values())
    return numbers


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize("recurrent", [None, "lstm"])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("mid_batch_reset", [True, False], ids=["mid-batch-reset", "wait-for-reset"])
def test_contents_of_invalid_rows_do_not_matter(name, recurrent, ends, mid_batch_reset):
    algo = ALGOS[name]()
    agent, slots = play(
        algo,
        2,
        ends=ends,
        recurrent=recurrent,
        model={"normalize_observation": True},
        mid_batch_reset=mid_batch_reset,
        state_interval=4,
        learn=True,
    )
    samples = slots[1]
    assert (~samples.env.valid[:T]).sum() > 5
    before = copy.deepcopy(agent.state_dict())
    assert_updates_equal(algo, agent, samples, spoil(samples, everything=ends == "terminated"))
    assert any(not torch.equal(before["module"][n], t) for n, t in agent.tensors().items()), "nothing was learned"


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_column_without_valid_rows(name, recurrent):
    algo = ALGOS[name]()
    agent, slots = play(algo, 2, ends="terminated", recurrent=recurrent, learn=True)
    samples = slots[1]
    samples.env.valid[:, 2] = False
    assert_updates_equal(algo, agent, samples, spoil(samples, everything=True))


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_slot_without_valid_rows_teaches_nothing(name, recurrent):
    algo = ALGOS[name]()
    agent, (first, samples) = play(algo, 2, recurrent=recurrent, model={"normalize_observation": True})
    algo.update(first, 0.0)
    samples.env.valid[:] = False
    before = copy.deepcopy(agent.state_dict()["module"])
    metrics = algo.update(spoil(samples, everything=True), 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.tensors().items())
    assert all(np.isfinite(float(metric)) for metric in metrics.values())


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize("normalizes", [True, False])
def test_the_first_slot_only_begins_the_statistics_of_observations(name, normalizes):
    algo = ALGOS[name]()
    agent, (first, second) = play(algo, 2, model={"normalize_observation": normalizes})
    parameters = []
    for samples in (None, first, second):
        if samples is not None:
            assert np.isfinite(float(algo.update(samples, 0.0)["value/explained_variance"]))
        parameters.append({key: tensor.clone() for key, tensor in agent.module.named_parameters()})
    moved = [any(not torch.equal(a[key], b[key]) for key in a) for a, b in zip(parameters, parameters[1:])]
    assert moved == [not normalizes, True]
    assert not agent.lacks_statistics()


def test_a_resumed_algorithm_has_its_statistics():
    agent, (first, second) = play(A2C(), 2, model={"normalize_observation": True}, learn=True)
    saved = copy.deepcopy(agent.state_dict())
    algo = A2C()
    other, _ = play(algo, 0, model={"normalize_observation": True})
    other.load_state_dict(saved)
    assert "loss/policy" in algo.update(second, 0.0)


def test_normalizer_learns_from_the_valid_rows_after_the_update():
    algo = PPO(num_epochs=1, num_minibatches=2)
    agent, slots = play(algo, 2, model={"normalize_observation": True})
    algo.update(slots[0], 0.0)
    seen = []
    step = algo._gradient_step

    loss = algo._loss

    def watch(*inputs: Any) -> Any:
        seen.append(float(agent.module.normalizer.leaves[0].count))
        return loss(*inputs)

    step._with_loss._loss = watch
    algo.update(slots[1], 0.0)
    parts = [samples.env.observation[:T][samples.env.valid[:T]].double() for samples in slots]
    rows = torch.cat(parts)
    leaf = agent.module.normalizer.leaves[0]
    assert seen == [len(parts[0])] * 2 and leaf.count == len(rows) < 2 * T * B
    torch.testing.assert_close(leaf.mean, rows.mean(0))


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("name", ALGOS)
def test_loaded_algorithm_continues_and_shares_no_memory(name):
    algo = ALGOS[name]()
    agent, slots = play(algo, 3, recurrent="gru", learn=True)
    state = algo.state_dict()
    frozen = copy.deepcopy(state)
    twin_agent = copy.deepcopy(agent)
    twin = ALGOS[name]()
    twin.initialize(twin_agent, BatchSpec(T, B), seed=99)
    twin.load_state_dict(state)
    for samples in slots:
        algo.update(samples, 0.5)
    assert_same_state(state, frozen)
    for samples in slots:
        twin.update(samples, 0.5)
    assert_same_state(state, frozen)
    for x, y in zip(agent.tensors().values(), twin_agent.tensors().values(), strict=True):
        assert torch.equal(x, y)
    assert_same_state(algo.state_dict(), twin.state_dict())


def assert_same_state(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.1}, "discount is 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0.*inf"),
        ({"normalize_advantage": "all"}, "normalize_advantage is 'all'.*'off'"),
        ({"learning_rate": float("nan")}, "nan"),
        ({"entropy_coeff": "much"}, "much"),
    ],
)
@pytest.mark.parametrize("cls", [A2C, PPO])
def test_bad_settings_are_named(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_agents_of_another_class_are_refused():
    with pytest.raises(ValueError, match="PPO learns an ActorCriticAgent, and agent is a QAgent; use the former"):
        PPO().initialize(QAgent(), BatchSpec(8, 2), seed=0)
