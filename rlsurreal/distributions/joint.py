"""Independent distributions over the entries of a Dict or Tuple action.  Made by `make_distribution`."""

# ruff: noqa: D102 (the methods are documented once, in `Distribution`)

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlsurreal.distributions.base import Distribution
from rlsurreal.structs import Noise, NoiseSpec
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple


@dataclass(frozen=True)
class Joint(Distribution):
    """``parts[i]`` is the distribution of field ``names[i]``; log-probabilities, entropies and KLs add up.

    Features, free parameters and noise are laid out in the order of the fields.  Parameters and actions are structures
    with these fields; ``action_type`` names the class of the actions ("Dict" or "Tuple", as `rlsurreal.utils.spaces`
    has it).
    """

    names: tuple[str, ...]
    parts: tuple[Distribution, ...]
    action_type: str = "Dict"
    _noise_spec: NoiseSpec = field(init=False, repr=False, compare=False)
    _noise_slices: tuple[tuple[slice | None, slice | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.parts) > 0
        total, slices = NoiseSpec(), []
        for part in self.parts:
            spec, start = part.noise_spec, total
            total = start + spec
            slices.append(
                (
                    slice(start.normal, total.normal) if spec.normal else None,
                    slice(start.uniform, total.uniform) if spec.uniform else None,
                )
            )
        object.__setattr__(self, "_noise_spec", total)
        object.__setattr__(self, "_noise_slices", tuple(slices))

    @property
    def noise_spec(self) -> NoiseSpec:
        return self._noise_spec

    @property
    def num_features(self) -> int:
        return sum(part.num_features for part in self.parts)

    @property
    def num_free(self) -> int:
        return sum(part.num_free for part in self.parts)

    @property
    def num_encoded(self) -> int:
        return sum(part.num_encoded for part in self.parts)

    def free_init(self) -> Tensor:
        return torch.cat([part.free_init() for part in self.parts])

    def params(self, features: Tensor, free: Tensor | None = None) -> NamedArrayTuple:
        feature_parts = features.split([part.num_features for part in self.parts], -1)
        num_free = [part.num_free for part in self.parts]
        free_parts = [None] * len(num_free) if free is None else free.split(num_free)
        return namedarraytuple("JointParams", self.names)._make(map(_params, self.parts, feature_parts, free_parts))

    def sample(self, params: NamedArrayTuple, noise: Noise) -> NamedArrayTuple:
        parts = zip(self.parts, params, self._noises(noise))
        return self._action(part.sample(p, n) for part, p, n in parts)

    def mode(self, params: NamedArrayTuple) -> NamedArrayTuple:
        return self._action(part.mode(p) for part, p in zip(self.parts, params))

    def log_prob(self, params: NamedArrayTuple, action: NamedArrayTuple) -> Tensor:
        return self._sum(lambda part, p, a: part.log_prob(p, a), params, action)

    def entropy(self, params: NamedArrayTuple) -> Tensor:
        return self._sum(lambda part, p: part.entropy(p), params)

    def kl(self, p: NamedArrayTuple, q: NamedArrayTuple) -> Tensor:
        return self._sum(lambda part, p, q: part.kl(p, q), p, q)

    def encode(self, action: NamedArrayTuple) -> Tensor:
        return torch.cat([part.encode(a) for part, a in zip(self.parts, action)], -1)

    def sample_with_log_prob(self, params: NamedArrayTuple, noise: Noise) -> tuple[NamedArrayTuple, Tensor]:
        parts = zip(self.parts, params, self._noises(noise))
        actions, log_probs = zip(*[part.sample_with_log_prob(p, n) for part, p, n in parts])
        return self._action(actions), torch.stack(log_probs).sum(0)

    def _action(self, values: Any) -> NamedArrayTuple:
        return namedarraytuple(self.action_type, self.names)._make(values)

    def _noises(self, noise: Noise) -> Iterator[Noise]:
        for normal, uniform in self._noise_slices:
            yield Noise(
                None if normal is None else noise.normal[..., normal],
                None if uniform is None else noise.uniform[..., uniform],
            )

    def _sum(self, fn: Callable[..., Tensor], *trees: NamedArrayTuple) -> Tensor:
        first, *others = [fn(*parts) for parts in zip(self.parts, *trees)]
        for other in others:
            first = first + other
        return first


def _params(part: Distribution, features: Tensor, free: Tensor | None) -> Any:
    return part.params(features, free if part.num_free else None)
