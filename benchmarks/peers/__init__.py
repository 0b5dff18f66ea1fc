"""Peers: each in an environment of its own, installed only when asked for, run through its public interface."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsurreal.utils.files import cache_folder

_HERE = Path(__file__).parent

_ENVS = ("gymnasium[mujoco]==1.4.0", "mujoco==4.0.0", "ale-py==0.12.1", "opencv-python-headless==5.0.0.93")
_TORCH = "torch==2.13.0"
_SB3 = "stable-baselines3==2.9.2"


@dataclass(frozen=True)
class Peer:
    """A library, or a way of working, that we are held against."""

    title: str  # in tables, before its version
    requirements: tuple[str, ...]
    script: Path  # run with its Python: what to do, as JSON; see `benchmarks.contestants`
    environment: str  # folder of its virtual environment; peers that need the same share one
    without_dependencies: tuple[str, ...] = ()  # whose own pins are older than what they work with
    devices: tuple[str, ...] = ("cpu", "cuda")  # for which these requirements bring what it needs
    whole_runs: bool = False  # its processes cannot be stopped between iterations


def _plain_torch(title: str, script: str) -> Peer:
    return Peer(title, (_TORCH, *_ENVS, "envpool==1.2.5"), _HERE / script, "pytorch")


PEERS = {
    "sb3": Peer("SB3", (_TORCH, _SB3, *_ENVS), _HERE / "run_sb3.py", "sb3"),
    "sbx": Peer(
        "SBX", (_TORCH, _SB3, "sbx-rl==0.28.0", "jax==0.10.2", *_ENVS), _HERE / "run_sbx.py", "sbx", devices=("cpu",)
    ),
    "cleanrl": _plain_torch("single-file PyTorch (CleanRL's recipe)", "run_single_file.py"),
    "sample-factory": Peer(
        "Sample Factory",
        (
            _TORCH,
            *_ENVS,
            "numpy==2.2.6",
            "tensorboardx==2.6.5",
            "psutil",
            "threadpoolctl",
            "colorlog",
            "signal-slot-mp==1.0.5",
        )
        + ("filelock", "huggingface-hub<1.0", "wandb", "tensorboard"),
        _HERE / "run_sample_factory.py",
        "sample-factory",
        without_dependencies=("sample-factory==2.1.1",),  # asks for numpy < 2 and gymnasium < 1.0
        whole_runs=True,
    ),
    "torchrl": Peer(  # its C++ is built for this version of PyTorch: with another it has no sum tree
        "TorchRL", ("torch==2.14.1", "torchrl==0.14.1", *_ENVS), _HERE / "run_torchrl.py", "torchrl"
    ),
    "tianshou": Peer(
        "Tianshou", (_TORCH, "tianshou==2.0.1", *_ENVS), _HERE / "replay_tianshou.py", "tianshou", devices=("cpu",)
    ),
    "envpool": _plain_torch("EnvPool", "run_vector_envs.py"),
    "gymnasium": _plain_torch("Gymnasium vector envs", "run_vector_envs.py"),
}


def folder_of(name: str) -> Path:
    """Where a peer's virtual environment is kept."""
    return cache_folder("peers") / PEERS[name].environment


def is_installed(name: str) -> bool:
    """Whether a peer's environment holds the pinned versions."""
    done = folder_of(name) / "installed"
    return done.exists() and done.read_text() == _everything(PEERS[name])


def python_of(name: str, install: bool) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        SystemExit: it is not installed, and ``install`` is not set.
    """
    folder = folder_of(name)
    python = folder / "bin" / "python"
    if is_installed(name):
        return python
    if not install:
        raise SystemExit(f"the peer {name!r} is not installed in {folder}; add --install-peers, or leave it out")
    peer = PEERS[name]
    print(f"installing {_everything(peer)} in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *peer.requirements], check=True)
    if peer.without_dependencies:
        subprocess.run([*pip, "--no-deps", *peer.without_dependencies], check=True)
    (folder / "installed").write_text(_everything(peer))
    return python


def choose(names: str | None, install: bool) -> list[str]:
    """The peers of ``--peers``, each installed; None: those that are installed already, or all with ``install``.

    Raises:
        SystemExit: a name is not known, or a peer that was asked for is not installed.
    """
    if names is None:
        chosen: Sequence[str] = [name for name in PEERS if install or is_installed(name)]
    else:
        chosen = [name for name in names.split(",") if name]
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise SystemExit(f"--peers: there is no {', '.join(unknown)}; choose from {','.join(PEERS)}")
    for name in chosen:
        python_of(name, install)
    return list(chosen)


def _everything(peer: Peer) -> str:
    return " ".join((*peer.requirements, *peer.without_dependencies))
