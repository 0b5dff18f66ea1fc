"""Whatever a checkpoint holds comes back through ``torch.load(weights_only=True)``, equal and of the same type."""

from __future__ import annotations

import io
import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple
from rlsurreal.utils.plain import from_plain, to_plain

torch.set_num_threads(1)
Outer = namedarraytuple("Outer", "left right")


def _through_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        0.1,
        float("inf"),
        "text é",
        1 + 2j,
        b"",
        b"\x00\xffbytes",
        2**62,
        2**63,
        -(2**63),
        2**127 + 1,
        -(2**3000),
        [],
        (),
        {},
        [1, (2, [3])],
        {"a": {1: (None,)}, 2.5: "b"},
        {(1, (2, "x")): 3, b"y": 4, np.int64(5): 6, frozenset({7}): 8, 2**70: 9, "__kind__": 10},
        OrderedDict({(2, 1): 3, (1, 2): 4}),
        {1, "a", (2, None)},
        frozenset({b"x", 2**70}),
        deque([1, [2]], maxlen=3),
        deque([{}]),
        range(2, 2**70, 3),
        slice(None, 2, -1),
        defaultdict(int, {"a": 1}),
        defaultdict(list, {(1, 2): [3]}),
        defaultdict(None, {1: 2}),
        torch.Size([2, 3]),
        torch.float16,
        torch.device("cpu"),
    ],
)
def test_plain_values(value: Any) -> None:
    back = _through_file(value)
    assert back == value and type(back) is type(value)
    for name in ("maxlen", "default_factory"):
        assert getattr(back, name, None) == getattr(value, name, None)


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "longdouble",
        "S3",
        "U3",
        "datetime64[ns]",
        ">i4",
        "<i4",
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    back = _through_file(array)
    assert type(back) is np.ndarray and back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_arrays_of_objects() -> None:
    array = np.empty((2, 2), object)
    array[0] = [None, [1, 2]]
    array[1] = [np.arange(3), "text"]
    back = _through_file(array)
    assert back.dtype == object and back.shape == (2, 2) and back[0].tolist() == [None, [1, 2]] and back[1, 1] == "text"
    np.testing.assert_array_equal(back[1, 0], np.arange(3))


