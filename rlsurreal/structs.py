"""The vocabulary: the data that flows through rlsurreal, and what its parts ask of each other.

Data is ``[T, B]``: T time steps (rows) by B environments (columns).  A slot has T rows and one bootstrap row, so its
arrays have ``T + 1`` rows.  Environments reset on the step after the one that ended the episode:

    row         t              t+1             t+2
    step        ends episode   reset row       first of the next
    valid       True           False           True
    first       False          False           True
    observation before t       true final one  first of the next
    terminated  True (or       False           False
    truncated   ... True)

so that the observation after row t is row t+1, always.  This module needs numpy and gymnasium, never torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree

if TYPE_CHECKING:
    import gymnasium as gym
    import torch

    from rlsurreal.utils.programs import Compile, Program


# ---------------------------------------------------------------- data


class AgentInputs(NamedArrayTuple):
    """What an agent sees in one row, leading dimensions ``[B]`` or ``[T, B]``."""

    observation: Tree
    prev_action: Tree = None  # action of the row before; null where `first`
    prev_reward: Any = None  # float32, reward of the row before; 0 where `first`


class AgentStep(NamedArrayTuple):
    """What an agent answers for one row."""

    action: Tree  # the policy's own, before the environment's border clips and rescales it
    agent_info: Tree = None  # what the algorithm wants recorded: distribution parameters, log-probability, value


class Noise(NamedArrayTuple):
    """Random numbers for one row: the only source of chance in `Agent.act`."""

    normal: Any = None  # float32 [..., num_normal], standard normal
    uniform: Any = None  # float32 [..., num_uniform], in [0, 1)
    evaluation: Any = None  # the same for deterministic evaluation, which has none of the others


class AgentSamples(NamedArrayTuple):
    """The agent's half of a slot."""

    action: Tree  # [T+1, B]; row T is not filled
    prev_action: Tree  # [T+1, B] or None
    agent_info: Tree  # [T+1, B]; row T is not filled
    agent_state: Tree  # [T / state_interval + 1, B]: the state before rows 0, interval, 2 interval, ..., T; or None


class EnvSamples(NamedArrayTuple):
    """The environments' half of a slot.  Row T of the fields marked * is filled, and is row 0 of the next slot."""

    observation: Tree  # * [T+1, B]
    reward: Any  # float32 [T+1, B]
    prev_reward: Any  # * float32 [T+1, B] or None
    terminated: Any  # bool [T+1, B]: the MDP ended at this row: bootstrap 0
    truncated: Any  # bool [T+1, B]: cut off at this row: bootstrap from the observation of row t+1
    valid: Any  # bool [T+1, B]: the action of this row was applied to the environment
    first: Any  # * bool [T+1, B]: agent state, previous action and previous reward are null at this row
    env_info: Tree  # [T+1, B]: recorded entries of the info dictionaries, or None


class Samples(NamedArrayTuple):
    """One slot of experience."""

    agent: AgentSamples
    env: EnvSamples
    policy_version: Any  # int64 [T+1, B]: the version of the parameters that chose the action


def inputs_of(samples: Samples) -> AgentInputs:
    """What the agent saw, all rows of ``samples``: views."""
    return AgentInputs(samples.env.observation, samples.agent.prev_action, samples.env.prev_reward)


class EnvStep(NamedArrayTuple):
    """Where a `VectorEnv` writes one step: views ``[B]`` into row t, and into row t+1 for what the step leads to."""

    observation: Tree  # row t+1
    reward: Any
    terminated: Any
    truncated: Any
    valid: Any
    first: Any  # row t+1
    env_info: Tree


# ---------------------------------------------------------------- descriptions


@dataclass(frozen=True)
class BatchSpec:
    """The size of a slot, and where its columns stand among all environments of the run.

    Random streams, seeds and exploration scales are keyed by the global index of an environment, so that a run does not
    depend on how its environments are divided over workers, groups and ranks.
    """

    num_steps: int  # T
    num_envs: int  # B
    first_env: int = 0  # global index of column 0
    total_envs: int | None = None  # environments over all ranks; None: up to this rank's last

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"BatchSpec.{name} is {getattr(self, name)}; it must be at least 1")
        if self.first_env < 0:
            raise ValueError(f"BatchSpec.first_env is {self.first_env}; environments are numbered from 0")
        if self.total_envs is not None and self.first_env + self.num_envs > self.total_envs:
            raise ValueError(
                f"BatchSpec.total_envs is {self.total_envs}, but environments {self.first_env} to "
                f"{self.first_env + self.num_envs - 1} are this rank's; it must count those of all ranks"
            )

    @property
    def size(self) -> int:
        """Rows times columns."""
        return self.num_steps * self.num_envs


