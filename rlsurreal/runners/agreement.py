"""What several ranks must have in common before they begin.  Called by `run`."""

from __future__ import annotations

from typing import Any

import torch

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.utils import config


def check_settings(trainer: Any, ranks: Ranks) -> None:
    """ValueError, on all ranks, if they were started with different settings, and would wait for each other in vain."""
    texts = {name: repr(value) for name, value in config.flatten(trainer).items()}
    own = {name: text for name, text in texts.items() if " at 0x" not in text}  # not those with a place in memory
    first, *others = ranks.gather(own) or [own]
    apart = "; ".join(
        f"{name} is {first.get(name)} on rank 0 and {other.get(name)} on rank {index}"
        for index, other in enumerate(others, 1)
        for name in dict.fromkeys([*first, *other])
        if first.get(name) != other.get(name)
    )
    apart = ranks.share(apart)
    if apart:
        raise ValueError(f"ranks were started with different settings; give all of them the same: {apart}")


def check_parameters(agent: Any, ranks: Ranks) -> None:
    """ValueError, on all ranks, if they do not begin with the same parameters: they would stay apart for ever."""
    named = {name: tensor for name, tensor in agent.tensors().items() if tensor.is_floating_point()}
    own = torch.stack([tensor.detach().double().square().sum().cpu() for tensor in named.values()])
    apart = ranks.max(own.clone()) + ranks.max(-own)
    for name, difference in zip(named, apart.tolist()):
        if difference:
            raise ValueError(
                f"the agent's parameter {name!r} differs between ranks; draw initial weights from torch's generator "
                "alone, which is seeded alike on all of them"
            )
