"""PPO: its first gradient, its clipping by hand, its schedules and what adapts, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import rlsurreal.algos.pg.ppo as ppo_module
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.algos.pg.a2c import a2c_loss
from rlsurreal.algos.pg.on_policy import Rollout, rows_of
from rlsurreal.algos.pg.ppo import METRICS, Coefficients, ppo_loss
from rlsurreal.distributed.ranks import Ranks
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.ops.returns import generalized_advantage_estimation
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec, Samples, inputs_of
from rlsurreal.testing.envs import NestedEnv
from rlsurreal.utils.namedarraytuple import leaves, tree_map
from rlsurreal.utils.schedules import Linear

torch.set_num_threads(1)
T, B = 12, 4
KL = METRICS.index("policy/kl")
CARTPOLE = GymnasiumEnv(factory="CartPole-v1", kwargs={"max_episode_steps": 14})  # falls, or is cut off
PENDULUM = GymnasiumEnv(factory="Pendulum-v1", kwargs={"max_episode_steps": 7})
NESTED = GymnasiumEnv(factory=NestedEnv, kwargs={"length": 5})


class Run:
    """PPO, its agent and its sampler, in one process."""

    def __init__(
        self, algo: PPO, env: Any = CARTPOLE, *, model: Any = (), agent: Any = (), num_envs: int = B, **sampler: Any
    ) -> None:
        kwargs = {"hidden_sizes": (8,), "recurrent_size": 6, **dict(model)}
        self.algo = algo
        self.agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs), **dict(agent))
        self.sampler = SerialSampler(env=env, batch=BatchSpec(T, num_envs), **sampler)
        self.agent.initialize(self.sampler.connect(seed=2), seed=1)
        algo.initialize(self.agent, self.sampler.batch, seed=3)
        self.sampler.initialize(self.agent, discount=algo.discount)

    def sample(self) -> Samples:
        samples = self.sampler.obtain()
        own: Samples = tree_map(torch.clone, samples)
        self.sampler.release(samples)
        return own

    def update(self, progress: float = 0.0) -> dict[str, float]:
        return {name: float(value) for name, value in self.algo.update(self.sample(), progress).items()}

    def gradient(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(self.agent.module.parameters()), allow_unused=True))


class Spy:
    """Watches every call of `ppo_loss`; may put another KL in its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kl: float | None = None) -> None:
        self.minibatches: list[Rollout] = []
        self.coefficients: list[Coefficients] = []
        self.parts: list[Tensor] = []
        self.ratios: list[Tensor] = []
        self.kl = kl
        monkeypatch.setattr(ppo_module, "ppo_loss", self)

    def __call__(
        self, agent: ActorCriticAgent, data: Rollout, coefficients: Coefficients, ppo: PPO, ranks: Ranks
    ) -> Any:
        with torch.no_grad():
            (params, _), _ = agent.module(data.inputs, data.state, data.first)
            ratio = (agent.distribution.log_prob(params, data.action) - data.old_log_prob).exp()
        loss, parts = ppo_loss(agent, data, coefficients, ppo, ranks)
        self.ratios.append(ratio[data.valid])
        self.minibatches.append(tree_map(torch.clone, data))
        self.coefficients.append(coefficients)
        self.parts.append(parts)
        if self.kl is not None:
            parts = parts.clone()
            parts[KL] = self.kl
        return loss, parts


CASES: dict[str, dict[str, Any]] = {
    "feed-forward": {"env": CARTPOLE},
    "lstm": {"env": CARTPOLE, "model": {"recurrent": "lstm"}, "state_interval": 4},
    "gru-not-shared": {"env": PENDULUM, "model": {"recurrent": "gru", "shared": False}},
    "gaussian": {"env": PENDULUM, "agent": {"init_std": 3.0}},
    "squashed": {"env": PENDULUM, "agent": {"squash": True, "std": "state", "init_std": 2.0}},
    "dict": {"env": NESTED},
    "dict-squashed-lstm": {"env": NESTED, "agent": {"squash": True}, "model": {"recurrent": "lstm"}},
    "wait-for-reset": {"env": CARTPOLE, "mid_batch_reset": False, "model": {"recurrent": "lstm"}},
}


