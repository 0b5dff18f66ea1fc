"""The same on an accelerator.  Not part of `make test`: python -m pytest -m gpu"""

import gc
from typing import Any

import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.distributed import page_lock
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.runners import Trainer
from rlsurreal.samplers import InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec, inputs_of
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map
from rlsurreal.utils.torch_tree import to_device

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


def make_agent(recurrent: str | None = None, squash: bool = False) -> ActorCriticAgent:
    kwargs = {"hidden_sizes": (32,), "recurrent": recurrent, "recurrent_size": 16, "normalize_observation": True}
    return ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs), squash=squash)


def first_slot(sampler: Any, agent: ActorCriticAgent, device: str, compile: Any = "off") -> Any:
    try:
        agent.initialize(sampler.connect(seed=0), seed=0, device=device)
        sampler.initialize(agent, discount=0.99, compile=compile)
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


@pytest.mark.parametrize("recurrent", [None, "lstm"])
@pytest.mark.parametrize("kind", ["serial", "served", "alternating", "served-elsewhere"])
def test_captured_acting_agrees_with_eager_acting_all_along_a_slot(kind, recurrent, caplog):
    eager = first_slot(SAMPLERS["serial"](), make_agent(recurrent), "cuda")
    captured = first_slot(SAMPLERS[kind](), make_agent(recurrent), "cuda", "auto")
    assert "cannot be captured" not in caplog.text
    torch.testing.assert_close(eager.env.observation, captured.env.observation)
    for (name, ours), (_, theirs) in zip(named_leaves(eager.agent), named_leaves(captured.agent)):
        torch.testing.assert_close(ours[:16], theirs[:16], rtol=1e-3, atol=1e-4, msg=name)


def test_captured_acting_sees_new_parameters_and_new_noise():
    sampler, agent = SAMPLERS["served"](), make_agent()
    try:
        agent.initialize(sampler.connect(seed=0), seed=0, device="cuda")
        sampler.initialize(agent, discount=0.99, compile="auto")
        values = []
        for _ in range(2):
            samples = sampler.obtain()
            values.append(samples.agent.agent_info.value[0].clone())
            with torch.no_grad():
                expected = agent.value(to_device(inputs_of(samples)[0], agent.device), None).cpu()
            torch.testing.assert_close(values[-1], expected)
            actions = samples.agent.action[:16]
            assert len(actions.unique(dim=0)) > 1
            sampler.release(samples)
            with torch.no_grad():
                for parameter in agent.module.parameters():
                    parameter.mul_(1.5).add_(0.1)
    finally:
        sampler.close()


@pytest.mark.parametrize("kind", ["serial", "served"])
def test_slots_are_page_locked_while_they_live(kind):
    sampler, agent = SAMPLERS[kind](), make_agent()
    agent.initialize(sampler.connect(seed=0), seed=0, device="cuda")
    sampler.initialize(agent, discount=0.99)
    try:
        samples = sampler.obtain()
        assert all(leaf.is_pinned() for _, leaf in named_leaves(samples))
        sampler.release(samples)
    finally:
        sampler.close()
    del sampler, samples
    gc.collect()
    assert not page_lock._locked


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
        for _ in range(2):  # the first only begins statistics
            algo.update(samples, 0.0)
        updated[device] = {name: tensor.cpu() for name, tensor in agent.tensors().items()}
    for name, tensor in updated["cpu"].items():
        torch.testing.assert_close(tensor, updated["cuda"][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("num_minibatches", "squash"), [(2, False), (3, False), (2, True)], ids=["even", "uneven", "squashed"]
)
def test_captured_updates_agree_with_eager_ones(num_minibatches, squash):
    samples = first_slot(SAMPLERS["serial"](), make_agent(squash=squash), "cpu")
    updated, metrics = {}, {}
    for setting in ("off", "on"):
        sampler, agent = SAMPLERS["serial"](), make_agent(squash=squash)
        algo = PPO(num_epochs=2, num_minibatches=num_minibatches, learning_rate=1e-3)
        agent.initialize(sampler.connect(seed=0), seed=0, device="cuda")
        sampler.close()
        algo.initialize(agent, BATCH, seed=0, compile=setting)
        metrics[setting] = [{k: float(v) for k, v in algo.update(samples, p).items()} for p in (0.0, 0.2, 0.5)]
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
