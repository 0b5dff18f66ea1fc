"""One experiment divided over ranks: which environments, games of an evaluation, batches and replay are this rank's."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.structs import Algorithm, BatchSpec, Sampler

Scaling = Literal["strong", "weak"]


def divide(algo: Algorithm, sampler: Sampler, ranks: Ranks, scaling: Scaling) -> tuple[Algorithm, Sampler]:
    """This rank's algorithm and sampler, which are not initialized yet; alone they are what they were.

    "strong": environments, batches and replay are those of the experiment, divided.  "weak": each rank has as many as
    the experiment says.  Evaluations are divided in any case.

    Raises:
        ValueError: something cannot be divided among so many.
    """
    if ranks.count == 1:
        return algo, sampler
    batch = divided_batch(sampler.batch, ranks, scaling)
    own = sampler.divided(batch, divided_evaluation(sampler.evaluation, ranks))
    return algo.divided(ranks, scaling), own


def divided_batch(batch: BatchSpec, ranks: Ranks, scaling: Scaling) -> BatchSpec:
    """This rank's columns among all."""
    total = batch.num_envs * (ranks.count if scaling == "weak" else 1)
    if total < ranks.count:
        raise ValueError(
            f"sampler.batch.num_envs is {batch.num_envs}, fewer than the {ranks.count} ranks; each needs one: add "
            "environments, use fewer ranks, or scaling='weak'"
        )
    own = ranks.part(total)
    return BatchSpec(batch.num_steps, own.stop - own.start, first_env=own.start, total_envs=total)


def divided_evaluation(evaluation: Any, ranks: Ranks) -> Any:
    """This rank's environments of an evaluation; an idle one where there are none for it (see `plays`)."""
    own = ranks.part(evaluation.num_envs)
    return dataclasses.replace(evaluation, num_envs=max(1, own.stop - own.start), first_env=own.start)


def plays(num_eval_envs: int, ranks: Ranks) -> bool:
    """Whether this rank has a part in an evaluation of so many environments."""
    own = ranks.part(num_eval_envs)
    return len(range(num_eval_envs)[own]) > 0
