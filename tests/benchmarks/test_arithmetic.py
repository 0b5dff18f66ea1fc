"""Operations that the arithmetic limit of a training task counts."""

from __future__ import annotations

import pytest

from benchmarks.arithmetic import count_operations
from benchmarks.tasks import TRAIN

SMALL = {"hidden_sizes": [32, 32], "batch_size": 16, "min_steps": 40, "capacity": 400, "device": "cpu"}


def test_operations_of_sac_are_those_of_its_products():
    counted = count_operations(TRAIN["W2"].sized(SMALL))

    def layers(*sizes: int) -> list[int]:
        return [2 * inputs * outputs for inputs, outputs in zip(sizes, sizes[1:])]

    actor, critic = layers(17, 32, 32, 12), layers(23, 32, 32, 1)
    targets = sum(actor) + 2 * sum(critic)
    # A backward pass is two products a layer, one for its weights and one for its inputs, which the first one lacks.
    critic_loss = 2 * (3 * sum(critic) - critic[0])
    # Through the critics go gradients of actions only, not of their weights.
    actor_loss = 3 * sum(actor) - actor[0] + 2 * 2 * sum(critic)
    acting = sum(actor)
    assert counted == pytest.approx(16 * (targets + critic_loss + actor_loss) + acting, rel=0.02)
