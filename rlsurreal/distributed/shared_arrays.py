"""Arrays in memory that several processes see.

`allocate` builds a structure of arrays from an example.  All arrays of one call lie in one anonymous block (a memfd, or
an unlinked temporary file where there is no memfd), so nothing ever has a name in the file system and the kernel frees
the memory when the last process that maps it is gone, however it ended.  The arrays reach a child by being part of what
it is started with, under ``fork``, ``forkserver``, ``spawn`` and `rlsurreal.distributed.processes`; slices stay shared
too.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map

_NUMPY_1 = np.lib.NumpyVersion(np.__version__) < "2.0.0"  # which does not say where it wants a scalar
_ALIGNMENT = 64  # a cache line, and what vectorised kernels and CUDA registration like


class Block:
    """Anonymous shared memory of fixed size."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = max(size, 1)
        if fd is None:
            fd = _anonymous_file()
            os.ftruncate(fd, self.size)
        self.fd = fd
        self.buffer = mmap.mmap(fd, self.size)
        self.base: int = np.frombuffer(self.buffer, np.uint8).__array_interface__["data"][0]

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            raise RuntimeError(
                "shared arrays can only be given to a child process when it is started; to store or send "
                "their contents, copy them first (numpy.array(x))"
            )
        return Block._attach, (self.size, reduction.DupFd(self.fd))

    @staticmethod
    def _attach(size: int, fd: Any) -> Block:
        return Block(size, fd.detach())

    def __del__(self) -> None:
        # The mapping itself goes with the last array that looks into it.
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rlsurreal")
    fd, path = tempfile.mkstemp(prefix="rlsurreal-")
    os.unlink(path)
    return fd


class SharedFile:
    """A file without a name that a child can write and its master read."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = _anonymous_file() if fd is None else fd

    def fileno(self) -> int:
        """What to write to, for all that takes a file (`faulthandler`)."""
        return self._fd

    def read(self) -> str:
        """All that was written."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode(errors="replace")

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach_file, (reduction.DupFd(self._fd),)

    def __del__(self) -> None:
        os.close(self._fd)


def _attach_file(fd: Any) -> SharedFile:
    return SharedFile(fd.detach())


class SharedArray(np.ndarray):
    """A view into a shared block.  Pickles, slices included, as the same memory; arithmetic gives ordinary arrays."""

    block: Block | None  # that it lies in; None for results of arithmetic

    def __array_finalize__(self, source: Any) -> None:
        self.block = getattr(source, "block", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:  # numpy 1 asks for the result of `shared += 1`
            return self
        result = np.asarray(array)
        return result[()] if return_scalar or (_NUMPY_1 and result.ndim == 0) else result

    def __reduce__(self) -> Any:
        block = self.block
        offset = self.__array_interface__["data"][0] - block.base if block is not None else -1
        if block is None or not 0 <= offset < block.size:
            return np.asarray(self).copy().__reduce__()
        return _view, (block, offset, self.shape, self.strides, self.dtype)


def _view(
    block: Block, offset: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype
) -> SharedArray:
    array: SharedArray = np.ndarray.__new__(SharedArray, shape, dtype, block.buffer, offset, strides)
    array.block = block
    return array


def allocate(example: Tree, leading_dims: Sequence[int], *, shared: bool = True) -> Tree:
    """Zeroed arrays with ``leading_dims`` in front of the shape of each leaf of ``example``, types kept.

    Leaves are `SharedArray` in one block, or ordinary arrays without ``shared``.  ValueError names a field whose type
    has no fixed size (objects, strings).
    """
    specs = tree_map(lambda leaf: _Spec(leaf, tuple(leading_dims)), example)
    if not shared:
        return tree_map(lambda spec: np.zeros(spec.shape, spec.dtype), specs)
    size = 0
    for spec in leaves(specs):
        spec.offset = size
        size += -(-spec.num_bytes // _ALIGNMENT) * _ALIGNMENT
    block = Block(size)
    return tree_map(lambda spec: _view(block, spec.offset, spec.shape, None, spec.dtype), specs)


class _Spec:
    """Where one array will lie."""

    def __init__(self, leaf: Any, leading_dims: tuple[int, ...]) -> None:
        leaf = np.asarray(leaf)
        if leaf.dtype.hasobject or leaf.dtype.kind in "US":
            raise ValueError(f"cannot allocate for {leaf!r}: its type {leaf.dtype} has no fixed size; use numbers")
        self.shape, self.dtype = leading_dims + leaf.shape, leaf.dtype
        self.num_bytes = int(np.prod(self.shape, dtype=np.int64)) * leaf.dtype.itemsize
        self.offset = 0


def plain(tree: Tree) -> Tree:
    """The same memory as ordinary arrays: indexing a `SharedArray` costs a Python call each time, too much per step."""
    return tree_map(lambda array: array.view(np.ndarray), tree)
