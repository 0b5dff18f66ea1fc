"""The tasks of `python -m benchmarks learning` that learn from replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.learning_task import LearningTask, serially
from rlsurreal import recipes
from rlsurreal.agents import Categorical, Expected, ModelSpec, QAgent, Quantile
from rlsurreal.algos import DQN, R2D2
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import QNetwork
from rlsurreal.replays import NStep, Prioritized, Replay, ReplayRatio, Windows
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import RecallEnv
from rlsurreal.utils import config
from rlsurreal.utils.schedules import Linear


def replayed(make: Callable[..., Trainer], steps: int, **overrides: Any) -> Callable[[int], Trainer]:
    """A recipe of learning from replay, on a budget of its own."""

    def with_seed(seed: int) -> Trainer:
        return config.override(make(seed=seed), {"total_env_steps": steps, **overrides})

    return with_seed


# The same for us (the recipes) and for the peer; `benchmarks.peers.sb3_work` has their names.
_OFF_POLICY: dict[str, Any] = {
    "env_id": "HalfCheetah-v5",
    "total_env_steps": 100_000,
    "num_envs": 1,
    "num_steps": 1,
    "updates_per_step": 1.0,
    "batch_size": 256,
    "discount": 0.99,
    "tau": 0.005,
    "capacity": 1_000_000,
    "min_steps": 10_000,
    "hidden_sizes": [256, 256],
    "vector": "dummy",
    "num_threads": 1,
    "device": "cpu",
}
SAC_PEER = {**_OFF_POLICY, "algo": "sac", "learning_rate": 3e-4}
TD3_PEER = {**_OFF_POLICY, "algo": "td3", "learning_rate": 1e-3, "action_noise": 0.1}


def off_policy_pong(seed: int) -> Trainer:
    """The recipe, hastier: larger steps, targets that follow sooner, and less exploration."""
    hasty = {
        "total_env_steps": 300_000,
        "agent.epsilon": Linear(1.0, 0.02, until=0.1),
        "algo.replay.capacity": 300_000,
        "algo.learning_rate": 2e-4,
        "algo.adam_eps": 1e-6,  # the recipe's is five times a gradient's size here, and makes steps that much smaller
        "algo.target_interval": 250,
        "algo.limiter.min_steps": 10_000,
    }
    return config.override(serially(recipes.dqn_atari(seed=seed)), hasty)


def minatar(game: str, kind: str) -> Callable[[int], Trainer]:
    """DQN on a MinAtar game as its paper has it, or one of its successors, otherwise the same."""
    head: Any = Expected()
    kwargs: dict[str, Any] = {"encoder": "minatar", "hidden_sizes": (128,)}
    changes: dict[str, Any] = {}
    if kind == "c51":
        head, kwargs["num_atoms"] = Categorical(-10.0, 10.0), 51
    elif kind == "iqn":
        head, kwargs["num_cosines"] = Quantile(), 64
        changes["algo.num_taus"] = 8
    elif kind == "rainbow":
        head, kwargs = Categorical(-10.0, 10.0), {**kwargs, "num_atoms": 51, "dueling": True, "noisy": True}
        selector = Prioritized(alpha=0.5, beta=Linear(0.4, 1.0))
        changes["algo.replay"] = Replay(capacity=100_000, selector=selector, extractor=NStep(num_steps=3))
        changes |= {"algo.double": True, "agent.epsilon": 0.0}
    changes |= {"agent.model.kwargs": kwargs, "agent.head": head}
    if kind != "rainbow":
        changes["agent.epsilon"] = Linear(1.0, 0.1, until=0.2)
    return replayed(lambda seed: recipes.dqn_minatar(game, seed), 500_000, **changes)


def recall_replayed(kind: str) -> Callable[[int], Trainer]:
    """The memory task from replay: R2D2, or DQN without memory."""
    kwargs: dict[str, Any] = {"hidden_sizes": (32, 32)}
    limiter = ReplayRatio(ratio=32, min_steps=2_000)
    algo: Any = DQN(learning_rate=2e-3, target_interval=200, replay=Replay(capacity=50_000), limiter=limiter)
    if kind == "r2d2":
        kwargs |= {"recurrent": "lstm", "recurrent_size": 32}
        windows = Windows(burn_in=5, num_steps=15, num_ahead=3, interval=5)
        replay = Replay(capacity=50_000, selector=Prioritized(alpha=0.6, beta=0.6), extractor=windows)
        options: dict[str, Any] = {"discount": 0.99, "learning_rate": 2e-3, "batch_size": 16, "target_interval": 100}
        algo = R2D2(replay=replay, limiter=limiter, **options)

    def make(seed: int) -> Trainer:
        return Trainer(
            agent=QAgent(
                model=ModelSpec(cls=QNetwork, kwargs=kwargs),
                head=Expected(delta_clip=None),
                epsilon=Linear(1.0, 0.02, until=0.5),
            ),
            algo=algo,
            sampler=SerialSampler(
                env=GymnasiumEnv(factory=RecallEnv, kwargs={"delay": 6}), batch=BatchSpec(10, 8), state_interval=5
            ),
            total_env_steps=40_000,
            seed=seed,
        )

    return make


def halfcheetah(
    recipe: Callable[..., Trainer], target: float, peer_settings: dict[str, Any] | None = None
) -> LearningTask:
    """A recipe on HalfCheetah-v5, 100,000 steps; against Stable-Baselines3 where it has the same algorithm."""
    return LearningTask(
        replayed(recipe, 100_000),
        num_seeds=3,
        target=target,
        metric="return of the last 10 games",
        num_games=10,
        peer=None if peer_settings is None else "sb3",
        peer_settings={**(peer_settings or {}), "num_games": 10},
    )


# What DQN has after 500,000 frames in the curves of MinAtar's authors (github.com/kenjyoung/MinAtar), read off.
_MINATAR_DQN = {"breakout": 8.3, "asterix": 1.0}
_NO_HINDSIGHT = {"algo.replay.extractor": NStep()}
OFF_POLICY = {
    "sac": halfcheetah(recipes.sac_mujoco, 3_000, SAC_PEER),
    "td3": halfcheetah(recipes.td3_mujoco, 2_000, TD3_PEER),
    "ddpg": halfcheetah(recipes.ddpg_mujoco, 1_000),
    "d4pg": halfcheetah(recipes.d4pg_mujoco, 1_000),
    "dqn-pong": LearningTask(
        off_policy_pong, num_seeds=2, target=1.5, metric="last 100 games less the first 100", gain=True
    ),
    "recall-r2d2": LearningTask(recall_replayed("r2d2"), num_seeds=3, target=1.0),
    "recall-dqn": LearningTask(recall_replayed("dqn"), num_seeds=3, target=0.5),
    "bitflip-her": LearningTask(replayed(recipes.her_bitflip, 100_000), num_seeds=3, target=-8.0),
    "bitflip-none": LearningTask(replayed(recipes.her_bitflip, 100_000, **_NO_HINDSIGHT), num_seeds=3, target=-15.0),
    "fetchreach-her": LearningTask(replayed(recipes.her_fetch, 20_000), num_seeds=3, target=-5.0),
} | {
    f"minatar-{game}-{kind}": LearningTask(
        minatar(game, kind), num_seeds=3, target=target, picture=f"minatar-{game}", label=label
    )
    for game, target in _MINATAR_DQN.items()
    for kind, label in (("dqn", "DQN"), ("c51", "C51"), ("iqn", "IQN"), ("rainbow", "Rainbow"))
}
