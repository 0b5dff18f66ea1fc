"""Distributions over whole numbers: one (Categorical), several (MultiCategorical), bits (Bernoulli).

Made by `rlsurreal.distributions.make_distribution`.  Logits are normalised log-probabilities, of bits log-odds; a
feature of ``-inf`` forbids an action, and entropy, KL and their gradients stay finite.
"""

# ruff: noqa: D102 (the methods are documented once, in `Distribution`)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlsurreal.distributions.base import Distribution, from_event, to_event
from rlsurreal.ops.encoding import one_hot, one_hot_factors
from rlsurreal.structs import Noise, NoiseSpec
from rlsurreal.utils.namedarraytuple import NamedArrayTuple


class CategoricalParams(NamedArrayTuple):
    """Parameters of `Categorical`."""

    logits: Tensor  # [..., num_actions], log-probabilities


class MultiCategoricalParams(NamedArrayTuple):
    """Parameters of `MultiCategorical`."""

    logits: Tensor  # [..., num_factors, largest factor], log-probabilities; shorter factors are padded with -3.4e38


class BernoulliParams(NamedArrayTuple):
    """Parameters of `Bernoulli`."""

    logits: Tensor  # [..., num_bits], log-odds


_MOST_LOG_ODDS = 110.0  # float32 has 0 and 1 for what is beyond


@dataclass(frozen=True)
class Categorical(Distribution):
    """One of ``num_actions``."""

    num_actions: int

    @property
    def noise_spec(self) -> NoiseSpec:
        return NoiseSpec(uniform=1)

    @property
    def num_features(self) -> int:
        return self.num_actions

    @property
    def num_encoded(self) -> int:
        return self.num_actions

    def params(self, features: Tensor, free: Tensor | None = None) -> CategoricalParams:
        return CategoricalParams(features.log_softmax(-1))

    def sample(self, params: CategoricalParams, noise: Noise) -> Tensor:
        return _inverse_cdf(params.logits, noise.uniform).squeeze(-1)

    def mode(self, params: CategoricalParams) -> Tensor:
        return params.logits.argmax(-1)

    def log_prob(self, params: CategoricalParams, action: Tensor) -> Tensor:
        return params.logits.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: CategoricalParams) -> Tensor:
        return _entropy(params.logits)

    def kl(self, p: CategoricalParams, q: CategoricalParams) -> Tensor:
        return _kl(p.logits, q.logits)

    def encode(self, action: Tensor) -> Tensor:
        return one_hot(action, self.num_actions)


@dataclass(frozen=True)
class MultiCategorical(Distribution):
    """Independent factors, each with its own number of actions: ``sizes``, in row order of the action's ``shape``."""

    sizes: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.sizes) == math.prod(self.shape)

    @property
    def noise_spec(self) -> NoiseSpec:
        return NoiseSpec(uniform=len(self.sizes))

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    @property
    def num_encoded(self) -> int:
        return sum(self.sizes)

    def params(self, features: Tensor, free: Tensor | None = None) -> MultiCategoricalParams:
        largest = max(self.sizes)
        if min(self.sizes) == largest:
            table = features.unflatten(-1, (len(self.sizes), largest))
        else:
            lowest = torch.finfo(features.dtype).min  # finite: 0 (the padding's probability) * -inf would be NaN
            parts = features.split(self.sizes, -1)
            table = torch.stack([F.pad(part, (0, largest - part.shape[-1]), value=lowest) for part in parts], -2)
        return MultiCategoricalParams(table.log_softmax(-1))

    def sample(self, params: MultiCategoricalParams, noise: Noise) -> Tensor:
        return to_event(_inverse_cdf(params.logits, noise.uniform.unsqueeze(-1)).squeeze(-1), self.shape)

    def mode(self, params: MultiCategoricalParams) -> Tensor:
        return to_event(params.logits.argmax(-1), self.shape)

    def log_prob(self, params: MultiCategoricalParams, action: Tensor) -> Tensor:
        index = from_event(action, self.shape).unsqueeze(-1)
        return params.logits.gather(-1, index).squeeze(-1).sum(-1)

    def entropy(self, params: MultiCategoricalParams) -> Tensor:
        return _entropy(params.logits).sum(-1)

    def kl(self, p: MultiCategoricalParams, q: MultiCategoricalParams) -> Tensor:
        return _kl(p.logits, q.logits).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        return one_hot_factors(from_event(action, self.shape), self.sizes)


@dataclass(frozen=True)
class Bernoulli(Distribution):
    """Independent bits, in an action of ``shape``."""

    shape: tuple[int, ...]

    @property
    def noise_spec(self) -> NoiseSpec:
        return NoiseSpec(uniform=self.num_features)

    @property
    def num_features(self) -> int:
        return math.prod(self.shape)

    @property
    def num_encoded(self) -> int:
        return self.num_features

    def params(self, features: Tensor, free: Tensor | None = None) -> BernoulliParams:
        return BernoulliParams(features.clamp(-_MOST_LOG_ODDS, _MOST_LOG_ODDS))

    def sample(self, params: BernoulliParams, noise: Noise) -> Tensor:
        return to_event((noise.uniform < params.logits.sigmoid()).to(torch.int8), self.shape)

    def mode(self, params: BernoulliParams) -> Tensor:
        return to_event((params.logits > 0).to(torch.int8), self.shape)

    def log_prob(self, params: BernoulliParams, action: Tensor) -> Tensor:
        bits = from_event(action, self.shape).to(params.logits.dtype)
        return -F.binary_cross_entropy_with_logits(params.logits, bits, reduction="none").sum(-1)

    def entropy(self, params: BernoulliParams) -> Tensor:
        logits = params.logits
        return (F.softplus(logits) - logits * logits.sigmoid()).sum(-1)

    def kl(self, p: BernoulliParams, q: BernoulliParams) -> Tensor:
        on = p.logits.sigmoid()
        return (on * (p.logits - q.logits) + F.softplus(q.logits) - F.softplus(p.logits)).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        return from_event(action, self.shape).to(torch.float32)


def _inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds ``uniform`` ``[..., 1]``, int64 ``[..., 1]``.

    ``uniform`` below 1 gives no index out of range and none of probability 0: u * total < total also after rounding,
    and in double precision an accelerator's parallel sum cannot grow by rounding where the probability is 0 by as much
    as the spacing of ``uniform``.
    """
    cdf = logits.exp().cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(cdf, uniform * cdf[..., -1:], right=True)
    return index.clamp(max=logits.shape[-1] - 1)  # NaN logits: the loss will show them, an index error would hide them


def _finite(logits: Tensor) -> Tensor:
    return logits.clamp(min=torch.finfo(logits.dtype).min)


def _entropy(logits: Tensor) -> Tensor:
    logits = _finite(logits)
    return -(logits.exp() * logits).sum(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    p = _finite(p)
    return (p.exp() * (p - _finite(q))).sum(-1)
