"""A trained agent, back from the folder of its run: to act with, to evaluate, to film.

agent = load_agent("runs/ppo_HalfCheetah-v5_0")
print(mean(game.score for game in agent.evaluate(num_episodes=10)))

env = agent.make_env()
observation, _ = env.reset()
action = agent.act(observation)
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.runners import Trainer
from rlsurreal.runners.checkpoints import BEST
from rlsurreal.samplers import SerialSampler
from rlsurreal.samplers.base import replica
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, TrajInfo
from rlsurreal.utils import config
from rlsurreal.utils.files import checkpoint_path, latest_checkpoint, load_checkpoint
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import box_border, map_spaces, null_value, to_env_action, writer
from rlsurreal.utils.torch_tree import to_device, to_numpy, to_torch

_EVALUATION_SEED = 1_000_000  # of environments, far from those of training
_RENDERS = 'an environment that is filmed takes render_mode="rgb_array", and its render() returns an array of the frame'


def load_experiment(run: str | Path) -> Trainer:
    """The experiment that made a run folder, its settings as they were.

    Raises:
        ValueError: there is none, or what it names is not there any more.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it has no config.json")
    trainer = config.from_tree(json.loads(path.read_text()))
    if not isinstance(trainer, Trainer):
        raise ValueError(f"{path} does not describe an experiment")
    return trainer


def load_agent(
    run: str | Path, checkpoint: str | int | None = None, *, experiment: Trainer | None = None, device: str = "cpu"
) -> TrainedAgent:
    """The agent of a run folder.

    Args:
        run: the folder.
        checkpoint: "best", "latest", or one that was kept, by its environment steps.  None: the best, if evaluations
            have chosen one, else the latest.
        experiment: what made the run.  None: as its config.json says, which names classes and functions; give it where
            they are defined in the script that runs.
        device: where the agent acts.

    Raises:
        ValueError: there is no such checkpoint, or the experiment cannot be rebuilt.
    """
    trainer = experiment or load_experiment(run)
    path = _find_checkpoint(Path(run) / "checkpoints", checkpoint, trainer.checkpoints.keep)
    return TrainedAgent(trainer, load_checkpoint(path)["agent"], path, device)


def film_problem(experiment: Trainer) -> str | None:
    """Why its episodes cannot be filmed, as far as that shows before an environment is made; or None."""
    env = experiment.sampler.eval_env  # type: ignore[attr-defined]
    if not isinstance(env, GymnasiumEnv):
        return f"the agent was evaluated in a {type(env).__name__}, which has no single environments"
    if not isinstance(env.factory, str):
        try:
            inspect.signature(env.factory).bind_partial(render_mode="rgb_array")
        except (TypeError, ValueError):
            return f"{env.name} takes no render_mode; {_RENDERS}"
    return None


def _find_checkpoint(folder: Path, which: str | int | None, keep: str) -> Path:
    best, latest = folder / BEST, latest_checkpoint(folder)
    if which is None:
        found = best if best.exists() else latest
    elif which in ("best", "latest"):
        found = best if which == "best" else latest
    else:
        found = checkpoint_path(folder, int(which)) if str(which).isdecimal() else None
    if found is None or not found.exists():
        there = ", ".join(sorted(path.name for path in folder.glob("*.pt")))
        if not there:
            why = "it was run with checkpoints.keep='none'" if keep == "none" else "it has saved none yet"
            raise ValueError(f"{folder.parent} has no checkpoint: {why}")
        raise ValueError(f"checkpoint is {which!r}; choose 'best', 'latest' or a number of steps: {folder} has {there}")
    return found


