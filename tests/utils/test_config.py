"""Components written down, rebuilt, listed and overridden; and what is refused, with the words that help."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np
import pytest

from rlsurreal.utils.config import flatten, from_tree, override, parse_overrides, to_tree
from rlsurreal.utils.schedules import Linear, Schedule

if TYPE_CHECKING:
    from only.for_type_checkers import Device


def activation(x: float) -> float:
    return math.tanh(x)


@dataclass(kw_only=True, eq=False)
class Optimizer:
    learning_rate: float | Schedule = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: Optional[float] = 0.5  # noqa: UP045  (the old spelling must do, too)

    def __post_init__(self) -> None:
        if not callable(self.learning_rate) and self.learning_rate <= 0:
            raise ValueError(f"Optimizer.learning_rate is {self.learning_rate}; it must be above 0")


@dataclass(kw_only=True, eq=False)
class Algo:
    optimizer: Optimizer = field(default_factory=Optimizer)
    num_epochs: int = 4
    normalize: bool = True
    kind: Literal["clip", "kl"] = "clip"
    device: Device | str = "cpu"
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Callable[[float], float] = activation
    model_class: type = Optimizer

    def initialize(self) -> None:
        self.updates = 0  # run-time state, which no configuration has


@dataclass(kw_only=True, eq=False)
class Env:
    kwargs: dict[str, Any] = field(default_factory=dict)
    scales: Mapping[str, float] | None = None
    names: list[str] = field(default_factory=list)
    num_envs: int = field(default=3, init=False)


@dataclass(kw_only=True, eq=False)
class Experiment:
    algo: Algo = field(default_factory=Algo)
    envs: tuple[Env, ...] = (Env(), Env(kwargs={"frame_skip": 4, "nested": {"a": 1}}))
    folder: Path | None = None
    seed: int = 0
    anything: Any = None
    groups: tuple[tuple[int, ...], ...] = ()
    pair: Sequence[int] | int = 1


# ---------------------------------------------------------------- trees


def test_round_trip_through_json() -> None:
    experiment = Experiment(
        algo=Algo(optimizer=Optimizer(learning_rate=Linear(1e-3), betas=(0.0, 0.1), clip_norm=None), hidden_sizes=()),
        envs=(Env(kwargs={"tuple": (1, [2, (3,)]), 3: {"x": {"class": "a tag"}}, "inf": -math.inf}, names=["a"]),),
        anything=[activation, Optimizer, math.sqrt, True, 2**80],
        folder=Path("runs/x"),
    )
    tree = to_tree(experiment)
    back = from_tree(json.loads(json.dumps(tree, allow_nan=False)))
    assert type(back) is Experiment and to_tree(back) == tree
    assert back.algo.optimizer.learning_rate == Linear(1e-3, 0.0) and back.algo.optimizer.betas == (0.0, 0.1)
    assert back.envs[0].kwargs == experiment.envs[0].kwargs and type(back.envs[0].kwargs["tuple"][1][1]) is tuple
    assert back.anything == experiment.anything and back.algo.hidden_sizes == () and back.algo.activation is activation
    assert back.folder == Path("runs/x")


def test_tree_is_readable() -> None:
    assert to_tree(Optimizer()) == {
        "class": f"{__name__}:Optimizer",
        "fields": {"learning_rate": 3e-4, "betas": {"tuple": [0.9, 0.999]}, "clip_norm": 0.5},
    }
    assert to_tree(Env(kwargs={"a": 1}))["fields"]["kwargs"] == {"a": 1}


def test_runtime_state_is_no_configuration() -> None:
    algo = Algo()
    before = to_tree(algo)
    algo.initialize()
    assert to_tree(algo) == before


@dataclass
class _Local:
    x: int = 0


def _local_class() -> Any:
    @dataclass
    class Hidden:
        x: int = 0

    return Hidden()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x, r"^algo\.activation: .*<lambda> cannot be found by its name; define it at the top of a module"),
        (object(), r"^algo\.activation: <object object.* neither a plain value"),
        (_local_class(), r"^algo\.activation: .*_local_class.<locals>\.Hidden cannot be found"),
        ([0, {"k": {1, 2}}], r"^algo\.activation\.1\.k: \{1, 2\} is neither"),
        (_Local().__init__, r"^algo\.activation: .*_Local.__init__ is not"),
    ],
)
def test_what_has_no_name_is_refused_with_its_place(value: Any, message: str) -> None:
    experiment = Experiment(algo=Algo(activation=value))
    with pytest.raises(ValueError, match=message):
        to_tree(experiment)
    tree = to_tree(experiment, strict=False)
    assert json.loads(json.dumps(tree)) == tree  # the log takes anything
    if "Hidden" not in repr(value):
        with pytest.raises(ValueError, match=r"^algo\.activation.*only the text .* was saved"):
            from_tree(tree)


def test_a_function_under_anothers_name_is_refused() -> None:
    def fake() -> None: ...

    fake.__module__, fake.__qualname__ = __name__, "activation"
    with pytest.raises(ValueError, match="under its own name"):
        to_tree(Algo(activation=fake))  # type: ignore[arg-type]


def test_a_class_of_the_running_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import json
from dataclasses import dataclass
from rlsurreal.utils.config import from_tree, to_tree
@dataclass
class Here:
    x: int = 1
log = to_tree(Here(), strict=False)
assert log == {"class": "__main__:Here", "fields": {"x": 1}}, log
for action in (lambda: to_tree(Here()), lambda: from_tree(log)):
    try:
        action()
    except ValueError as error:
        assert "move it to a module" in str(error), error
    else:
        raise AssertionError
print("fine")
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "fine\n"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class": "no.such:Thing", "fields": {}}, r"there is no no\.such:Thing"),
        ({"class": f"{__name__}:Gone", "fields": {}}, "there is no .*Gone"),
        ({"class": "subprocess:Popen", "fields": {"args": "echo"}}, "not a dataclass"),
        ({"class": "os; import x", "fields": {}}, "is not a name"),
        ({"ref": "os:environ"}, "neither a class nor a function"),
        ({"class": f"{__name__}:Optimizer", "fields": {"learning_rate": -1}}, r"^Optimizer\.learning_rate is -1"),
        ({"class": f"{__name__}:Optimizer", "fields": {"lr": 1}}, "unexpected keyword argument 'lr'"),
        (
            {
                "class": f"{__name__}:Algo",
                "fields": {"optimizer": {"class": f"{__name__}:Optimizer", "fields": {"learning_rate": -1}}},
            },
            r"^optimizer: Optimizer\.learning_rate is -1",
        ),
    ],
)
def test_from_tree_refuses(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_tree(tree)


def test_only_components_have_trees() -> None:
    for wrong in (3, Optimizer):
        with pytest.raises(ValueError, match="not a component"):
            to_tree(wrong)


# ---------------------------------------------------------------- flatten


def test_flatten() -> None:
    flat = flatten(Experiment(anything=activation, algo=Algo(optimizer=Optimizer(learning_rate=Linear(1e-3)))))
    assert flat["algo"] == f"{__name__}:Algo" and flat["algo.num_epochs"] == 4 and flat["algo.hidden_sizes"] == (64, 64)
    assert flat["algo.optimizer.learning_rate"] == "rlsurreal.utils.schedules:Linear"
    assert flat["algo.optimizer.learning_rate.start"] == 1e-3
    assert flat["algo.activation"] == flat["anything"] == f"{__name__}:activation"
    assert flat["envs.0.kwargs"] == {} and flat["envs.1.kwargs.frame_skip"] == 4 and flat["envs.1.kwargs.nested.a"] == 1
    assert "" not in flat and "envs" not in flat and "envs.0.num_envs" not in flat


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "1_000_000", 1_000_000),
        ("seed", "1e6", 1_000_000),
        ("seed", "-3", -3),
        ("seed", str(2**63), 2**63),
        ("algo.optimizer.learning_rate", "1e-4", 1e-4),
        ("algo.optimizer.learning_rate", "1", 1.0),
        ("algo.optimizer.clip_norm", "none", None),
        ("algo.optimizer.clip_norm", "None", None),
        ("algo.optimizer.clip_norm", "inf", math.inf),
        ("algo.optimizer.betas", "(0.5, 0.6)", (0.5, 0.6)),
        ("algo.normalize", "false", False),
        ("algo.normalize", "True", True),
        ("algo.kind", "kl", "kl"),
        ("algo.device", "cuda:1", "cuda:1"),
        ("algo.hidden_sizes", "(256,256)", (256, 256)),
        ("algo.hidden_sizes", "256,128,1e2", (256, 128, 100)),
        ("algo.hidden_sizes", "[32]", (32,)),
        ("algo.hidden_sizes", "32", (32,)),
        ("algo.hidden_sizes", "32,", (32,)),
        ("algo.hidden_sizes", "()", ()),
        ("algo.hidden_sizes", "", ()),
        ("algo.hidden_sizes.1", "8", (64, 8)),
        ("algo.activation", "math:tanh", math.tanh),
        ("algo.model_class", "pathlib:Path", Path),
        ("folder", "runs/a=b", Path("runs/a=b")),
        ("folder", "none", None),
        ("anything", "3", 3),
        ("anything", "true", True),
        ("anything", "none", None),
        ("anything", "{'a': (1,)}", {"a": (1,)}),
        ("anything", "some text", "some text"),
        ("envs.0.names", "a,'b ',c", ["a", "b ", "c"]),
        ("groups", "((0,1),(2,))", ((0, 1), (2,))),
        ("groups", "(0,1),(2,)", ((0, 1), (2,))),
        ("groups", "((0,1),)", ((0, 1),)),
        ("pair", "3", 3),
        ("pair", "3,4", (3, 4)),
        ("pair", "(3,)", (3,)),
        ("envs.0.kwargs", "{'x': 1}", {"x": 1}),
        ("envs.0.scales", "none", None),
    ],
)
def test_text_becomes_what_the_annotation_asks(key: str, text: str, value: Any) -> None:
    experiment = Experiment(algo=Algo(optimizer=Optimizer(clip_norm=0.1)), envs=(Env(scales={"a": 1.0}),))
    changed: Any = override(experiment, {key: text})
    parts = key.split(".")
    for part in parts[:-1] if parts[-1].isdigit() else parts:
        changed = changed[int(part)] if part.isdigit() else getattr(changed, part)
    assert changed == value and type(changed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("seed", "1.5", "int"),
        ("seed", "1e400", "int"),
        ("seed", "true", "int"),
        ("seed", "", "int"),
        ("seed", "1e17", "int"),
        ("algo.optimizer.learning_rate", "fast", "float"),
        ("algo.optimizer.clip_norm", "nan", "float"),
        ("algo.normalize", "2", "bool"),
        ("algo.kind", "klip", "Literal['clip', 'kl']"),
        ("algo.hidden_sizes", "64,x", "tuple[int, ...]"),
        ("algo.hidden_sizes", "(64", "tuple[int, ...]"),
        ("algo.optimizer.betas", "0.9", "tuple[float, float]"),
        ("algo.optimizer.betas", "1,1,1", "tuple[float, float]"),
        ("algo.activation", "math:none_such", "there is no math:none_such"),
        ("algo.optimizer", "fast", "'fast' is not Optimizer; parts are exchanged in Python (docs/running.md)"),
        ("envs", "fast", "Env"),
        ("pair", "x", "int"),
        ("algo.hidden_sizes.0", "x", "int"),
        ("envs.0.scales.a", "x", "float"),
        ("envs.0.kwargs", "3", "dict[str, Any]"),
    ],
)
def test_text_that_does_not_fit_is_refused_with_key_value_and_type(key: str, text: str, wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        override(Experiment(), {key: text})
    message = str(caught.value)
    assert message.startswith(f"{key}={text}: ") and wanted in message, message


def test_values_that_are_not_text_are_taken_as_they_are() -> None:
    schedule = Linear(1.0)
    assert override(Experiment(), {"algo.optimizer.learning_rate": schedule}).algo.optimizer.learning_rate is schedule


def test_entries_of_dicts() -> None:
    experiment = Experiment()
    changed = override(
        experiment,
        {
            "envs.1.kwargs.frame_skip": "2",
            "envs.1.kwargs.mode": "easy",
            "envs.1.kwargs.nested.a": "0.5",
            "envs.1.kwargs.flag": "false",
            "envs.0.kwargs.a.b": "1",
            "envs.0.scales.x": "3",
        },
    )
    assert changed.envs[1].kwargs == {"frame_skip": 2, "nested": {"a": 0.5}, "mode": "easy", "flag": False}
    assert changed.envs[0].kwargs == {"a": {"b": 1}} and changed.envs[0].scales == {"x": 3.0}
    assert type(changed.envs[0].scales["x"]) is float
    assert experiment.envs[1].kwargs == {"frame_skip": 4, "nested": {"a": 1}} and experiment.envs[0].scales is None
    numbered = override(Env(kwargs={3: "x"}), {"kwargs.3": "y"})  # type: ignore[dict-item]
    assert numbered.kwargs == {3: "y"}


def test_only_the_path_that_changed_is_built_anew() -> None:
    experiment = Experiment(algo=Algo(optimizer=Optimizer(learning_rate=Linear(1.0, 0.5))))
    changed = override(experiment, {"algo.optimizer.learning_rate.end": "0.25"})
    assert changed.algo.optimizer.learning_rate == Linear(1.0, 0.25)
    assert changed.envs is experiment.envs and changed.algo is not experiment.algo
    assert experiment.algo.optimizer.learning_rate == Linear(1.0, 0.5)
    assert override(experiment, {}) is experiment
    again = override(changed, {"algo.optimizer.learning_rate.end": "0.5"})
    assert flatten(again) == flatten(experiment)


def test_checks_run_again_and_name_the_key() -> None:
    with pytest.raises(
        ValueError,
        match=r"^algo\.optimizer, with algo\.optimizer\.learning_rate changed: "
        r"Optimizer\.learning_rate is -1\.0; it must be above 0",
    ):
        override(Experiment(), {"algo.optimizer.learning_rate": "-1"})


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (
            "algo.num_epoch",
            ["unknown key algo.num_epoch;", "did you mean algo.num_epochs", "(Algo) has the fields optim"],
        ),
        ("learning_rate", ["did you mean algo.optimizer.learning_rate", "Experiment has the fields algo, envs"]),
        (
            "algo.optimizer.lerning_rate.start",
            ["unknown key algo.optimizer.lerning_rate", "algo.optimizer.learning_rate"],
        ),
        ("seed.x", ["unknown key seed.x", "seed (0) has no fields"]),
        ("envs.2.kwargs.x", ["unknown key envs.2", "(tuple) has the fields 0, 1"]),
        ("envs.0.num_envs", ["unknown key envs.0.num_envs", "kwargs, scales, names"]),
        ("zzz", ["unknown key zzz."]),
        ("algo.n_epochs", ["unknown key algo.n_epochs; did you mean algo.num_epochs? "]),
        ("algo.lr", ["unknown key algo.lr; did you mean algo.optimizer.learning_rate? "]),
        ("algo.gamma", ["unknown key algo.gamma. "]),
    ],
)
def test_unknown_keys_are_refused_with_near_ones(key: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        override(Experiment(), {key: "1"})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_whole_and_its_part_are_not_both_replaced() -> None:
    for overrides in ({"envs.0.kwargs": "{}", "envs.0.kwargs.a": "1"}, {"envs.0.kwargs.a": "1", "envs.0.kwargs": "{}"}):
        with pytest.raises(ValueError, match="one of the two"):
            override(Experiment(), overrides)


def test_frozen_dataclasses_and_inherited_fields() -> None:
    @dataclasses.dataclass(frozen=True)
    class Base:
        x: int = 1

    @dataclasses.dataclass(frozen=True)
    class Derived(Base):
        y: float = 2.0

    assert override(Derived(), {"x": "5", "y": "3"}) == Derived(5, 3.0)


def test_parse_overrides() -> None:
    assert parse_overrides(["a.b=1", "c=", "d=x=y", "e.my-key=2"]) == {"a.b": "1", "c": "", "d": "x=y", "e.my-key": "2"}
    assert parse_overrides([]) == {}
    for wrong in ("a.b", "=1", "a..b=1", ".a=1", "--lr=3"):
        with pytest.raises(ValueError, match=r"is not an override; write dotted\.key=value"):
            parse_overrides([wrong])
    with pytest.raises(ValueError, match="a is given twice"):
        parse_overrides(["a=1", "a=2"])


def test_numbers_of_numpy_are_numbers() -> None:
    tree = to_tree(Linear(np.float32(0.5), np.int64(3), until=np.float64(1.0)))
    assert json.loads(json.dumps(tree)) == to_tree(Linear(0.5, 3, until=1.0))
