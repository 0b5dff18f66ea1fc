"""What all algorithms that learn from replay have in common, each on a tiny task."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.agents import (
    Categorical,
    DeterministicAgent,
    Expected,
    ModelSpec,
    ParameterNoise,
    PolicyAgent,
    QAgent,
    Quantile,
)
from rlsurreal.algos import D4PG, DDPG, DQN, R2D2, SAC, TD3, DiscreteSAC, RecurrentSAC, StateValueSAC
from rlsurreal.algos.off_policy import Target
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.models import (
    CriticEnsemble,
    DeterministicPolicy,
    QEnsemble,
    QNetwork,
    RecurrentCritics,
    StochasticPolicy,
)
from rlsurreal.replays import Fifo, Hindsight, NStep, Prioritized, Replay, ReplayRatio, Windows
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import AsyncSampler, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import BitFlipEnv
from rlsurreal.utils.schedules import Linear

torch.set_num_threads(1)
BATCH = BatchSpec(4, 2)
SMALL: Any = {"hidden_sizes": (8,)}


def q_agent(head: Any = None, **kwargs: Any) -> QAgent:
    settings = {} if head is None else {"head": head}
    return QAgent(model=ModelSpec(cls=QNetwork, kwargs={**SMALL, **kwargs}), epsilon=0.1, **settings)


def settings(**own: Any) -> dict[str, Any]:
    replay = own.pop("replay", None) or Replay(capacity=400, selector=Prioritized(), extractor=NStep(num_steps=3))
    return {
        "batch_size": 8,
        "replay": replay,
        "limiter": ReplayRatio(ratio=3, min_steps=20),
        "save_replay": True,
        **own,
    }


def critic(**kwargs: Any) -> ModelSpec:
    return ModelSpec(cls=CriticEnsemble, kwargs={**SMALL, **kwargs})


def policy_agent() -> PolicyAgent:
    return PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs=SMALL))


def deterministic_agent() -> DeterministicAgent:
    model = ModelSpec(cls=DeterministicPolicy, kwargs=SMALL)
    return DeterministicAgent(model=model, process="ornstein_uhlenbeck", noise_spread=1.0)


def sequences() -> Replay:
    return Replay(
        capacity=400, selector=Prioritized(), extractor=Windows(burn_in=2, num_steps=4, num_ahead=2, interval=2)
    )


CARTPOLE, PENDULUM = "CartPole-v1", "Pendulum-v1"
CASES: dict[str, Any] = {
    "dqn": (CARTPOLE, q_agent, lambda: DQN(**settings(target_interval=2))),
    "rainbow": (
        CARTPOLE,
        lambda: q_agent(Categorical(-5, 5), num_atoms=7, dueling=True, noisy=True),
        lambda: DQN(**settings(target_interval=2)),
    ),
    "qr-dqn": (
        CARTPOLE,
        lambda: q_agent(Quantile(), num_atoms=7),
        lambda: DQN(**settings(double=False, target_interval=2)),
    ),
    "iqn": (CARTPOLE, lambda: q_agent(Quantile(), num_cosines=8), lambda: DQN(**settings(target_interval=2))),
    "r2d2": (
        CARTPOLE,
        lambda: q_agent(recurrent="lstm", recurrent_size=5),
        lambda: R2D2(**settings(replay=sequences(), limiter=ReplayRatio(ratio=12, min_steps=40), target_interval=2)),
    ),
    "sac": (PENDULUM, policy_agent, lambda: SAC(critic=critic(), **settings())),
    "sac-fixed": (PENDULUM, policy_agent, lambda: SAC(critic=critic(), temperature=0.2, **settings())),
    "sac-normalized": (
        PENDULUM,
        lambda: PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={**SMALL, "normalize_observation": True})),
        lambda: SAC(critic=critic(normalize_observation=True), **settings()),
    ),
    "discrete-sac": (
        CARTPOLE,
        policy_agent,
        lambda: DiscreteSAC(critic=ModelSpec(cls=QEnsemble, kwargs=SMALL), **settings()),
    ),
    "droq": (
        PENDULUM,
        policy_agent,
        lambda: SAC(critic=critic(dropout=0.2, layer_norm=True), policy_interval=3, **settings()),
    ),
    "ddpg": (
        PENDULUM,
        deterministic_agent,
        lambda: DDPG(critic=critic(num_critics=1), critic_l2=1e-2, max_grad_norm=1.0, **settings()),
    ),
    "state-value-sac": (
        PENDULUM,
        policy_agent,
        lambda: StateValueSAC(critic=critic(), value=ModelSpec(cls=QNetwork, kwargs=SMALL), **settings()),
    ),
    "recurrent-sac": (
        PENDULUM,
        lambda: PolicyAgent(
            model=ModelSpec(cls=StochasticPolicy, kwargs={**SMALL, "recurrent": "gru", "recurrent_size": 5})
        ),
        lambda: RecurrentSAC(
            critic=ModelSpec(
                cls=RecurrentCritics, kwargs={"encoder_sizes": (8,), "hidden_sizes": (8,), "recurrent_size": 5}
            ),
            **settings(replay=sequences(), limiter=ReplayRatio(ratio=12, min_steps=40)),
        ),
    ),
    "ddpg-parameter-noise": (
        PENDULUM,
        lambda: replace(deterministic_agent(), parameter_noise=ParameterNoise(interval=2)),
        lambda: DDPG(critic=critic(num_critics=1), **settings()),
    ),
    "td3": (PENDULUM, deterministic_agent, lambda: TD3(critic=critic(), **settings())),
    "d4pg": (
        PENDULUM,
        deterministic_agent,
        lambda: D4PG(critic=critic(num_critics=1, num_atoms=7), head=Categorical(-50, 0), **settings()),
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def sampler_of(env_id: str, **settings: Any) -> SerialSampler:
    env = GymnasiumEnv(factory=env_id, kwargs={"max_episode_steps": 9})
    return SerialSampler(env=env, batch=BATCH, state_interval=2, **settings)


class Run:
    """Sampler, agent and algorithm, driven by hand."""

    def __init__(
        self, name: str, compile: Any = "off", ranks: Ranks = ALONE, mid_batch_reset: bool = True, **changes: Any
    ) -> None:
        """``changes``: of the algorithm's settings."""
        env_id, make_agent, make_algo = CASES[name]
        self.sampler, self.agent = sampler_of(env_id, mid_batch_reset=mid_batch_reset), make_agent()
        algo = make_algo()
        self.algo = replace(algo, batch_size=algo.batch_size // ranks.count, **changes)
        self.agent.initialize(self.sampler.connect(seed=3), seed=1)
        self.algo.initialize(self.agent, BATCH, seed=2, compile=compile, ranks=ranks)
        self.sampler.initialize(self.agent, discount=self.algo.discount)
        self.num_steps = 0

    def advance(self, num_iterations: int) -> list[dict[str, Any]]:
        metrics = []
        for _ in range(num_iterations):
            samples = self.sampler.obtain()
            self.num_steps += int(samples.env.valid[:-1].sum())
            metrics.append({key: float(value) for key, value in self.algo.update(samples, 0.5).items()})
            self.sampler.release(samples)
        return metrics

    def tensors(self) -> dict[str, torch.Tensor]:
        own = {f"agent.{name}": tensor for name, tensor in self.agent.tensors().items()}
        return own | flatten("algo", {k: v for k, v in self.algo.state_dict().items() if k != "replay"})


def flatten(prefix: str, tree: Any) -> dict[str, torch.Tensor]:
    if isinstance(tree, dict):
        return {name: t for key, value in tree.items() for name, t in flatten(f"{prefix}.{key}", value).items()}
    return {prefix: tree.clone()} if isinstance(tree, torch.Tensor) else {}


@pytest.mark.parametrize("mid_batch_reset", [True, False], ids=["mid-batch-reset", "wait-for-reset"])
@EVERY
def test_parameters_move_metrics_are_finite_and_the_ratio_is_held(name, mid_batch_reset):
    run = Run(name, mid_batch_reset=mid_batch_reset)
    before = {key: tensor.clone() for key, tensor in run.agent.tensors().items()}
    metrics = run.advance(30)
    assert run.num_steps < (0.95 if mid_batch_reset else 0.9) * 30 * BATCH.num_steps * BATCH.num_envs, "invalid rows"
    after = run.agent.tensors()
    moved = {key for key in before if before[key].is_floating_point() and not torch.equal(before[key], after[key])}
    assert {name for name, _ in run.agent.module.named_parameters()} <= moved
    assert all(math.isfinite(value) for value in metrics[-1].values())
    assert set(run.algo.console_columns.values()) <= set().union(*metrics)
    limiter, rows = run.algo.limiter, run.algo.replay.extractor.num_learned
    wanted = (run.num_steps - limiter.min_steps) * limiter.ratio / (run.algo.batch_size * rows)
    assert run.algo._num_updates == int(wanted) > 5
    assert metrics[-1]["replay/ratio"] == pytest.approx(limiter.ratio, rel=0.2)


@pytest.mark.parametrize("name", ["dqn", "r2d2", "recurrent-sac", "td3"])
def test_the_discount_is_the_algorithms(name):
    run = Run(name, discount=0.7)
    run.advance(20)
    if isinstance(run.algo.replay.extractor, NStep):
        batch, _ = run.algo.replay.sample(64)
        found = {round(x, 5) for x in batch.discount.tolist()}
        assert {0.343} < found <= {0.0, 0.7, 0.49, 0.343}
    else:  # the algorithm's own targets, see the tests of its loss
        assert run.algo.discount == 0.7


@EVERY
def test_each_network_learns_at_the_rate_of_its_schedule(name):
    source = Run(name)
    source.advance(20)
    batch, _ = source.algo.replay.sample(8)
    rates = {"learning_rate": Linear(0.02, 0.0)}
    if isinstance(source.algo, DDPG) or name == "sac":
        rates["critic_learning_rate"] = Linear(0.2, 0.0)
    changes = {"policy_interval": 1} if hasattr(source.algo, "policy_interval") else {}
    algo = Run(name, adam_eps=1e-12, **rates, **changes).algo
    before = {key: step.flat.clone() for key, (step, _) in algo._parts.steps.items()}
    algo._update(batch, 0.5)
    for key, (step, _) in algo._parts.steps.items():
        rate = 0.1 if key == "critic" and len(rates) == 2 else 0.01
        moved = (step.flat - before[key]).abs().max().item()
        assert moved == pytest.approx(rate, rel=1e-3), f"{key}: Adam's first step"


def test_a_temperature_is_not_clipped_with_the_policy():
    source = Run("sac")
    source.advance(20)
    batch, _ = source.algo.replay.sample(8)
    algo = Run("sac", max_grad_norm=1e-9, learning_rate=0.01).algo
    policy, temperature = algo._agent.module.state_dict(), algo._temperature.log.item()
    before = {name: tensor.clone() for name, tensor in policy.items()}
    algo._update(batch, 0.5)
    assert abs(algo._temperature.log.item() - temperature) == pytest.approx(0.01, rel=1e-3)
    assert all((tensor - before[name]).abs().max() < 0.002 for name, tensor in policy.items())


def test_metrics_are_means_over_all_updates_since_they_were_taken(monkeypatch):
    """However often they are read in between, to see that they are finite."""
    losses, loss = [], DQN._loss
    monkeypatch.setattr(DQN, "_loss", lambda *inputs: (found := loss(*inputs), losses.append(found[1][0].item()))[0])
    run = Run("dqn")
    for _ in range(2):
        losses.clear()
        read = run.advance(40)
        assert len(losses) > 80 and any("loss/value" in metrics for metrics in read)
        assert float(run.algo.take_metrics()["loss/value"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_progress_reaches_the_replay():
    run, seen = Run("dqn"), []
    run.advance(8)
    sample = run.algo.replay.sample
    run.algo.replay.sample = lambda size, progress: (seen.append(progress), sample(size, progress))[1]
    run.advance(2)
    assert set(seen) == {0.5}


def test_statistics_of_observations_are_kept_by_every_network_that_wants_them():
    run = Run("sac-normalized")
    run.advance(5)
    for network in (run.agent.module, run.algo._critics, run.algo._target.module):
        (leaf,) = network.normalizer.leaves
        assert leaf.count.item() == run.num_steps > 20 and leaf.mean.any()


def test_critics_of_discrete_actions_keep_their_statistics():
    critics = ModelSpec(cls=QEnsemble, kwargs={**SMALL, "normalize_observation": True})
    run = Run("discrete-sac", critic=critics)
    run.advance(5)
    (leaf,) = run.algo._critics.normalizer.leaves
    assert leaf.count.item() == run.num_steps > 20 and leaf.mean.any()
    assert run.algo._target.module.normalizer.leaves[0].count.item() == run.num_steps


def test_networks_with_memory_are_refused_where_it_is_not_learned():
    run = Run("dqn")
    with_memory = q_agent(recurrent="lstm", recurrent_size=5)
    with_memory.initialize(run.agent.spaces, seed=0)
    with pytest.raises(ValueError, match="with R2D2"):
        CASES["dqn"][2]().initialize(with_memory, BATCH, seed=0)
    run = Run("ddpg")
    with_memory = DeterministicAgent(model=ModelSpec(cls=DeterministicPolicy, kwargs={"recurrent": "lstm"}))
    with pytest.raises(ValueError, match="policy is recurrent, which DDPG"):
        with_memory.initialize(run.agent.spaces, seed=0)


@EVERY
def test_nothing_is_learned_before_there_is_enough(name):
    run = Run(name)
    before = {key: tensor.clone() for key, tensor in run.tensors().items() if "exploration" not in key}
    run.advance(2)  # 16 steps at most
    after = run.tensors()
    assert all(torch.equal(before[key], after[key]) for key in before if "normalizer" not in key)


@EVERY
def test_target_networks_equal_the_networks_at_the_start(name):
    algo = Run(name).algo
    targets = [value for value in vars(algo).values() if isinstance(value, Target)]
    if isinstance(algo, DQN):
        followed = [algo._agent.module]
    elif isinstance(algo, SAC):
        followed = [algo._value if isinstance(algo, StateValueSAC) else algo._critics]
    else:
        followed = [algo._critics, algo._agent.module]
    assert len(targets) == len(followed)
    for target, network in zip(targets, followed):
        assert target._online.data_ptr() == next(iter(network.parameters())).data_ptr()
        assert torch.equal(target._flat, target._online)
        assert target._flat.data_ptr() != target._online.data_ptr()
        target._online.add_(1.0)
        assert not torch.equal(target._flat, target._online), "they are copies"
        target.follow(0.25)
        torch.testing.assert_close(target._online - target._flat, torch.full_like(target._flat, 0.75))
        own = next(iter(target.module.parameters()))
        assert own.data_ptr() == target._flat.data_ptr(), "the network is what follows"


@EVERY
def test_a_resumed_run_equals_an_uninterrupted_one(name):
    whole, first, second = Run(name), Run(name), Run(name)
    whole.advance(12)
    first.advance(7)
    saved = {"agent": first.agent.state_dict(), "algo": first.algo.state_dict(), "sampler": first.sampler.get_state()}
    second.agent.load_state_dict(saved["agent"])
    second.algo.load_state_dict(saved["algo"])
    assert second.sampler.set_state(saved["sampler"])
    second.advance(5)
    ours, theirs = second.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.processes
@pytest.mark.parametrize("name", ["dqn", "r2d2", "sac", "recurrent-sac", "td3"])
def test_workers_and_checkpoints(name, tmp_path):
    env_id, make_agent, make_algo = CASES[name]

    def trainer(steps: int) -> Trainer:
        return Trainer(
            agent=make_agent(),
            algo=make_algo(),
            sampler=ParallelSampler(env=GymnasiumEnv(factory=env_id), batch=BATCH, num_workers=2, state_interval=2),
            total_env_steps=steps,
            log_interval_steps=40,
            root=str(tmp_path),
            checkpoints=CheckpointPolicy(interval_steps=100),
            console="off",
            tensorboard=False,
        )

    folder = trainer(200).train()
    assert trainer(400).train(resume=folder) == folder
    lines = (folder / "progress.csv").read_text().splitlines()
    assert "replay/ratio" in lines[0] and len(lines) > 5


def test_a_second_run_of_one_trainer_begins_anew(tmp_path):
    trainer = Trainer(
        agent=policy_agent(),
        algo=CASES["sac"][2](),
        sampler=sampler_of(PENDULUM),
        total_env_steps=100,
        log_interval_steps=40,
        root=str(tmp_path),
        console="off",
        tensorboard=False,
    )
    rows = []
    for _ in range(2):
        lines = list(csv.DictReader((trainer.train() / "progress.csv").open()))
        rows.append([{key: row[key] for key in row if not key.startswith(("time", "rate"))} for row in lines])
    assert rows[0] == rows[1] and float(rows[0][-1]["update/updates"]) > 5


def test_a_checkpoint_of_other_critics_says_what_differs():
    state = Run("sac").algo.state_dict()
    with pytest.raises(ValueError, match=r"network 'critics' has other shapes: layers.0.weight is .*settings of algo"):
        Run("sac", critic=critic(hidden_sizes=(3,))).algo.load_state_dict(state)


def test_a_checkpoint_of_another_kind_of_device_goes_on(caplog):
    run, other = Run("sac"), Run("sac")
    run.advance(8)
    state = run.algo.state_dict()
    state["own"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as a GPU's
    other.algo.load_state_dict(state)
    assert "another kind of device" in caplog.text
    fresh = torch.Generator().manual_seed(2).get_state()
    assert not torch.equal(other.algo._generator.get_state(), fresh), "numbers that were drawn are not drawn again"


class CountedFlips(BitFlipEnv):
    """Says how many flips there were."""

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"flips": float(self._steps)}


def test_recorded_info_reaches_the_reward_in_hindsight():
    seen: list[Any] = []

    def compute_reward(achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        seen.append(info.flips)
        return BitFlipEnv.compute_reward(achieved, desired, info)

    env = GymnasiumEnv(factory=CountedFlips, kwargs={"num_bits": 3}, info_fields={"flips": 0.0})
    sampler, agent = SerialSampler(env=env, batch=BATCH), q_agent()
    algo = DQN(**settings(replay=Replay(capacity=400, extractor=Hindsight(compute_reward=compute_reward))))
    agent.initialize(sampler.connect(seed=3), seed=1)
    algo.initialize(agent, BATCH, seed=2)
    sampler.initialize(agent, discount=0.9)
    for _ in range(8):
        samples = sampler.obtain()
        algo.update(samples, 0.5)
        sampler.release(samples)
    assert set(np.concatenate(seen)) == {1.0, 2.0, 3.0}


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_fifo_learns_once_from_everything_and_soon(num_ahead):
    replay = Replay(capacity=200, selector=Fifo(), extractor=NStep(num_steps=num_ahead))
    run = Run("dqn", replay=replay, limiter=ReplayRatio(ratio=1, min_steps=1))
    drawn: list[tuple[int, int]] = []
    sample = replay.sample

    def seen(*arguments: Any) -> Any:
        batch, ticket = sample(*arguments)
        assert ticket.starts.min() >= replay.ring.newest - 3 * BATCH.num_steps, "of the last slots"
        drawn.extend(zip(ticket.starts.tolist(), ticket.envs.tolist()))
        return batch, ticket

    replay.sample = seen  # type: ignore[method-assign]
    run.advance(30)
    assert len(drawn) == len(set(drawn)) >= run.num_steps - num_ahead * BATCH.num_envs - 2 * run.algo.batch_size
    with pytest.raises(ValueError, match="limiter.min_steps is 20000, and replay.selector is Fifo"):
        DQN(replay=replay)


def test_a_saved_replay_is_left_aside_if_asked():
    saved = Run("dqn", save_replay=True)
    saved.advance(12)
    state = saved.algo.state_dict()
    with pytest.raises(ValueError, match="this one {'rows'.*save_replay=False"):
        Run("dqn", save_replay=True, replay=Replay(capacity=200)).algo.load_state_dict(state)
    other = Run("dqn", save_replay=False, replay=Replay(capacity=200))
    other.algo.load_state_dict(state)
    assert other.algo.replay.num_starts == 0 and other.algo.limiter.num_steps == 0
    updates = other.algo._num_updates
    other.advance(12)
    assert other.algo._num_updates > updates


@pytest.mark.parametrize("name", ["dqn", "ddpg"])
def test_exploration_is_laid_out_over_the_environments_of_all_ranks(name):
    env_id, make_agent, make_algo = CASES[name]
    batch = replace(BATCH, first_env=2, total_envs=6)
    sampler = replace(sampler_of(env_id), batch=batch)
    agent = make_agent()
    spread = {"epsilon_spread": 2.0} if isinstance(agent, QAgent) else {"noise_spread": 2.0}
    agent, algo = replace(agent, **spread), make_algo()
    agent.initialize(sampler.connect(seed=3), seed=1)
    algo.initialize(agent, batch, seed=2)
    sampler.initialize(agent, discount=0.9)
    samples = sampler.obtain()
    algo.update(samples, 0.5)
    assert agent.module.exploration[1].item() == pytest.approx(2.0 / 5)
    assert agent.initial_state(2, first_env=2).env.tolist() == [2, 3]


@pytest.mark.parametrize("name", ["dqn", "r2d2", "sac", "td3"])
@pytest.mark.parametrize("kind", ["lock step", "asynchronous"])
def test_native_engines(kind, name):
    pytest.importorskip("envpool", reason="EnvPool needs Python 3.11")
    env_id, make_agent, make_algo = CASES[name]
    shared: Any = {"env": EnvPoolEnv(task_id=env_id), "batch": BatchSpec(4, 4), "state_interval": 2}
    sampler: Any = SerialSampler(**shared) if kind == "lock step" else AsyncSampler(**shared, num_ready=2)
    agent, algo = make_agent(), make_algo()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        algo.initialize(agent, shared["batch"], seed=2)
        sampler.initialize(agent, discount=0.99)
        steps = 0
        for _ in range(20):
            samples = sampler.obtain()
            steps += int(samples.env.valid[:-1].sum())
            algo.update(samples, 0.5)
            sampler.release(samples)
    finally:
        sampler.close()
    due = (steps - algo.limiter.min_steps) * algo.limiter.ratio
    assert algo._num_updates == due // (algo.batch_size * algo.replay.extractor.num_learned) > 5


def test_bad_settings_are_refused():
    for algo, own, message in [
        (DQN, {"target_interval": 0}, "DQN.target_interval is 0"),
        (DQN, {"target_tau": 0.0}, "DQN.target_tau"),
        (DQN, {"batch_size": 0}, "DQN.batch_size is 0"),
        (SAC, {"temperature": -1.0}, "SAC.temperature is -1"),
        (SAC, {"policy_value": "max"}, "SAC.policy_value is 'max'; choose 'min' or 'mean'"),
        (TD3, {"policy_interval": 0}, "TD3.policy_interval is 0"),
        (TD3, {"target_noise": -0.1}, "TD3.target_noise is -0.1"),
        (R2D2, {"replay": Replay()}, "R2D2 learns from sequences: .*Windows.*has NStep"),
        (DQN, {"replay": Replay(extractor=Windows())}, "DQN learns from transitions: .*NStep.*has Windows"),
        (R2D2, {"eta": 2.0}, "R2D2.eta is 2"),
        (DDPG, {"discount": 1.5}, "DDPG.discount is 1.5"),
        (DDPG, {"max_grad_norm": None}, "DDPG.max_grad_norm is None; .*float..inf.. turns clipping off"),
        (DQN, {"max_grad_norm": -1.0}, "DQN.max_grad_norm is -1"),
        (DQN, {"learning_rate": Linear(1e-3, -1e-3)}, "DQN.learning_rate is Linear.*so -0.001 when 100%"),
        (DQN, {"num_taus": 0}, "DQN.num_taus is 0"),
        (TD3, {"critic_learning_rate": "1e-3"}, "TD3.critic_learning_rate is '1e-3'; it must be a finite number"),
        (
            SAC,
            {"temperature": 0.2, "target_entropy": -3.0},
            "SAC.temperature is fixed to 0.2, where target_entropy",
        ),
        (SAC, {"adam_eps": 0.0}, "SAC.adam_eps is 0"),
        (SAC, {"temperature": "Auto"}, "SAC.temperature is 'Auto'; it must be 'auto', or at least 0"),
        (SAC, {"target_entropy": "Auto"}, "SAC.target_entropy is 'Auto'; it must be 'auto', or a number"),
        (Prioritized, {"beta": -1.0}, "Prioritized.beta is -1.0; it must be in .0, 1"),
        (DeterministicAgent, {"noise": -0.1}, "DeterministicAgent.noise is -0.1"),
        (Expected, {"delta_clip": 0.0}, "Expected.delta_clip is 0"),
        (Quantile, {"kappa": -1.0}, "Quantile.kappa is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            algo(**own)


def test_parts_that_do_not_suit_are_refused_before_anything_is_collected():
    plain, several = critic(), critic(num_atoms=5)
    for name, make_agent, changes, message in [
        ("dqn", policy_agent, {}, "DQN learns a QAgent, and agent is a PolicyAgent"),
        ("ddpg", policy_agent, {}, "DDPG learns a DeterministicAgent, and agent is a PolicyAgent"),
        ("sac", deterministic_agent, {}, "SAC learns a PolicyAgent, and agent is a DeterministicAgent"),
        ("discrete-sac", q_agent, {}, "DiscreteSAC learns a PolicyAgent, and agent is a QAgent"),
        ("discrete-sac", None, {"critic": plain}, "DiscreteSAC.critic is a CriticEnsemble; it must be a QEnsemble"),
        ("recurrent-sac", None, {"critic": plain}, "RecurrentSAC.critic is a Cri.*; it must be a RecurrentCritics"),
        ("dqn", None, {"num_taus": 8}, "DQN.num_taus is 8, and the Q-network draws no quantiles"),
        ("sac", None, {"critic": several}, "SAC.critic has num_atoms=5, and is to give expected returns"),
        ("ddpg", None, {"critic": critic(num_critics=1, dropout=0.1)}, "DDPG.critic has dropout"),
        (
            "state-value-sac",
            None,
            {"value": ModelSpec(cls=QNetwork, kwargs={**SMALL, "num_atoms": 3})},
            "StateValueSAC.value has num_atoms=3",
        ),
    ]:
        env_id, own_agent, make_algo = CASES[name]
        agent = (make_agent or own_agent)()
        agent.initialize(sampler_of(env_id if agent.__class__ is not QAgent else CARTPOLE).connect(seed=3), seed=1)
        with pytest.raises(ValueError, match=message):
            replace(make_algo(), **changes).initialize(agent, BATCH, seed=2)


def test_a_fixed_temperature_may_be_changed_and_a_learned_one_is_kept():
    fixed, other, learned = Run("sac-fixed"), Run("sac-fixed", temperature=0.5), Run("sac")
    other.algo.load_state_dict(fixed.algo.state_dict())
    assert other.algo._temperature.value.item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="SAC.temperature is 'auto', and .* resumed was fixed; resume with a number"):
        learned.algo.load_state_dict(fixed.algo.state_dict())
    with pytest.raises(ValueError, match="SAC.temperature is 0.5, and .* was learned; resume with 'auto'"):
        other.algo.load_state_dict(learned.algo.state_dict())


def test_a_chosen_first_priority_is_what_sequences_get():
    run = Run("r2d2", replay=replace(sequences(), selector=Prioritized(alpha=1.0, initial_priority=3.0)))
    run.advance(4)
    leaves = run.algo.replay.selector.tree.leaves
    assert set(leaves[leaves > 0]) == {3.0}


def test_first_priorities_of_sequences_reach_the_replay():
    run = Run("r2d2", limiter=ReplayRatio(ratio=12, min_steps=10**6))
    run.advance(12)  # without an update
    replay = run.algo.replay
    places = replay.starts.suitable_places()
    starts, envs = replay.starts.at(places)
    times = starts * replay.extractor.stride + np.arange(replay.extractor.reach)[:, None]
    given = run.algo._first_priority()(lambda name: replay._past.read(name, times, envs))
    expected = np.maximum(given, 1e-6) ** replay.selector.alpha
    found = replay.selector.tree.leaves[places]
    assert len(places) > 10 and len(np.unique(found)) > 5
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("num_iterations", "warns"), [(4, True), (40, False)])
def test_a_run_too_short_to_learn_anything_is_said_to_be(num_iterations, warns, caplog):
    run = Run("dqn")  # an iteration has 8 steps
    run.algo.limiter = ReplayRatio(ratio=3, min_steps=32)
    run.algo.initialize(run.agent, BATCH, seed=0, num_iterations=num_iterations)
    said = "nothing will be learned: the run has 32 environment steps, limiter.min_steps is 32" in caplog.text
    assert said == warns
