"""The DQN family: on Atari, and on CartPole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlsurreal.agents import Categorical, Expected, ModelSpec, QAgent
from rlsurreal.algos import DQN, R2D2
from rlsurreal.envs import GymnasiumEnv, make_atari, make_minatar
from rlsurreal.models import QNetwork
from rlsurreal.replays import FrameStorage, Hindsight, NStep, Prioritized, Replay, ReplayRatio, Windows
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import BitFlipEnv
from rlsurreal.utils.schedules import Linear, PiecewiseLinear


def dqn_atari(game: str = "Pong", seed: int = 0) -> Trainer:
    """Double DQN on an Atari game: 8 environments, an update of 32 transitions for every 4 steps of the agent."""
    return Trainer(
        name=f"dqn_{game}",
        seed=seed,
        total_env_steps=10_000_000,
        agent=QAgent(epsilon=Linear(1.0, 0.01, until=0.1), eval_epsilon=0.001),
        algo=DQN(
            learning_rate=1e-4,
            replay=Replay(capacity=1_000_000, storage=FrameStorage()),
            limiter=ReplayRatio(ratio=8, min_steps=20_000),
        ),
        sampler=_atari_sampler(game, BatchSpec(num_steps=4, num_envs=8)),
        checkpoints=CheckpointPolicy(interval_steps=500_000),
    )


def rainbow_atari(game: str = "Pong", seed: int = 0) -> Trainer:
    """Rainbow: double, dueling, noisy, categorical, prioritized, over three steps."""
    kwargs: dict[str, Any] = {"dueling": True, "noisy": True, "num_atoms": 51}
    trainer = dqn_atari(game, seed)
    replay = Replay(
        capacity=1_000_000,
        storage=FrameStorage(),
        selector=Prioritized(alpha=0.5, beta=Linear(0.4, 1.0)),
        extractor=NStep(num_steps=3),
    )
    return replace(
        trainer,
        name=f"rainbow_{game}",
        agent=QAgent(
            model=ModelSpec(cls=QNetwork, kwargs=kwargs), head=Categorical(-10.0, 10.0), epsilon=0.0, eval_epsilon=0.001
        ),
        algo=DQN(learning_rate=6.25e-5, replay=replay, limiter=ReplayRatio(ratio=8, min_steps=20_000)),
    )


def r2d2_atari(game: str = "Pong", seed: int = 0) -> Trainer:
    """R2D2: a recurrent network on sequences of 40 + 80 rows, unclipped rewards, an epsilon for each environment."""
    kwargs: dict[str, Any] = {"recurrent": "lstm", "dueling": True}
    windows = Windows(burn_in=40, num_steps=80, num_ahead=5, interval=40)
    replay = Replay(
        capacity=1_000_000, storage=FrameStorage(), selector=Prioritized(alpha=0.9, beta=0.6), extractor=windows
    )
    return replace(
        dqn_atari(game, seed),
        name=f"r2d2_{game}",
        agent=QAgent(
            model=ModelSpec(cls=QNetwork, kwargs=kwargs),
            head=Expected(delta_clip=None),
            epsilon=0.4,
            epsilon_spread=7.0,
            eval_epsilon=0.001,
        ),
        algo=R2D2(replay=replay, limiter=ReplayRatio(ratio=1.0, min_steps=50_000)),
        sampler=_atari_sampler(game, BatchSpec(num_steps=40, num_envs=32), clip_reward=False, episodic_life=False),
    )


def dqn_minatar(game: str = "breakout", seed: int = 0) -> Trainer:
    """DQN on a MinAtar game, with its paper's settings but for Adam (Young and Tian 2019, arXiv 1903.03176)."""
    return Trainer(
        name=f"dqn_minatar_{game}",
        seed=seed,
        total_env_steps=5_000_000,
        agent=QAgent(
            model=ModelSpec(cls=QNetwork, kwargs={"encoder": "minatar", "hidden_sizes": (128,)}),
            epsilon=PiecewiseLinear(((0.0, 1.0), (0.02, 0.1))),
        ),
        algo=DQN(
            learning_rate=2.5e-4,
            double=False,
            target_interval=1_000,
            replay=Replay(capacity=100_000),
            limiter=ReplayRatio(ratio=32, min_steps=5_000),
        ),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=make_minatar, kwargs={"game": game}),
            batch=BatchSpec(num_steps=4, num_envs=4),
            evaluation=EvalSpec(num_envs=4, episodes_per_env=5),
        ),
        checkpoints=CheckpointPolicy(interval_steps=500_000),
    )


def her_bitflip(num_bits: int = 15, seed: int = 0) -> Trainer:
    """DQN with hindsight on the flipping of bits, which it cannot learn without."""
    return Trainer(
        name="her_bitflip",
        seed=seed,
        total_env_steps=100_000,
        agent=QAgent(model=ModelSpec(cls=QNetwork), epsilon=Linear(1.0, 0.05, until=0.3)),
        algo=DQN(
            discount=0.98,
            learning_rate=1e-3,
            batch_size=128,
            target_interval=100,
            replay=Replay(capacity=100_000, extractor=Hindsight(compute_reward=BitFlipEnv.compute_reward)),
            limiter=ReplayRatio(ratio=32, min_steps=1_000),
        ),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=BitFlipEnv, kwargs={"num_bits": num_bits}),
            batch=BatchSpec(num_steps=8, num_envs=4),
        ),
    )


def dqn_cartpole(seed: int = 0) -> Trainer:
    """DQN on CartPole-v1 in one process: solved within a minute or two."""
    return Trainer(
        name="dqn_cartpole",
        seed=seed,
        total_env_steps=50_000,
        log_interval_steps=2_500,
        agent=QAgent(epsilon=Linear(1.0, 0.04, until=0.16)),
        algo=DQN(
            learning_rate=2.3e-3,
            batch_size=64,
            target_interval=80,
            replay=Replay(capacity=100_000),
            limiter=ReplayRatio(ratio=32, min_steps=1_000),
        ),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory="CartPole-v1"),
            batch=BatchSpec(num_steps=8, num_envs=4),
            evaluation=EvalSpec(num_envs=5, episodes_per_env=2, num_steps=500),
        ),
        eval_interval_steps=10_000,
    )


def _atari_sampler(game: str, batch: BatchSpec, **settings: Any) -> ParallelSampler:
    def env(**own: Any) -> GymnasiumEnv:
        kwargs = {"game": game, "episodic_life": True, "clip_reward": True, **own}
        return GymnasiumEnv(factory=make_atari, kwargs=kwargs, info_fields={"score": 0.0, "game_over": False})

    return ParallelSampler(
        env=env(**settings),
        batch=batch,
        evaluation=EvalSpec(
            env=env(episodic_life=False, clip_reward=False), num_envs=2, episodes_per_env=1, num_steps=500
        ),
    )
