"""Fields that hold what their annotations say, and those that do not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, NewType, Protocol, TypedDict, TypeVar

import numpy as np
import pytest

from rlsurreal.structs import EnvSpec
from rlsurreal.utils.kinds import check_kinds
from rlsurreal.utils.schedules import Linear, Schedule

if TYPE_CHECKING:
    from only.for_type_checkers import Device

T = TypeVar("T")
Metres = NewType("Metres", float)


class Reads(Protocol):
    def read(self, count: int) -> bytes: ...


class Calls(Protocol):
    def __call__(self, x: float) -> float: ...


class Options(TypedDict):
    depth: int


class File:
    def read(self, count: int) -> bytes:
        return b""


class Tree:
    def grow(self) -> None: ...


class Shrub:  # no Tree, but as good as one
    def grow(self) -> None: ...


@dataclass
class Part:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass
class Whole:
    number: float | Schedule = 0.5
    count: int = 1
    maybe: int | None = None
    flag: bool = False
    text: str = ""
    folder: Path = Path()
    part: Part | None = None
    parts: Sequence[Part] = ()
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    names: list[str] = field(default_factory=list)
    scales: Mapping[str, float] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    maker: type[Part] = Part
    call: Callable[[float], float] = float
    calls: Calls = float
    reads: Reads = field(default_factory=File)
    tree: Tree = field(default_factory=Tree)
    anything: Any = None
    annotated: Annotated[int, "a note"] = 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"number": 1, "count": np.int64(3), "flag": np.bool_(True), "text": np.str_("x"), "maybe": np.uint8(3)},
        {"number": Linear(1, 0), "call": Linear(1, 0), "calls": Linear},
        {"number": np.float32(0.5), "scales": {"a": 1, "b": np.float64(2)}, "pair": (np.int32(1), 2)},
        {"text": Path("x"), "folder": "x", "sizes": [1, 2], "names": ("a",), "pair": [1, 2.0]},
        {"part": Part(1), "parts": [Part(1, "b")], "kwargs": {"x": object, "y": [Part(3)]}},
        {"sizes": np.arange(3), "maker": functools.partial(Part, 1), "calls": print, "tree": Shrub()},
    ],
)
def test_what_fits(fields: dict[str, Any]) -> None:
    check_kinds(Whole(**fields))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"count": 1e3}, "count is 1000.0, a float; it must be an int: write 1000"),
        ({"count": 0.5}, "count is 0.5, a float; it must be an int"),
        ({"count": float("inf")}, "count is inf, a float; it must be an int"),
        ({"count": None}, "count is None; it must be an int"),
        ({"maybe": "3"}, "maybe is '3', a str; it must be an int or None"),
        ({"number": "x"}, "number is 'x', a str; it must be a float or a function"),
        ({"flag": 1}, "flag is 1, an int; it must be a bool"),
        ({"text": 1}, "text is 1, an int; it must be a str"),
        ({"part": Part}, "part is the class Part; write Part(...)"),
        ({"part": 3}, "part is 3, an int; write Part(size=3)"),
        ({"part": Part(1.5)}, "part.size is 1.5, a float; it must be an int"),
        ({"part": Part(1, "c")}, "part.kind is 'c', a str; it must be 'a' or 'b'"),
        ({"parts": [Part(1), Part("2")]}, "parts.1.size is '2', a str; it must be an int"),
        ({"kwargs": {"x": [Part("2")]}}, "kwargs.x.0.size is '2', a str; it must be an int"),
        ({"kwargs": ["x"]}, "kwargs is ['x'], a list; it must be a dict[str, Any]"),
        ({"scales": {"a": "1"}}, "scales is {'a': '1'}, a dict; it must be a Mapping[str, float]"),
        ({"sizes": "64,64"}, "sizes is '64,64', a str; it must be a tuple[int, ...]"),
        ({"sizes": (64, "64")}, "sizes is (64, '64'), a tuple; it must be a tuple[int, ...]"),
        ({"sizes": 64}, "sizes is 64, an int; it must be a tuple[int, ...]"),
        ({"pair": (1, 2, 3)}, "pair is (1, 2, 3), a tuple; it must be a tuple[int, float]"),
        ({"maker": Part(1)}, "maker is a Part; it must be a class"),
        ({"maker": "Part"}, "maker is 'Part', a str; it must be a class"),
        ({"calls": 3}, "calls is 3, an int; it must be a Calls"),
        ({"reads": File}, "reads is the class File; write File()"),
        ({"reads": Tree}, "reads is the class Tree; it must be a Reads"),
        ({"reads": "file"}, "reads is 'file', a str; it must be a Reads"),
        ({"tree": File()}, "tree is a File; it must be a Tree"),
        ({"tree": Tree}, "tree is the class Tree; write Tree()"),
        ({"annotated": "1"}, "annotated is '1', a str; it must be an int"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        check_kinds(Whole(**fields))
    assert str(error.value) == complaint


@dataclass
class Odd(Generic[T]):
    device: Device | str = "cpu"
    note: "in metres, above the ground" = 3.0  # type: ignore # noqa: F722
    number: 3 = "x"  # type: ignore
    hidden: list["Missing"] = field(default_factory=list)  # type: ignore # noqa: F821, UP037
    generic: T = 0  # type: ignore
    new: Metres = Metres(0.0)
    options: Options = field(default_factory=dict)  # type: ignore
    optional: float = None  # type: ignore
    made: tuple[int, ...] = field(default_factory=lambda: "none")  # type: ignore
    letters: Iterable[str] = "abc"
    shared: ClassVar[int] = "no field"  # type: ignore
    array: np.ndarray = field(default_factory=lambda: np.zeros(1))
    inner: dataclasses.InitVar[int] = 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"device": 3, "note": "x", "number": 3, "hidden": [1], "generic": "x", "new": "x", "options": 3},
        {"optional": "x", "made": 3, "letters": {"a", "b"}, "inner": "x"},
    ],
)
def test_annotations_that_say_nothing_refuse_nothing(fields: dict[str, Any]) -> None:
    check_kinds(Odd(**fields))


def test_a_class_that_nothing_is_known_of() -> None:
    made = dataclasses.make_dataclass("Made", [("x", "NoSuchName"), ("y", int), ("env", EnvSpec, None)])
    check_kinds(made("x", 1))
    with pytest.raises(ValueError, match=r"y is 0\.5, a float"):
        check_kinds(made("x", 0.5))
