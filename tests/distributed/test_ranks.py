"""What ranks tell each other through a real process group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlsurreal.distributed.ranks import ALONE, Ranks

RANK = """
import sys
import torch
from rlsurreal.distributed.ranks import Ranks
index = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=index, world_size=2)
ranks = Ranks(index, 2)
own = torch.tensor([1.0, 10.0 - 4 * index])
print([getattr(ranks, name)(own.clone()).tolist() for name in ("sum", "mean", "max")])
torch.distributed.destroy_process_group()
"""


@pytest.mark.processes
def test_two_processes_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(index), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    said = [rank.communicate(timeout=60)[0].strip() for rank in ranks]
    assert said == ["[[2.0, 16.0], [1.0, 8.0], [1.0, 10.0]]"] * 2


def test_alone_everything_stays_what_it_is() -> None:
    tensor = torch.tensor([3.0])
    assert ALONE.sum(tensor) is ALONE.mean(tensor) is ALONE.max(tensor) is tensor and ALONE.own_seed(5) == 5
    assert Ranks(1, 3).own_seed(5) != Ranks(2, 3).own_seed(5) != 5 == Ranks(0, 3).own_seed(5)


def test_a_rank_must_be_one_of_them() -> None:
    with pytest.raises(ValueError, match="index is 2; it must lie in"):
        Ranks(2, 2)
