"""Helper of tests: a script as ranks that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def torchrun(*words: str, num_ranks: int = 2) -> list[str]:
    """The command line of ``num_ranks`` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [*launcher, *words]


def environment(**more: str) -> dict[str, str]:
    """Where this very package is found, on one thread; a crash says where."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **more}


def run_script(folder: Path, text: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Two ranks that run ``text``."""
    script = folder / "script.py"
    script.write_text(text)
    command = torchrun(str(script), *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(), **more)


def agent(*words: str) -> list[str]:
    """The command line of one host's agent, which starts one rank and meets the others where the words say."""
    common = ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    return [sys.executable, "-m", "torch.distributed.run", *common, *words]
