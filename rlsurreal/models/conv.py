"""Convolutional networks for images ``[C, H, W]``.  Called by `rlsurreal.models.encoders`.

uint8 images are scaled to [0, 1] here, in a copy; floating-point images are taken as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlsurreal.models.mlp import HIDDEN_GAIN, init_orthogonal

NATURE_MIN_SIZE = 36  # smaller images leave nothing for the last layer


class ImageNetwork(nn.Module):
    """Convolutions, then a linear layer and a relu; with ``out_features`` None it ends, flat, in the convolutions.

    Args:
        convolutions: from ``[N, C, H, W]``; end in a relu.
        observation_shape: ``[C, H, W]``.
        out_features: outputs of the linear layer, or None.

    Attributes:
        out_features: length of the output's last dimension.
    """

    def __init__(self, convolutions: nn.Module, observation_shape: Sequence[int], out_features: int | None) -> None:
        super().__init__()
        self.convolutions = convolutions
        with torch.no_grad():
            size = int(convolutions(torch.zeros(1, *observation_shape)).numel())
        self.linear = None if out_features is None else nn.Linear(size, out_features)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                init_orthogonal(layer, HIDDEN_GAIN)
        self.out_features = size if out_features is None else out_features

    def forward(self, image: Tensor) -> Tensor:
        """``[..., out_features]`` from ``[..., C, H, W]``."""
        x: Tensor = self.convolutions(_as_batch(image)).flatten(1)
        if self.linear is not None:
            x = torch.relu(self.linear(x))
        return x.reshape(*image.shape[:-3], self.out_features)


class NatureCnn(ImageNetwork):
    """Three convolutions and a linear layer, relu throughout (Mnih et al. 2015, doi 10.1038/nature14236).

    Args:
        observation_shape: ``[C, H, W]``, at least 36 x 36.
        out_features: see `ImageNetwork`.

    Raises:
        ValueError: the image is too small, or is not ``[C, H, W]``.
    """

    def __init__(self, observation_shape: Sequence[int], *, out_features: int | None = 512) -> None:
        channels, height, width = check_image_shape(observation_shape)
        if min(height, width) < NATURE_MIN_SIZE:
            raise ValueError(
                f"observation_shape is {tuple(observation_shape)}; NatureCnn needs images of at least "
                f"{NATURE_MIN_SIZE} x {NATURE_MIN_SIZE}: use encoder='impala', or enlarge the images in the environment"
            )
        convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        )  # fmt: skip
        super().__init__(convolutions, observation_shape, out_features)


class MinAtarCnn(ImageNetwork):
    """One convolution and a linear layer, relu throughout (Young and Tian 2019, MinAtar, arXiv 1903.03176).

    Args:
        observation_shape: ``[C, H, W]``, at least 3 x 3.
        out_features: see `ImageNetwork`.

    Raises:
        ValueError: the shape is not ``[C, H, W]``.
    """

    def __init__(self, observation_shape: Sequence[int], *, out_features: int | None = 128) -> None:
        channels, _, _ = check_image_shape(observation_shape)
        super().__init__(nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU()), observation_shape, out_features)


class ImpalaResNet(ImageNetwork):
    """The deep residual network of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, figure 3), for images of any size.

    Args:
        observation_shape: ``[C, H, W]``.
        channels: of each stage; a stage halves height and width and has two residual blocks.
        out_features: see `ImageNetwork`.

    Raises:
        ValueError: the shape is not ``[C, H, W]``.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 32),
        *,
        out_features: int | None = 256,
    ) -> None:
        sizes = [check_image_shape(observation_shape)[0], *channels]
        stages = nn.Sequential(*(_stage(*pair) for pair in itertools.pairwise(sizes)), nn.ReLU())
        super().__init__(stages, observation_shape, out_features)
        for block in self.modules():
            if isinstance(block, _Residual):
                nn.init.zeros_(block.second.weight)  # Goyal et al. 2017, arXiv 1706.02677, section 5.1


class _Residual(nn.Module):
    """Starts as the identity: six blocks of the usual gain would make the first features twenty times as large."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        return x + residual


def _stage(in_channels: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.MaxPool2d(3, 2, padding=1),
        _Residual(channels),
        _Residual(channels),
    )


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: there are not three dimensions, or they look like ``[H, W, C]``.
    """
    if len(shape) != 3:
        raise ValueError(f"observation_shape is {tuple(shape)}; images have three dimensions, [C, H, W]")
    channels, height, width = shape
    if width <= 4 < min(channels, height):
        raise ValueError(
            f"observation_shape is {tuple(shape)}, which looks like [H, W, C]; models take [C, H, W]: wrap the "
            "environment in rlsurreal.envs.ChannelsFirst"
        )
    return channels, height, width


def _as_batch(image: Tensor) -> Tensor:
    """``[N, C, H, W]`` in floating point.  Scales a fresh copy: the caller's memory is never written.

    Channels are last in memory: with 256 images of 84x84, forward and backward of `NatureCnn` take 0.7 (one core) and
    0.55 (two) of the time that they take with channels first.
    """
    batch = image.reshape(-1, *image.shape[-3:])
    if image.dtype == torch.uint8:
        # Converting, then scaling in place takes a tenth of the time of ``image / 255``, which converts one by one.
        return batch.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
    return batch.to(torch.float32, memory_format=torch.channels_last)
