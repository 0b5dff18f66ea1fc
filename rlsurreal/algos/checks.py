"""What every algorithm checks before it begins."""

from __future__ import annotations

from typing import Any

from rlsurreal.utils.text_values import with_article


def check_agent(algo: object, agent: object, wanted: type) -> None:
    """ValueError unless ``algo`` learns agents of this class."""
    if not isinstance(agent, wanted):
        raise ValueError(
            f"{type(algo).__name__} learns {with_article(wanted.__name__)}, and agent is "
            f"{with_article(type(agent).__name__)}; use the former, or a subclass"
        )


def check_max_grad_norm(algo: Any) -> None:
    """ValueError unless gradients of an algorithm's steps can be clipped to its ``max_grad_norm``."""
    norm = algo.max_grad_norm
    if not isinstance(norm, (int, float)) or not norm > 0:
        raise ValueError(
            f"{type(algo).__name__}.max_grad_norm is {norm}; it must be positive (float('inf') turns clipping off)"
        )
