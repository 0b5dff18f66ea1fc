import multiprocessing
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.distributed.processes import Launcher
from rlsurreal.distributed.shared_arrays import SharedArray, allocate, plain
from rlsurreal.distributed.signals import Signal, Waiter
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, leaves, namedarraytuple
from rlsurreal.utils.torch_tree import to_torch


class Pair(NamedArrayTuple):
    left: Any
    right: Any = None


def test_allocate_keeps_types_shapes_and_placeholders():
    example = Pair(np.float32(0), Pair(np.zeros((2, 3), np.uint8), None))
    tree = allocate(example, (5, 4))
    assert tree.left.shape == (5, 4) and tree.left.dtype == np.float32
    assert tree.right.left.shape == (5, 4, 2, 3) and tree.right.left.dtype == np.uint8
    assert tree.right.right is None
    assert all((leaf == 0).all() for leaf in leaves(tree))
    assert all(leaf.__array_interface__["data"][0] % 64 == 0 for leaf in leaves(tree))


def test_leaves_do_not_overlap():
    tree = allocate(Pair(np.int8(0), np.int64(0)), (3,))
    tree.left[:] = 1
    tree.right[:] = -1
    assert (tree.left == 1).all() and (tree.right == -1).all()


@pytest.mark.parametrize("bad", [object(), "text"])
def test_allocate_refuses_what_has_no_fixed_size(bad):
    with pytest.raises(ValueError, match="no fixed size"):
        allocate(Pair(bad), (2,))


def test_torch_and_numpy_views_share_the_bytes():
    tree = allocate(Pair(np.float32(0), np.zeros(2, np.int64)), (3,))
    tensors = to_torch(tree)
    tensors.right[1] = 7
    tree.left[2] = 0.5
    assert tree.right[1].tolist() == [7, 7] and tensors.left[2] == 0.5


def test_results_of_arithmetic_are_ordinary_and_views_are_shared():
    array = allocate(np.float32(0), (4,))
    assert type(array[1:]) is SharedArray
    assert type(array + 1) is np.ndarray and type(plain(array)) is np.ndarray
    assert type(array.sum()) is np.float32
    plain(array)[:] = 3
    assert array.tolist() == [3, 3, 3, 3]


def test_counting_in_place_stays_in_shared_memory():
    """numpy 1 makes a number of what `+=` gives, if it may."""
    memory = allocate(np.int64(0), ())
    counter = memory
    for _ in range(3):
        counter += 1
    assert int(memory) == int(counter) == 3


def test_pickling_outside_of_a_start_says_what_to_do():
    with pytest.raises(RuntimeError, match="when it is started"):
        pickle.dumps(allocate(np.float32(0), (4,)))


def _write(tree: Any, part: np.ndarray, go: Signal, done: Signal) -> None:
    go.wait()
    tree.right[1] = 7
    part[...] += 1
    done.post()


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_of_multiprocessing_writes_the_same_memory(method):
    tree = allocate(namedarraytuple("Made", "left right")(np.float32(0), np.zeros(3)), (4,))
    go, done = Signal(), Signal()
    child = multiprocessing.get_context(method).Process(target=_write, args=(tree, tree.left[1:3], go, done))
    child.start()
    go.post()
    assert Waiter([done]).wait(60)
    child.join(10)
    assert tree.right[1].tolist() == [7, 7, 7] and tree.left.tolist() == [0, 1, 1, 0]


@pytest.mark.processes
def test_child_of_launcher_writes_the_same_memory():
    tree = allocate(namedarraytuple("Made", "left right")(np.float32(0), np.zeros(3)), (4,))
    go, done = Signal(), Signal()
    launcher = Launcher()
    try:
        child = launcher.start("child", _write, tree, tree.left[1:3], go, done)
        go.post()
        assert Waiter([done]).wait(60)
        assert child.join(10) and child.exit_code == 0
    finally:
        launcher.close()
    assert tree.right[1].tolist() == [7, 7, 7] and tree.left.tolist() == [0, 1, 1, 0]


def test_memory_never_has_a_name_and_is_freed_with_its_last_array():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    array = allocate(np.uint8(0), (1 << 20,))
    part = array[5:]
    fd = array.block.fd
    del array
    part[0] = 1  # the block lives as long as any view
    assert (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) == before
    del part
    with pytest.raises(OSError):
        os.fstat(fd)


def test_importing_it_does_not_import_torch():
    modules = "rlsurreal.distributed.shared_arrays, rlsurreal.distributed.processes"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
    assert torch is not None