@dataclass(frozen=True)
class Spaces:
    """What agents see and answer: single-environment spaces at the agent's side of the environment's border.

    Bounded boxes of actions are [-1, 1] here whatever their bounds in the environment; float64 is float32.
    """

    observation: gym.Space
    action: gym.Space


@dataclass(frozen=True)
class NoiseSpec:
    """How many random numbers one environment needs for one action."""

    normal: int = 0
    uniform: int = 0
    evaluation: int = 0  # uniform ones, where the agent is evaluated and not all is the most likely action

    def __add__(self, other: NoiseSpec) -> NoiseSpec:
        return NoiseSpec(self.normal + other.normal, self.uniform + other.uniform, self.evaluation + other.evaluation)


@dataclass(frozen=True)
class TrajInfo:
    """Statistics of one whole game, whatever parts of it the learner called an episode."""

    env: int  # global index
    total_reward: float  # undiscounted sum of the rewards the learner saw
    length: int  # environment steps
    discounted_return: float
    score: float  # undiscounted sum before reward clipping or shaping (equal to `total_reward` where there is none)
    info: dict[str, float] = field(default_factory=dict)  # what the environment said in the last step, where recorded


# ---------------------------------------------------------------- what the parts ask of each other


def never() -> bool:
    """When an evaluation is given up unless somebody says so."""
    return False


class VectorEnv(Protocol):
    """A batch of environments with next-step reset, stepped together and written straight into the slot."""

    num_envs: int
    spaces: Spaces
    info_example: Tree  # env_info of one environment, or None
    can_skip: bool  # whether single environments can be left out of a step
    position: np.ndarray | None  # int64 []: if given, the global index of the environment being stepped is kept there

    def reset(self, observation: Tree) -> None:
        """Start new episodes everywhere and write their first observations, ``[B]``."""

    def step(self, action: Tree, out: EnvStep, skip: np.ndarray | None = None) -> None:
        """Apply ``action`` ``[B]`` and write all fields of ``out``.

        An environment whose episode ended in its last step is reset instead: it ignores the action, its row is not
        ``valid``, reward and flags are 0, and ``first`` is set.  Where ``skip`` is set nothing happens to the
        environment: ``valid`` and the flags are cleared, and ``observation`` and ``first`` are left for the caller.
        """

    def close(self) -> None:
        """Free what the environments hold.  May be called twice."""


@runtime_checkable
class HasState(Protocol):
    """What can be saved and continued bit for bit."""

    def get_state(self) -> Any:
        """A copy of the state, to be pickled."""

    def set_state(self, state: Any) -> None:
        """Continue from `get_state`."""


class EnvSpec(Protocol):
    """A picklable recipe for a batch of environments."""

    def make(self, num_envs: int, first_env: int, seed: int) -> VectorEnv:
        """Environments ``first_env`` to ``first_env + num_envs - 1`` of the run, seeded by (seed, global index)."""

    def preload_modules(self) -> tuple[str, ...]:
        """Modules that a worker process will import anyway (loaded once, then shared between workers)."""


class Agent(Protocol):
    """Chooses actions.  Whatever it carries from step to step is an argument and a result, owned by the caller."""

    spaces: Spaces
    version: int  # of the parameters now in use
    noise_spec: NoiseSpec
    uses_previous: bool  # whether prev_action and prev_reward are wanted
    device: torch.device

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Build the model."""

    def initial_state(self, num_envs: int, first_env: int = 0) -> Tree:
        """The null state, ``[B]`` tensors, or None for agents that carry nothing from step to step.

        ``first_env``: global index of the first environment: exploration may differ from one to the next.
        """

    def act(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """Choose actions for ``[B]`` inputs; without noise the most likely ones (deterministic evaluation)."""

    def publish(self, version: int) -> None:
        """Make the present parameters, as ``version``, available to every copy of this agent."""

    def share(self) -> Any:
        """Open the way to copies in other processes: a picklable link; from now on `publish` writes there."""

    def follow(self, link: Any) -> None:
        """Be a copy: take parameters from ``link`` at every `pull`."""

    def pull(self) -> None:
        """Take the newest published parameters, if they are new."""


@runtime_checkable
class CompilesAct(Protocol):
    """An agent whose choice of actions can be compiled."""

    def compile_act(self, inputs: AgentInputs, state: Tree, noise: Noise, step: AgentStep, num_threads: int) -> Program:
        """A program ``(act_tensors(), inputs, state, step, noise)`` that acts on a CPU: writes ``step`` and ``state``.

        The arguments are examples, and the number of threads of the process that will run it.

        Raises:
            CompileError: it cannot be compiled.
        """

    def act_tensors(self) -> dict[str, torch.Tensor]:
        """The program's first argument: what the model computes with."""