# ---------------------------------------------------------------- the first minibatch


@pytest.mark.parametrize("case", CASES)
def test_first_ratios_are_one(case, monkeypatch):
    """Also after an update, with statistics of observations that the update has changed."""
    case = {**CASES[case], "model": {**CASES[case].get("model", {}), "normalize_observation": True}}
    run = Run(PPO(num_epochs=2, num_minibatches=3, learning_rate=1e-2), **case)
    run.update()
    for _ in range(3):
        spy = Spy(monkeypatch)
        run.update()
        torch.testing.assert_close(spy.ratios[0], torch.ones_like(spy.ratios[0]), atol=2e-5, rtol=0)
        assert spy.parts[0][KL].abs() < 1e-6 and spy.parts[0][METRICS.index("policy/clip_fraction")] == 0
        assert (spy.ratios[-1] - 1).abs().max() > 1e-3, "the policy must move, or this test shows nothing"


@pytest.mark.parametrize("objective", ["clip", "kl_penalty"])
@pytest.mark.parametrize("case", CASES)
def test_first_gradient_is_that_of_a2c(case, objective):
    ppo = PPO(objective=objective, entropy_coeff=0.03, value_loss_coeff=0.7, normalize_advantage="batch")
    run = Run(ppo, **CASES[case])
    _, rollout = ppo._prepare(run.sample())
    data = rollout if rollout.state is None else rollout._replace(state=tree_map(lambda s: s[0], rollout.state))
    data = data if data.state is not None else rows_of(data)
    loss, _ = ppo_loss(run.agent, data, ppo._coefficients(0.0), ppo)
    expected, _ = a2c_loss(run.agent, data, value_loss_coeff=0.7, entropy_coeff=0.03)
    gradients = run.gradient(loss), run.gradient(expected)
    norm = max(float(gradient.norm()) for gradient in gradients[1])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * norm, rtol=1e-4)
    assert norm > 1e-3


# ---------------------------------------------------------------- the loss, by hand


def some_rows(run: Run, ratios: list[float], advantages: list[float], valid: list[bool] | None = None) -> Rollout:
    """Rows whose probability ratios and advantages are given."""
    rows = rows_of(run.algo._prepare(run.sample())[1])[: len(ratios)]
    with torch.no_grad():
        (params, value), _ = run.agent.module(rows.inputs, None, None)
        log_prob = run.agent.distribution.log_prob(params, rows.action)
    return rows._replace(
        old_log_prob=log_prob - torch.tensor(ratios).log(),
        old_value=value.clone(),
        advantage=torch.tensor(advantages),
        valid=torch.tensor(valid or [True] * len(ratios)),
    )


