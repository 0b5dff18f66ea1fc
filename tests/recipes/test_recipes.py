"""Every recipe trains: built as it stands, then made small where only cost depends on it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsurreal import recipes
from rlsurreal.envs import EnvError
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.utils import config

MIN_STEPS = 320  # in which whole episodes of goals fit, and R2D2's windows in each of two environments
# Networks, lengths of slots and of windows, heads, limits of returns stay: these must fit each other.
SMALL: dict[str, Any] = {
    "algo.num_epochs": 1,
    "algo.batch_size": 4,
    "algo.replay.capacity": 2_000,
    "algo.limiter.ratio": 4.0,
    "algo.limiter.min_steps": MIN_STEPS,
    "sampler.evaluation.num_envs": 1,
    "sampler.evaluation.episodes_per_env": 1,
    "sampler.evaluation.num_steps": 10,
    "sampler.evaluation.max_episode_steps": 10,
    "num_threads": 1,
    "compile": "off",
    "console": "off",
    "tensorboard": False,
}


def make_small(trainer: Trainer, root: Path) -> Trainer:
    """A few updates, then an evaluation, in this process."""
    settings = {field.name: getattr(trainer.sampler, field.name) for field in dataclasses.fields(SerialSampler)}
    batch = dataclasses.replace(trainer.sampler.batch, num_envs=min(trainer.sampler.batch.num_envs, 2))
    total = 3 * batch.size
    if hasattr(trainer.algo, "limiter"):
        total = MIN_STEPS + max(2 * batch.size, 40)
    known = config.flatten(trainer)
    return config.override(
        dataclasses.replace(trainer, sampler=SerialSampler(**{**settings, "batch": batch})),
        {
            **{key: value for key, value in SMALL.items() if key in known},
            "root": str(root),
            "total_env_steps": total,
            "eval_interval_steps": total,
        },
    )


def skip_without_package(trainer: Any) -> None:
    """Skip the test where the environment's package, an extra, is not installed, or does not go with this MuJoCo."""
    try:
        trainer.sampler.env.make(1, 0, 0).close()
    except (ImportError, EnvError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ModuleNotFoundError) and "." not in str(cause.name):
            pytest.skip(f"the package {cause.name} is not installed")
        mujoco = tuple(map(int, metadata.version("mujoco").split(".")[:2]))
        if mujoco >= (3, 4) and "gymnasium_robotics" in traceback.extract_tb(cause.__traceback__)[-1].filename:
            pytest.skip("gymnasium_robotics does not load with this MuJoCo; the extra robotics brings one that it does")
        raise


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(child)


def test_every_recipe_is_in_the_registry() -> None:
    assert sorted(recipes.__all__) == sorted(["RECIPES", *recipes.RECIPES])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipe_trains(name: str, tmp_path: Path) -> None:
    whole = config.from_tree(config.to_tree(recipes.RECIPES[name]()))  # as a resumed run builds it
    skip_without_package(whole)
    trainer: Any = make_small(whole, tmp_path)
    published: list[dict[str, torch.Tensor]] = []
    publish = trainer.agent.publish

    def record(version: int) -> None:
        published.append({key: p.detach().clone() for key, p in trainer.agent.module.named_parameters()})
        publish(version)

    trainer.agent.publish = record
    evaluated: list[list[Any]] = []
    evaluate = trainer.sampler.evaluate

    def record_evaluation(give_up: Any) -> list[Any]:
        evaluated.append(evaluate(give_up))
        return evaluated[-1]

    trainer.sampler.evaluate = record_evaluation
    trainer.train()

    first, last = published[0], published[-1]
    assert not [key for key in last if torch.equal(first[key], last[key])], "these parameters do not learn"
    assert not [key for key in last if not bool(last[key].isfinite().all())]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(trainer.algo.state_dict()))
    assert [len(games) for games in evaluated] == [1]
