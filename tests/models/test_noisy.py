"""Noisy layers against their definition: one explicit weight matrix for each row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlsurreal.models import NoisyLinear

torch.set_num_threads(1)
IN, OUT = 5, 3


def noisy_layer() -> NoisyLinear:
    torch.manual_seed(0)
    layer = NoisyLinear(IN, OUT, std=0.5)
    with torch.no_grad():
        layer.weight_std += torch.rand(OUT, IN)  # every entry its own, unlike at the start
        layer.bias_std += torch.rand(OUT)
    return layer


def by_definition(layer: NoisyLinear, x: Tensor, noise: Tensor) -> Tensor:
    def f(e: Tensor) -> Tensor:
        return torch.where(e < 0, -1.0, 1.0) * e.abs() ** 0.5

    rows = []
    for row, e in zip(x.reshape(-1, IN), noise.reshape(-1, IN + OUT)):
        f_in, f_out = f(e[:IN]), f(e[IN:])
        weight = layer.weight_mean + layer.weight_std * torch.outer(f_out, f_in)
        rows.append(weight @ row + layer.bias_mean + layer.bias_std * f_out)
    return torch.stack(rows).reshape(*x.shape[:-1], OUT)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_each_row_has_its_own_weights(leading: tuple[int, ...]) -> None:
    layer = noisy_layer()
    x, noise = torch.randn(*leading, IN), torch.randn(*leading, IN + OUT)
    results = []
    for got in (layer(x, noise), by_definition(layer, x, noise)):
        layer.zero_grad()
        got.square().sum().backward()
        results.append([got, *(p.grad for p in layer.parameters())])
    assert layer.num_noise == IN + OUT
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_shared_noise_and_none() -> None:
    layer, x = noisy_layer(), torch.randn(4, IN)
    noise = torch.randn(1, IN + OUT)
    torch.testing.assert_close(layer(x, noise), by_definition(layer, x, noise.expand(4, -1)))
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight_mean, layer.bias_mean))
    assert torch.equal(layer(x, torch.zeros(4, IN + OUT)), layer(x))


def test_initial_parameters() -> None:
    layer = NoisyLinear(400, 300, std=0.7)
    bound = 400**-0.5
    for mean, std in ((layer.weight_mean, layer.weight_std), (layer.bias_mean, layer.bias_std)):
        assert 0.95 * bound < mean.abs().max() <= bound and abs(mean.mean()) < 0.1 * bound
        torch.testing.assert_close(std, torch.full_like(std, 0.7 * bound))
