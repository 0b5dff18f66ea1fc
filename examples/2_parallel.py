"""The same experiment in worker processes, by one changed argument: the sampler.

    python examples/2_parallel.py workers       each worker steps environments and has a copy of the agent
    python examples/2_parallel.py server        workers step environments, the agent acts for all of them in one batch
    python examples/2_parallel.py alternating   the same in two groups: one steps while the agent acts for the other
    python examples/2_parallel.py overlapped    workers fill the next slot while the learner learns from this one

The first three give the trajectories of example 1, seed for seed, up to the rounding of their batches.
"""

import argparse
from typing import Any

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.runners import Trainer
from rlsurreal.samplers import InferenceServer, ParallelSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear

SAMPLERS: dict[str, dict[str, Any]] = {
    "workers": {},
    "server": {"inference": InferenceServer()},
    "alternating": {"inference": InferenceServer(schedule="alternating")},
    "overlapped": {"num_slots": 2},
}


def make_trainer(kind: str = "workers", total_env_steps: int = 100_000) -> Trainer:
    """Example 1 with another sampler."""
    return Trainer(
        name=f"example_2_{kind}",
        agent=ActorCriticAgent(),
        algo=PPO(learning_rate=Linear(1e-3, 0.0), discount=0.98, gae_lambda=0.8, num_epochs=10, num_minibatches=4),
        sampler=ParallelSampler(
            env=GymnasiumEnv(factory="CartPole-v1"),
            batch=BatchSpec(num_steps=32, num_envs=16),
            num_workers=2,
            **SAMPLERS[kind],
        ),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=SAMPLERS, default="workers")
    make_trainer(parser.parse_args().kind).train()
