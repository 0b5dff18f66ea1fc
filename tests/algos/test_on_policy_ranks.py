"""PPO and A2C: two ranks with half the environments are one with all, parameter for parameter."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import rlsurreal.algos.pg.ppo as ppo_module
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import A2C, PPO
from rlsurreal.algos.pg.on_policy import minibatch_indices
from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec, Samples, Spaces
from rlsurreal.testing.ranks import run_ranks
from rlsurreal.utils.namedarraytuple import tree_map

torch.set_num_threads(1)
T, B = 12, 4
BUILDING = threading.Lock()  # weights are drawn from the process's one generator
ALGOS: dict[str, Any] = {
    "a2c": lambda num: A2C(learning_rate=1e-2),
    "clip": lambda num: make_ppo(num),
    "kl_penalty": lambda num: make_ppo(num, objective="kl_penalty", kl_target=1e-4),  # beyond the hinge
    "batch": lambda num: make_ppo(num, normalize_advantage="batch", value_clip_range=0.1),
    "stop": lambda num: make_ppo(num, kl_stop=1e-4),
    "scaled": lambda num: make_ppo(num, scale_rewards=True, adaptive_clip=True),
}


def make_ppo(num_minibatches: int, **settings: Any) -> PPO:
    return PPO(num_epochs=3, num_minibatches=num_minibatches, learning_rate=3e-3, **settings)


def columns(samples: Samples, index: int) -> Samples:
    return tree_map(lambda x: x[:, 2 * index : 2 * index + 2].clone(), samples)


def some_slots(model: ModelSpec) -> tuple[Spaces, list[Samples]]:
    """Slots whose halves have not the same number of valid rows."""
    env = GymnasiumEnv(factory="CartPole-v1", kwargs={"max_episode_steps": 14})
    sampler, agent = SerialSampler(env=env, batch=BatchSpec(T, B), mid_batch_reset=False), ActorCriticAgent(model=model)
    agent.initialize(sampler.connect(seed=2), seed=1)
    sampler.initialize(agent, discount=0.99)
    slots = []
    for _ in range(3):
        samples = sampler.obtain()
        slots.append(tree_map(torch.clone, samples))
        sampler.release(samples)
    valid = [slot.env.valid[:-1].sum(0) for slot in slots]
    assert any(count[:2].sum() != count[2:].sum() for count in valid)
    return agent.spaces, slots


@pytest.mark.parametrize("recurrent", [None, "lstm"])
@pytest.mark.parametrize("name", ALGOS)
def test_two_ranks_with_half_the_environments_are_one_with_all(name, recurrent, monkeypatch):
    kwargs = {"hidden_sizes": (8,), "recurrent_size": 6, "recurrent": recurrent, "normalize_observation": True}
    model = ModelSpec(cls=ActorCritic, kwargs=kwargs)
    spaces, slots = some_slots(model)
    num_minibatches = 2 if recurrent else 3
    num_items = B if recurrent else T * B
    order = torch.Generator().manual_seed(4)
    whole_plan = minibatch_indices(num_items, num_minibatches, order, torch.device("cpu"))
    this = threading.local()

    def plan(*_: Any) -> list[Tensor]:
        """A rank's minibatches are its parts of those of the whole: items of columns 0 and 1, or 2 and 3."""
        if not hasattr(this, "rank"):
            return whole_plan
        mine = [item[item % B // 2 == this.rank] for item in whole_plan]
        return [item // B * 2 + item % 2 for item in mine]

    monkeypatch.setattr(ppo_module, "minibatch_indices", plan)

    def learn(ranks: Ranks) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        algo, agent = ALGOS[name](num_minibatches), ActorCriticAgent(model=model)
        with BUILDING:
            agent.initialize(spaces, seed=1)
        algo.initialize(agent, BatchSpec(T, B // ranks.count), seed=3, ranks=ranks)
        if ranks.count > 1:
            this.rank = ranks.index
        parts = [slot if ranks.count == 1 else columns(slot, ranks.index) for slot in slots]
        metrics = [{key: float(value) for key, value in algo.update(part, 0.0).items()} for part in parts]
        return metrics, {key: tensor.clone() for key, tensor in agent.tensors().items()}

    metrics, tensors = learn(ALONE)
    first, second = run_ranks(2, learn)
    for key, expected in tensors.items():
        assert torch.equal(first[1][key], second[1][key]), key
        torch.testing.assert_close(first[1][key], expected, atol=3e-5, rtol=1e-3)
    for ours, theirs, alone in zip(first[0], second[0], metrics):
        assert ours == theirs == pytest.approx(alone, rel=2e-3, abs=1e-5)
