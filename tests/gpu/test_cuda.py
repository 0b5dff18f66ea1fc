"""The same on an accelerator.  Not part of `make test`: python -m pytest -m gpu"""

from typing import Any

import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.runners import Trainer
from rlsurreal.samplers import InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator"),
]
BATCH = BatchSpec(16, 8)
ENV = GymnasiumEnv(factory="CartPole-v1")
SAMPLERS: dict[str, Any] = {
    "serial": lambda: SerialSampler(env=ENV, batch=BATCH),
    "served": lambda: ParallelSampler(env=ENV, batch=BATCH, num_workers=2, inference=InferenceServer()),
    "alternating": lambda: ParallelSampler(
        env=ENV, batch=BATCH, num_workers=2, inference=InferenceServer(schedule="alternating")
    ),
    "served-elsewhere": lambda: ParallelSampler(
        env=ENV,
        batch=BATCH,
        num_workers=2,
        num_slots=2,
        inference=InferenceServer(schedule="dynamic", devices=("cuda:0",)),
    ),
    "workers": lambda: ParallelSampler(env=ENV, batch=BATCH, num_workers=2),
}


def make_agent(recurrent: str | None = None) -> ActorCriticAgent:
    kwargs = {"hidden_sizes": (32,), "recurrent": recurrent, "recurrent_size": 16, "normalize_observation": True}
    return ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))


def first_slot(sampler: Any, agent: ActorCriticAgent, device: str) -> Any:
    try:
        agent.initialize(sampler.connect(seed=0), seed=0, device=device)
        sampler.initialize(agent, discount=0.99)
        samples = sampler.obtain()
        copied = tree_map(torch.clone, samples)
        sampler.release(samples)
        return copied
    finally:
        sampler.close()


@pytest.mark.parametrize("recurrent", [None, "lstm"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_samples_agree_with_those_of_the_cpu(kind, recurrent):
    on_cpu = first_slot(SAMPLERS["serial"](), make_agent(recurrent), "cpu")
    on_gpu = first_slot(SAMPLERS[kind](), make_agent(recurrent), "cuda")
    assert torch.equal(on_cpu.env.observation[0], on_gpu.env.observation[0])
    for (name, ours), (_, theirs) in zip(named_leaves(on_cpu.agent.agent_info), named_leaves(on_gpu.agent.agent_info)):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_one_update_agrees_with_that_of_the_cpu(recurrent):
    updated = {}
    sampler = SAMPLERS["serial"]()
    samples = first_slot(sampler, make_agent(recurrent), "cpu")
    for device in ("cpu", "cuda"):
        sampler, agent, algo = SAMPLERS["serial"](), make_agent(recurrent), PPO(num_epochs=2, num_minibatches=2)
        agent.initialize(sampler.connect(seed=0), seed=0, device=device)
        sampler.close()
        algo.initialize(agent, BATCH, seed=0)
        algo.update(samples, 0.0)
        updated[device] = {name: tensor.cpu() for name, tensor in agent.tensors().items()}
    for name, tensor in updated["cpu"].items():
        torch.testing.assert_close(tensor, updated["cuda"][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("num_minibatches", [2, 3], ids=["even", "uneven"])
def test_captured_updates_agree_with_eager_ones(num_minibatches):
    samples = first_slot(SAMPLERS["serial"](), make_agent(None), "cpu")
    updated, metrics = {}, {}
    for setting in ("off", "on"):
        sampler, agent = SAMPLERS["serial"](), make_agent(None)
        algo = PPO(num_epochs=2, num_minibatches=num_minibatches, learning_rate=1e-3)
        agent.initialize(sampler.connect(seed=0), seed=0, device="cuda")
        sampler.close()
        algo.initialize(agent, BATCH, seed=0, compile=setting)
        metrics[setting] = [{k: float(v) for k, v in algo.update(samples, p).items()} for p in (0.0, 0.5)]
        assert (algo._gradient_step._compiled is not None) == (setting == "on")
        updated[setting] = {name: tensor.cpu() for name, tensor in agent.tensors().items()}
    torch.testing.assert_close(updated["on"], updated["off"], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(metrics["on"], metrics["off"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_training_runs_and_resumes(kind, tmp_path):
    def trainer(steps: int) -> Trainer:
        return Trainer(
            agent=make_agent(),
            algo=PPO(num_epochs=2, num_minibatches=2),
            sampler=SAMPLERS[kind](),
            device="cuda",
            total_env_steps=steps,
            log_interval_steps=256,
            root=str(tmp_path),
            console="off",
            tensorboard=False,
        )

    folder = trainer(1024).train()
    assert trainer(2048).train(resume=folder) == folder
    assert len((folder / "progress.csv").read_text().splitlines()) >= 8
