"""Where rows are kept: arrays ``[num_rows, B, ...]`` in memory, in a file, or on a GPU.  Used by `replay.Replay`.

`FullStorage` keeps observations as they are.  `FrameStorage` keeps each frame of a stack once: an eighth of the memory,
nearly, for four stacked frames that would be stored as observation and as successor, a quarter here, where successors
are the next rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rlsurreal.distributed.shared_arrays import allocate, plain
from rlsurreal.replays.ring import Ring, Rows, flat_rows, gather, write
from rlsurreal.utils.cgroups import free_memory
from rlsurreal.utils.files import lock
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves, tree_map
from rlsurreal.utils.torch_tree import to_torch

_log = logging.getLogger("rlsurreal")


class Row(NamedArrayTuple):
    """What a replay keeps of a row of `Samples`."""

    observation: Tree
    action: Tree
    reward: Any
    terminated: Any
    truncated: Any
    first: Any
    agent_info: Tree  # None unless the algorithm asks for it
    env_info: Tree  # None unless the extractor does


class Storage(Protocol):
    """What `Replay` asks of a storage.  Rows and environments are numpy arrays; what is read are tensors."""

    file: str | None  # where rows are kept instead of memory
    rows: Row  # [num_rows, B], observations as this storage has them
    lookback: int  # so many rows before one are needed to read its observation
    device: torch.device

    def initialize(self, ring: Ring, example: Row, device: torch.device) -> None:
        """Allocate for rows like ``example``, whose leaves are ``[B, ...]`` numpy arrays or CPU tensors."""

    def append(self, rows: Rows, values: Row, begins: bool) -> None:
        """Write ``values`` ``[len(rows), B]``; the last row has an observation and ``first`` only.

        ``begins``: the first of ``rows`` does not stand in the ring yet, and the ``lookback`` rows before it are free.
        """

    def read(self, field: str, flat: np.ndarray) -> Tree:
        """Entries of a field (dotted, if it lies deeper) at flat places (see `Ring.flat`), any shape."""

    def observation(self, flat: np.ndarray) -> Tree:
        """Observations at flat places, any shape."""

    def state_dict(self) -> dict[str, Any]:
        """All rows."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""

    def close(self) -> None:
        """Give up memory and file, for good."""