class TrainedAgent:
    """Acts in one environment at a time, as `gymnasium` has it, or plays whole episodes.

    Attributes:
        experiment: that trained it.
        path: of the checkpoint.
    """

    def __init__(self, experiment: Trainer, state: dict[str, Any], path: Path, device: str) -> None:
        """See `load_agent`."""
        self.experiment, self.path, self._device = experiment, path, device
        self._agent: Any = replica(experiment.agent)  # the experiment's own may be in use
        self._state = state
        self._env_spec: Any = experiment.sampler.eval_env  # type: ignore[attr-defined]
        self._border: _Border | None = None

    # ------------------------------------------------------------ step by step

    def make_env(self, **kwargs: Any) -> gym.Env:
        """An environment as it was evaluated in; ``kwargs``: of the environment, e.g. ``render_mode="human"``."""
        return self._gymnasium(kwargs).make_one()

    def reset(self) -> None:
        """Forget what was seen: to be called where an episode begins, by agents with memory at least."""
        self._episode().reset()

    def act(self, observation: Any, reward: float | None = None, *, deterministic: bool = True) -> Any:
        """The action for an observation, both as the environment has them.

        Args:
            observation: of the environment's space.
            reward: that came with it; agents with memory look at it, others need none.
            deterministic: the most likely action; False: one drawn as in training.

        Raises:
            ValueError: the agent has memory, and was not told the reward of its last action.
        """
        return self._episode().act(observation, reward, deterministic)

    def _episode(self) -> _Border:
        if self._border is None:
            agent = self._agent
            envs = self._gymnasium({}).make(1, 0, 0)
            agent.initialize(envs.spaces, seed=0, device=self._device)
            agent.load_state_dict(self._state)
            self._border = _Border(agent, envs.envs[0].observation_space, envs.envs[0].action_space)
            envs.close()
        return self._border

    def _gymnasium(self, kwargs: dict[str, Any]) -> GymnasiumEnv:
        if not isinstance(self._env_spec, GymnasiumEnv):
            raise ValueError(
                f"the agent was evaluated in a {type(self._env_spec).__name__}, which has no single environments; "
                "use evaluate"
            )
        return dataclasses.replace(self._env_spec, kwargs={**self._env_spec.kwargs, **kwargs})

    def policy(self) -> nn.Module:
        """The network alone, for other programs: `torch.export`, ONNX, batches of one's own.

        It maps observations ``[N, ...]``, a tensor or a structure of tensors as `Spaces.observation` has them, to the
        most likely actions ``[N, ...]`` in the environment's units, on the agent's device.  It is a copy.

        Raises:
            ValueError: the agent has memory.
        """
        border = self._episode()
        if self._agent.uses_previous:
            raise ValueError("the agent has memory, which act() keeps between steps; a policy for export has none")
        return _Policy(copy.deepcopy(self._agent), border.action_space)

    # ------------------------------------------------------------ whole episodes

    def evaluate(
        self, num_episodes: int = 10, *, deterministic: bool | None = None, seed: int = _EVALUATION_SEED
    ) -> list[TrajInfo]:
        """Play episodes, spread evenly over up to ten environments.

        ``deterministic``: with the most likely actions, or with drawn ones; None: as the experiment evaluates.

        Raises:
            ValueError: ``num_episodes`` is less than 1.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes is {num_episodes}; it must be at least 1")
        num_envs = max(n for n in range(1, min(10, num_episodes) + 1) if num_episodes % n == 0)
        episodes = num_episodes // num_envs
        sampler = self._sampler(self._env_spec, deterministic, num_envs=num_envs, episodes_per_env=episodes)
        try:
            self._connect(sampler, seed)
            return sampler.evaluate() or []
        finally:
            sampler.close()

    def film(
        self, max_steps: int = 10_000, *, deterministic: bool | None = None, seed: int = _EVALUATION_SEED
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Frames uint8 ``[height, width, 3]`` of one episode, each with the number to be shown a second.

        Raises:
            ValueError: the environment does not render.
            EnvError: it cannot be made.
        """
        problem = film_problem(self.experiment)
        if problem is not None:
            raise ValueError(problem)
        kwargs = {"render_mode": "rgb_array"}
        if any("gymnasium.envs.mujoco" in module for module in self._env_spec.preload_modules()):
            kwargs["camera_name"] = "track"  # or the animal runs out of the picture
        sampler = self._sampler(self._gymnasium(kwargs), deterministic, num_envs=1, num_steps=1)
        try:
            self._connect(sampler, seed)
            for frame in sampler.film(max_steps):
                if not isinstance(frame, np.ndarray):
                    raise ValueError(f"{self._env_spec.name}.render() returned {frame!r}; {_RENDERS}")
                yield frame, sampler.render_fps
        finally:
            sampler.close()

    def _sampler(self, env: Any, deterministic: bool | None, **evaluation: int) -> SerialSampler:
        settings: Any = self.experiment.sampler
        spec = dataclasses.replace(settings.evaluation, env=None, **evaluation)
        if deterministic is not None:
            spec = dataclasses.replace(spec, deterministic=deterministic)
        idle = BatchSpec(1, 1, first_env=spec.first_env + spec.num_envs)  # with a number of its own
        return SerialSampler(env=env, batch=idle, evaluation=spec)

    def _connect(self, sampler: SerialSampler, seed: int) -> None:
        agent = self._agent
        self._border = None  # the agent is built anew
        agent.initialize(sampler.connect(seed=seed), seed=0, device=self._device)
        agent.load_state_dict(self._state)
        sampler.initialize(agent, discount=self.experiment.algo.discount)