def test_arrays_that_are_views_or_read_only() -> None:
    array = np.arange(24.0).reshape(4, 6)
    for view in (array[::2, ::-1], array.T, np.broadcast_to(np.float32(3), (2, 2))):
        np.testing.assert_array_equal(_through_file(view), view)
    array.setflags(write=False)
    to_plain(array)["data"].zero_()
    assert array[0, 1] == 1  # PyTorch has no read-only tensors: it was a copy


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(-3),
        np.bool_(True),
        np.uint64(2**64 - 1),
        np.str_("K"),
        np.str_(""),
        np.bytes_(b"ab"),
        np.datetime64("2020-02-29"),
    ],
)
def test_numpy_scalars(value: np.generic) -> None:
    back = _through_file(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_random_generators_continue(name: str) -> None:
    rng = np.random.Generator(getattr(np.random, name)(3))
    rng.standard_normal(7)
    rng.integers(5, dtype=np.int32)  # leaves half a word behind
    back, state = _through_file(rng), _through_file(rng.bit_generator.state)
    again = np.random.Generator(getattr(np.random, name)())
    again.bit_generator.state = state
    expected = rng.integers(2**31, size=9, dtype=np.int32)
    np.testing.assert_array_equal(back.integers(2**31, size=9, dtype=np.int32), expected)
    np.testing.assert_array_equal(again.integers(2**31, size=9, dtype=np.int32), expected)


@pytest.mark.parametrize(("make", "draw"), [(np.random.RandomState, "normal"), (random.Random, "gauss")])
def test_other_random_generators_continue(make: Any, draw: str) -> None:
    rng = make(3)
    getattr(rng, draw)(0, 1)  # keeps a second number back
    back = _through_file([rng, rng])
    assert type(back[0]) is make and back[0] is back[1]
    assert [getattr(back[0], draw)(0, 1) for _ in range(5)] == [getattr(rng, draw)(0, 1) for _ in range(5)]


def test_what_is_shared_stays_shared() -> None:
    array, generator = np.zeros(3), np.random.default_rng(0)
    state = {"a": array, "other": [np.zeros(3), {"b": array}], "rngs": (generator, generator), "c": array}
    found = from_plain(to_plain(state))
    found["a"][1] = 5.0
    assert found["other"][1]["b"] is found["a"] is found["c"] and not found["other"][0].any()
    assert found["rngs"][0] is found["rngs"][1] and found["rngs"][0].random() == np.random.default_rng(0).random()


def test_containers_that_are_shared_or_hold_themselves_do_so_again() -> None:
    inner: dict[Any, Any] = {"x": 1}
    value: list[Any] = [
        inner,
        deque([inner]),
        {(0, 1): inner},
        np.array([inner, None], object),
        defaultdict(list, a=inner),
    ]
    value.append(value)
    back = _through_file(value)
    assert back[5] is back and back[0] == {"x": 1}
    assert all(each is back[0] for each in (back[1][0], back[2][0, 1], back[3][0], back[4]["a"]))


def test_checkpoints_that_number_what_comes_again_are_read() -> None:
    array = torch.zeros(2)
    older = {"a": {"__kind__": "array", "data": array, "number": 0}, "b": {"__kind__": "same", "number": 0}}
    back = from_plain(older)
    assert type(back["a"]) is np.ndarray and back["b"] is back["a"]


def test_structures() -> None:
    tree = Outer(AgentInputs(np.arange(3), None, torch.ones(2)), (Noise(np.float32(1), b"x"), Outer(None, 2**80)))
    back = _through_file(tree)
    assert type(back) is Outer and type(back.left) is AgentInputs and type(back.right[0]) is Noise
    np.testing.assert_array_equal(back.left.observation, np.arange(3))
    assert torch.equal(back.left.prev_reward, torch.ones(2)) and back.left.prev_action is None
    assert back.right[0].normal == 1 and back.right[0].uniform == b"x" and back.right[1].right == 2**80


def test_modules_and_optimizers_continue() -> None:
    torch.manual_seed(0)

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.arange(15.0).reshape(5, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = build()
    update(model, optimizer)
    back = _through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, other_optimizer = build()
    other.load_state_dict(back["model"])
    other_optimizer.load_state_dict(back["optimizer"])
    assert type(back["model"]) is OrderedDict and back["model"]._metadata == model.state_dict()._metadata
    for each in ((model, optimizer), (other, other_optimizer)):
        update(*each)
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_a_part_of_a_tensor_is_saved_without_the_whole() -> None:
    whole = torch.zeros(100_000)
    file = io.BytesIO()
    torch.save(to_plain({"part": whole[:10], "grad": torch.nn.Parameter(whole)[5:9]}), file)
    assert len(file.getvalue()) < 20_000


class _Unknown:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"algo": {"x": [0, _Unknown()]}}, r"checkpoint entry 'algo\.x\.1' is a .*_Unknown, which cannot be saved"),
        ({"a": Outer(1, {2, _Unknown()})}, r"'a\.right\.\d' is a .*_Unknown"),
        ({"a": defaultdict(lambda: 3)}, r"'a' is a defaultdict of <function.*which is none of bool, int"),
        ({"a": slice(0, _Unknown())}, r"'a' is a .*_Unknown"),
        ({"a": np.array([None, _Unknown()])}, r"'a\.1' is a .*_Unknown"),
        ({"a": np.zeros(2, [("x", int)])}, r"'a' is an array of \[\('x'"),
        ({"a": np.ma.masked_array([1, 2], [0, 1])}, r"'a' is a numpy\.ma.*MaskedArray"),
        ({"a": {_Unknown: 3}}, r"a\.<class .*_Unknown'>\" is a builtins\.type"),
        (_Unknown(), r"the checkpoint is a .*_Unknown"),
    ],
)
def test_what_cannot_be_saved_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_plain(value)


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        to_plain({"a": value})


def test_an_array_of_objects_is_not_made_of_bytes() -> None:
    plain = to_plain(np.array(["abcdefgh"]))
    with pytest.raises(TypeError):
        from_plain({**plain, "dtype": "O", "shape": (4,)})


def test_structures_without_a_name_are_refused() -> None:
    class Local(NamedArrayTuple):
        x: Any

    with pytest.raises(ValueError, match=r"'a'.*Local.*top of a module, or make it with namedarraytuple\(\)"):
        to_plain({"a": Local(1)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rlsurreal.structs:Gone", "there is no rlsurreal.structs:Gone"),
        ("rlsurreal.structs:AgentStep", r"needs the structure .*AgentStep with fields \('normal', 'uniform', "),
        ("subprocess:Popen", "needs the structure subprocess:Popen"),
        ("os:system", "needs the structure os:system"),
    ],
)
def test_structures_that_changed_are_named(name: str, message: str) -> None:
    plain = to_plain(Noise(1, 2))
    with pytest.raises(ValueError, match=message):
        from_plain({**plain, "class": name})


def test_unknown_kinds_and_generators_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'new'"):
        from_plain({"__kind__": "new"})
    plain = to_plain(np.random.default_rng(0))
    plain["state"]["bit_generator"] = "SeedSequence"
    with pytest.raises(ValueError, match="random generator 'SeedSequence'"):
        from_plain(plain)
