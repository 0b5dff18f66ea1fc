"""From observations of any space to one vector.  Called by `rlsurreal.models.trunk` and by models.

To use an encoder of your own, give a model ``encoder=ModelSpec(cls=MyEncoder, kwargs=...)``, of a class like this:

    class MyEncoder(nn.Module):
        out_features: int                       # length of the result

        def __init__(self, observation_space, **your_own_arguments): ...
        def forward(self, observation): ...     # [N, out_features] from leaves [N, *shape]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces as gs
from torch import Tensor, nn

from rlsurreal.models.checks import check_encoder
from rlsurreal.models.conv import (
    NATURE_MIN_SIZE,
    ImageNetwork,
    ImpalaResNet,
    MinAtarCnn,
    NatureCnn,
    check_image_shape,
)
from rlsurreal.ops.encoding import one_hot, one_hot_factors
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import children, leaf_dtype


@runtime_checkable
class EncoderSpec(Protocol):
    """What builds an encoder of the user's own: a `rlsurreal.agents.ModelSpec`."""

    def make(self, **given: Any) -> nn.Module:
        """Build it for ``observation_space``."""


Encoder = Literal["auto", "mlp", "nature", "impala", "minatar"] | EncoderSpec

_NETWORKS = {"nature": NatureCnn, "impala": ImpalaResNet, "minatar": MinAtarCnn}


class ObservationEncoder(nn.Module):
    """Encodes each leaf of an observation and joins the results to one vector.

    Images go through a convolutional network each.  Other boxes are flattened (uint8 scaled to [0, 1]), Discrete and
    MultiDiscrete become one-hot, MultiBinary becomes floats.

    Args:
        observation_space: a leaf space, or a Dict or Tuple of such, nested as you like.
        encoder: "auto": uint8 boxes ``[C, H, W]`` are images, for `NatureCnn` if they are large enough, or else for
            `ImpalaResNet`.  "nature", "impala", "minatar": every box of three dimensions is an image, for that network.
            "mlp": there are no images.  What builds one of your own: that one, for the whole observation.
        ends_in_convolutions: leave out the linear layers of networks for images (not of your own).

    Attributes:
        out_features: length of the result.
        num_images, num_vectors: numbers of leaves of either kind; an encoder of your own is one of each: models choose
            the layers after it as for images with vectors.

    Raises:
        ValueError: the encoder or a space is not known, an image does not suit its network, or an encoder of your own
            is not as this module says.
    """

    def __init__(
        self, observation_space: gym.Space, encoder: Encoder = "auto", *, ends_in_convolutions: bool = False
    ) -> None:
        super().__init__()
        self._is_own = isinstance(encoder, EncoderSpec)
        encoders: list[Any]
        if isinstance(encoder, EncoderSpec):
            encoders = [_Own(observation_space, encoder)]
        elif encoder in ("auto", "mlp", *_NETWORKS):
            options = {"out_features": None} if ends_in_convolutions else {}
            encoders = [_leaf_encoder(space, encoder, options) for space in _leaf_spaces(observation_space)]
        else:
            raise ValueError(
                f"encoder is {encoder!r}; use 'auto', 'mlp', 'nature', 'impala', 'minatar', or "
                "ModelSpec(cls=...) with a class of your own"
            )
        if not encoders:
            raise ValueError(f"observation space {observation_space} has no entries; give it at least one")
        self.encoders = nn.ModuleList(encoders)
        self.out_features = sum(e.out_features for e in encoders)
        self.num_images = sum(isinstance(e, (ImageNetwork, _Own)) for e in encoders)
        if encoder in _NETWORKS and not self.num_images:
            raise ValueError(
                f"encoder is {encoder!r}, and no entry of {observation_space} is an image [channels, height, width]; "
                "stack frames as channels, or use encoder='mlp'"
            )
        self.num_vectors = sum(not isinstance(e, ImageNetwork) for e in encoders)
        # The most common case by far, and the one where every Python call counts.
        self._is_vector = (
            not self._is_own
            and isinstance(observation_space, gs.Box)
            and len(observation_space.shape) == 1
            and leaf_dtype(observation_space) == np.float32
        )

    def forward(self, observation: Tree) -> Tensor:
        """float32 ``[..., out_features]`` from leaves ``[..., *shape]``."""
        if self._is_vector:
            vector: Tensor = observation
            return vector
        entries = [observation] if self._is_own else leaves(observation)
        parts: list[Tensor] = [encode(x) for encode, x in zip(self.encoders, entries)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Own(nn.Module):
    """An encoder of the user's own, to which all leading dimensions are one."""

    def __init__(self, observation_space: gym.Space, spec: EncoderSpec) -> None:
        super().__init__()
        encoder: Any = spec.make(observation_space=observation_space)
        check_encoder(encoder, observation_space)
        self.encoder, self.out_features = encoder, int(encoder.out_features)
        self.num_dims = len(next(_leaf_spaces(observation_space)).shape or ())

    def forward(self, observation: Tree) -> Tensor:
        first = leaves(observation)[0]
        leading = first.shape[: first.dim() - self.num_dims]
        rows: Tensor = self.encoder(tree_map(lambda x: x.reshape(-1, *x.shape[len(leading) :]), observation))
        return rows.reshape(*leading, self.out_features)


class _Flatten(nn.Module):
    """A box, or bits, as floats in one dimension."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_dims = len(shape)
        self.out_features = math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        floats = x.to(torch.float32).mul_(1 / 255) if x.dtype == torch.uint8 else x.to(torch.float32)
        return floats.reshape(*x.shape[: x.dim() - self.num_dims], self.out_features)


class _OneHot(nn.Module):
    """One whole number, or several, one-hot."""

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes, self.num_dims = sizes, len(shape)
        self.out_features = sum(sizes)

    def forward(self, index: Tensor) -> Tensor:
        if self.num_dims == 0:
            return one_hot(index, self.sizes[0])
        leading = index.shape[: index.dim() - self.num_dims]
        return one_hot_factors(index.reshape(*leading, len(self.sizes)), self.sizes)


def _leaf_spaces(space: gym.Space) -> Iterator[gym.Space]:
    parts = children(space)
    if parts is None:
        yield space
        return
    for _, child in parts.values():
        yield from _leaf_spaces(child)


def _leaf_encoder(space: gym.Space, encoder: str, options: dict[str, Any]) -> Any:
    if isinstance(space, gs.Discrete):
        return _OneHot((int(space.n),), ())
    if isinstance(space, gs.MultiDiscrete):
        return _OneHot(tuple(int(n) for n in space.nvec.flatten()), space.nvec.shape)
    if isinstance(space, gs.MultiBinary):
        return _Flatten(tuple(space.shape))
    if not isinstance(space, gs.Box):
        raise ValueError(
            f"no encoder for observation space {space}; use Box, Discrete, MultiDiscrete, MultiBinary, or "
            "a Dict or Tuple of these"
        )
    if encoder == "auto" and space.dtype == np.uint8 and len(space.shape) == 4:
        raise ValueError(
            f"observations are of shape {space.shape}; images are [channels, height, width]: put what is stacked into "
            "the channels, or use encoder='mlp', for which they are vectors"
        )
    if encoder == "mlp" or len(space.shape) != 3 or (encoder == "auto" and space.dtype != np.uint8):
        return _Flatten(space.shape)
    if encoder == "auto":
        _, height, width = check_image_shape(space.shape)
        encoder = "nature" if min(height, width) >= NATURE_MIN_SIZE else "impala"
    return _NETWORKS[encoder](space.shape, **options)
