"""A task that only an agent with memory can solve: a cue is shown once, and asked for later.

    python examples/4_recurrent_ppo.py          with an LSTM: the mean return goes to 1
    python examples/4_recurrent_ppo.py none     without memory: it stays at chance, 0.5

The recurrent state is an argument and a result of the agent.  Samplers keep it from step to step, set it to null where
an episode begins, and record it at the start of each slot, where the algorithm begins its pass over the sequence.
"""

import argparse
from typing import Literal

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import RecallEnv


def make_trainer(recurrent: Literal["lstm", "gru"] | None = "lstm", total_env_steps: int = 60_000) -> Trainer:
    """PPO over whole sequences: minibatches are made of environments, not of rows."""
    return Trainer(
        name=f"example_4_{recurrent}",
        agent=ActorCriticAgent(
            model=ModelSpec(
                cls=ActorCritic, kwargs={"hidden_sizes": (32,), "recurrent": recurrent, "recurrent_size": 32}
            )
        ),
        algo=PPO(learning_rate=3e-3, discount=0.99, num_epochs=4, num_minibatches=4, entropy_coeff=0.01),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=RecallEnv, kwargs={"delay": 6}), batch=BatchSpec(num_steps=64, num_envs=16)
        ),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("lstm", "gru", "none"), default="lstm")
    kind = parser.parse_args().kind
    make_trainer(None if kind == "none" else kind).train()
