"""Every algorithm over two real processes with half the rows each is as one with all.

Gradients are averaged in shared memory, and by DistributedDataParallel.
"""

from __future__ import annotations

import pytest

from tests.torchrun import run_script

SCRIPT = """
import dataclasses
import pytest
import torch
import rlsurreal.algos.pg.ppo as ppo_module
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos.pg.on_policy import minibatch_indices
from rlsurreal.distributed.group import join
from rlsurreal.distributed.ranks import ALONE
from rlsurreal.models import ActorCritic
from rlsurreal.structs import BatchSpec
from tests.algos.test_off_policy import CASES, Run
from tests.algos.test_off_policy_ranks import half_of
from tests.algos.test_on_policy_ranks import ALGOS, B, T, columns, some_slots

torch.set_num_threads(1)


def check(name, ranks, steps, whole, part):
    assert all((step._averaging is None) == (ranks.shared is not None) for step in steps), name
    for key, expected in whole[0].items():
        if "generator" not in key:
            torch.testing.assert_close(part[0][key], expected, atol=3e-5, rtol=1e-3, msg=f"{name}: {key}")
    for ours, theirs in zip(whole[1], part[1], strict=True):
        assert theirs == pytest.approx(ours, rel=2e-3, abs=1e-4), name


def replayed(name, batches, ranks):
    run = Run(name, ranks=ranks, target_tau=0.5)
    for batch in batches:
        run.algo._update(batch if ranks.count == 1 else half_of(batch, ranks.index), 0.5)
        run.algo._num_updates += 1
    metrics = {key: float(value) for key, value in run.algo.take_metrics().items()}
    return (run.tensors(), [metrics]), [step for step, _ in run.algo._parts.steps.values()]


def on_policy(name, recurrent, ranks):
    kwargs = {"hidden_sizes": (8,), "recurrent_size": 6, "recurrent": recurrent, "normalize_observation": True}
    model = ModelSpec(cls=ActorCritic, kwargs=kwargs)
    spaces, slots = some_slots(model)
    num_minibatches, num_items = (2, B) if recurrent else (3, T * B)
    order = torch.Generator().manual_seed(4)
    whole = minibatch_indices(num_items, num_minibatches, order, torch.device("cpu"))
    mine = [item[item % B // 2 == ranks.index] for item in whole]
    ppo_module.minibatch_indices = lambda *_: whole if ranks.count == 1 else [i // B * 2 + i % 2 for i in mine]
    algo, agent = ALGOS[name](num_minibatches), ActorCriticAgent(model=model)
    agent.initialize(spaces, seed=1)
    algo.initialize(agent, BatchSpec(T, B // ranks.count), seed=3, ranks=ranks)
    parts = [slot if ranks.count == 1 else columns(slot, ranks.index) for slot in slots]
    metrics = [{key: float(value) for key, value in algo.update(part, 0.0).items()} for part in parts]
    return ({key: tensor.clone() for key, tensor in agent.tensors().items()}, metrics), [algo._gradient_step]


batches = {}
for name in CASES:
    source = Run(name)
    source.advance(20)
    batches[name] = [source.algo.replay.sample(8)[0] for _ in range(4)]
# What is drawn in updates differs between ranks, by design; here it must not.
torch.randn, torch.rand = (
    lambda *size, value=value, **_: torch.full(torch.zeros(*size).shape, value) for value in (0.3, 0.6)
)
with join(60) as sharing:
    distributed_data_parallel = dataclasses.replace(sharing, shared=None)
    for name in CASES:
        whole, _ = replayed(name, batches[name], ALONE)
        for ranks in (sharing, distributed_data_parallel):
            part, steps = replayed(name, batches[name], ranks)
            check(name, ranks, steps, whole, part)
    for name in ALGOS:
        for recurrent in (None, "lstm"):
            whole, _ = on_policy(name, recurrent, ALONE)
            for ranks in (sharing, distributed_data_parallel):
                part, steps = on_policy(name, recurrent, ranks)
                check(name, ranks, steps, whole, part)
    assert (len(CASES), 2 * len(ALGOS)) == (16, 12)
    print("checked", flush=True)
"""


@pytest.mark.processes
def test_two_processes_with_half_the_rows_are_one_with_all(tmp_path):
    done = run_script(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("checked") == 2
