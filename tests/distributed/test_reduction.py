"""Sums in shared memory: those of a slow definition, the same to the last bit on all ranks, and no wait for ever."""

from __future__ import annotations

import platform
import sys
import time

import pytest
import torch
from torch import Tensor

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.distributed.reduction import SharedReduction
from rlsurreal.distributed.shared_arrays import Block
from rlsurreal.testing.ranks import run_ranks
from tests.torchrun import run_script


def nothing() -> None:
    """Nobody has failed."""


def own_numbers(index: int, call: int) -> Tensor:
    draw = torch.Generator().manual_seed(100 * call + index)
    size = [1, 7, 300_001, 0, 64, 700_000][call % 6]  # some larger than the memory of a round
    dtype = [torch.float32, torch.float64, torch.int64][call % 3]
    return (1000 * torch.randn(size, generator=draw, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_numbers_are_reduced_as_defined_and_alike_on_all_ranks(count: int) -> None:
    block = Block(SharedReduction.size(count))

    def calls(ranks: Ranks) -> list[Tensor]:
        reduce, results = SharedReduction(block, ranks.index, count), []
        for call in range(36):
            tensor = own_numbers(ranks.index, call)
            reduce(tensor, "SUM" if call % 2 else "MAX", nothing)
            results.append(tensor)
        return results

    every = run_ranks(count, calls)
    for call in range(36):
        given = torch.stack([own_numbers(index, call) for index in range(count)])
        expected = given.sum(0) if call % 2 else given.amax(0)
        torch.testing.assert_close(every[0][call], expected)
        assert all(torch.equal(other[call], every[0][call]) for other in every)


def test_tensors_of_any_shape_and_stride() -> None:
    block = Block(SharedReduction.size(2))

    def reduced(ranks: Ranks) -> tuple[Tensor, Tensor]:
        scalar, transposed = torch.tensor(1.5), (torch.arange(6.0).view(2, 3) + ranks.index).t()
        reduce = SharedReduction(block, ranks.index, 2)
        reduce(scalar, "SUM", nothing)
        reduce(transposed, "SUM", nothing)
        return scalar, transposed

    for scalar, transposed in run_ranks(2, reduced):
        assert scalar == 3 and scalar.shape == ()
        assert torch.equal(transposed, (2 * torch.arange(6.0).view(2, 3) + 1).t())


def test_who_waits_looks_up_and_ends_with_what_is_seen() -> None:
    class Lost(Exception):
        pass

    def look() -> None:
        raise Lost

    started = time.monotonic()
    with pytest.raises(Lost):
        SharedReduction(Block(SharedReduction.size(2)), 0, 2)(torch.ones(3), "SUM", look)
    assert time.monotonic() - started < 5


SCRIPT = """
import os, platform
import torch
from rlsurreal.distributed.group import join

OTHER
with join() as ranks:
    found = [float(ranks.sum(torch.tensor(float(ranks.index + call)))) for call in range(50)]
    assert found == [1.0 + 2 * call for call in range(50)], found
    print(f"shared: {ranks.shared is not None}\\n", end="", flush=True)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    "other, shared", [("", True), ("if os.environ['RANK'] == '1': platform.machine = lambda: 'aarch64'", False)]
)
def test_processes_share_memory_where_all_can(tmp_path, other: str, shared: bool) -> None:
    done = run_script(tmp_path, SCRIPT.replace("OTHER", other))
    assert done.returncode == 0, done.stderr
    can = (sys.platform, platform.machine()) == ("linux", "x86_64")
    assert done.stdout.splitlines() == 2 * [f"shared: {shared and can}"]