@dataclass(kw_only=True, eq=False)
class FullStorage:
    """Observations as they are."""

    file: str | None = None  # keep rows in this file instead of memory: for replays larger than that

    lookback = 0

    def initialize(self, ring: Ring, example: Row, device: torch.device) -> None:
        """See `Storage`."""
        self._ring, self.device = ring, device
        self.rows = allocate_rows(ring.num_rows, example, device, self.file)
        self._flat = flat_rows(self.rows)

    def append(self, rows: Rows, values: Row, begins: bool) -> None:
        """See `Storage`."""
        write(self._ring, self.rows, rows, values)

    def read(self, field: str, flat: np.ndarray) -> Tree:
        """See `Storage`."""
        return gather(attrgetter(field)(self._flat), flat)

    def observation(self, flat: np.ndarray) -> Tree:
        """See `Storage`."""
        return gather(self._flat.observation, flat)

    def state_dict(self) -> dict[str, Any]:
        """See `Storage`."""
        return {"rows": saved_rows(self.rows, self.file)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Storage`."""
        fill_leaves(self.rows, state["rows"])

    def close(self) -> None:
        """See `Storage`."""
        del self.rows, self._flat


@dataclass(kw_only=True, eq=False)
class FrameStorage:
    """Observations that are stacks of frames ``[K, H, W]``, the newest last; each frame is kept once.

    ``padding`` says what stands before the first frame of an episode: ``"zeros"`` (ALE, and `make_atari`), or the
    ``"first"`` frame again (EnvPool).  Where an episode ends and the stack goes on (a lost life), the next observation
    goes on, too: what counts is whether the stack does, and that is seen from the frames themselves.
    """

    padding: Literal["zeros", "first"] = "zeros"
    file: str | None = None  # see `FullStorage`

    def __post_init__(self) -> None:
        if self.padding not in ("zeros", "first"):
            raise ValueError(f"FrameStorage.padding is {self.padding!r}; choose 'zeros' or 'first'")
        self.lookback = 0  # known with the first slot

    def initialize(self, ring: Ring, example: Row, device: torch.device) -> None:
        """See `Storage`."""
        stack = example.observation
        if not hasattr(stack, "shape") or len(stack.shape) != 4:
            raise ValueError(
                "FrameStorage keeps observations that are one stack of frames [K, H, W]; use FullStorage for others"
            )
        self._ring, self.device, self.lookback = ring, device, stack.shape[1] - 1
        self.rows = allocate_rows(ring.num_rows, example._replace(observation=stack[:, -1]), device, self.file)
        self._flat = flat_rows(self.rows)
        # How many of the rows before have a frame in the stack; in the host's memory, which says where to read.
        self._age = np.zeros((ring.num_rows, ring.num_envs), np.uint8)

    def append(self, rows: Rows, values: Row, begins: bool) -> None:
        """See `Storage`.

        Raises:
            ValueError: frames are padded in another way.
        """
        stack: Tensor = values.observation
        if begins:  # perhaps in the middle of an episode
            before = Rows(rows.start - self.lookback, rows.start)
            write(self._ring, self.rows.observation, before, stack[0, :, :-1].transpose(0, 1))
        age = self._ages(stack, self.lookback if begins else self._age[rows.start % self._ring.num_rows])
        self._check_padding(stack, age)
        for source, place in self._ring.parts(rows):
            self._age[place] = age[source]
        write(self._ring, self.rows, rows, values._replace(observation=stack[:, :, -1]))

    def _ages(self, stack: Tensor, first_age: np.ndarray | int) -> np.ndarray:
        frames = _words(stack)
        goes_on = (frames[1:, :, :-1] == frames[:-1, :, 1:]).all((2, 3))  # [T, B]
        age = np.empty(frames.shape[:2], np.uint8)
        age[0] = first_age
        for t in range(1, len(age)):
            age[t] = np.where(goes_on[t - 1], np.minimum(age[t - 1] + 1, self.lookback), 0)
        return age

    def _check_padding(self, stack: Tensor, age: np.ndarray) -> None:
        begun = stack[torch.from_numpy(age == 0)]
        older, newest = begun[:, :-1], begun[:, -1:]
        expected = torch.zeros_like(older) if self.padding == "zeros" else newest.expand_as(older)
        if not torch.equal(older, expected):
            raise ValueError(
                f"FrameStorage.padding is {self.padding!r}, and a stack that does not go on from the one before it is "
                "padded otherwise; choose the padding of the environment, and mid_batch_reset=True; or use "
                "FullStorage, as for stacks of frames that have several channels each"
            )

    def read(self, field: str, flat: np.ndarray) -> Tree:
        """See `Storage`."""
        return gather(attrgetter(field)(self._flat), flat)

    def observation(self, flat: np.ndarray) -> Tree:
        """See `Storage`."""
        age = self._age.reshape(-1)[flat][..., None]
        back = np.arange(self.lookback, -1, -1)
        steps = np.minimum(back, age) if self.padding == "first" else back
        stack: Tensor = gather(self._flat.observation, self._ring.shift(flat[..., None], -steps))
        if self.padding == "zeros":
            missing = np.nonzero(back > age)
            if len(missing[0]):
                stack[tuple(torch.from_numpy(index).to(self.device) for index in missing)] = 0
        return stack

    def state_dict(self) -> dict[str, Any]:
        """See `Storage`."""
        return {"rows": saved_rows(self.rows, self.file), "age": self._age.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Storage`."""
        fill_leaves(self.rows, state["rows"])
        self._age[:] = state["age"]

    def close(self) -> None:
        """See `Storage`."""
        del self.rows, self._flat


def _words(stack: Tensor) -> np.ndarray:
    """Frames ``[T+1, B, K, ...]`` as whole numbers ``[T+1, B, K, n]``, as wide as can be: they compare faster."""
    frames = np.ascontiguousarray(stack.numpy())
    flat = frames.reshape(*frames.shape[:3], -1).view(np.uint8)
    return flat.view(np.uint64) if flat.shape[-1] % 8 == 0 else flat


def saved_rows(rows: Tree, file: str | None) -> list[Tensor]:
    """What a checkpoint has of rows: copies; or, as they may be larger than memory, those of a file themselves."""
    return copy_leaves(rows) if file is None else leaves(rows)


def copy_leaves(tree: Tree) -> list[Tensor]:
    """Copies of all leaves, in the host's memory: what is saved of rows."""
    return [leaf.cpu().clone() for leaf in leaves(tree)]


def fill_leaves(tree: Tree, saved: list[Tensor]) -> None:
    """Write what `copy_leaves` gave."""
    for own, value in zip(leaves(tree), saved, strict=True):
        own.copy_(value)


def allocate_rows(num_rows: int, example: Tree, device: torch.device, file: str | None) -> Tree:
    """Zeroed tensors ``[num_rows, B, ...]`` for rows like ``example`` ``[B, ...]``.

    Raises:
        ValueError: a file was asked for, and a GPU; or the file is in use, or is no replay's.
    """
    arrays = tree_map(np.asarray, example)
    if device.type != "cpu":
        if file is not None:
            raise ValueError(f"the replay is on {device}, and its storage has a file; choose one of them")
        return tree_map(
            lambda a: torch.zeros(num_rows, *a.shape, dtype=torch.from_numpy(a).dtype, device=device), arrays
        )
    if file is None:
        _warn_if_too_large(num_rows * sum(array.nbytes for array in leaves(arrays)))
        return to_torch(plain(allocate(arrays, (num_rows,), shared=True)))
    return _in_file(Path(file), num_rows, arrays)


def _warn_if_too_large(num_bytes: int) -> None:
    free = free_memory()
    if num_bytes > free:  # it is taken little by little: the run would be killed hours later
        _log.warning(
            "Replay.capacity asks for %.1f GB of memory when it is full, and %.1f GB are free; make it smaller, or use "
            "FrameStorage or a storage with a file",
            num_bytes / 1e9,
            free / 1e9,
        )


_ALIGNMENT = 64  # bytes: a cache line
_MAGIC = b"rlsurreal replay"  # a file begins so; rows follow after `_ALIGNMENT` bytes


def _in_file(path: Path, num_rows: int, arrays: Tree) -> Tree:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = [-(-num_rows * array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in leaves(arrays)]
    path.touch()
    with path.open("r+b") as opened:
        if not lock(opened):  # for as long as it is mapped
            raise ValueError(f"storage.file {str(path)!r} is in use by another replay; name another file for each run")
        if opened.read(len(_MAGIC)) not in (b"", _MAGIC):
            raise ValueError(f"storage.file {str(path)!r} is there and holds no replay; name another, or remove it")
        size = _ALIGNMENT + sum(sizes)
        opened.truncate(0)
        opened.seek(0)
        opened.write(_MAGIC)
        opened.truncate(size)  # zeros, which take no space yet
        memory = np.memmap(opened, np.uint8, "r+", shape=(size,))
    starts = iter(np.cumsum([_ALIGNMENT, *sizes]).tolist())

    def view(array: np.ndarray) -> Tensor:
        start = next(starts)
        part = memory[start : start + num_rows * array.nbytes]
        return torch.from_numpy(np.asarray(part).view(array.dtype).reshape(num_rows, *array.shape))

    return tree_map(view, arrays)
