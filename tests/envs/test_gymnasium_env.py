"""GymnasiumVectorEnv against a plain loop over one environment, and its errors."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from rlsurreal.envs import EnvError, GymnasiumEnv, env_seed
from rlsurreal.envs.gymnasium_env import GymnasiumVectorEnv
from rlsurreal.structs import EnvStep
from rlsurreal.testing.envs import CountingEnv, FailingEnv, NestedEnv, identity
from rlsurreal.utils.namedarraytuple import Tree, named_leaves, tree_map
from rlsurreal.utils.spaces import null_value, random_actions, to_env_action, writer

SEED = 7


def rows(example: Tree, num_rows: int, num_envs: int) -> Tree:
    """Arrays full of rubbish, so that a field that is not written shows."""

    def poisoned(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.full((num_rows, num_envs, *leaf.shape), True if leaf.dtype == bool else 77, leaf.dtype)

    return tree_map(poisoned, example)


def slot(vector: Any, num_steps: int) -> EnvStep:
    num_rows, n = num_steps + 1, vector.num_envs
    return EnvStep(
        observation=rows(null_value(vector.spaces.observation), num_rows, n),
        reward=rows(np.float32(0), num_rows, n),
        terminated=rows(False, num_rows, n),
        truncated=rows(False, num_rows, n),
        valid=rows(False, num_rows, n),
        first=rows(False, num_rows, n),
        env_info=rows(vector.info_example, num_rows, n),
    )


def row(record: EnvStep, t: int) -> EnvStep:
    return record[t]._replace(observation=record.observation[t + 1], first=record.first[t + 1])


def draw_actions(vector: Any, num_steps: int, seed: int = 0) -> list[Tree]:
    """Actions ``[B]`` by the global index of the environment, so that they do not depend on the split."""
    first = vector._first_env
    streams = [np.random.default_rng((seed, first + i)) for i in range(vector.num_envs)]
    return [stack([random_actions(vector.spaces.action, stream) for stream in streams]) for _ in range(num_steps)]


def stack(elements: list[Tree]) -> Tree:
    return tree_map(lambda *leaves: np.stack(leaves), *elements)


def collect(vector: Any, actions: list[Tree]) -> EnvStep:
    record = slot(vector, len(actions))
    vector.reset(record.observation[0])
    record.first[0] = True
    for t, action in enumerate(actions):
        vector.step(action, row(record, t))
    return record


def reference(spec: GymnasiumEnv, env_index: int, actions: list[Tree], record: EnvStep, column: int) -> EnvStep:
    """What one column must hold: the definition of next-step reset, one environment, one step at a time."""
    env = spec.make_one()
    expected = tree_map(lambda a: np.zeros_like(a), record)
    write = writer(env.observation_space)
    convert = to_env_action(env.action_space)
    observation, _ = env.reset(seed=env_seed(SEED, env_index))
    write(expected.observation[0], column, observation)
    expected.first[0] = True
    ended = False
    for t, action in enumerate(actions):
        if ended:
            observation, _ = env.reset()
            expected.first[t + 1, column], ended = True, False
        else:
            observation, reward, terminated, truncated, info = env.step(convert(action)[column])
            expected.reward[t, column], expected.valid[t, column] = reward, True
            expected.terminated[t, column], expected.truncated[t, column] = terminated, truncated
            ended = truncated or (terminated and info.get("game_over", True))
            expected.first[t + 1, column] = terminated and not ended
        write(expected.observation[t + 1], column, observation)
    return expected


def assert_column_equal(record: EnvStep, expected: EnvStep, column: int, num_steps: int) -> None:
    for name, array in named_leaves(record._replace(env_info=None)):
        last = num_steps + 1 if name.startswith("observation") or name == "first" else num_steps
        other = dict(named_leaves(expected))[name]
        np.testing.assert_array_equal(array[:last, column], other[:last, column], err_msg=name)


SPECS = {
    "cartpole": GymnasiumEnv(factory="CartPole-v1"),
    "pendulum": GymnasiumEnv(factory="Pendulum-v1", kwargs={"max_episode_steps": 30}),
    "taxi": GymnasiumEnv(factory="Taxi-v4", kwargs={"max_episode_steps": 30}),
    "counting": GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": (1, 7, 2, 11), "end": "alternate"}),
    "lives": GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": (12, 9), "lives": 3, "continuous": True}),
    "nested": GymnasiumEnv(factory=NestedEnv),
    "cheetah": GymnasiumEnv(factory="HalfCheetah-v5", kwargs={"max_episode_steps": 20}),
}


@pytest.mark.parametrize("name", SPECS)
def test_columns_equal_a_plain_loop(name: str) -> None:
    spec, first_env, num_steps = SPECS[name], 3, 60
    vector = spec.make(4, first_env, SEED)
    actions = draw_actions(vector, num_steps)
    record = collect(vector, actions)
    assert (~record.valid[:num_steps]).any() and record.valid[:num_steps].any()
    for column in range(4):
        expected = reference(spec, first_env + column, actions, record, column)
        assert_column_equal(record, expected, column, num_steps)
    vector.close()
    vector.close()


@pytest.mark.parametrize("name", ["cartpole", "counting", "nested"])
def test_split_over_batches_does_not_matter(name: str) -> None:
    spec = SPECS[name]
    whole = spec.make(5, 0, SEED)
    record = collect(whole, draw_actions(whole, 40))
    for first_env, num_envs in ((0, 2), (2, 3)):
        part = spec.make(num_envs, first_env, SEED)
        part_record = collect(part, draw_actions(part, 40))
        for (field, array), (_, own) in zip(named_leaves(record), named_leaves(part_record)):
            np.testing.assert_array_equal(array[:40, first_env : first_env + num_envs], own[:40], err_msg=field)


def test_rows_of_counting_env_are_the_documented_table() -> None:
    vector = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 2}).make(1, 0, SEED)
    record = collect(vector, [np.array([t % 4]) for t in range(4)])
    own = identity(env_seed(SEED, 0))
    np.testing.assert_array_equal(
        record.observation[:, 0], [[own, 0, 0, 0], [own, 0, 1, 0], [own, 0, 2, 1], [own, 1, 0, 0], [own, 1, 1, 3]]
    )
    np.testing.assert_array_equal(record.reward[:4, 0], [1, 2, 0, 1])
    np.testing.assert_array_equal(record.terminated[:4, 0], [False, True, False, False])
    np.testing.assert_array_equal(record.valid[:4, 0], [True, True, False, True])
    np.testing.assert_array_equal(record.first[:, 0], [True, False, False, True, False])
    np.testing.assert_array_equal(record.env_info.score[:4, 0], [10, 20, 0, 10])
    np.testing.assert_array_equal(record.env_info.game_over[:4, 0], [False, True, False, False])


def test_lost_life_goes_on_without_a_reset_row() -> None:
    vector = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 4, "lives": 2}).make(1, 0, SEED)
    record = collect(vector, [np.array([0])] * 6)
    np.testing.assert_array_equal(record.observation[:, 0, 2], [0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_array_equal(record.terminated[:6, 0], [False, True, False, True, False, False])
    np.testing.assert_array_equal(record.valid[:6, 0], [True, True, True, True, False, True])
    np.testing.assert_array_equal(record.first[:, 0], [True, False, True, False, False, True, False])
    np.testing.assert_array_equal(record.env_info.game_over[:4, 0], [False, False, False, True])


def test_skipped_environments_wait_and_their_fields_are_left() -> None:
    vector = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 2}).make(3, 0, SEED)
    record = slot(vector, 5)
    vector.reset(record.observation[0])
    actions = np.zeros(3, np.int64)
    skips = [None, None, np.array([True, False, True]), np.array([True, False, False]), None]
    for t, skip in enumerate(skips):
        vector.step(actions, row(record, t), skip)
    steps = record.observation[:, :, 2]
    # all end in row 1; environment 1 resets in row 2, environment 2 in row 3, environment 0 in row 4
    np.testing.assert_array_equal(steps[:3], [[0] * 3, [1] * 3, [2] * 3])
    np.testing.assert_array_equal(steps[3:, 1], [0, 1, 2])
    assert steps[3, 0] == steps[4, 0] == steps[3, 2] == 77, "observation of a skipped environment was written"
    np.testing.assert_array_equal(steps[4:, 2], [0, 1])
    assert steps[5, 0] == 0
    np.testing.assert_array_equal(record.valid[2:5], [[False, False, False], [False, True, False], [False, True, True]])
    np.testing.assert_array_equal(record.reward[2:5], [[0, 0, 0], [0, 1, 0], [0, 2, 1]])
    assert not record.terminated[2:4].any() and not record.truncated[2:5].any()
    assert record.first[3, 0] and record.first[3, 2], "first of a skipped environment was written"  # still the rubbish
    assert record.first[3, 1] and record.first[4, 2] and record.first[5, 0]
    assert np.isnan(record.env_info.score[2, 0]) and not record.env_info.game_over[2, 0]


def test_truncation_resets_even_if_the_game_is_not_over() -> None:
    vector = GymnasiumEnv(factory=_limited_counting).make(1, 0, SEED)
    record = collect(vector, [np.zeros(1, np.int64)] * 7)
    np.testing.assert_array_equal(record.observation[:, 0, 2], [0, 1, 2, 3, 4, 5, 0, 1])
    np.testing.assert_array_equal(record.valid[:7, 0], [True] * 5 + [False, True])
    assert record.truncated[4, 0] and not record.env_info.game_over[4, 0]


def test_reset_while_an_episode_has_ended() -> None:
    vector = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 2}).make(1, 0, SEED)
    collect(vector, [np.zeros(1, np.int64)] * 2)
    record = collect(vector, [np.zeros(1, np.int64)] * 2)
    np.testing.assert_array_equal(record.observation[:, 0, 2], [0, 1, 2])
    assert record.valid[:2].all()


def test_discrete_observations_count_from_zero() -> None:
    class Shifted(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Discrete(100, start=50)

        def _observation(self, action: Any) -> Any:
            return np.int64(50 + self.steps)

    vector = GymnasiumEnv(factory=Shifted).make(2, 0, SEED)
    assert vector.spaces.observation == gym.spaces.Discrete(100)
    record = collect(vector, [np.zeros(2, np.int64)] * 3)
    np.testing.assert_array_equal(record.observation[:, 1], [0, 1, 2, 3])


def test_observations_kept_by_the_environment_may_be_written_in_place() -> None:
    class InPlace(CountingEnv):
        buffer = np.zeros(4, np.float32)

        def _observation(self, action: Any) -> np.ndarray:
            if "buffer" not in vars(self):
                self.buffer = np.zeros(4, np.float32)
            self.buffer[:] = super()._observation(action)
            return self.buffer

    vector = GymnasiumEnv(factory=InPlace, kwargs={"lengths": 3}).make(2, 0, SEED)
    plain = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 3}).make(2, 0, SEED)
    actions = draw_actions(plain, 10)
    np.testing.assert_array_equal(collect(vector, actions).observation, collect(plain, actions).observation)


def test_second_reset_starts_new_episodes_with_new_random_numbers() -> None:
    vector = GymnasiumEnv(factory="CartPole-v1").make(2, 0, SEED)
    first, second = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    vector.reset(first)
    vector.step(np.zeros(2, np.int64), row(slot(vector, 1), 0))
    vector.reset(second)
    assert not np.isin(second, first).any()
    assert len(np.unique(first[:, 0])) == 2, "environments must be seeded apart"


def test_position_is_that_of_the_environment_being_stepped() -> None:
    seen: list[int] = []
    position = np.array(-1)

    class Watching(CountingEnv):
        def reset(self, **kwargs: Any) -> Any:
            seen.append(int(position))
            return super().reset(**kwargs)

        def step(self, action: Any) -> Any:
            seen.append(int(position))
            return super().step(action)

    vector = GymnasiumEnv(factory=Watching, kwargs={"lengths": 2}).make(3, 10, SEED)
    vector.position = position
    record = collect(vector, draw_actions(vector, 3))
    assert seen == [10, 11, 12] * 4 and position == -1
    vector.step(np.zeros(3, np.int64), row(record, 2), np.array([True, False, True]))
    assert seen[12:] == [11] and position == -1
    vector._calls[1] = None  # type: ignore[call-overload]
    with pytest.raises(EnvError, match="environment 11"):
        vector.step(np.zeros(3, np.int64), row(record, 2))
    assert position == 11, "it must tell where the failure was"


# ---------------------------------------------------------------- info


def test_info_fields_are_recorded_and_missing_ones_are_null() -> None:
    class Sometimes(CountingEnv):
        info_fields = {}

        def step(self, action: Any) -> Any:
            *rest, _ = super().step(action)
            odd = self.steps % 2 == 1
            return *rest, ({"x": 0.5, "n": 3, "v": [1, 2], "other": object()} if odd else {"unknown": "text"})

    spec = GymnasiumEnv(factory=Sometimes, info_fields={"x": 0.0, "n": 0, "v": np.zeros(2), "a/b": True})
    vector = spec.make(2, 0, SEED)
    assert vector.info_example._fields == ("x", "n", "v", "a_b")
    record = collect(vector, draw_actions(vector, 3))
    info = record.env_info
    assert (info.x.dtype, info.n.dtype, info.v.dtype, info.a_b.dtype) == (np.float32, np.int64, np.float32, bool)
    np.testing.assert_array_equal(info.x[:3, 0], [0.5, np.nan, 0.5])
    np.testing.assert_array_equal(info.n[:3, 1], [3, 0, 3])
    np.testing.assert_array_equal(info.v[:3, 1], [[1, 2], [np.nan, np.nan], [1, 2]])
    assert not info.a_b[:3].any()


def test_a_game_that_is_over_without_a_word_is_recorded_as_over() -> None:
    class SaysOnlyWhenNot(CountingEnv):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, ({} if info["game_over"] else {"game_over": False})

    spec = GymnasiumEnv(factory=SaysOnlyWhenNot, kwargs={"lengths": (6,), "lives": 2}, info_fields={"game_over": False})
    record = collect(vector := spec.make(1, 0, SEED), draw_actions(vector, 14))
    ended = record.terminated[:14, 0]
    assert ended.sum() > 2
    over = record.env_info.game_over[:14, 0]
    np.testing.assert_array_equal(over[ended], ~record.valid[1:15, 0][ended], "over where a reset row follows")


def test_info_fields_are_none_or_declared() -> None:
    assert GymnasiumEnv(factory="CartPole-v1").make(1, 0, SEED).info_example is None
    assert GymnasiumEnv(factory=CountingEnv).make(1, 0, SEED).info_example._fields == ("score", "game_over")
    wrapped = GymnasiumEnv(factory=_limited_counting)
    assert wrapped.make(1, 0, SEED).info_example._fields == ("score", "game_over")
    assert GymnasiumEnv(factory=CountingEnv, info_fields={}).make(1, 0, SEED).info_example is None


def _limited_counting() -> gym.Env:
    return gym.wrappers.TimeLimit(CountingEnv(), 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": "text"}, "info_fields"),
        ({"a.b": 0, "a_b": 0}, "another key"),
        (["x"], r"info_fields is \['x'\]; give a dictionary"),
    ],
)
def test_bad_info_fields(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumEnv(factory="CartPole-v1", info_fields=fields)


def test_info_of_the_wrong_shape_names_the_entry() -> None:
    class Wrong(CountingEnv):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, {**info, "score": np.zeros(3)}

    vector = GymnasiumEnv(factory=Wrong).make(2, 4, SEED)
    with pytest.raises(EnvError, match=r"environment 4 \(.*Wrong\) returned from step info\['score'\] of shape \(3,\)"):
        collect(vector, draw_actions(vector, 1))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("mode", "at", "message"),
    [
        ("raise_in_reset", 1, r"raised in reset: RuntimeError: FailingEnv fails in reset"),
        ("raise_in_reset", 3, r"raised in reset: RuntimeError: FailingEnv fails in reset"),
        ("raise_in_step", 5, r"raised in step: RuntimeError: FailingEnv fails in step"),
        ("wrong_shape", 5, r"returned from step an observation of shape \(3,\); observation_space says \(4,\)"),
        ("wrong_dtype", 5, r"returned from step an observation of type <U32, which is not numeric"),
        ("nan", 5, r"returned from step an observation that is not finite"),
        ("nan_reward", 5, r"returned from step reward nan, which is not finite"),
        ("old_api", 5, r"returned from step 4 values .* old gym"),
    ],
)
@pytest.mark.parametrize("use_skip", [False, True])
def test_failures_name_the_environment(mode: str, at: int, message: str, use_skip: bool) -> None:
    bad = 12
    spec = GymnasiumEnv(
        factory=FailingEnv, kwargs={"mode": mode, "at": at, "only_seed": env_seed(SEED, bad), "lengths": 3}
    )
    vector = spec.make(4, 10, SEED)
    record = slot(vector, 10)
    with pytest.raises(EnvError, match=rf"^environment {bad} \(FailingEnv\) {message}") as caught:
        vector.reset(record.observation[0])
        for t in range(10):
            vector.step(
                np.zeros(4, np.int64), row(record, t), np.array([True, False, False, False]) if use_skip else None
            )
    if "raised" in message:
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


class Numbered(CountingEnv):
    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number


def test_environments_are_told_their_number_if_they_ask() -> None:
    vector = GymnasiumEnv(factory=Numbered, kwargs={"lengths": 3}, index_argument="number").make(3, 10, SEED)
    assert [env.number for env in vector.envs] == [10, 11, 12]  # type: ignore[attr-defined]


def test_actions_that_are_not_finite_are_blamed_on_the_agent() -> None:
    vector = GymnasiumEnv(factory="Pendulum-v1").make(2, 10, SEED)
    record = slot(vector, 3)
    vector.reset(record.observation[0])
    with pytest.raises(EnvError, match=r"^environment 11 .*given an action that is not finite: the agent's parameters"):
        vector.step(np.array([[0.5], [np.nan]], np.float32), row(record, 0))


class Returns(gym.Env):
    """Returns what it is told to."""

    observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reset: Any = None, step: Any = None) -> None:
        good = np.zeros(2, np.uint8)
        self.at_reset = (good, {}) if reset is None else reset
        self.at_step = (good, 0.0, False, False, {}) if step is None else step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.at_reset

    def step(self, action: Any) -> Any:
        return self.at_step


GOOD = np.zeros(2, np.uint8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reset": GOOD}, r"returned from reset a ndarray; return \(observation, info\)"),
        ({"reset": (GOOD, None)}, r"returned from reset 2 values \(ndarray, NoneType\)"),
        ({"reset": (np.zeros(3, np.uint8), {})}, r"returned from reset an observation of shape \(3,\)"),
        ({"step": GOOD}, "returned from step a ndarray"),
        ({"step": (GOOD, [1.0, 2.0], False, False, {})}, r"returned from step reward \[1.0, 2.0\] of type list"),
        ({"step": (GOOD, None, False, False, {})}, "returned from step reward None"),
        ({"step": (GOOD, 1e39, False, False, {})}, "returned from step reward 1e[+]39, which is not finite"),
        ({"step": (GOOD, 0.0, np.zeros(2, bool), False, {})}, r"returned from step terminated of shape \(2,\)"),
        ({"step": (GOOD, 0.0, True, False, None)}, "returned from step info of type NoneType"),
        ({"step": (np.array([0.5, 0.5]), 0.0, False, False, {})}, "returned from step an observation of type float64"),
        (
            {"step": (np.array([0, 300]), 0.0, False, False, {})},
            "returned from step an observation with values from 0 to 300",
        ),
        (
            {"step": (np.zeros(1, np.uint8), 0.0, False, False, {})},
            r"returned from step an observation of shape \(1,\)",
        ),
        (
            {"step": (np.zeros((1, 2), np.uint8), 0.0, False, False, {})},
            r"returned from step an observation of shape \(1, 2\)",
        ),
        ({"step": (None, 0.0, False, False, {})}, "returned from step an observation of type object"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_broken_interface(kwargs: dict[str, Any], message: str) -> None:
    vector = GymnasiumEnv(factory=Returns, kwargs=kwargs).make(3, 0, SEED)
    with pytest.raises(EnvError, match=rf"^environment 0 \(Returns\) {message}"):
        collect(vector, [np.zeros(3, np.int64)])


def test_whole_numbers_of_another_type_are_converted() -> None:
    vector = GymnasiumEnv(factory=Returns, kwargs={"step": ([3, 255], 1, np.bool_(True), 0, {})}).make(2, 0, SEED)
    record = collect(vector, [np.zeros(2, np.int64)])
    np.testing.assert_array_equal(record.observation[1], [[3, 255]] * 2)
    assert record.reward[0].tolist() == [1, 1] and record.terminated[0].all() and not record.truncated[0].any()


def test_missing_entry_of_a_nested_observation_is_named() -> None:
    class Incomplete(NestedEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            del observation["bits"]
            return observation, *rest

    vector = GymnasiumEnv(factory=Incomplete).make(2, 0, SEED)
    with pytest.raises(EnvError, match=r"environment 0 .* returned from step an observation without the entry 'bits'"):
        collect(vector, draw_actions(vector, 1))


def test_wrong_shape_in_a_nested_observation_is_named() -> None:
    class Wrong(NestedEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return {**observation, "past": (np.zeros(3), 1)}, *rest

    vector = GymnasiumEnv(factory=Wrong).make(2, 0, SEED)
    with pytest.raises(EnvError, match=r"an observation with entry 'past' with entry 0 of shape \(3,\)"):
        collect(vector, draw_actions(vector, 1))


# ---------------------------------------------------------------- the recipe


def test_recipe_pickles_and_says_what_it_imports() -> None:
    spec = pickle.loads(pickle.dumps(GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": 3})))
    assert spec.make(1, 0, 0).num_envs == 1
    assert spec.preload_modules() == ("gymnasium", "rlsurreal.testing.envs")
    assert "gymnasium.envs.classic_control.cartpole" in GymnasiumEnv(factory="CartPole-v1").preload_modules()
    assert "ale_py.env" in GymnasiumEnv(factory="ALE/Pong-v5").preload_modules()


def test_ids_are_found_as_gymnasium_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "from rlsurreal.testing.envs import CountingEnv\n"
        "gymnasium.register('Handover-v3', CountingEnv, kwargs={'lengths': 3})\n"  # no robot hand
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_envs:Handover-v3", "own_envs:Handover", "Handover-v3", "Handover"):
        spec = GymnasiumEnv(factory=name)
        assert spec.make(1, 0, 0).num_envs == 1
        assert spec.preload_modules() == ("gymnasium", "rlsurreal.testing.envs")
    assert isinstance(GymnasiumEnv(factory="CartPole").make_one().unwrapped, CartPoleEnv)


@pytest.mark.processes
def test_workers_find_what_the_script_has_registered(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import gymnasium as gym
            from rlsurreal.envs import GymnasiumEnv
            from rlsurreal.samplers import ParallelSampler
            from rlsurreal.structs import BatchSpec
            from rlsurreal.testing.agents import TapeAgent
            from rlsurreal.testing.envs import CountingEnv

            class Own(CountingEnv):
                "Known to this script alone."

            if __name__ == "__main__":
                gym.register("Own-v0", Own, max_episode_steps=5)
                sampler = ParallelSampler(env=GymnasiumEnv(factory="Own-v0"), batch=BatchSpec(8, 2), num_workers=1)
                agent = TapeAgent()
                agent.initialize(sampler.connect(seed=0), seed=0)
                sampler.initialize(agent, discount=0.9)
                print("sampled", sampler.obtain().env.truncated.sum().item())
                sampler.close()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.startswith("sampled") and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"factory": 3}, "GymnasiumEnv.factory is 3"),
        ({"factory": "CartPole-v1", "kwargs": 3}, "GymnasiumEnv.kwargs is 3"),
    ],
)
def test_bad_recipe(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumEnv(**kwargs)


def test_environment_that_cannot_be_made() -> None:
    with pytest.raises(EnvError, match=r"environment 6 \(NoSuchEnv-v0\) could not be made: NameNotFound"):
        GymnasiumEnv(factory="NoSuchEnv-v0").make(2, 6, 0)
    with pytest.raises(EnvError, match="is no gymnasium.Env"):
        GymnasiumEnv(factory=dict).make(1, 0, 0)


def test_unsupported_space() -> None:
    class Textual(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Text(5)

    with pytest.raises(ValueError, match="is not supported"):
        GymnasiumEnv(factory=Textual).make(1, 0, 0)


def test_environments_of_a_batch_must_be_alike() -> None:
    envs = [CountingEnv(), CountingEnv(continuous=True)]
    with pytest.raises(ValueError, match=r"environment 6 \(x\) has spaces"):
        GymnasiumVectorEnv(envs, name="x", first_env=5, seed=0)


def test_spaces_are_those_at_the_agents_side() -> None:
    vector = GymnasiumEnv(factory=NestedEnv).make(1, 0, 0)
    past, button = vector.spaces.observation["past"]
    assert past.dtype == np.float32 and button.start == 0
    assert vector.spaces.action["move"] == gym.spaces.Box(-1, 1, (2,), np.float32)
    assert vector.spaces.action["button"] == gym.spaces.Discrete(3)


def test_all_environments_are_closed_even_if_one_raises() -> None:
    closed = []

    class Closing(CountingEnv):
        def close(self) -> None:
            closed.append(self)
            if len(closed) == 1:
                raise OSError("stuck")

    vector = GymnasiumEnv(factory=Closing).make(3, 0, 0)
    with pytest.raises(OSError, match="stuck"):
        vector.close()
    assert len(closed) == 3
    vector.close()


def test_render_shows_environment_0() -> None:
    vector = GymnasiumEnv(factory="ALE/Pong-v5", kwargs={"render_mode": "rgb_array"}).make(2, 0, 0)
    vector.reset(np.zeros((2, 210, 160, 3), np.uint8))
    np.testing.assert_array_equal(vector.render(), vector.envs[0].render())