class _Border:
    """An agent's memory in one environment, and what lies between the two: the types of numbers, the action's range."""

    def __init__(self, agent: Any, observation_space: gym.Space, action_space: gym.Space) -> None:
        self._agent, self.action_space = agent, action_space
        self._observation = tree_map(lambda a: a[None].copy(), null_value(observation_space))
        self._write = writer(observation_space)
        self._to_env = to_env_action(action_space)
        self._rng = np.random.default_rng(0)
        self.reset()

    def reset(self) -> None:
        agent = self._agent
        self._memory: Tree = agent.initial_state(1)
        self._prev_action = to_torch(tree_map(lambda a: np.asarray(a)[None], null_value(agent.spaces.action)))
        self._begins = True

    @torch.inference_mode()
    def act(self, observation: Any, reward: float | None, deterministic: bool) -> Any:
        agent = self._agent
        try:
            self._write(self._observation, 0, observation)
        except (ValueError, TypeError) as error:
            is_pair = isinstance(observation, tuple) and len(observation) > 1 and isinstance(observation[-1], Mapping)
            hint = "; act(observation), not what reset and step return with it" if is_pair else ""
            raise ValueError(f"the observation {error}{hint}") from error
        inputs = AgentInputs(to_torch(self._observation))
        if agent.uses_previous:
            if reward is None and not self._begins:
                raise ValueError(
                    "the agent has memory, and looks at rewards: act(observation, reward), with what the last step "
                    "gave; where an episode begins, reset() first"
                )
            prev_reward = torch.tensor([0.0 if self._begins else float(reward or 0.0)])
            inputs = AgentInputs(inputs.observation, self._prev_action, prev_reward)
        noise = None if deterministic else self._noise()
        step, self._memory = agent.act(to_device(inputs, agent.device), self._memory, noise)
        self._prev_action = tree_map(lambda t: t.cpu().clone(), step.action)
        self._begins = False
        return self._to_env(to_numpy(self._prev_action))[0]

    def _noise(self) -> Noise:
        spec = self._agent.noise_spec
        normal = self._rng.standard_normal((1, spec.normal), np.float32) if spec.normal else None
        uniform = self._rng.random((1, spec.uniform), np.float32) if spec.uniform else None
        found: Noise = to_device(to_torch(Noise(normal, uniform)), self._agent.device)
        return found


class _Policy(nn.Module):
    """See `TrainedAgent.policy`."""

    def __init__(self, agent: Any, action_space: gym.Space) -> None:
        super().__init__()
        self.module = agent.module
        self._agent = agent
        self._to_env: Tree = map_spaces(_ToEnv, action_space)
        self.border = nn.ModuleList(leaves(self._to_env))

    @torch.no_grad()
    def forward(self, observation: Tree) -> Tree:
        count = leaves(observation)[0].shape[0]  # not len(): an exported program would have it as a constant
        step, _ = self._agent.act(AgentInputs(observation), self._agent.initial_state(count), None)
        return tree_map(lambda action, convert: convert(action), step.action, self._to_env)


class _ToEnv(nn.Module):
    """`to_env_action` of a leaf space, for tensors."""

    floor: Tensor
    ceiling: Tensor
    scale: Tensor
    middle: Tensor
    start: Tensor

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self._is_box = isinstance(space, gym.spaces.Box)
        self._dtype = torch.as_tensor(np.zeros(0, space.dtype)).dtype
        numbers = dict(start=getattr(space, "start", 0))
        if isinstance(space, gym.spaces.Box):
            numbers = dict(zip(("floor", "ceiling", "scale", "middle"), box_border(space)))
        for name, value in numbers.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32 if self._is_box else torch.int64))

    def forward(self, action: Tensor) -> Tensor:
        if self._is_box:
            action = torch.minimum(torch.maximum(action, self.floor), self.ceiling) * self.scale + self.middle
        else:
            action = action + self.start
        return action.to(self._dtype)
