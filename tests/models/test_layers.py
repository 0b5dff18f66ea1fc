"""Perceptrons, convolutions and heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlsurreal.distributions import Categorical, Gaussian
from rlsurreal.models import ImpalaResNet, MinAtarCnn, Mlp, NatureCnn, PolicyHead, ValueHead, init_orthogonal

torch.set_num_threads(1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("name", "activation"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_mlp_equals_a_sequence_of_layers(name: str, activation: type[nn.Module], layer_norm: bool) -> None:
    mlp = Mlp(3, (5, 4), activation=name, layer_norm=layer_norm)
    layers: list[nn.Module] = []
    for i, linear in enumerate(mlp.layers):
        layers += [linear, *([mlp.norms[i]] if mlp.norms is not None else []), activation()]
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(mlp(x), nn.Sequential(*layers)(x))
    assert mlp.out_features == 4


def test_mlp_without_layers_hands_through() -> None:
    x = torch.randn(2, 3)
    mlp = Mlp(3, ())
    assert mlp(x) is x and mlp.out_features == 3


def test_mlp_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation is 'swish'; use one of tanh, relu"):
        Mlp(3, (4,), activation="swish")


@pytest.mark.parametrize("sizes", [(8, 3), (3, 8)])
def test_orthogonal_initialisation(sizes: tuple[int, int]) -> None:
    layer = nn.Linear(*sizes)
    init_orthogonal(layer, 0.5)
    weight = layer.weight if sizes[0] >= sizes[1] else layer.weight.t()
    torch.testing.assert_close(weight @ weight.t(), 0.25 * torch.eye(3), atol=1e-6, rtol=0)
    assert (layer.bias == 0).all()


def test_initial_gains() -> None:
    hidden: Any = Mlp(8, (8,)).layers[0]
    singular = torch.linalg.svdvals(hidden.weight.detach())
    torch.testing.assert_close(singular, torch.full((8,), 2**0.5))
    for head, gain in ((PolicyHead(Categorical(4), 8), 0.01), (ValueHead(8), 1.0)):
        singular = torch.linalg.svdvals(head.linear.weight.detach())
        torch.testing.assert_close(singular, torch.full_like(singular, gain))


def test_heads() -> None:
    x = torch.randn(4, 2, 8)
    value_head = ValueHead(8)
    torch.testing.assert_close(value_head(x), value_head.linear(x)[..., 0])
    free = Gaussian((3,), init_std=0.5)
    head = PolicyHead(free, 8)
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias", "free"}
    params = head(x)
    torch.testing.assert_close(params.mean, head.linear(x))
    torch.testing.assert_close(params.log_std.exp(), torch.full((4, 2, 3), 0.5))
    params.log_std.sum().backward()
    assert head.free is not None and head.free.grad is not None and (head.free.grad == 8).all()
    assert PolicyHead(Gaussian((3,), std="state"), 8).free is None


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("make", [NatureCnn, ImpalaResNet, MinAtarCnn])
@pytest.mark.parametrize("leading", [(), (2,), (3, 2), (0,)])
def test_images(make: Any, leading: tuple[int, ...]) -> None:
    network = make((3, 40, 36))
    image = torch.randint(0, 256, (*leading, 3, 40, 36), dtype=torch.uint8)
    before = image.clone()
    result = network(image)
    assert result.shape == (*leading, network.out_features) and result.dtype == torch.float32
    assert torch.equal(image, before)
    torch.testing.assert_close(result, network(image.float() / 255), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [NatureCnn, ImpalaResNet, MinAtarCnn])
def test_the_callers_memory_is_never_written(make: Any) -> None:
    """Also where a float image needs no copy at all: its channels are last in memory."""
    array = np.moveaxis(np.random.default_rng(0).random((2, 36, 36, 3), dtype=np.float32), -1, 1)
    before = array.copy()
    make((3, 36, 36))(torch.from_numpy(array)).sum().backward()
    assert (array == before).all()


@pytest.mark.parametrize("make", [NatureCnn, ImpalaResNet, MinAtarCnn])
def test_channels_last_gives_the_same(make: Any) -> None:
    network = make((3, 44, 40))
    image = torch.randint(0, 256, (5, 3, 44, 40), dtype=torch.uint8)
    expected = network(image)
    torch.testing.assert_close(network.to(memory_format=torch.channels_last)(image), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [NatureCnn, ImpalaResNet, MinAtarCnn])
def test_networks_may_end_in_their_convolutions(make: Any) -> None:
    torch.manual_seed(0)
    whole = make((3, 40, 36))
    part = make((3, 40, 36), out_features=None)
    part.convolutions.load_state_dict(whole.convolutions.state_dict())
    assert part.linear is None and part.out_features == whole.linear.in_features
    image = torch.randint(0, 256, (2, 4, 3, 40, 36), dtype=torch.uint8)
    assert part(image).shape == (2, 4, part.out_features)
    torch.testing.assert_close(torch.relu(whole.linear(part(image))), whole(image))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 7, 9), (3, 35, 35)])
def test_small_images(shape: tuple[int, int, int]) -> None:
    assert ImpalaResNet(shape, (4, 8))(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 256)
    with pytest.raises(ValueError, match=r"at least 36 x 36: use encoder='impala'"):
        NatureCnn(shape)


@pytest.mark.parametrize("make", [NatureCnn, ImpalaResNet, MinAtarCnn])
def test_wrong_layouts_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="wrap the environment in rlsurreal.envs.ChannelsFirst"):
        make((84, 84, 3))
    with pytest.raises(ValueError, match="three dimensions"):
        make((84, 84))
