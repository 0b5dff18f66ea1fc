"""Structures of arrays: reading, writing, errors, pickling into other processes, and PyTorch's pytrees."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, leaves, named_leaves, namedarraytuple, tree_map
from rlsurreal.utils.torch_tree import num_bytes, to_device, to_numpy, to_torch, where_first

torch.set_num_threads(1)


class Inner(NamedArrayTuple):
    a: Any
    b: Any = None


class Outer(NamedArrayTuple):
    left: Any
    inner: Any = None
    right: Any = None


def _tree() -> Outer:
    return Outer(np.arange(12.0).reshape(3, 4), Inner(np.arange(24).reshape(3, 4, 2)), np.ones((3, 4), bool))


# ---------------------------------------------------------------- making


def test_fields_defaults_and_replace() -> None:
    tree = Outer(1, right=3)
    assert (tree.left, tree.inner, tree.right) == (1, None, 3) and Outer._fields == ("left", "inner", "right")
    assert list(tree.items()) == [("left", 1), ("inner", None), ("right", 3)] and tuple(tree) == (1, None, 3)
    assert len(tree) == 3
    assert tuple(tree._replace(inner=2)) == (1, 2, 3) and type(tree._replace(inner=2)) is Outer
    left, inner, right = tree
    assert (left, inner, right) == (1, None, 3)
    assert "left" in tree and "a" not in tree and 1 not in tree
    assert repr(Inner(1)) == "Inner(a=1, b=None)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inner(), "Inner: missing a"),
        (lambda: Inner(1, 2, 3), "has 2 fields"),
        (lambda: Inner(1, c=2), "Inner.c: not a field"),
        (lambda: Inner(1, a=2), "Inner.a: given twice"),
        (lambda: Inner._make([1]), "got 1 values"),
        (lambda: Inner(1)._replace(c=1), "Inner.c: not a field"),
    ],
)
def test_wrong_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("name", ["_x", "1x", "a-b", "count", "index", "items", ""])
def test_names_that_fields_cannot_have(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a field name"):
        namedarraytuple("Bad", [name])


def test_dynamic_classes() -> None:
    cls = namedarraytuple("Dyn", "x, y")
    assert cls is namedarraytuple("Dyn", ("x", "y")) and cls is not namedarraytuple("Dyn", "x")
    assert cls.__name__ == "Dyn"
    assert tuple(cls(1, y=2)) == (1, 2)
    with pytest.raises(ValueError, match="repeat"):
        namedarraytuple("Dyn", "x x")
    with pytest.raises(TypeError, match="missing y"):
        cls(1)


def test_structures_have_no_truth_of_equality() -> None:
    tree = _tree()
    assert tree == tree and hash(tree) == hash(tree)
    assert not tree == _tree()  # noqa: SIM201
    with pytest.raises(AttributeError):
        tree.left = 3
    with pytest.raises(AttributeError):
        tree.new = 3


def test_unequal_is_the_contrary_of_equal() -> None:
    assert _tree() != _tree()


def test_subclasses_inherit_fields() -> None:
    class Sub(Inner):
        c: Any = None

    assert Sub._fields == ("a", "b", "c")


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "where",
    [
        0,
        -1,
        slice(1, 3),
        (slice(None), 2),
        ...,
        np.array([2, 0, 2]),
        np.array([True, False, True]),
        (np.array([0, 2]), np.array([3, 1])),
        None,
    ],
)
def test_reading_equals_reading_each_field(where: Any) -> None:
    tree = _tree()
    part = tree[where]
    assert type(part) is Outer and type(part.inner) is Inner and part.inner.b is None
    np.testing.assert_array_equal(part.left, tree.left[where])
    np.testing.assert_array_equal(part.inner.a, tree.inner.a[where])
    np.testing.assert_array_equal(part.right, tree.right[where])


def test_reading_gives_views() -> None:
    tree = _tree()
    tree[1].inner.a[0] = 100
    assert tree.inner.a[1, 0, 0] == 100


@pytest.mark.parametrize(("where", "error"), [(5, IndexError), ((0, 0, 0, 0), IndexError), ("left", IndexError)])
def test_errors_of_reading_name_the_field(where: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="field 'left'"):
        _tree()[where]
    with pytest.raises(error, match=r"field 'inner\.a'"):
        Outer(None, Inner(np.zeros(2), np.zeros(9)))[where]


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "where", [0, slice(1, 3), (slice(None), 2), ..., np.array([2, 0]), np.array([True, False, True])]
)
def test_writing_equals_writing_each_field(where: Any) -> None:
    tree, source = _tree(), tree_map(lambda x: (x[where] + 7).astype(x.dtype), _tree())
    expected = tree_map(np.copy, tree)
    expected.left[where], expected.inner.a[where], expected.right[where] = source.left, source.inner.a, source.right
    tree[where] = source
    for (name, written), (_, wanted) in zip(named_leaves(tree), named_leaves(expected)):
        np.testing.assert_array_equal(written, wanted, err_msg=name)
    assert tree.inner.b is None


def test_one_value_is_written_into_every_field() -> None:
    tree = _tree()
    tree[1] = 0
    assert all((leaf[1] == 0).all() and leaf[2].any() for leaf in leaves(tree))
    assert tree.inner.b is None


def test_classes_with_equal_fields_write_into_each_other() -> None:
    other = namedarraytuple("Other", Inner._fields)
    tree = Inner(np.zeros(2))
    tree[0] = other(5, None)
    assert tree.a.tolist() == [5, 0]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            Outer(np.zeros(4), Inner(np.zeros((4, 2)), 1), True),
            TypeError,
            r"field 'inner\.b': the destination is a place",
        ),
        (Outer(np.zeros(4), None, True), TypeError, "field 'inner': the source is a placeholder"),
        (Outer(np.zeros(4), Inner(np.zeros(3)), True), ValueError, r"field 'inner\.a': could not broadcast"),
        (Inner(1), TypeError, r"cannot write Inner\('a', 'b'\) into Outer"),
        (Outer(np.zeros(4), Outer(0, 0, 0), True), TypeError, r"field 'inner': cannot write Outer"),
        (None, TypeError, "field 'left': the source is a placeholder"),
    ],
)
def test_errors_of_writing_name_the_field(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _tree()[1] = value


def test_a_structure_is_not_written_into_an_array() -> None:
    tree = Inner(np.zeros((3, 2)))
    with pytest.raises(TypeError, match="field 'a'"):
        tree[0] = Inner(Inner(1, 2))


def test_placeholders_are_skipped() -> None:
    tree = Outer(np.zeros(3), None, Inner(None, np.zeros(3)))
    tree[1] = Outer(1, None, Inner(None, 2))
    tree[2] = 9
    assert tree.left.tolist() == [0, 1, 9] and tree.right.b.tolist() == [0, 2, 9]
    assert tree.inner is None and tree[0].inner is None and tree[0].right.a is None


# ---------------------------------------------------------------- maps and leaves


def test_tree_map_and_leaves() -> None:
    tree = Outer(1, Inner(2, None), None)
    assert tuple(tree_map(lambda x, y: x + y, tree, tree).inner) == (4, None)
    assert type(tree_map(str, tree)) is Outer and tree_map(str, tree).right is None
    assert list(named_leaves(tree)) == [("left", 1), ("inner.a", 2)] and leaves(tree) == [1, 2]
    assert tree_map(str, 3) == "3" and tree_map(str, None) is None and list(named_leaves(3, "x")) == [("x", 3)]
    for other in (Outer(1, 2, None), Inner(1, 2), 5):
        with pytest.raises(TypeError, match="structures differ"):
            tree_map(lambda x, y: x, tree, other)


@pytest.mark.parametrize(("tree", "other"), [(Inner(None), Inner(1)), (Inner(1), Inner(None))])
def test_tree_map_notices_placeholders_that_differ(tree: Inner, other: Inner) -> None:
    with pytest.raises(TypeError, match="structures differ"):
        tree_map(lambda x, y: x, tree, other)


# ---------------------------------------------------------------- pickling


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copies(protocol: int) -> None:
    dynamic = namedarraytuple("Dyn", "x y")
    tree = dynamic(_tree(), None)
    for back in (pickle.loads(pickle.dumps(tree, protocol)), copy.deepcopy(tree)):
        assert type(back) is dynamic and back.y is None and back.x.left is not tree.x.left
        np.testing.assert_array_equal(back.x.inner.a, tree.x.inner.a)
    assert copy.copy(tree).x is tree.x


MODULE = """
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple
class Static(NamedArrayTuple):
    x: object
    y: object = None
