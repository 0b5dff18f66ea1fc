"""What a run leaves on disk: its folder, its checkpoints, and where it ran.

Called by runners and launchers.  A file written here is either there as a whole or not at all, whatever kills the
process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rlsurreal.utils.plain import from_plain, to_plain

RUN_LOCK = ".run.lock"  # in a run's folder: held by who writes there
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems
_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.pt")
_MAX_DIFF_CHARS = 1_000_000
_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "envpool")


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept between runs, by kind (the folder may not exist yet)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlsurreal" / name


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open ``path`` for writing; what is written appears there when the block ends well, and never otherwise.

    ``mode`` is "wb", or "w" for text (UTF-8).  The folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name survives a power failure only when the folder, too, is on disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some shared folders cannot
                os.fsync(folder)
        finally:
            os.close(folder)


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Whether this process has the file for itself now, until it is closed; ``wait`` for whoever has it.

    On file systems without locks everybody has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextlib.contextmanager
def alone_in(folder: Path, name: str, who: str) -> Iterator[None]:
    """Hold the lock ``name`` of ``folder``, which is made where there is none.

    Raises:
        ValueError: another process, ``who``, has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a+") as file:
        if not lock(file):
            file.seek(0)
            raise ValueError(
                f"another {who} (process {file.read().strip() or '?'}) works on {folder}; wait for it or stop it"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


# ---------------------------------------------------------------- checkpoints


def checkpoint_path(folder: Path | str, step: int) -> Path:
    """The file of the checkpoint that was made after ``step`` environment steps."""
    return Path(folder) / f"checkpoint_{step:012d}.pt"


def list_checkpoints(folder: Path | str) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in ``folder``, in rising order of steps."""
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).glob("checkpoint_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path | str) -> Path | None:
    """The checkpoint with most steps, or None."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1][1] if checkpoints else None


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Write ``state`` for `load_checkpoint`: nested dicts, lists and tuples of what `rlsurreal.utils.plain.to_plain`
    takes.

    Raises:
        ValueError: names the entry that cannot be saved.
    """
    import torch

    plain = to_plain(state)
    with atomic_write(path) as file:
        torch.save(plain, file)


def load_checkpoint(path: Path | str, map_location: Any = "cpu") -> dict[str, Any]:
    """What `save_checkpoint` wrote: equal values of equal types, tensors on ``map_location``.

    Nothing in the file is executed (``torch.load(weights_only=True)``).

    Raises:
        ValueError: there is no such file, it cannot be read, or it is damaged; names the checkpoint to take instead.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; {_alternative(path)}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not notice changed bits
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        try:
            mapped = map_location == "cpu"  # what is large, as a saved replay is, is read where it is used
            plain = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        except RuntimeError:  # not every file system can map files
            plain = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or was not written by save_checkpoint ({error}); {_alternative(path)}"
        ) from error
    state: dict[str, Any] = from_plain(plain)
    return state


def prune_checkpoints(folder: Path | str, keep_last: int = 1, keep_every_steps: int | None = None) -> list[Path]:
    """Delete the checkpoints that the policy does not keep.

    Args:
        folder: of the run.  Only its owner may call this.
        keep_last: how many of the newest to keep.
        keep_every_steps: keep, too, the first checkpoint in each interval of so many environment steps.

    Returns:
        The deleted checkpoints.
    """
    for name, value in (("keep_last", keep_last), ("keep_every_steps", keep_every_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    checkpoints = list_checkpoints(folder)
    kept = {path for _, path in checkpoints[-keep_last:]}
    if keep_every_steps is not None:
        first_of_interval = {step // keep_every_steps: path for step, path in reversed(checkpoints)}
        kept.update(first_of_interval.values())
    deleted = [path for _, path in checkpoints if path not in kept]
    for path in deleted:
        path.unlink(missing_ok=True)
    return deleted


def remove_partial_files(folder: Path | str) -> None:
    """Delete the parts of checkpoints that a killed process left.  Only the folder's owner may call this."""
    for partial in Path(folder).glob(".*.pt.*.tmp"):
        partial.unlink(missing_ok=True)


def _alternative(path: Path) -> str:
    """Advice for one whose checkpoint ``path`` is no good."""
    match = _CHECKPOINT.fullmatch(path.name)
    others = [(step, other) for step, other in list_checkpoints(path.parent) if other != path]
    before = [other for step, other in others if match is None or step < int(match[1])]
    if before:
        return f"delete it, and the run goes on from the one before it: {before[-1]}"
    return f"its folder also has {others[0][1].name}" if others else "its folder has no other one"


# ---------------------------------------------------------------- the run's folder and surroundings


def make_run_folder(root: Path | str, name: str) -> Path:
    """Make and return the new folder ``root/name_N``, N counting from 0; concurrent callers get different ones."""
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(f"name of the run is {name!r}; use letters, digits and any of _ . + -")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    endings = [entry.name[len(name) + 1 :] for entry in root.glob(f"{name}_*")]
    numbers = [int(ending) for ending in endings if ending.isdecimal()]
    number = max(numbers, default=-1) + 1
    while True:
        folder = root / f"{name}_{number}"
        try:
            folder.mkdir()  # atomic: one caller alone succeeds, on network file systems, too
        except FileExistsError:
            number += 1
        else:
            return folder


def describe_environment(folder: Path | str = ".") -> dict[str, Any]:
    """Where and with what this process runs, JSON-able: for the run's folder, so that a result can be traced.

    Python, platform, CPUs, versions of the packages that matter, command line, and the git commit of the project around
    ``folder`` with its uncommitted changes.  What cannot be found out is None; this never fails.
    """
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    diff = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "HEAD") if commit else None
    if diff is not None and len(diff) > _MAX_DIFF_CHARS:
        diff = f"{diff[:_MAX_DIFF_CHARS]}\n[{len(diff) - _MAX_DIFF_CHARS} more characters]"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "versions": versions,
        "command": list(sys.orig_argv),
        "git": {
            "commit": commit.strip() if commit else None,
            "dirty": None if status is None else bool(status),
            "status": status,
            "diff": diff,
        },
    }


def _git(folder: Path | str, *words: str) -> str | None:
    """What a git command says about the project around ``folder``; None where there is no git or no project."""
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            capture_output=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
