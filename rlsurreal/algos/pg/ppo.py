"""Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347), with a clipped or a KL-penalized objective.

The KL penalty with its hinge, and the clip range that adapts to the KL, are those of SURREAL (Fan et al. 2018, CoRL).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos.pg.on_policy import (
    OnPolicy,
    Rollout,
    minibatch,
    minibatch_indices,
    rows_of,
    sequences_of,
)
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.ops.losses import masked_mean, ppo_clip_loss, value_loss
from rlsurreal.structs import BatchSpec, Samples, inputs_of
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, tree_map
from rlsurreal.utils.schedules import Schedule, as_schedule
from rlsurreal.utils.torch_tree import where_first

_log = logging.getLogger("rlsurreal")
METRICS = ("loss/policy", "loss/value", "loss/entropy", "policy/kl", "policy/clip_fraction", "update/grad_norm")

# SURREAL's constants: the coefficient moves by a factor when the KL leaves (0.5, 2) times its target.
_KL_BAND = (0.5, 2.0)
_KL_COEFF_FACTOR, _KL_COEFF_RANGE = 1.5, (1 / 35, 35.0)
_CLIP_FACTOR, _CLIP_BOUNDS = 1.2, (0.05, 0.3)


class Coefficients(NamedArrayTuple):
    """What changes from update to update, as 0-dim tensors: a changing Python number recompiles a compiled loss."""

    clip_range: Any
    kl_coeff: Any
    entropy_coeff: Any


@dataclass(kw_only=True, eq=False)
class PPO(OnPolicy):
    """Hyperparameters of PPO."""

    num_epochs: int = 10
    num_minibatches: int = 32  # per epoch; of rows, or of sequences if the model is recurrent
    objective: Literal["clip", "kl_penalty"] = "clip"
    clip_range: float | Schedule = 0.2
    adaptive_clip: bool = False  # start from `clip_range` and move so that the KL comes near `kl_target`
    kl_target: float = 0.015  # of the KL penalty and the adaptive clip range
    kl_coeff: float = 1.0  # KL penalty: at the start; it adapts
    kl_hinge_coeff: float = 250.0  # KL penalty: of the squared excess over twice the target
    kl_stop: float | None = None  # stop an update after an epoch whose mean KL is above this
    value_clip_range: float | None = None
    recompute_advantages: bool = False  # anew in each epoch, with the present value function

    console_columns: ClassVar[Mapping[str, str]] = {"kl": "policy/kl", **OnPolicy.console_columns}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._clip_range_at = as_schedule(self.clip_range, "PPO.clip_range", least=0)
        for name in ("num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"PPO.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("clip_range", "kl_target", "kl_coeff", "kl_stop", "value_clip_range"):
            value = getattr(self, name)
            if value is not None and not callable(value) and not value > 0:
                raise ValueError(f"PPO.{name} is {value}; it must be positive")
        for name in ("value_loss_coeff", "kl_hinge_coeff"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"PPO.{name} is {getattr(self, name)}; it must be at least 0")
        if self.num_epochs == 1 and (self.kl_stop is not None or self.recompute_advantages):
            raise ValueError(
                "PPO.num_epochs is 1, and kl_stop and recompute_advantages act between epochs; leave them out"
            )
        if self.num_epochs == self.num_minibatches == 1 and (self.adaptive_clip or self.objective == "kl_penalty"):
            raise ValueError(
                "PPO.num_epochs and num_minibatches are 1: before the only step the KL divergence is 0, so nothing can "
                "adapt to it; make several steps, or use objective='clip' without adaptive_clip"
            )
        if self.objective not in ("clip", "kl_penalty"):
            raise ValueError(f"PPO.objective is {self.objective!r}; choose 'clip' or 'kl_penalty'")
        adapts = self.adaptive_clip or self.objective == "kl_penalty"
        if self.kl_target != PPO.kl_target and not adapts:
            raise ValueError(
                f"PPO.kl_target is {self.kl_target}, which is for adaptive_clip=True and objective='kl_penalty'; to "
                f"stop an update when the KL is above it, use kl_stop={self.kl_target}"
            )
        unused = [name for name in ("kl_coeff", "kl_hinge_coeff") if getattr(self, name) != getattr(PPO, name)]
        if unused and self.objective == "clip":
            raise ValueError(f"PPO.{unused[0]} is for objective='kl_penalty', and objective is 'clip'; leave it out")
        if self.kl_coeff != _clamp(self.kl_coeff, _KL_COEFF_RANGE):
            raise ValueError(f"PPO.kl_coeff is {self.kl_coeff}; it adapts within 1/35 and 35, and must begin there")
        if self.adaptive_clip and self.objective != "clip":
            raise ValueError("PPO.adaptive_clip is for objective='clip'; the KL penalty adapts by itself")
        if self.adaptive_clip and callable(self.clip_range):
            raise ValueError("PPO.clip_range is a schedule and adaptive_clip is set; use one of the two")
        if self.adaptive_clip and self._clip_range_at(0.0) != _clamp(self._clip_range_at(0.0), _CLIP_BOUNDS):
            raise ValueError(f"PPO.clip_range is {self.clip_range}; with adaptive_clip it must lie in {_CLIP_BOUNDS}")

    def initialize(self, agent: ActorCriticAgent, batch: BatchSpec, *, ranks: Ranks = ALONE, **options: Any) -> None:
        """Build the optimizer; see `OnPolicy.initialize`."""
        if ranks.count > 1 and self.objective == "kl_penalty":  # its loss asks the other ranks in the middle
            if options.get("compile") == "on":
                _log.warning("the update is not compiled: the KL penalty on several ranks")
            options["compile"] = "off"
        super().initialize(agent, batch, ranks=ranks, **options)
        self._check_minibatches(batch)
        self._adaptive_clip_range = float(self._clip_range_at(0.0))
        self._adaptive_kl_coeff = self.kl_coeff

    def _check_minibatches(self, batch: BatchSpec) -> None:
        num_rows = batch.num_steps * (batch.total_envs or batch.num_envs)
        is_single = num_rows < 2 * self.num_minibatches and not self._agent.uses_previous
        if is_single and self.normalize_advantage == "minibatch":
            raise ValueError(
                f"PPO.num_minibatches is {self.num_minibatches}, of slots of {num_rows} rows, and the advantage of a "
                f"single row is normalized to nothing; use num_minibatches={max(1, num_rows // 2)} or fewer, longer "
                "slots, or normalize_advantage='batch'"
            )

    def _learn(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """Several epochs of minibatch steps; their metrics."""
        samples, rollout = self._prepare(samples)
        met = rollout
        coefficients = self._coefficients(progress)
        learning_rate = self._learning_rate_at(progress)
        self._gradient_step.learning_rate.fill_(learning_rate)
        num_epochs = 0
        for epoch in range(self.num_epochs):
            if epoch > 0 and self.recompute_advantages:
                rollout = self._rollout(samples, self._values(samples))
            metrics = self._epoch(rollout, coefficients)
            num_epochs += 1
            if self.kl_stop is not None and float(metrics[METRICS.index("policy/kl")]) > self.kl_stop:
                break
        if self.adaptive_clip or self.objective == "kl_penalty":  # else nobody waits for the device
            self._adapt(float(metrics[METRICS.index("policy/kl")]))
        found = {
            **dict(zip(METRICS, metrics)),
            "update/epochs": num_epochs,
            "update/learning_rate": learning_rate,
            "policy/clip_range": coefficients.clip_range,
            "policy/kl_coeff": coefficients.kl_coeff,
            **self._finish(samples, met),
        }
        others = ("policy/kl_coeff",) if self.objective == "clip" else ("policy/clip_range", "policy/clip_fraction")
        return {name: value for name, value in found.items() if name not in others}

    def _epoch(self, rollout: Rollout, coefficients: Coefficients) -> Tensor:
        """Every row once.  Means over the minibatches, in the order of `METRICS`."""
        data = rows_of(rollout) if rollout.state is None else sequences_of(rollout)
        num_items = len(data.valid)
        whole, count = self._batch.total_envs or self._batch.num_envs, self._ranks.count
        least = num_items // self._batch.num_envs * (whole // count)  # of any rank: all make as many steps
        num_minibatches = min(self.num_minibatches, least)
        plan = minibatch_indices(num_items, num_minibatches, self._generator, self._agent.device)
        data, counts = self._for_steps(data, plan)
        for index, num_valid in zip(plan, counts):
            self._gradient_step(data, index, num_valid, coefficients)
        return self._gradient_step.take_metrics()

    def _loss(
        self, data: Rollout, index: Tensor, num_valid: Tensor | None, coefficients: Coefficients
    ) -> tuple[Tensor, Tensor]:
        part = minibatch(data, index)._replace(num_valid=num_valid)
        return ppo_loss(self._agent, part, coefficients, self, self._ranks)

    def wants_threads(self, num_rows: int) -> bool:
        """Whether a minibatch has many rows."""
        return super().wants_threads(num_rows // self.num_minibatches)

    @property
    def _num_steps_per_update(self) -> int:
        return self.num_epochs * self.num_minibatches

    @property
    def _num_metrics(self) -> int:
        return len(METRICS) - 1

    @torch.no_grad()
    def _values(self, samples: Samples) -> Tensor:
        """The present value function over all ``T + 1`` rows, recurrent state from the slot's start."""
        state = tree_map(lambda s: s[0], samples.agent.agent_state)
        first = None if state is None else samples.env.first
        value: Tensor = self._agent.module.value(inputs_of(samples), state, first)  # type: ignore[operator]
        return value

    def _coefficients(self, progress: float) -> Coefficients:
        clip_range = self._adaptive_clip_range if self.adaptive_clip else self._clip_range_at(progress)
        numbers = (clip_range, self._adaptive_kl_coeff, self._entropy_coeff_at(progress))
        return Coefficients(*(torch.tensor(float(number), device=self._agent.device) for number in numbers))

    def _adapt(self, kl: float) -> None:
        low, high = (bound * self.kl_target for bound in _KL_BAND)
        too_far = 1 if kl > high else -1 if kl < low else 0
        if self.objective == "kl_penalty":
            self._adaptive_kl_coeff = _clamp(self._adaptive_kl_coeff * _KL_COEFF_FACTOR**too_far, _KL_COEFF_RANGE)
        if self.adaptive_clip:
            self._adaptive_clip_range = _clamp(self._adaptive_clip_range * _CLIP_FACTOR**-too_far, _CLIP_BOUNDS)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, besides the agent; None: what does not adapt."""
        return {
            **super().state_dict(),
            "clip_range": self._adaptive_clip_range if self.adaptive_clip else None,
            "kl_coeff": self._adaptive_kl_coeff if self.objective == "kl_penalty" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        if self.adaptive_clip and state["clip_range"] is not None:
            self._adaptive_clip_range = state["clip_range"]
        if self.objective == "kl_penalty" and state["kl_coeff"] is not None:
            self._adaptive_kl_coeff = state["kl_coeff"]


def ppo_loss(
    agent: ActorCriticAgent, data: Rollout, coefficients: Coefficients, ppo: PPO, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """The loss of a minibatch, and its metrics in the order of `METRICS` (the gradient's norm is added later).

    With several ranks both are this rank's part of the sum.

    clip:        policy = -mean( min( ratio * A, clip(ratio, 1 - c, 1 + c) * A ) )
    kl_penalty:  policy = -mean( ratio * A ) + kl_coeff * KL + kl_hinge_coeff * max(0, KL - 2 kl_target)^2,
                 KL = mean( KL(old || new) )
    loss = policy + value_loss_coeff * value - entropy_coeff * mean( H(pi) )
    """
    (params, value), _ = agent.module(data.inputs, data.state, data.first)
    distribution, valid, num_valid = agent.distribution, data.valid, data.num_valid
    log_prob = distribution.log_prob(params, data.action)
    is_clip = ppo.objective == "clip"
    clip_range = coefficients.clip_range if is_clip else float("inf")
    policy = ppo_clip_loss(
        log_prob, data.old_log_prob, data.advantage, valid, clip_range=clip_range, num_valid=num_valid
    )
    policy_loss, kl = policy.loss, policy.approx_kl
    hinge = torch.zeros_like(kl)
    if not is_clip:
        # Masking the result alone would let a NaN of an invalid row into the gradient, as 0 * NaN.
        old_params = where_first(~valid, tree_map(Tensor.detach, params), data.old_params)
        kl = masked_mean(distribution.kl(old_params, params), valid, num_valid)
        # The hinge is one of the KL of all ranks; its gradient flows through this rank's part.
        whole_kl = kl if ranks.count == 1 else kl + (ranks.sum(kl.detach().clone()) - kl.detach())
        hinge = ppo.kl_hinge_coeff * (whole_kl - _KL_BAND[1] * ppo.kl_target).clamp(min=0).square()
        policy_loss = policy_loss + coefficients.kl_coeff * kl
    critic = value_loss(
        value, data.target, valid, old_value=data.old_value, clip_range=ppo.value_clip_range, num_valid=num_valid
    )
    entropy = masked_mean(distribution.entropy(params), valid, num_valid)
    loss = policy_loss + hinge + ppo.value_loss_coeff * critic - coefficients.entropy_coeff * entropy
    parts = [policy_loss + hinge / ranks.count, critic, entropy, kl, policy.clip_fraction]
    return loss, torch.stack(parts).detach()


def _clamp(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