def test_clipping_by_hand():
    ppo = PPO(clip_range=0.2, normalize_advantage="off", value_loss_coeff=0.0)
    run = Run(ppo)
    #         inside  clipped  below: not  above: not  clipped  border of validity
    ratios = [1.1, 1.5, 0.5, 1.5, 0.5, 7.0]
    advantages = [1.0, 2.0, 2.0, -1.0, -3.0, 5.0]
    valid = [True] * 5 + [False]
    by_hand = [1.1 * 1, 1.2 * 2, 0.5 * 2, 1.5 * -1, 0.8 * -3]
    rows = some_rows(run, ratios, advantages, valid)
    loss, parts = ppo_loss(run.agent, rows, ppo._coefficients(0.0), ppo)
    assert parts[0].item() == pytest.approx(-sum(by_hand) / 5, rel=1e-5)
    assert parts[METRICS.index("policy/clip_fraction")].item() == pytest.approx(4 / 5)
    kl = sum(ratio - 1 - math.log(ratio) for ratio in ratios[:5]) / 5
    assert parts[KL].item() == pytest.approx(kl, rel=1e-4)
    # Rows 1 and 4 are clipped: the gradient is that of the other three alone.
    others = tree_map(lambda x: x[[0, 2, 3]], rows)
    expected, _ = ppo_loss(run.agent, others, ppo._coefficients(0.0), ppo)
    for ours, theirs in zip(run.gradient(loss), run.gradient(expected * 3 / 5), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    clipped, _ = ppo_loss(run.agent, tree_map(lambda x: x[[1, 4]], rows), ppo._coefficients(0.0), ppo)
    assert all((gradient == 0).all() for gradient in run.gradient(clipped))


def test_kl_penalty_by_hand():
    ppo = PPO(
        objective="kl_penalty",
        kl_target=0.01,
        kl_coeff=3.0,
        kl_hinge_coeff=7.0,
        normalize_advantage="off",
        value_loss_coeff=0.0,
        entropy_coeff=0.0,
    )
    run = Run(ppo, PENDULUM)
    ratios, advantages = [3.0, 0.2, 1.0], [2.0, -1.0, 5.0]
    rows = some_rows(run, ratios, advantages)
    for shift in (0.0, 0.08, 0.5):  # KL 0, between 0 and twice the target, above it
        mean, log_std = rows.old_params
        moved = rows._replace(old_params=type(rows.old_params)(mean + shift, log_std - shift))
        with torch.no_grad():
            (params, _), _ = run.agent.module(rows.inputs, None, None)
        kl = (
            sum(
                math.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5
                for m0, s0, m1, s1 in zip(
                    (mean + shift).flatten().tolist(),
                    (log_std - shift).exp().flatten().tolist(),
                    params.mean.flatten().tolist(),
                    params.log_std.exp().flatten().tolist(),
                )
            )
            / 3
        )
        surrogate = -sum(r * a for r, a in zip(ratios, advantages)) / 3  # not clipped
        expected = surrogate + 3 * kl + 7 * max(0.0, kl - 0.02) ** 2
        loss, parts = ppo_loss(run.agent, moved, ppo._coefficients(0.0), ppo)
        assert parts[KL].item() == pytest.approx(kl, abs=1e-6)
        assert parts[0].item() == loss.item() == pytest.approx(expected, rel=1e-5)
        (params, _), _ = run.agent.module(rows.inputs, None, None)
        policy, before = (Normal(p.mean, p.log_std.exp()) for p in (params, moved.old_params))
        kl = kl_divergence(before, policy).sum(-1).mean()
        ratio = (policy.log_prob(rows.action).sum(-1) - rows.old_log_prob).exp()
        expected = -(ratio * rows.advantage).mean() + 3 * kl + 7 * (kl - 0.02).clamp(min=0) ** 2
        for ours, theirs in zip(run.gradient(loss), run.gradient(expected), strict=True):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_value_loss_by_hand(clip):
    ppo = PPO(value_clip_range=clip, value_loss_coeff=0.25, num_minibatches=4)
    run = Run(ppo)
    rows = some_rows(run, [1.0] * 5, [0.0] * 5, [True, True, False, True, True])
    rows = rows._replace(old_value=rows.old_value + torch.tensor([0.2, -0.2, 9.0, 0.01, 0.2]))
    rows = rows._replace(target=rows.old_value + torch.tensor([1.0, 1.0, 9.0, 1.0, -1.0]))
    with torch.no_grad():
        value = run.agent.module.value(rows.inputs).tolist()
    total = 0.0
    for v, old, target, valid in zip(value, rows.old_value.tolist(), rows.target.tolist(), rows.valid.tolist()):
        if valid:
            squared = (v - target) ** 2
            if clip is not None:
                squared = max(squared, (old + min(max(v - old, -clip), clip) - target) ** 2)
            total += 0.5 * squared
    loss, parts = ppo_loss(run.agent, rows, ppo._coefficients(0.0), ppo)
    assert parts[1].item() == pytest.approx(total / 4, rel=1e-5)
    assert loss.item() == pytest.approx(0.25 * total / 4, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mode", ["minibatch", "batch", "off"])
def test_normalized_advantages(mode, monkeypatch):
    spy = Spy(monkeypatch)
    run = Run(PPO(num_epochs=1, num_minibatches=3, normalize_advantage=mode, gae_lambda=0.9), PENDULUM)
    samples = run.sample()
    raw = PPO(normalize_advantage="off", gae_lambda=0.9)
    raw.initialize(run.agent, run.sampler.batch, seed=0)
    _, rollout = raw._prepare(samples)
    valid = rollout.valid
    rows = {tuple(o): a for o, a in zip(rollout.inputs.observation[valid].tolist(), rollout.advantage[valid].tolist())}
    run.algo.update(samples, 0.0)
    assert len(rows) == int(valid.sum()) < T * B, "observations must tell the rows apart"
    for data, parts in zip(spy.minibatches[:1], spy.parts):  # the first one: all ratios are 1
        mine = [rows[tuple(o)] for o in data.inputs.observation[data.valid].tolist()]
        over = {"minibatch": mine, "batch": list(rows.values()), "off": [0.0]}[mode]
        mean = sum(over) / len(over)
        std = math.sqrt(sum((x - mean) ** 2 for x in over) / len(over)) if mode != "off" else 1.0
        expected = -sum((x - mean) / std for x in mine) / len(mine)
        assert parts[0].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("objective", ["clip", "kl_penalty"])
def test_halves_weighted_by_their_valid_rows_are_the_whole(objective):
    """With advantages normalized before the cut, and without the hinge, which is not linear in the rows."""
    without_hinge = {"kl_hinge_coeff": 0.0} if objective == "kl_penalty" else {}
    ppo = PPO(objective=objective, normalize_advantage="batch", entropy_coeff=0.1, **without_hinge)
    run = Run(ppo)
    samples = run.sample()
    for _ in range(3):
        ppo.update(samples, 0.0)
    rows = rows_of(ppo._prepare(samples)[1])
    order = torch.randperm(len(rows.valid), generator=torch.Generator().manual_seed(0))
    halves = rows[order[:30]], rows[order[30:]]
    coefficients = ppo._coefficients(0.0)
    counts = [int(half.valid.sum()) for half in halves]
    assert counts[0] != counts[1]
    whole = run.gradient(ppo_loss(run.agent, rows, coefficients, ppo)[0])
    parts = [run.gradient(ppo_loss(run.agent, half, coefficients, ppo)[0]) for half in halves]
    for total, one, other in zip(whole, *parts, strict=True):
        mean = (one * counts[0] + other * counts[1]) / sum(counts)
        torch.testing.assert_close(total, mean, atol=1e-5, rtol=1e-4)


def test_halves_with_the_number_of_valid_rows_of_both_add_up_to_the_whole():
    ppo = PPO(normalize_advantage="batch", value_clip_range=0.2, entropy_coeff=0.1)
    run = Run(ppo)
    rows = rows_of(ppo._prepare(run.sample())[1])
    rows = rows._replace(old_log_prob=rows.old_log_prob + 0.3 * torch.randn(len(rows.valid)))

    def gradient(part: Rollout, num_valid: Tensor | None) -> list[Tensor]:
        return run.gradient(ppo_loss(run.agent, part._replace(num_valid=num_valid), ppo._coefficients(0.0), ppo)[0])

    whole = gradient(rows, None)
    parts = [gradient(half, rows.valid.sum()) for half in (rows[:11], rows[11:])]
    for total, one, other in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, one + other, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- epochs and minibatches


@pytest.mark.parametrize("num_minibatches", [1, 5, 7, 48, 1000])
def test_every_valid_row_is_used_once_in_each_epoch(num_minibatches, monkeypatch):
    spy = Spy(monkeypatch)
    run = Run(PPO(num_epochs=3, num_minibatches=num_minibatches, normalize_advantage="batch"), PENDULUM)
    samples = run.sample()
    metrics = run.algo.update(samples, 0.0)
    used = min(num_minibatches, T * B)
    assert len(spy.minibatches) == 3 * used and metrics["update/epochs"] == 3
    valid = samples.env.valid[:T]
    expected = sorted(samples.env.observation[:T][valid].tolist())
    assert len({tuple(row) for row in expected}) == int(valid.sum()) < T * B
    for epoch in range(3):
        parts = spy.minibatches[epoch * used : (epoch + 1) * used]
        rows = [row for part in parts for row in part.inputs.observation[part.valid].tolist()]
        assert sorted(rows) == expected
    sizes = {len(part.valid) for part in spy.minibatches}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_minibatches", [1, 5, 100])
def test_every_sequence_is_used_once_in_each_epoch(num_minibatches, monkeypatch):
    spy = Spy(monkeypatch)
    run = Run(
        PPO(num_epochs=2, num_minibatches=num_minibatches), PENDULUM, model={"recurrent": "lstm"}, state_interval=4
    )
    samples = run.sample()
    run.algo.update(samples, 0.0)
    used = min(num_minibatches, 3 * B)
    assert len(spy.minibatches) == 2 * used
    expected = sorted(samples.env.observation[c : c + 4, b].tolist() for c in (0, 4, 8) for b in range(B))
    for epoch in range(2):
        parts = spy.minibatches[epoch * used : (epoch + 1) * used]
        assert sorted(column for p in parts for column in p.inputs.observation.transpose(0, 1).tolist()) == expected


def test_minibatches_depend_on_the_seed_alone(monkeypatch):
    orders = []
    for seed, torch_seed in ((1, 1), (1, 2), (2, 2)):
        spy = Spy(monkeypatch)
        run = Run(PPO(num_epochs=2, num_minibatches=3))
        run.algo.initialize(run.agent, run.sampler.batch, seed=seed)
        torch.manual_seed(torch_seed)
        run.update()
        orders.append([part.inputs.observation.tolist() for part in spy.minibatches])
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_recomputed_advantages_are_those_of_the_present_value_function(recurrent):
    ppo = PPO(num_epochs=3, num_minibatches=2, learning_rate=3e-2, recompute_advantages=True)
    run = Run(ppo, model={"recurrent": recurrent}, state_interval=4 if recurrent else None)
    samples = run.sample()
    epoch, rollouts, expected = ppo._epoch, [], []

    def watch(rollout: Rollout, *others: Any) -> Tensor:
        rollouts.append(rollout)
        expected.append(present_values(run, samples))
        return epoch(rollout, *others)

    ppo._epoch = watch
    ppo.update(samples, 0.0)
    assert len(rollouts) == 3
    env = samples.env[:T]
    for rollout, value in zip(rollouts, expected):
        torch.testing.assert_close(rollout.old_value, value[:T], atol=1e-5, rtol=1e-5)
        advantage, target = generalized_advantage_estimation(
            env.reward, value, env.terminated, env.truncated, env.valid, discount=0.99, gae_lambda=0.95
        )
        torch.testing.assert_close(rollout.advantage, advantage, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(rollout.target, target, atol=1e-4, rtol=1e-4)
    assert (rollouts[2].old_value - rollouts[0].old_value).abs().max() > 0.05
    assert torch.equal(rollouts[0].old_value[1:], samples.agent.agent_info.value[1:T]), "the first epoch: as recorded"


@torch.no_grad()
def present_values(run: Run, samples: Samples) -> Tensor:
    """Row by row, from the state before row 0."""
    state, values, inputs = tree_map(lambda s: s[0].clone(), samples.agent.agent_state), [], inputs_of(samples)
    for t in range(T + 1):
        for leaf in leaves(state):
            leaf[samples.env.first[t]] = 0
        (_, value), state = run.agent.module(inputs[t], state)
        values.append(value)
    return torch.stack(values)


def test_without_recomputing_advantages_stay():
    ppo = PPO(num_epochs=3, num_minibatches=2, learning_rate=3e-2)
    run, rollouts = Run(ppo), []
    epoch = ppo._epoch
    ppo._epoch = lambda rollout, *others: (rollouts.append(rollout), epoch(rollout, *others))[1]
    run.update()
    assert all(rollout is rollouts[0] for rollout in rollouts)


# ---------------------------------------------------------------- schedules and adaptation


def test_schedules_follow_progress(monkeypatch):
    spy = Spy(monkeypatch)
    ppo = PPO(
        num_epochs=1,
        num_minibatches=1,
        learning_rate=Linear(1e-3, 0.0),
        clip_range=Linear(0.4, 0.2),
        entropy_coeff=Linear(0.0, 0.1),
    )
    run = Run(ppo)
    for i, progress in enumerate((0.0, 0.25, 1.0)):
        metrics = run.update(progress)
        assert spy.coefficients[i].clip_range.item() == pytest.approx(0.4 - 0.2 * progress)
        assert spy.coefficients[i].entropy_coeff.item() == pytest.approx(0.1 * progress)
        assert metrics["policy/clip_range"] == pytest.approx(0.4 - 0.2 * progress)
        assert metrics["update/learning_rate"] == pytest.approx(1e-3 * (1 - progress))


def test_learning_rate_zero_changes_nothing():
    run = Run(PPO(num_epochs=2, num_minibatches=2, learning_rate=Linear(1e-2, 0.0)))
    run.update(0.0)
    before = {name: tensor.clone() for name, tensor in run.agent.tensors().items()}
    run.update(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.agent.tensors().items())


#         KL over its target, and where the coefficient goes: up, down, or not at all
BAND = [(2.1, 1), (100.0, 1), (1.99, 0), (1.0, 0), (0.51, 0), (0.49, -1), (0.0, -1)]


@pytest.mark.parametrize(("kl", "direction"), BAND)
def test_kl_coefficient_adapts(kl, direction, monkeypatch):
    spy = Spy(monkeypatch, kl=0.02 * kl)
    ppo = PPO(objective="kl_penalty", kl_target=0.02, kl_coeff=2.0, num_epochs=2, num_minibatches=2)
    run = Run(ppo)
    assert run.update()["policy/kl_coeff"] == pytest.approx(2.0), "an update uses the coefficient it began with"
    assert run.update()["policy/kl_coeff"] == pytest.approx(2.0 * 1.5**direction)
    assert [c.kl_coeff.item() for c in spy.coefficients] == pytest.approx([2.0] * 4 + [2.0 * 1.5**direction] * 4)


@pytest.mark.parametrize(("kl", "direction"), BAND)
def test_clip_range_adapts(kl, direction, monkeypatch):
    spy = Spy(monkeypatch, kl=0.02 * kl)
    run = Run(PPO(adaptive_clip=True, kl_target=0.02, clip_range=0.15, num_epochs=2, num_minibatches=2))
    assert run.update()["policy/clip_range"] == pytest.approx(0.15)
    assert run.update()["policy/clip_range"] == pytest.approx(0.15 * 1.2**-direction)
    expected = [0.15] * 4 + [0.15 * 1.2**-direction] * 4
    assert [c.clip_range.item() for c in spy.coefficients] == pytest.approx(expected)


@pytest.mark.parametrize(("kl", "clip_range", "kl_coeff"), [(0.0, 0.3, 1 / 35), (1.0, 0.05, 35.0)])
def test_what_adapts_has_bounds(kl, clip_range, kl_coeff):
    adaptive = PPO(num_minibatches=4, adaptive_clip=True)
    penalty = PPO(num_minibatches=4, objective="kl_penalty")
    for algo in (adaptive, penalty):
        Run(algo)
        for _ in range(30):
            algo._adapt(kl)
    assert adaptive._adaptive_clip_range == pytest.approx(clip_range)
    assert penalty._adaptive_kl_coeff == pytest.approx(kl_coeff)


def test_nothing_adapts_unless_asked():
    ppo = PPO(num_minibatches=4)
    Run(ppo)
    ppo._adapt(1.0)
    assert (ppo._adaptive_clip_range, ppo._adaptive_kl_coeff) == (0.2, 1.0)


def test_adapted_coefficients_are_saved():
    ppo, other = (PPO(adaptive_clip=True, num_minibatches=4) for _ in range(2))
    Run(ppo), Run(other)
    ppo._adapt(1.0)
    other.load_state_dict(ppo.state_dict())
    assert float(other._coefficients(0.0).clip_range) == pytest.approx(0.2 / 1.2)


def test_what_has_not_adapted_is_as_it_is_set():
    fixed, adaptive = PPO(num_minibatches=4), PPO(adaptive_clip=True, clip_range=0.1, num_minibatches=4)
    penalty = PPO(objective="kl_penalty", kl_coeff=5.0, num_minibatches=4)
    for algo in (fixed, adaptive, penalty):
        Run(algo)
    for algo in (adaptive, penalty):
        algo.load_state_dict(fixed.state_dict())
    assert float(adaptive._coefficients(0.0).clip_range) == pytest.approx(0.1)
    assert float(penalty._coefficients(0.0).kl_coeff) == pytest.approx(5.0)


def test_a_minibatch_of_one_row_is_refused():
    with pytest.raises(ValueError, match=r"num_minibatches is 32, of slots of 48 rows.*num_minibatches=24 or fewer"):
        Run(PPO())
    for settings in ({"num_minibatches": 24}, {"normalize_advantage": "off"}):
        Run(PPO(**settings))


@pytest.mark.parametrize(("kl", "epochs"), [(0.011, 1), (0.009, 4)])
def test_kl_stop_ends_the_epochs(kl, epochs, monkeypatch):
    spy = Spy(monkeypatch, kl=kl)
    run = Run(PPO(num_epochs=4, num_minibatches=3, kl_stop=0.01))
    assert run.update()["update/epochs"] == epochs
    assert len(spy.minibatches) == 3 * epochs


def test_kl_stop_with_the_real_kl():
    metrics = Run(PPO(num_epochs=50, num_minibatches=3, kl_stop=0.01, learning_rate=1e-2)).update()
    assert 1 < metrics["update/epochs"] < 50 and metrics["policy/kl"] > 0.01


@pytest.mark.parametrize("recompute", [False, True])
def test_the_critic_is_judged_as_it_met_the_slot(recompute):
    several = PPO(num_epochs=5, num_minibatches=2, recompute_advantages=recompute)
    found = [Run(algo).update() for algo in (PPO(num_epochs=1, num_minibatches=2), several)]
    assert found[0]["value/explained_variance"] == pytest.approx(found[1]["value/explained_variance"], abs=1e-6)


def test_metrics_are_those_of_the_objective():
    clip, penalty = (Run(PPO(num_minibatches=2, objective=objective)).update() for objective in ("clip", "kl_penalty"))
    of_one = {"policy/clip_range", "policy/clip_fraction", "policy/kl_coeff"}
    assert of_one & clip.keys() == {"policy/clip_range", "policy/clip_fraction"}
    assert of_one & penalty.keys() == {"policy/kl_coeff"}


def test_metrics_are_those_of_the_last_epoch(monkeypatch):
    spy = Spy(monkeypatch)
    metrics = Run(PPO(num_epochs=3, num_minibatches=2)).update()
    for i, name in enumerate(METRICS[:-1]):
        assert metrics[name] == pytest.approx(float((spy.parts[-1][i] + spy.parts[-2][i]) / 2), rel=1e-5, abs=1e-7)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"num_minibatches": 0}, "num_minibatches is 0"),
        ({"objective": "trust"}, "objective is 'trust'.*'clip'"),
        ({"adaptive_clip": True, "objective": "kl_penalty"}, "adaptive_clip"),
        ({"adaptive_clip": True, "clip_range": Linear(0.2)}, "clip_range.*adaptive_clip"),
        ({"adaptive_clip": True, "clip_range": 0.5}, r"clip_range is 0\.5.*0\.05.*0\.3"),
        ({"clip_range": 0.0}, "clip_range is 0"),
        ({"value_clip_range": -0.2}, "value_clip_range is -0.2"),
        ({"kl_target": 0.0}, "kl_target is 0"),
        ({"kl_stop": -1.0}, "kl_stop is -1"),
        ({"kl_coeff": -1.0, "objective": "kl_penalty"}, "kl_coeff is -1"),
        ({"kl_coeff": 0.01, "objective": "kl_penalty"}, "kl_coeff is 0.01; it adapts within 1/35 and 35"),
        ({"kl_target": 0.01}, "kl_target is 0.01, which is for adaptive_clip.*use kl_stop=0.01"),
        ({"kl_hinge_coeff": 1.0}, "kl_hinge_coeff is for objective='kl_penalty'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PPO(**settings)
