"""What ranks tell each other: alone, as threads, and as processes that torchrun starts."""

from __future__ import annotations

import subprocess

import pytest
import torch

from rlsurreal.distributed.ranks import ALONE, Ranks
from rlsurreal.testing.ranks import run_ranks
from tests.torchrun import environment, run_script, torchrun

EXCHANGE = """
import torch
from rlsurreal.distributed.ranks import Ranks

def exchange(ranks: Ranks) -> dict:
    own = torch.tensor([1.0, 10.0 - 4 * ranks.index])
    said = {name: getattr(ranks, name)(own.clone()).tolist() for name in ("sum", "mean", "max")}
    said["gather"] = ranks.gather({"index": ranks.index, "data": "x" * (1 + 1000 * ranks.index)})
    said["scatter"] = ranks.scatter(["for the first", ["for", "the second"]] if ranks.is_first else [])
    said["share"] = ranks.share(torch.arange(3) if ranks.is_first else None).tolist()
    return said
"""
SCRIPT = (
    EXCHANGE
    + """
from rlsurreal.distributed.group import join
with join() as ranks:
    line = f"{ranks.index} {exchange(ranks)}\\n"
    print(line, end="", flush=True)  # in one piece
"""
)


def expected(index: int) -> dict[str, object]:
    gathered = [{"index": 0, "data": "x"}, {"index": 1, "data": "x" * 1001}]
    return {
        "sum": [2.0, 16.0],
        "mean": [1.0, 8.0],
        "max": [1.0, 10.0],
        "gather": gathered if index == 0 else [],
        "scatter": ["for the first", ["for", "the second"]][index],
        "share": [0, 1, 2],
    }


@pytest.mark.processes
def test_two_processes_agree(tmp_path):
    done = run_script(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{index} {expected(index)}" for index in range(2)]


STEPS = """
import dataclasses
import torch
from torch import nn
from rlsurreal.algos.update import GradientStep
from rlsurreal.distributed.group import join
from rlsurreal.distributed.ranks import ALONE, Ranks

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

def learn(ranks, over_ranks, compile, data, num_rows):
    torch.manual_seed(0)
    net, other = Net(), nn.Linear(2, 1)  # the loss reads another network, which it does not train
    def loss(x):
        errors = (other(net.used(x)) * net.frozen).square().sum(-1)
        loss = errors.mean() if over_ranks == "mean" else errors.sum() / num_rows
        return loss, loss.detach()[None]
    options = {"max_grad_norm": 0.1, "ranks": ranks, "over_ranks": over_ranks, "compile": compile}
    step = GradientStep(net, loss, 1, reads=[other], **options)
    by_ddp = ranks.count > 1 and ranks.shared is None and not compile
    assert (step._averaging is not None) == by_ddp
    step.learning_rate.fill_(0.01)
    for x in data:
        step(x)
    return step.flat.clone(), step.take_metrics()

torch.set_num_threads(1)
data = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(1))
with join() as sharing:
    apart = dataclasses.replace(sharing, shared=None)
    own = data[:, sharing.part(8)]
    eager = [(ranks, over_ranks, False) for ranks in (sharing, apart) for over_ranks in ("mean", "sum")]
    for ranks, over_ranks, compile in [*eager, (sharing, "sum", True)]:
        parameters, metrics = learn(ranks, over_ranks, compile, own, 8)
        whole, expected = learn(ALONE, over_ranks, False, data, 8)
        torch.testing.assert_close(parameters, whole)
        torch.testing.assert_close(metrics, expected)
        assert torch.equal(ranks.max(parameters.clone()), parameters)
    print("equal", flush=True)
"""


@pytest.mark.processes
@pytest.mark.compiles
def test_steps_of_two_processes_are_those_of_one_with_all_rows(tmp_path):
    done = run_script(tmp_path, STEPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


AGAIN = """
import os, time
import torch
from rlsurreal.distributed.group import join

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
if attempt and rank == attempt % 2:
    time.sleep(1.0)  # later than the other, who may meet what is left of those before
for _ in range(2):
    with join(30) as ranks:
        assert ranks.sum(torch.ones(1)).item() == 2
if attempt < 2:
    raise RuntimeError("again")
print("met", flush=True)
"""


@pytest.mark.processes
def test_restarted_ranks_meet_each_other_and_not_the_dead(tmp_path):
    (tmp_path / "script.py").write_text(AGAIN)
    command = torchrun("--max-restarts", "2", str(tmp_path / "script.py"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("met") == 2


def test_two_threads_agree():
    namespace: dict = {}
    exec(EXCHANGE, namespace)
    assert run_ranks(2, namespace["exchange"]) == [expected(0), expected(1)]


def test_alone_everything_stays_what_it_is():
    tensor = torch.tensor([3.0])
    assert ALONE.sum(tensor) is ALONE.mean(tensor) is ALONE.max(tensor) is tensor and ALONE.own_seed(5) == 5
    assert ALONE.gather(tensor) == [tensor] and ALONE.scatter([tensor]) is tensor is ALONE.share(tensor)
    assert Ranks(1, 3).own_seed(5) != Ranks(2, 3).own_seed(5) != 5 == Ranks(0, 3).own_seed(5)


def test_parts_cover_everything_once():
    for num_items in (0, 1, 5, 16):
        parts = [Ranks(index, 3).part(num_items) for index in range(3)]
        assert [i for part in parts for i in range(num_items)[part]] == list(range(num_items))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_rank_must_be_one_of_them():
    with pytest.raises(ValueError, match="index is 2; it must lie in"):
        Ranks(2, 2)
