"""DQN on Atari's Pong: learning from replay, in which each frame is kept once.

    python examples/5_dqn_pong.py           about an hour on two cores
    python examples/5_dqn_pong.py rainbow   the same with Rainbow's additions: other settings, not another algorithm

Needs pip install -e ".[atari]".
"""

import argparse

from rlsurreal.agents import Categorical, ModelSpec, QAgent
from rlsurreal.algos import DQN
from rlsurreal.envs import GymnasiumEnv, make_atari
from rlsurreal.models import QNetwork
from rlsurreal.replays import FrameStorage, NStep, Prioritized, Replay, ReplayRatio
from rlsurreal.runners import Trainer
from rlsurreal.samplers import ParallelSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear


def make_agent(kind: str = "dqn") -> QAgent:
    """Epsilon-greedy; Rainbow explores by the noise of its network, and learns the distribution of returns."""
    if kind == "dqn":
        return QAgent(epsilon=Linear(1.0, 0.02, until=0.3))
    model = ModelSpec(cls=QNetwork, kwargs={"dueling": True, "noisy": True, "num_atoms": 51})
    return QAgent(model=model, head=Categorical(-10.0, 10.0), epsilon=0.0)


def make_replay(kind: str = "dqn", capacity: int = 200_000) -> Replay:
    """Where rows are kept, which are drawn, what a batch is: three settings, in any combination."""
    if kind == "dqn":
        return Replay(capacity=capacity, storage=FrameStorage())
    return Replay(
        capacity=capacity,
        storage=FrameStorage(),
        selector=Prioritized(alpha=0.5, beta=Linear(0.4, 1.0)),
        extractor=NStep(num_steps=3),
    )


def make_trainer(kind: str = "dqn", total_env_steps: int = 300_000, min_steps: int = 10_000) -> Trainer:
    """An update of 32 transitions for every four steps: a replay ratio of 8."""
    env = GymnasiumEnv(
        factory=make_atari,
        kwargs={"game": "Pong", "episodic_life": True, "clip_reward": True},
        info_fields={"score": 0.0, "game_over": False},
    )
    return Trainer(
        name=f"example_5_{kind}",
        agent=make_agent(kind),
        algo=DQN(
            learning_rate=1e-4,
            target_interval=1_000,
            replay=make_replay(kind),
            limiter=ReplayRatio(ratio=8, min_steps=min_steps),
        ),
        sampler=ParallelSampler(env=env, batch=BatchSpec(num_steps=4, num_envs=8)),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("dqn", "rainbow"), default="dqn")
    make_trainer(parser.parse_args().kind).train()