class Holder:
    class Within(NamedArrayTuple):
        x: object
def dynamic():
    return namedarraytuple("Dict", ["position", "only_here"])
"""
SCRIPT = """
import multiprocessing, sys
import numpy as np
from somewhere.deep import made
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple
class InScript(NamedArrayTuple):
    z: object
def child(received, queue):
    assert "torch" not in sys.modules
    assert type(received).__name__ == "InScript" and type(received.z) is made.Static and received.z.y is None
    assert type(received.z.x) is made.Holder.Within and type(received.z.x.x).__name__ == "Dict"
    assert type(received.z.x.x) is namedarraytuple("Dict", ["position", "only_here"])
    queue.put(received[1:])
if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        tree = InScript(made.Static(made.Holder.Within(made.dynamic()(np.arange(3), None))))
        queue = context.Queue()
        process = context.Process(target=child, args=(tree, queue))
        process.start()
        back = queue.get(timeout=30)
        process.join(30)
        assert process.exitcode == 0
        assert type(back) is InScript and type(back.z.x.x) is type(tree.z.x.x)
        assert back.z.x.x.position.tolist() == [1, 2] and back.z.x.x.only_here is None
    print("fine")
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="has no forkserver")
def test_pickles_under_spawn_and_forkserver_from_any_module(tmp_path: Path) -> None:
    package = tmp_path / "somewhere" / "deep"
    package.mkdir(parents=True)
    (package / "made.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.stdout == "fine\n", done.stderr


# ---------------------------------------------------------------- torch


def test_numpy_and_torch_share_memory() -> None:
    tree = _tree()
    tensors = to_torch(tree)
    assert type(tensors) is Outer and tensors.inner.b is None
    tensors[1] = 0
    assert (tree.left[1] == 0).all() and (tree.inner.a[1] == 0).all()
    back = to_numpy(tensors)
    back.left[0, 0] = 77
    assert tensors.left[0, 0] == 77 and num_bytes(tree) == num_bytes(tensors) == 12 * 8 + 24 * 8 + 12
    assert to_torch(tensors).left is tensors.left and to_device(tensors, "cpu").left is tensors.left


def test_pytree_round_trip_of_classes_made_before_and_after() -> None:
    later = namedarraytuple("Later", "p q")
    tree = Outer(torch.ones(2), later(torch.zeros(3), None), None)
    flat, spec = _pytree.tree_flatten(tree)
    assert len(flat) == 2 and flat[0] is tree.left and flat[1] is tree.inner.p
    back = _pytree.tree_unflatten(flat, spec)
    assert type(back) is Outer and type(back.inner) is later and back.inner.q is None and back.right is None
    doubled = _pytree.tree_map(lambda t: 2 * t, tree)
    assert type(doubled) is Outer and doubled.left.tolist() == [2, 2] and doubled.inner.q is None
    with pytest.raises(ValueError):  # a placeholder is part of the structure
        _pytree.tree_map(lambda a, b: a, tree, tree._replace(right=torch.ones(1)))


def test_structures_are_pytrees_only_where_torch_is_wanted() -> None:
    script = (
        "import sys; import rlsurreal.structs, rlsurreal.utils.spaces; assert 'torch' not in sys.modules; "
        "import rlsurreal.utils.torch_tree; from torch.utils import _pytree; "
        "from rlsurreal.structs import Noise; assert _pytree.tree_leaves(Noise(1, None)) == [1]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_where_first() -> None:
    first = torch.tensor([True, False])
    picked = where_first(first, Inner(torch.zeros(2, 3), torch.zeros(2)), Inner(torch.ones(2, 3), torch.ones(2)))
    assert picked.a.tolist() == [[0, 0, 0], [1, 1, 1]] and picked.b.tolist() == [0, 1]
    assert where_first(first, None, None) is None


# ---------------------------------------------------------------- garbage collection

COLLECTED_ALL_THE_TIME = """
import gc
import numpy
gc.set_threshold(1)
import rlsurreal.structs
from rlsurreal.utils.namedarraytuple import namedarraytuple
for i in range(200):
    made = namedarraytuple(f"Made{i}", (f"x{i}", f"y{i}"))
    value = made(1, 2)
    assert made._fields == (f"x{i}", f"y{i}") and (getattr(value, f"x{i}"), getattr(value, f"y{i}")) == (1, 2)
print("fine")
"""


def test_classes_can_be_made_whenever_the_garbage_collector_runs() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTED_ALL_THE_TIME], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr
