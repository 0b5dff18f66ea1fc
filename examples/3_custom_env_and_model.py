"""An environment and a network of your own.

    python examples/3_custom_env_and_model.py

Any `gymnasium.Env` will do; `check_env` says what is wrong with one, and how to mend it.  Any `nn.Module` with the
methods below will do for a model.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv, check_env
from rlsurreal.models import PolicyHead, ValueHead
from rlsurreal.runners import Trainer
from rlsurreal.samplers import ParallelSampler
from rlsurreal.structs import AgentInputs, BatchSpec


class Reach(gym.Env[Any, np.ndarray]):
    """Move a point on a plane to a goal.  The observation is a dictionary: where the point is, and where the goal."""

    def __init__(self, step_size: float = 0.2, max_steps: int = 30) -> None:
        self.step_size, self.max_steps = step_size, max_steps
        plane = gym.spaces.Box(-2, 2, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"position": plane, "goal": plane})
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.num_steps = 0
        return {"position": self.position, "goal": self.goal}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        self.position = np.clip(self.position + self.step_size * action, -2, 2).astype(np.float32)
        distance = float(np.linalg.norm(self.position - self.goal))
        terminated = distance < 0.1  # the task is over: nothing more can be earned
        truncated = self.num_steps >= self.max_steps  # cut off: the algorithm bootstraps from the last observation
        return {"position": self.position, "goal": self.goal}, -distance, terminated, truncated, {"distance": distance}


class DifferenceModel(nn.Module):
    """Looks at the way from the point to the goal, which is all that matters.

    Policy and value share no layer: returns of this task are about -30, and the value's gradients would drown the
    policy's.
    """

    recurrent = False

    def __init__(self, observation_space: gym.Space, distribution: Any, hidden_size: int = 32) -> None:
        super().__init__()

        def body() -> list[nn.Module]:
            return [nn.Linear(2, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh()]

        self.policy = nn.Sequential(*body(), PolicyHead(distribution, hidden_size))
        self.critic = nn.Sequential(*body(), ValueHead(hidden_size))

    def initial_state(self, num_envs: int) -> None:
        """None: no memory."""

    def forward(self, inputs: AgentInputs, state: Any = None, first: Tensor | None = None) -> Any:
        """Parameters of the action distribution, the value, and the next state."""
        return (self.policy(self.way(inputs)), self.value(inputs)), state

    def value(self, inputs: AgentInputs, state: Any = None, first: Tensor | None = None) -> Tensor:
        """The value alone."""
        value: Tensor = self.critic(self.way(inputs))
        return value

    def way(self, inputs: AgentInputs) -> Tensor:
        """From the point to the goal."""
        way: Tensor = inputs.observation.goal - inputs.observation.position
        return way


def make_trainer(total_env_steps: int = 100_000) -> Trainer:
    """Environments are named by what makes one of them, models by their class and its arguments."""
    return Trainer(
        name="example_3",
        agent=ActorCriticAgent(model=ModelSpec(cls=DifferenceModel, kwargs={"hidden_size": 32}), init_std=0.5),
        algo=PPO(learning_rate=2e-3, discount=0.95, num_epochs=8, num_minibatches=8),
        sampler=ParallelSampler(
            env=GymnasiumEnv(factory=Reach, kwargs={"max_steps": 30}, info_fields={"distance": 0.0}),
            batch=BatchSpec(num_steps=64, num_envs=16),
            num_workers=2,
        ),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for warning in check_env(Reach):
        print(f"check_env: {warning}")
    make_trainer().train()
