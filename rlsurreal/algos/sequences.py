"""What the algorithms that learn from sequences share: `R2D2` and `RecurrentSAC`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rlsurreal.utils.namedarraytuple import Tree


def after_burn_in(run: Callable[[slice, Tree], tuple[Any, Tree]], state: Tree, burn_in: int) -> Any:
    """What ``run(rows, state) -> outputs, state`` gives for the rows after the burn-in.

    The burn-in's rows only bring the state up to date, without gradients (Kapturowski et al. 2019, R2D2).
    """
    if burn_in:
        with torch.no_grad():
            _, state = run(slice(burn_in), state)
    return run(slice(burn_in, None), state)[0]
