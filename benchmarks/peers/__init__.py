"""Peers: each in an environment of its own, installed only when asked for, run through its public interface."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """A library that we are held against."""

    requirements: tuple[str, ...]
    script: Path  # run with its Python: settings as JSON, and a seed; the last line it prints is the result


_HERE = Path(__file__).parent

PEERS = {
    "sb3": Peer(("torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0"), _HERE / "run_sb3.py"),
}


def python_of(name: str, install: bool) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        SystemExit: it is not installed, and ``install`` is not set.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlsurreal" / "peers"
    folder = cache / name
    python, done = folder / "bin" / "python", folder / "installed"
    requirements = " ".join(PEERS[name].requirements)
    if done.exists() and done.read_text() == requirements:
        return python
    if not install:
        raise SystemExit(f"the peer {name!r} is not installed in {folder}; add --install-peers, or --no-peers")
    print(f"installing {requirements} in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[name].requirements], check=True)
    done.write_text(requirements)
    return python
