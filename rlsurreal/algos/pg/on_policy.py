"""What the on-policy algorithms share: hyperparameters, and a slot made ready to learn from."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos.checks import check_agent, check_max_grad_norm
from rlsurreal.algos.pg.rewards import RewardScaler
from rlsurreal.algos.update import GradientStep
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.ops.losses import explained_variance, masked_normalize, normalize_groups
from rlsurreal.ops.returns import generalized_advantage_estimation
from rlsurreal.structs import AgentInputs, BatchSpec, Samples, inputs_of
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves, tree_map
from rlsurreal.utils.programs import Compile, should_compile
from rlsurreal.utils.schedules import Schedule, as_schedule
from rlsurreal.utils.torch_tree import upload

_MANY_ROWS = 1_000  # two threads take 0.6 of the time of one at 1,024 rows through 2x64, and the same at 512
_SECONDS_SAVED = 0.9e-3  # by compiling, in each gradient step of a small network on one CPU core


class Rollout(NamedArrayTuple):
    """A slot, or a minibatch of it, with what the losses need: ``[T, B]``, or ``[N]`` rows, or ``[T, N]`` sequences."""

    inputs: AgentInputs
    action: Tree
    old_params: Tree  # of the distribution that chose the action
    old_log_prob: Any
    old_value: Any
    advantage: Any
    target: Any  # of the value
    valid: Any
    first: Any = None  # sequences only
    state: Tree = None  # sequences only: [N], before their first row
    num_valid: Any = None  # minibatches only: valid rows on all ranks; None: there is one rank


@dataclass(kw_only=True, eq=False)
class OnPolicy:
    """Hyperparameters of the on-policy algorithms, and how they see a slot."""

    discount: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float | Schedule = 3e-4
    value_loss_coeff: float = 0.5
    entropy_coeff: float | Schedule = 0.0
    max_grad_norm: float = 0.5
    normalize_advantage: Literal["minibatch", "batch", "off"] = "minibatch"
    scale_rewards: bool = False  # divide rewards by the running standard deviation of the discounted return

    console_columns: ClassVar[Mapping[str, str]] = {"explained": "value/explained_variance"}

    def __post_init__(self) -> None:
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{type(self).__name__}.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        check_max_grad_norm(self)
        if self.normalize_advantage not in ("minibatch", "batch", "off"):
            raise ValueError(
                f"{type(self).__name__}.normalize_advantage is {self.normalize_advantage!r}; choose 'minibatch', "
                "'batch' or 'off'"
            )
        self._learning_rate_at = as_schedule(self.learning_rate, f"{type(self).__name__}.learning_rate", least=0)
        self._entropy_coeff_at = as_schedule(self.entropy_coeff, f"{type(self).__name__}.entropy_coeff")

    def initialize(
        self,
        agent: ActorCriticAgent,
        batch: BatchSpec,
        *,
        seed: int,
        compile: Compile = "off",
        num_iterations: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Build the optimizer; see `rlsurreal.structs.Algorithm`."""
        check_agent(self, agent, ActorCriticAgent)
        if batch.num_steps * (batch.total_envs or batch.num_envs) == 1 and self.normalize_advantage != "off":
            raise ValueError(
                "batch is a single row, whose advantage is normalized to nothing; use longer slots, more environments, "
                "or normalize_advantage='off'"
            )
        self._agent, self._batch, self._ranks = agent, batch, ranks
        num_steps = None if num_iterations is None else num_iterations * self._num_steps_per_update
        compiled = should_compile(compile, num_steps, _SECONDS_SAVED, recurrent=agent.uses_previous)
        self._gradient_step = GradientStep(
            agent.module,
            self._loss,
            self._num_metrics,
            max_grad_norm=self.max_grad_norm,
            compile=compiled,
            ranks=ranks,
            over_ranks="sum",  # losses are sums over valid rows / those of all ranks
        )
        self._scaler = RewardScaler(batch.num_envs, self.discount, ranks.sum) if self.scale_rewards else None
        self._generator = torch.Generator().manual_seed(ranks.own_seed(seed))
        self._lacks_statistics: bool | None = None  # to be asked

    def update(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """Learn from a slot; metrics.  ``progress``: the part of the run that is done, for schedules.

        The first slot of a model that normalizes observations only begins their statistics: what was learned from
        observations as they are would be in the way of all that follows.
        """
        if self._lacks_statistics is None:
            self._lacks_statistics = self._agent.lacks_statistics()
        if self._lacks_statistics:
            self._lacks_statistics = False
            return self._finish(*self._prepare(samples))
        return self._learn(samples, progress)

    @abstractmethod
    def _learn(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """Gradient steps on a slot; metrics."""

    def wants_threads(self, num_rows: int) -> bool:
        """Whether a gradient step has many rows."""
        return num_rows >= _MANY_ROWS

    @property
    @abstractmethod
    def _num_steps_per_update(self) -> int:
        """Gradient steps, at most."""

    @property
    @abstractmethod
    def _num_metrics(self) -> int:
        """Length of the vector that `_loss` gives beside the loss."""

    @abstractmethod
    def _loss(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The loss of a gradient step (see `GradientStep`)."""

    def _prepare(self, samples: Samples) -> tuple[Samples, Rollout]:
        """The slot on the agent's device, and the whole of it as a rollout."""
        if self._scaler is not None:
            samples = samples._replace(env=samples.env._replace(reward=self._scaler(samples.env)))
        samples = upload(samples, self._agent.device)
        num_steps = self._batch.num_steps
        last = tree_map(lambda s: s[-1], samples.agent.agent_state)
        with torch.no_grad():
            bootstrap = self._agent.value(inputs_of(samples)[num_steps], last)
        info = samples.agent.agent_info
        value = torch.cat([info.value[:num_steps], bootstrap[None]])
        return samples, self._rollout(samples, value)

    def _rollout(self, samples: Samples, value: Tensor) -> Rollout:
        """Advantages and targets from ``value`` ``[T + 1, B]``."""
        num_steps = self._batch.num_steps
        env, info = samples.env[:num_steps], samples.agent.agent_info[:num_steps]
        advantage, target = generalized_advantage_estimation(
            env.reward,
            value,
            env.terminated,
            env.truncated,
            env.valid,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
        )
        if self.normalize_advantage == "batch":
            advantage = masked_normalize(advantage, env.valid, self._ranks.sum)
        return Rollout(
            inputs=inputs_of(samples)[:num_steps],
            action=tree_map(lambda a: a[:num_steps], samples.agent.action),
            old_params=info.params,
            old_log_prob=info.log_prob,
            old_value=value[:num_steps],
            advantage=advantage,
            target=target,
            valid=env.valid,
            first=env.first,
            state=samples.agent.agent_state,
        )

    def _for_steps(self, data: Rollout, plan: list[Tensor]) -> tuple[Rollout, list[Tensor | None]]:
        """``data`` with its advantages normalized within each minibatch of ``plan``, and the minibatches' valid rows.

        These are counted over all ranks; None where there is one.
        """
        if self.normalize_advantage == "minibatch":
            advantage = normalize_groups(data.advantage, data.valid, plan, self._ranks.sum)
            data = data._replace(advantage=advantage)
        if self._ranks.count == 1:
            return data, [None] * len(plan)
        return data, list(self._ranks.sum(torch.stack([data.valid[index].sum() for index in plan])))

    def _finish(self, samples: Samples, rollout: Rollout) -> dict[str, Any]:
        """After the last gradient step: take the slot into the normalizers' statistics.  Metrics of the whole slot.

        The statistics that chose the actions hold for the whole update, or the first ratio of PPO would not be 1.
        """
        num_steps = self._batch.num_steps
        observation = tree_map(lambda o: o[:num_steps], samples.env.observation)
        self._agent.update_normalizer(observation, rollout.valid, self._ranks.sum)
        explained = explained_variance(rollout.old_value, rollout.target, rollout.valid, self._ranks.sum)
        metrics: dict[str, Any] = {"value/explained_variance": explained}
        if self._scaler is not None:
            metrics["reward/scale"] = self._scaler.scale
        return metrics

    def take_metrics(self) -> Mapping[str, Any]:
        """Nothing: each update gives all."""
        return {}

    def close(self) -> None:
        """Nothing is large."""

    def divided(self, ranks: Ranks, scaling: Literal["strong", "weak"]) -> Self:
        """Itself: minibatches are parts of the slot, which is divided."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, besides the agent."""
        return {
            "optimizer": self._gradient_step.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "own": {
                "generator": self._generator.get_state(),
                "return": None if self._scaler is None else self._scaler.discounted_return.clone(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._gradient_step.load_state_dict(state["optimizer"])
        own = state["own"]
        if own is not None:
            self._generator.set_state(own["generator"])
        if self._scaler is not None and state["scaler"] is not None:  # else it begins here
            self._scaler.load_state_dict(state["scaler"], None if own is None else own["return"])


def rows_of(rollout: Rollout) -> Rollout:
    """``[T, B]`` as ``[T * B]`` independent rows (views)."""
    rows: Rollout = tree_map(lambda x: x.reshape(-1, *x.shape[2:]), rollout._replace(first=None, state=None))
    return rows


def sequences_of(rollout: Rollout) -> Rollout:
    """``[T, B]`` as ``[C * B, L]``: sequences of the ``L`` rows between recorded states, sequences first.

    States become ``[C * B]``.
    """
    num_chunks = len(leaves(rollout.state)[0]) - 1

    def cut(x: Tensor) -> Tensor:
        chunks = x.reshape(num_chunks, -1, *x.shape[1:]).transpose(1, 2)  # [C, B, L]
        return chunks.reshape(-1, *chunks.shape[2:])

    states = tree_map(lambda s: s[:num_chunks].reshape(-1, *s.shape[2:]), rollout.state)
    sequences: Rollout = tree_map(cut, rollout._replace(state=None))
    return sequences._replace(state=states)


def minibatch_indices(
    num_items: int, num_minibatches: int, generator: torch.Generator, device: torch.device
) -> list[Tensor]:
    """Every row (or sequence) once, in random order, in ``num_minibatches`` parts of nearly equal size.

    The order is drawn on the CPU, so that it does not depend on the device.
    """
    order = torch.randperm(num_items, generator=generator).to(device)
    bounds = [num_items * i // num_minibatches for i in range(num_minibatches + 1)]
    return list(order.split([stop - start for start, stop in itertools.pairwise(bounds)]))


def minibatch(data: Rollout, index: Tensor) -> Rollout:
    """The rows (or sequences) ``index`` of ``data``; sequences come out ``[L, N]``, as models want them."""
    part: Rollout = tree_map(lambda x: x[index], data)
    return part if part.state is None else time_first(part)


def time_first(sequences: Rollout) -> Rollout:
    """``[N, L]`` as ``[L, N]``; states stay ``[N]``."""
    swapped: Rollout = tree_map(lambda x: x.transpose(0, 1), sequences._replace(state=None))
    return swapped._replace(state=sequences.state)
