"""R2D2 on a task that needs memory: replay of sequences, with the recurrent state as it was when they were played.

    python examples/7_r2d2.py        the mean return goes to 1
    python examples/7_r2d2.py dqn    DQN without memory: it stays at chance, 0.5

The sampler records the agent's state every few rows (``state_interval``); a sequence begins where one was recorded, and
its first rows (the burn-in) only bring that old state up to date.
"""

import argparse
from typing import Any

from rlsurreal.agents import Expected, ModelSpec, QAgent
from rlsurreal.algos import DQN, R2D2
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import QNetwork
from rlsurreal.replays import Prioritized, Replay, ReplayRatio, Windows
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import RecallEnv
from rlsurreal.utils.schedules import Linear

INTERVAL = 5  # rows between recorded states


def make_algo(kind: str = "r2d2") -> DQN:
    """Both learn from as many rows."""
    limiter = ReplayRatio(ratio=32, min_steps=2_000)
    if kind == "dqn":
        return DQN(learning_rate=2e-3, target_interval=200, replay=Replay(capacity=50_000), limiter=limiter)
    return R2D2(
        discount=0.99,
        learning_rate=2e-3,
        batch_size=16,
        target_interval=100,
        replay=Replay(
            capacity=50_000,
            selector=Prioritized(alpha=0.6, beta=0.6),
            extractor=Windows(burn_in=5, num_steps=15, num_ahead=3, interval=INTERVAL),
        ),
        limiter=limiter,
    )


def make_trainer(kind: str = "r2d2", total_env_steps: int = 30_000) -> Trainer:
    """A cue is shown in the first step of an episode, and asked for in the last."""
    kwargs: dict[str, Any] = {"hidden_sizes": (32, 32)}
    if kind == "r2d2":
        kwargs |= {"recurrent": "lstm", "recurrent_size": 32}
    return Trainer(
        name=f"example_7_{kind}",
        agent=QAgent(
            model=ModelSpec(cls=QNetwork, kwargs=kwargs),
            head=Expected(delta_clip=None),
            epsilon=Linear(1.0, 0.02, until=0.5),
        ),
        algo=make_algo(kind),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=RecallEnv, kwargs={"delay": 6}),
            batch=BatchSpec(num_steps=10, num_envs=8),
            state_interval=INTERVAL,
        ),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("r2d2", "dqn"), default="r2d2")
    make_trainer(parser.parse_args().kind).train()
