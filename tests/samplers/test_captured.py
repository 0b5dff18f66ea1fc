"""What surrounds captured acting, with a stand-in for the CUDA graph; the graph itself is tested in tests/gpu."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils import programs
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map

torch.set_num_threads(1)


class Recording:
    """Like `CudaProgram`: it works on copies of its inputs, and takes an input that it has just seen for unchanged."""

    made: list[int] = []

    def __init__(self, function: Any, tensors: Any, num_fixed: int) -> None:
        self.made.append(len(tensors[num_fixed]))
        self.function, self.fixed, self.num_fixed = function, tensors[:num_fixed], num_fixed
        self.inputs = [tensor.clone() for tensor in tensors[num_fixed:]]
        self.forget()

    def run(self, tensors: Any) -> None:
        assert all(own is given for own, given in zip(self.fixed, tensors))
        for i, tensor in enumerate(tensors[self.num_fixed :]):
            if tensor is not self.copied[i]:
                self.inputs[i].copy_(tensor)
                self.copied[i] = tensor
        self.function(*self.fixed, *self.inputs)

    def forget(self) -> None:
        self.copied: list[Any] = [None] * len(self.inputs)


def slots(recurrent: str | None, num_steps: int, captured: bool) -> list[Any]:
    """Copies of three slots in a row."""
    kwargs = {"hidden_sizes": (8,), "recurrent": recurrent, "recurrent_size": 8}
    agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))
    sampler = SerialSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(num_steps, 4))
    agent.initialize(sampler.connect(seed=1), seed=0)
    sampler.initialize(agent, discount=0.99)
    actor = sampler._train.actor
    actor._on_gpu = actor._capture = captured
    found = []
    for _ in range(3):
        samples = sampler.obtain()
        found.append(tree_map(torch.clone, samples))
        sampler.release(samples)
    sampler.close()
    return found


@pytest.mark.parametrize("recurrent", [None, "lstm"])
@pytest.mark.parametrize("num_steps", [1, 150])  # one row: the same memory at every step; 150: two blocks of noise
def test_captured_acting_does_the_same_as_eager_acting(recurrent, num_steps, monkeypatch):
    monkeypatch.setattr(programs, "CudaProgram", Recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    Recording.made.clear()
    for eager, captured in zip(slots(recurrent, num_steps, False), slots(recurrent, num_steps, True), strict=True):
        for (name, ours), (_, theirs) in zip(named_leaves(eager), named_leaves(captured), strict=True):
            assert torch.equal(ours, theirs), name
    assert Recording.made == [4]
