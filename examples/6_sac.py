"""SAC: a stochastic policy, learned from replay, on a task with continuous actions.

    python examples/6_sac.py                  Pendulum-v1 swings up, in a minute or two
    python examples/6_sac.py HalfCheetah-v5   a real task: an hour and more

One environment, and one update for each of its steps.  The policy belongs to the agent, which acts with it; critics and
the temperature are the algorithm's.
"""

import argparse

from rlsurreal.agents import PolicyAgent
from rlsurreal.algos import SAC
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.replays import Replay, ReplayRatio
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec


def make_trainer(env_id: str = "Pendulum-v1", total_env_steps: int = 10_000) -> Trainer:
    """A replay ratio of 256: each step is learned from, with others, 256 times on average."""
    is_small = env_id == "Pendulum-v1"
    return Trainer(
        name=f"example_6_{env_id}",
        agent=PolicyAgent(),
        algo=SAC(
            learning_rate=1e-3 if is_small else 3e-4,
            batch_size=256,
            replay=Replay(capacity=1_000_000),
            limiter=ReplayRatio(ratio=256, min_steps=500 if is_small else 10_000),
        ),
        sampler=SerialSampler(env=GymnasiumEnv(factory=env_id), batch=BatchSpec(num_steps=1, num_envs=1)),
        total_env_steps=total_env_steps,
        log_interval_steps=1_000,
        eval_interval_steps=2_500 if is_small else 25_000,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", default="Pendulum-v1")
    env_id = parser.parse_args().env_id
    make_trainer(env_id, 10_000 if env_id == "Pendulum-v1" else 1_000_000).train()