class Algorithm(Protocol):
    """Learns from samples.

    It may have ``console_columns``: those of its metrics that a terminal shows, titles and names.
    """

    discount: float

    def wants_threads(self, num_rows: int) -> bool:
        """Whether its updates from slots of so many rows are bound by arithmetic, however small the network."""

    def initialize(
        self,
        agent: Any,
        batch: BatchSpec,
        *,
        seed: int,
        compile: Compile = "off",
        num_iterations: int | None = None,
        ranks: Any = ...,
    ) -> None:
        """Build optimizers and other run-time state.

        Args:
            agent: initialized.
            batch: the slots that `update` will see.
            seed: of what is drawn in updates.
            compile: gradient steps; "auto": if the run is long enough to earn back the time that it takes.
            num_iterations: calls of `update` to come, as far as that is known.
            ranks: a `rlsurreal.distributed.ranks.Ranks`: which one this is, and the way to the others.
        """

    def update(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """Learn from one slot, the part ``progress`` of the run being done.

        Returns metrics: numbers, or 0-dim tensors that may still be on the device.
        """

    def take_metrics(self) -> Mapping[str, Any]:
        """What there is beyond the metrics that `update` gave, before a row is logged; of all ranks at once."""

    def close(self) -> None:
        """Give up what is large.  May be called twice, and before `initialize`."""

    def divided(self, ranks: Any, scaling: Literal["strong", "weak"]) -> Algorithm:
        """This one of several ranks' part of the algorithm, before it is initialized.

        "strong": of batches and replay a part; "weak": as much as there is.  ValueError if it cannot be divided.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, besides the agent.

        What is this rank's own, and need not be like that of others, is under ``"own"``.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ``"own"`` is None where the number of ranks was another one."""


class Sampler(Protocol):
    """Steps environments with an agent and hands out slots of experience."""

    batch: BatchSpec
    evaluation: Any  # a dataclass with num_envs and first_env, among others

    def divided(self, batch: BatchSpec, evaluation: Any) -> Sampler:
        """One rank's part of this sampler, before it is connected."""

    def connect(self, *, seed: int) -> Spaces:
        """Find out the spaces (the environments may be built by this)."""

    def initialize(
        self, agent: Any, *, discount: float, compile: Compile = "off", num_iterations: int | None = None
    ) -> None:
        """Allocate the slots and start sampling processes.  ``agent`` is initialized already.

        ``compile``: whether to compile the choice of actions; ``num_iterations``: slots to come, if known.
        """

    def obtain(self) -> Samples:
        """The next slot, torch tensors ``[T+1, B]`` over the sampler's memory, leased until `release`."""

    def release(self, samples: Samples) -> None:
        """Give the slot back to be filled anew."""

    def pop_trajectories(self) -> list[TrajInfo]:
        """Games that ended in the slots obtained since the last call."""

    def evaluate(self, give_up: Callable[[], bool] = never) -> list[TrajInfo] | None:
        """Play a fixed number of episodes in each evaluation environment, without touching the sampling state.

        None: ``give_up()`` wanted it, which is asked now and then.
        """

    def wait_shares(self) -> dict[str, float]:
        """The parts of the time since the last call that its processes spent waiting, by kind of process."""

    def get_state(self, *, exact: bool = True) -> dict[str, Any]:
        """What can be saved of the sampling state; without ``exact`` only what a resumed run must not repeat."""

    def set_state(self, state: dict[str, Any]) -> bool:
        """Continue from `get_state`; False where environments begin new episodes instead."""

    def close(self) -> None:
        """Stop all processes and free all memory.  May be called twice."""
