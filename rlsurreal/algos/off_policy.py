"""What the algorithms that learn from replay share: experience in, updates at the replay ratio, target networks.

update(samples): append -> as many updates as are due, each: sample -> gradient step(s) -> priorities, targets
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from rlsurreal.agents import ModelAgent
from rlsurreal.algos.checks import check_agent, check_max_grad_norm
from rlsurreal.algos.update import GradientStep, flatten_parameters
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.ops.values import polyak
from rlsurreal.replays import Fifo, Replay, ReplayRatio, Ticket, Windows
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.programs import Compile, should_compile
from rlsurreal.utils.schedules import Schedule, as_schedule
from rlsurreal.utils.seeding import derive_seed
from rlsurreal.utils.torch_tree import load_saved, upload

_UPDATES_PER_READING = 64  # of the metrics

_log = logging.getLogger("rlsurreal")


class Parts(NamedTuple):
    """What an algorithm has built, by name: all that is logged, saved and restored alike."""

    steps: Mapping[str, tuple[GradientStep, Sequence[str]]]  # and the names of their metrics
    targets: Mapping[str, Target]
    networks: Mapping[str, nn.Module]  # that are not the agent's


@dataclass(kw_only=True, eq=False)
class OffPolicy:
    """Hyperparameters of the algorithms that learn from replay."""

    discount: float = 0.99
    batch_size: int = 256
    replay: Replay = field(default_factory=Replay)
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=256))
    save_replay: bool = False  # with checkpoints, so that a resumed run is exact; large
    learning_rate: float | Schedule = 3e-4
    adam_eps: float = 1e-8
    max_grad_norm: float = math.inf  # of each network's gradient
    target_interval: int = 1  # updates from one step of the target networks to the next
    target_tau: float = 0.005  # how far they go in each; 1: all the way

    console_columns: ClassVar[Mapping[str, str]] = {"updates": "update/updates", "value": "value/mean"}

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ValueError(f"{type(self).__name__}.discount is {self.discount}; it must lie in [0, 1]")
        if self.batch_size < 1:
            raise ValueError(f"{type(self).__name__}.batch_size is {self.batch_size}; it must be at least 1")
        self._learning_rate_at = as_schedule(self.learning_rate, f"{type(self).__name__}.learning_rate", least=0)
        if not self.adam_eps > 0:
            raise ValueError(f"{type(self).__name__}.adam_eps is {self.adam_eps}; it must be positive")
        check_max_grad_norm(self)
        if self.target_interval < 1:
            raise ValueError(f"{type(self).__name__}.target_interval is {self.target_interval}; it must be at least 1")
        if not 0 < self.target_tau <= 1:
            raise ValueError(f"{type(self).__name__}.target_tau is {self.target_tau}; it must lie in (0, 1]")
        if isinstance(self.replay.selector, Fifo) and self.limiter.min_steps > 1:
            raise ValueError(
                f"{type(self).__name__}.limiter.min_steps is {self.limiter.min_steps}, and replay.selector is Fifo, "
                "which draws in order: what is learned from would be so old for ever; make it 1"
            )
        if isinstance(self.replay.extractor, Windows) != self._learns_sequences:
            what, whose = ("sequences", "Windows") if self._learns_sequences else ("transitions", "NStep")
            raise ValueError(
                f"{type(self).__name__} learns from {what}: it needs Replay(extractor={whose}(...)), and has "
                f"{type(self.replay.extractor).__name__}"
            )

    def initialize(
        self,
        agent: Any,
        batch: BatchSpec,
        *,
        seed: int,
        compile: Compile = "off",
        num_iterations: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Build optimizers, target networks and the replay; see `rlsurreal.structs.Algorithm`."""
        check_agent(self, agent, self._agent_class)
        self._agent, self._batch, self._seed, self._ranks = agent, batch, seed, ranks
        self._num_envs = batch.total_envs or batch.first_env + batch.num_envs
        own_seed = ranks.own_seed(seed)
        self._generator = torch.Generator(device=agent.device).manual_seed(own_seed)
        if ranks.count > 1 and isinstance(self.replay.selector, Fifo):
            raise ValueError(
                f"replay.selector is Fifo, and there are {ranks.count} ranks, whose items come unevenly; use Uniform"
            )
        self.limiter.initialize()
        self.replay.initialize(
            batch, seed=own_seed, discount=self.discount, device=agent.device, keep_agent_info=self._keeps_agent_info
        )
        num_updates = None
        if num_iterations is not None:
            rows_per_update = self.batch_size * self.replay.extractor.num_learned
            num_rows = num_iterations * batch.num_steps * self._num_envs  # of all ranks, who must decide alike
            num_learned = max(0, num_rows - self.limiter.min_steps)
            num_updates = int(num_learned * self.limiter.ratio / (rows_per_update * ranks.count))
            if num_updates == 0:
                _log.warning(
                    "nothing will be learned: the run has %d environment steps, limiter.min_steps is %d and an update "
                    "wants %d rows at limiter.ratio=%g",
                    num_rows,
                    self.limiter.min_steps,
                    rows_per_update,
                    self.limiter.ratio,
                )
        self._num_updates = self._num_unread = 0
        compiled = should_compile(compile, num_updates, self._seconds_saved, recurrent=self._learns_sequences)
        self._parts = self._build(compiled)

    _agent_class: ClassVar[type] = ModelAgent
    _learns_sequences = False
    _keeps_agent_info = False  # in the replay
    _seconds_saved = 1e-3  # by compiling, in each update of small networks on one CPU core

    def wants_threads(self, num_rows: int) -> bool:
        """Yes: batches of hundreds go through layers of hundreds."""
        return True

    @abstractmethod
    def _build(self, compiled: bool) -> Parts:
        """Optimizers, target networks, and networks of the algorithm's own."""

    @abstractmethod
    def _update(self, batch: Tree, progress: float) -> Tensor:
        """One update, but for the target networks, which follow afterwards; new priorities ``[N]``."""

    def update(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """Take in a slot, and make the updates that are due.  Metrics: means over those since they were taken."""
        self.replay.append(samples, self._first_priority())
        self._update_normalizers(samples)
        # Steps and items are counted over all ranks, which so make equally many updates.
        self.limiter.appended(int(self._ranks.sum(samples.env.valid[: self._batch.num_steps].sum())))
        # A resumed run fills its replay with what the agent does by now.
        at_random = self._num_updates == 0 and not self.limiter.has_begun
        explored = self._agent.explore(progress, self._num_envs, at_random=at_random)
        num_rows = self.batch_size * self.replay.extractor.num_learned * self._ranks.count
        num_updates = self.limiter.take(num_rows, most=self.replay.num_batches(self.batch_size))
        for _ in range(num_updates):
            batch, ticket = self.replay.sample(self.batch_size, progress)
            batch = self._with_common_weights(batch, ticket)
            self._set_priorities(ticket, self._learn(batch, progress))
        self._num_unread += num_updates
        metrics = {
            "replay/ratio": self.limiter.achieved,
            "update/updates": self._num_updates,
            "update/learning_rate": self._learning_rate_at(progress),
            **explored,
        }
        # Reading takes as long as a small update: that is done often only at first.
        is_due = self._num_unread >= (1 if self._num_updates <= _UPDATES_PER_READING else _UPDATES_PER_READING)
        return metrics | self._read_metrics(GradientStep.metrics) if is_due else metrics

    def _learn(self, batch: Tree, progress: float) -> Tensor:
        priority = self._update(batch, progress)
        self._num_updates += 1
        if self._num_updates % self.target_interval == 0:
            for target in self._parts.targets.values():
                target.follow(self.target_tau)
        return priority

    def _with_common_weights(self, batch: Tree, ticket: Ticket) -> Tree:
        """Importance weights whose largest is 1 over all ranks, not on each."""
        if self._ranks.count == 1 or not self.replay.selector.uses_priority:
            return batch
        own = torch.tensor(ticket.largest_weight, dtype=torch.float64, device=self._agent.device)
        share = own / self._ranks.max(own.clone())
        return batch._replace(weight=batch.weight * share.to(batch.weight.dtype))

    def _update_normalizers(self, samples: Samples) -> None:
        """Take the slot into the running statistics of all networks that keep some."""
        networks = (self._agent.module, *self._parts.networks.values())
        found: list[Any] = [getattr(network, "normalizer", None) for network in networks]
        normalizers = [normalizer for normalizer in found if normalizer is not None]
        if normalizers:
            env, device = samples.env[: self._batch.num_steps], self._agent.device
            observation, valid = upload(env.observation, device), upload(env.valid, device)
            for normalizer in normalizers:
                normalizer.update(observation, valid, self._ranks.sum)

    def take_metrics(self) -> dict[str, Any]:
        """Means over the gradient steps since the last call."""
        return self._read_metrics(GradientStep.take_metrics)

    def _read_metrics(self, means: Callable[[GradientStep], Tensor]) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        self._num_unread = 0
        for step, names in self._parts.steps.values():
            if step.num_steps:
                metrics |= zip(names, means(step))
        return metrics

    def _set_priorities(self, ticket: Ticket, priority: Tensor) -> None:
        if self.replay.selector.uses_priority:  # else nobody waits for the device
            self.replay.update_priorities(ticket, priority.cpu().numpy())

    def _first_priority(self) -> Callable[[Callable[[str], Tree]], np.ndarray] | None:
        """See `Replay.append`; None: the selector's own."""
        return None

    def close(self) -> None:
        """Give up the replay."""
        self.replay.close()

    def divided(self, ranks: Ranks, scaling: Literal["strong", "weak"]) -> Self:
        """See `rlsurreal.structs.Algorithm`: a part of each batch, and of the replay."""
        own = self.replay.of_rank(ranks.index)
        if scaling == "weak":
            return dataclasses.replace(self, replay=own)
        count = ranks.count
        for name, number in (("batch_size", self.batch_size), ("replay.capacity", self.replay.capacity)):
            if number % count:
                raise ValueError(f"algo.{name} is {number}; it must be divisible by the {count} ranks")
        replay = dataclasses.replace(own, capacity=self.replay.capacity // count)
        return dataclasses.replace(self, batch_size=self.batch_size // count, replay=replay)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, besides the agent."""
        return {
            "num_updates": self._num_updates,
            "num_unread": self._num_unread,
            "limiter": self.limiter.state_dict(),
            "steps": {name: step.state_dict() for name, (step, _) in self._parts.steps.items()},
            "targets": {name: target.state_dict() for name, target in self._parts.targets.items()},
            "networks": {name: _copy(network.state_dict()) for name, network in self._parts.networks.items()},
            "own": {
                "generator": self._generator.get_state(),
                "sums": {name: step.sums.clone() for name, (step, _) in self._parts.steps.items()},  # this rank's
                "replay": self.replay.state_dict() if self.save_replay else None,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; without a saved replay it fills anew before learning goes on.

        Raises:
            ValueError: it is that of other networks.
        """
        for name, network in self._parts.networks.items():  # first: of what belongs to them only the length would tell
            load_saved(network, state["networks"][name], f"network {name!r}", "algo")
        self._num_updates, self._num_unread = state["num_updates"], state["num_unread"]
        for name, (step, _) in self._parts.steps.items():
            step.load_state_dict(state["steps"][name])
        for name, target in self._parts.targets.items():
            target.load_state_dict(state["targets"][name])
        own = state["own"]
        if self._num_updates and not (own and own["replay"] and self.save_replay):
            _log.info("the replay was not saved: learning goes on when it has %d steps again", self.limiter.min_steps)
        if own is not None:
            self._set_generator(own["generator"])
            for name, (step, _) in self._parts.steps.items():
                step.sums.copy_(own["sums"][name])
            if own["replay"] is not None and self.save_replay:
                self.limiter.load_state_dict(state["limiter"])
                self.replay.load_state_dict(own["replay"])

    def _set_generator(self, state: Tensor) -> None:
        if state.shape == self._generator.get_state().shape:
            self._generator.set_state(state)
        else:  # a GPU's is another one
            _log.warning("the checkpoint is of another kind of device: what updates draw goes on from a new seed")
            self._generator.manual_seed(derive_seed(self._seed, "resumed", self._ranks.index, self._num_updates))


class Target:
    """A copy of a network that follows it; equal to it at the start."""

    def __init__(self, module: nn.Module) -> None:
        self._online = flatten_parameters(module)
        self.module = copy.deepcopy(module)
        self._flat = flatten_parameters(self.module)
        self.module.requires_grad_(False)
        # What is not trained (statistics of observations, exploration) is not copied, but shared.
        for own, theirs in zip(self.module.modules(), module.modules(), strict=True):
            own._buffers.update(theirs._buffers)

    def follow(self, tau: float = 1.0) -> None:
        """Go the part ``tau`` of the way to the network."""
        polyak(self._flat, self._online, tau)

    def state_dict(self) -> Tensor:
        """All parameters."""
        return self._flat.clone()

    def load_state_dict(self, state: Tensor) -> None:
        """Continue from `state_dict`."""
        self._flat.copy_(state)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
