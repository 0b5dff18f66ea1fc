"""Spaces and the arrays that hold their elements: whatever a space can sample goes in and comes back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, named_leaves, tree_map
from rlsurreal.utils.spaces import (
    children,
    field_name,
    leaf_dtype,
    map_spaces,
    null_value,
    policy_space,
    random_actions,
    to_env_action,
    to_env_array,
    writer,
)

LEAVES = {
    "box": gs.Box(-1, 1, (2, 3), np.float32),
    "box64": gs.Box(-1, 1, (2,), np.float64),
    "scalar": gs.Box(-1, 1, ()),
    "image": gs.Box(0, 255, (4, 4), np.uint8),
    "discrete": gs.Discrete(5),
    "shifted": gs.Discrete(5, start=-2),
    "multi": gs.MultiDiscrete([2, 3]),
    "grid": gs.MultiDiscrete([[2, 3], [4, 5]]),
    "binary": gs.MultiBinary(3),
    "shifted multi": gs.MultiDiscrete([2, 3], start=[5, -1]),
}
NESTED = gs.Dict(
    {
        "pos": LEAVES["box64"],
        "key": gs.Tuple([LEAVES["discrete"], gs.Dict({"x": LEAVES["image"]})]),
        "shift": LEAVES["shifted"],
    }
)


def _arrays(space: gym.Space, num_rows: int) -> Tree:
    return map_spaces(lambda leaf: np.zeros((num_rows, *(leaf.shape or ())), leaf_dtype(leaf)), space)


@pytest.mark.parametrize("name", LEAVES)
def test_null_values_have_shape_and_type_of_the_elements(name: str) -> None:
    space = LEAVES[name]
    null, element = null_value(space), np.asarray(space.sample())
    assert null.shape == element.shape and not null.any()
    expected = {"float64": "float32", "int64": "int64"}.get(element.dtype.name, element.dtype.name)
    assert null.dtype == expected == leaf_dtype(space)


def test_structure_of_nested_spaces() -> None:
    null = null_value(NESTED)
    assert [name for name, _ in named_leaves(null)] == ["key.f0", "key.f1.x", "pos", "shift"]
    assert (
        isinstance(null, NamedArrayTuple) and isinstance(null.key, NamedArrayTuple) and isinstance(null.pos, np.ndarray)
    )
    assert type(null) is type(null_value(NESTED)) and children(LEAVES["box"]) is None


def test_field_names() -> None:
    names = {"pos": "pos", "a b": "a_b", "0": "f0", "_x": "f_x", "camera-1/rgb": "camera_1_rgb", "": "f"}
    assert {key: field_name(key) for key in names} == names
    assert null_value(gs.Dict({"camera-1": gs.Discrete(2)}))._fields == ("camera_1",)
    with pytest.raises(ValueError, match=r"'a b', 'a_b'.* collide"):
        null_value(gs.Dict({"a b": gs.Discrete(2), "a_b": gs.Discrete(2)}))


@pytest.mark.parametrize("key", ["count", "index", "items", "class", "None"])
def test_field_names_of_reserved_words(key: str) -> None:
    assert len(null_value(gs.Dict({key: gs.Discrete(2)}))) == 1


@pytest.mark.parametrize(
    "space", [gs.Text(3), gs.Sequence(gs.Discrete(2)), gs.Dict({"a": gs.Graph(gs.Discrete(2), None)})]
)
def test_spaces_without_arrays_are_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match="not supported; use Box"):
        null_value(space)


# ---------------------------------------------------------------- writing elements


@pytest.mark.parametrize("space", [*LEAVES.values(), NESTED], ids=[*LEAVES, "nested"])
def test_elements_come_back_as_they_were_written(space: gym.Space) -> None:
    arrays, write = _arrays(space, 4), writer(space)
    space.seed(0)
    elements = [space.sample() for _ in range(4)]
    for i in (2, 0, 3, 1):
        write(arrays, i, elements[i])
    for element, again in zip(elements, _from_arrays(space, arrays)):
        _assert_equal(element, again)


def _from_arrays(space: gym.Space, arrays: Tree) -> list[Any]:
    """Elements of ``space``, by its own keys."""
    if isinstance(space, gs.Dict):
        parts = {key: _from_arrays(child, array) for (key, child), array in zip(space.spaces.items(), arrays)}
        return [{key: parts[key][i] for key in parts} for i in range(4)]
    if isinstance(space, gs.Tuple):
        return list(zip(*[_from_arrays(child, array) for child, array in zip(space.spaces, arrays)]))
    return list(arrays + getattr(space, "start", 0))


def _assert_equal(element: Any, again: Any) -> None:
    if isinstance(element, dict):
        assert list(element) == list(again)
        for key in element:
            _assert_equal(element[key], again[key])
    elif isinstance(element, tuple):
        assert len(element) == len(again)
        for one, other in zip(element, again):
            _assert_equal(one, other)
    else:
        np.testing.assert_allclose(element, again, rtol=1e-6)
        assert np.shape(element) == np.shape(again)


def test_elements_may_be_lists_and_numbers() -> None:
    arrays = _arrays(gs.Box(0, 1, (2,)), 2)
    writer(gs.Box(0, 1, (2,)))(arrays, 1, [0.25, 0.5])
    assert arrays.tolist() == [[0, 0], [0.25, 0.5]]
    arrays = _arrays(LEAVES["shifted"], 1)
    writer(LEAVES["shifted"])(arrays, 0, 2)
    assert arrays.tolist() == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": np.zeros(3)}, r"^entry 'pos': has shape \(3,\), the space says \(2,\)$"),
        ({"pos": 0.5}, r"^entry 'pos': has shape \(\)"),
        (
            {"key": (1, {"x": np.zeros(4)})},
            r"^entry 'key': entry 1: entry 'x': has shape \(4,\), the space says \(4, 4\)",
        ),
        ({"key": (1, {})}, r"^entry 'key': entry 1: entry 'x' is missing"),
        ({"key": (1,)}, r"^entry 'key': entry 1 is missing"),
        ({"shift": None}, r"^entry 'shift'"),
    ],
)
def test_wrong_elements_are_named(change: dict[str, Any], message: str) -> None:
    element = {**NESTED.sample(), **change}
    if change == {"shift": None}:
        del element["shift"]
    with pytest.raises(ValueError, match=message):
        writer(NESTED)(_arrays(NESTED, 1), 0, element)


# ---------------------------------------------------------------- actions


def test_policy_space() -> None:
    space = policy_space(
        gs.Dict(
            {
                "b": gs.Box(np.array([-3, 0, -np.inf]), np.array([5, 1, np.inf])),
                "d": gs.Discrete(3),
                "t": gs.Tuple([gs.MultiBinary(2)]),
            }
        )
    )
    assert space["b"].low.tolist() == [-1, -1, -np.inf] and space["b"].high.tolist() == [1, 1, np.inf]
    assert space["b"].dtype == np.float32 and space["d"] == gs.Discrete(3) and isinstance(space["t"], gs.Tuple)
    with pytest.raises(ValueError, match="use Discrete or MultiDiscrete"):
        policy_space(gs.Box(0, 5, (2,), np.int32))


@pytest.mark.parametrize("space", [gs.Discrete(3, start=5), gs.MultiDiscrete([2, 3], start=[5, -1])])
def test_policy_space_contains_the_agents_actions(space: gym.Space) -> None:
    assert policy_space(space).contains(random_actions(policy_space(space), np.random.default_rng(0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_boxes_are_clipped_and_rescaled(dtype: type) -> None:
    space = gs.Box(np.array([-3, 0, -np.inf], dtype), np.array([5, 1, np.inf], dtype), dtype=dtype)
    action = np.array([[-1, -1, -7], [0, 0, 0], [1, 1, 7], [-9, 9, 9], [0.5, -0.5, 0.5]], np.float32)
    made = to_env_array(space)(action.copy())
    assert made.dtype == dtype
    np.testing.assert_allclose(made, [[-3, 0, -7], [1, 0.5, 0], [5, 1, 7], [-3, 1, 9], [3, 0.25, 0.5]])


def test_actions_in_memory_are_not_changed() -> None:
    action = np.array([[-5.0, 5.0]], np.float32)
    for space in (gs.Box(-1, 1, (2,)), gs.Box(-3, 1, (2,)), gs.Box(-np.inf, np.inf, (2,))):
        to_env_array(space)(action)
        assert action.tolist() == [[-5, 5]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rescaled_actions_lie_within_the_space(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = rng.normal(size=3)
        space = gs.Box(low.astype(dtype), (low + rng.exponential(size=3)).astype(dtype), dtype=dtype)
        for action in to_env_array(space)(np.array([[-1, -1, -1], [1, 1, 1]], np.float32)):
            assert space.contains(action)


def test_discrete_actions_are_python_integers_from_the_start_on() -> None:
    made = to_env_action(gs.Discrete(3, start=5))(np.array([0, 2]))
    assert made == [5, 7] and all(type(action) is int for action in made)
    made = to_env_action(LEAVES["shifted multi"])(np.array([[0, 0], [1, 2]]))
    assert [action.tolist() for action in made] == [[5, -1], [6, 1]]


def test_nested_actions_have_the_spaces_own_keys() -> None:
    space = gs.Dict({"a b": gs.Discrete(3, start=1), "t": gs.Tuple([gs.Box(-2, 2, (1,)), gs.MultiBinary(2)])})
    action = map_spaces(lambda leaf: np.ones((2, *(leaf.shape or ())), leaf_dtype(leaf)), space)
    made = to_env_action(space)(action)
    assert len(made) == 2 and made[0]["a b"] == 2
    assert made[0]["t"][0].tolist() == [2] and made[1]["t"][1].tolist() == [1, 1]
    assert all(space.contains(element) for element in made)


@pytest.mark.parametrize(
    "space",
    [
        *(LEAVES[name] for name in ("box", "box64", "scalar", "discrete", "multi", "grid", "binary")),
        gs.Dict({"a": LEAVES["box"], "b": gs.Tuple([LEAVES["discrete"]])}),
    ],
)
def test_random_actions_fill_the_space(space: gym.Space) -> None:
    rng = np.random.default_rng(0)
    drawn = [random_actions(policy_space(space), rng) for _ in range(200)]
    null = null_value(policy_space(space))
    for action in drawn[:5]:
        assert [(n, leaf.shape, leaf.dtype) for n, leaf in named_leaves(action, "x")] == [
            (n, leaf.shape, leaf.dtype) for n, leaf in named_leaves(null, "x")
        ]
    batch = tree_map(lambda *leaves: np.stack(leaves), *drawn)
    assert all(space.contains(element) for element in to_env_action(space)(batch)[:20] if space is not LEAVES["scalar"])
    again = random_actions(policy_space(space), np.random.default_rng(0))
    for (_, one), (_, other) in zip(named_leaves(drawn[0], "x"), named_leaves(again, "x")):
        np.testing.assert_array_equal(one, other)
    spread = tree_map(lambda leaf: leaf.astype(float).std(axis=0).min(), batch)
    assert all(value > 0.2 for _, value in named_leaves(spread, "x"))


def test_random_actions_of_unbounded_boxes_are_normal() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([random_actions(policy_space(gs.Box(-np.inf, np.inf, (2,))), rng) for _ in range(2000)])
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1 and drawn.dtype == np.float32
