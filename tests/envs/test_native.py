"""Native batches: their rows against `make_atari` and against the documented table, in lock step and asynchronously."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlsurreal.envs import AleEnv, AsyncResults, EnvError, EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.envs.native import NativeVectorEnv, check_finite
from rlsurreal.structs import EnvStep, HasState
from rlsurreal.utils.namedarraytuple import Tree, named_leaves, tree_map
from rlsurreal.utils.spaces import null_value, random_actions

pytest.importorskip("ale_py")
pytest.importorskip("envpool")
GAME = {"size": 42, "frame_stack": 2, "max_frames": 1000}


def collect(vector: Any, actions: list[Tree]) -> EnvStep:
    n, num_rows = vector.num_envs, len(actions) + 1

    def poisoned(leaf: Any) -> np.ndarray:
        return np.full((num_rows, n, *np.shape(leaf)), 7, np.asarray(leaf).dtype)

    record = EnvStep(
        *(
            tree_map(poisoned, example)
            for example in (
                null_value(vector.spaces.observation),
                np.float32(0),
                False,
                False,
                False,
                False,
                vector.info_example,
            )
        )
    )
    vector.reset(record.observation[0])
    record.first[0] = True
    for t, action in enumerate(actions):
        vector.step(action, record[t]._replace(observation=record.observation[t + 1], first=record.first[t + 1]))
    return record


def draw(space: Any, num_steps: int, num_envs: int, seed: int = 0, first_env: int = 0) -> list[Tree]:
    streams = [np.random.default_rng((seed, first_env + i)) for i in range(num_envs)]
    return [
        tree_map(lambda *leaves: np.stack(leaves), *[random_actions(space, stream) for stream in streams])
        for _ in range(num_steps)
    ]


def python_atari(**settings: Any) -> GymnasiumEnv:
    return GymnasiumEnv(factory=make_atari, kwargs=settings)


@pytest.mark.parametrize(
    ("game", "episodic_life", "clip_reward"),
    [("breakout", True, True), ("breakout", False, False), ("pong", True, False), ("bank_heist", True, False)],
)
def test_ale_equals_the_python_games(game: str, episodic_life: bool, clip_reward: bool) -> None:
    """Without chance at the start the games run alike, row by row, through lives, ends and resets."""
    settings: dict[str, Any] = {
        "game": game,
        "episodic_life": episodic_life,
        "clip_reward": clip_reward,
        "fire_reset": False,
        **GAME,
    }
    native = AleEnv(noop_max=0, num_threads=2, **settings).make(2, 0, 1)
    python = python_atari(noop_max=0, **settings).make(2, 0, 1)
    assert native.spaces == python.spaces
    actions = draw(python.spaces.action, 300, 2)
    own, other = collect(native, actions), collect(python, actions)
    for name, array in named_leaves(own._replace(observation=None)):
        np.testing.assert_array_equal(array[:300], dict(named_leaves(other))[name][:300], err_msg=name)
    # The engine's final observation is stale where the game ends within the frames of an action.
    ends = other.env_info.game_over[:300]
    stale = np.zeros((301, 2), bool)
    stale[1:] = ends
    for column in range(2):
        for t in range(301):
            if not stale[max(t - 1, 0) : t + 1, column].any():
                np.testing.assert_array_equal(own.observation[t, column], other.observation[t, column], err_msg=str(t))
    assert ends.any() and (~own.valid[:300]).any()
    if episodic_life and game != "pong":
        assert (own.terminated[:300] & ~ends).any(), "some life must be lost"
    native.close()
    native.close()


def test_ale_limit_that_falls_on_a_lost_life_ends_the_game() -> None:
    """The engine calls it a lost life only, but starts a new game."""
    free = AleEnv(game="breakout", noop_max=0, **{**GAME, "max_frames": 10**6}).make(1, 0, 0)
    actions = draw(free.spaces.action, 120, 1)
    record = collect(free, actions)
    loss = int(np.flatnonzero(record.terminated[:120, 0] & ~record.env_info.game_over[:120, 0])[0])
    limited = AleEnv(game="breakout", noop_max=0, **{**GAME, "max_frames": 4 * (loss + 1)}).make(1, 0, 0)
    record = collect(limited, actions)
    assert record.terminated[loss, 0] and record.env_info.game_over[loss, 0]
    assert not record.valid[loss + 1, 0] and not record.first[loss + 1, 0] and record.first[loss + 2, 0]
    assert not record.observation[loss + 2, 0, 0].any(), "a new game starts with frames of zeros"


def test_ale_game_may_end_with_a_life_left() -> None:
    vector = AleEnv(game="adventure", noop_max=0, frame_skip=16, frame_stack=1, size=42).make(1, 0, 0)
    record = collect(vector, draw(vector.spaces.action, 90, 1))
    (end,) = np.flatnonzero(record.terminated[:90, 0])
    assert record.env_info.game_over[end, 0]
    assert not record.valid[end + 1, 0] and not record.first[end + 1, 0] and record.first[end + 2, 0]


@pytest.mark.parametrize("game", ["breakout", "pong"])
def test_envpool_atari_equals_the_python_games(game: str) -> None:
    native = EnvPoolEnv(
        task_id=f"{game.capitalize()}-v5",
        kwargs={
            "noop_max": 1,
            "use_fire_reset": False,
            "img_height": 42,
            "img_width": 42,
            "stack_num": 1,
            "reward_clip": True,
            "max_episode_steps": 220,
        },
        num_threads=2,
    ).make(2, 0, 1)
    python = python_atari(
        game=game, noop_max=1, fire_reset=False, size=42, frame_stack=1, episodic_life=False, max_frames=1 + 4 * 220
    ).make(2, 0, 1)
    assert native.spaces == python.spaces
    actions = draw(python.spaces.action, 250, 2)
    own, other = collect(native, actions), collect(python, actions)
    for name, array in named_leaves(own._replace(observation=None)):
        np.testing.assert_array_equal(array[:250], dict(named_leaves(other))[name][:250], err_msg=name)
    difference = np.abs(own.observation[1:251].astype(int) - other.observation[1:251]).max(axis=(2, 3, 4))
    assert (
        difference[~own.terminated[:250]].max() <= 1
    )  # resizing rounds otherwise; the last frame of a game may be stale
    assert other.env_info.game_over[:250].any()


def test_envpool_game_that_ends_at_its_limit_is_terminated() -> None:
    kwargs = {"img_height": 20, "img_width": 20, "stack_num": 1}
    vector = EnvPoolEnv(task_id="Breakout-v5", kwargs=kwargs).make(1, 0, 0)
    actions = draw(vector.spaces.action, 350, 1)
    end = int(np.flatnonzero(collect(vector, actions).terminated[:350, 0])[0])
    limited = EnvPoolEnv(task_id="Breakout-v5", kwargs={**kwargs, "max_episode_steps": end + 1}).make(1, 0, 0)
    record = collect(limited, actions)
    assert record.terminated[end, 0] and record.truncated[end, 0] and record.env_info.game_over[end, 0]


def test_envpool_gives_a_reset_row_after_each_life() -> None:
    vector = EnvPoolEnv(task_id="Breakout-v5", kwargs={"episodic_life": True, "reward_clip": True}).make(2, 0, 3)
    record = collect(vector, draw(vector.spaces.action, 400, 2))
    ends, over = record.terminated[:400], record.env_info.game_over[:400]
    assert (ends & ~over).sum() > over.sum() > 0
    np.testing.assert_array_equal(~record.valid[1:400], ends[:399])
    np.testing.assert_array_equal(record.first[2:401], ends[:399])
    assert not record.reward[:400][~record.valid[:400]].any()
    after_life = np.argwhere(ends[:398] & ~over[:398])
    after_game = np.argwhere(over[:398])
    # the stack of frames goes on through a lost life, and repeats the first frame of a new game
    t, i = after_life[0]
    np.testing.assert_array_equal(record.observation[t + 2, i, :-1], record.observation[t + 1, i, 1:])
    t, i = after_game[0]
    assert all((record.observation[t + 2, i, k] == record.observation[t + 2, i, -1]).all() for k in range(3))


def test_envpool_final_observation_is_the_true_one() -> None:
    vector = EnvPoolEnv(task_id="CartPole-v1").make(3, 0, 0)
    record = collect(vector, draw(vector.spaces.action, 300, 3))
    ends = np.argwhere(record.terminated[:298])
    assert len(ends) > 5
    for t, i in ends:
        fallen, fresh = record.observation[t + 1, i], record.observation[t + 2, i]
        assert abs(fallen[0]) > 2.4 or abs(fallen[2]) > 0.2
        assert np.abs(fresh).max() <= 0.05
        assert not record.valid[t + 1, i] and record.reward[t + 1, i] == 0 and record.first[t + 2, i]
        assert not record.first[t + 1, i]
    assert record.env_info is None


def test_envpool_time_limit_is_truncated() -> None:
    vector = EnvPoolEnv(task_id="HalfCheetah-v4", kwargs={"max_episode_steps": 12}, info_fields=("x_velocity",)).make(
        2, 0, 0
    )
    record = collect(vector, draw(vector.spaces.action, 30, 2))
    np.testing.assert_array_equal(np.flatnonzero(record.truncated[:30, 0]), [11, 24])
    np.testing.assert_array_equal(np.flatnonzero(~record.valid[:30, 0]), [12, 25])
    assert not record.terminated[:30].any()
    assert record.env_info.x_velocity.dtype == np.float32
    assert record.env_info.x_velocity[:12].any()


def test_envpool_nested_observations() -> None:
    vector = EnvPoolEnv(task_id="CheetahRun-v1", kwargs={"max_episode_steps": 5}).make(2, 0, 0)
    assert {key: box.dtype for key, box in vector.spaces.observation.items()} == {
        "position": np.float32,
        "velocity": np.float32,
    }
    assert np.isneginf(vector.spaces.observation["position"].low).all()
    record = collect(vector, draw(vector.spaces.action, 8, 2))
    assert record.observation.position.shape == (9, 2, 8) and record.observation.velocity.shape == (9, 2, 9)
    assert len(np.unique(record.observation.position[:, :, 0])) > 10


def test_envpool_discrete_observations() -> None:
    vector = EnvPoolEnv(task_id="FrozenLake-v1").make(2, 0, 0)
    record = collect(vector, draw(vector.spaces.action, 50, 2))
    assert record.observation.dtype == np.int64 and record.observation.min() >= 0
    assert record.observation.max() < vector.spaces.observation.n


@pytest.mark.parametrize(
    "spec",
    [
        AleEnv(game="breakout", sticky=0.25, num_threads=2, **GAME),
        EnvPoolEnv(task_id="HalfCheetah-v4"),
        EnvPoolEnv(task_id="Breakout-v5", kwargs={"repeat_action_probability": 0.25}),
    ],
    ids=["ale", "cheetah", "envpool atari"],
)
def test_split_and_threads_do_not_matter(spec: Any) -> None:
    whole = spec.make(4, 0, 5)
    record = collect(whole, draw(whole.spaces.action, 40, 4))
    assert (record.observation[0, 0] != record.observation[0, 1]).any(), "environments must be seeded apart"
    for first_env, num_envs in ((0, 1), (1, 3)):
        part = spec.make(num_envs, first_env, 5)
        own = collect(part, draw(part.spaces.action, 40, num_envs, first_env=first_env))
        np.testing.assert_array_equal(own.observation, record.observation[:, first_env : first_env + num_envs])
    other = spec.make(4, 0, 6)
    assert (collect(other, draw(other.spaces.action, 40, 4)).observation != record.observation).any()


@pytest.mark.parametrize(
    "spec", [AleEnv(game="pong", **GAME), EnvPoolEnv(task_id="CartPole-v1")], ids=["ale", "envpool"]
)
def test_lock_step_refuses_what_it_cannot_do(spec: Any) -> None:
    vector = spec.make(2, 0, 0)
    assert not isinstance(vector, HasState)
    record = collect(vector, [])
    with pytest.raises(ValueError, match="cannot wait"):
        vector.step(np.zeros(2, np.int64), record[0], np.zeros(2, bool))
    with pytest.raises(ValueError, match="actions are 0 to 9"):
        vector.step(np.array([0, 9]), record[0])
    with pytest.raises(ValueError, match="batch_size is 3"):
        spec.make_async(2, 0, 0, 3)
    with pytest.raises(ValueError, match="lock step needs all"):
        NativeVectorEnv(spec.make_async(2, 0, 0, 1))


@pytest.mark.parametrize(
    "spec", [AleEnv(game="pong", **GAME), EnvPoolEnv(task_id="CartPole-v1")], ids=["ale", "envpool"]
)
def test_reset_again_starts_new_episodes(spec: Any) -> None:
    vector = spec.make(2, 0, 0)
    actions = draw(vector.spaces.action, 30, 2)
    first, second = collect(vector, actions), collect(vector, actions)
    assert (first.observation != second.observation).any(), "the second episodes must draw new random numbers"
    assert second.valid[0].all() and second.first[0].all()
    engine = spec.make_async(2, 0, 0, 2)
    for _ in range(2):
        engine.start()
        start = engine.recv()
        assert start.was_reset.all() and start.first.all() and not start.terminated.any()
        engine.send(np.zeros(2, np.int64), np.arange(2))
        assert not engine.recv().was_reset.any()


def test_ale_counts_frames_from_the_reset() -> None:
    vector = AleEnv(game="pong", **{**GAME, "max_frames": 160}).make(1, 0, 0)
    actions = draw(vector.spaces.action, 30, 1)
    for _ in range(2):
        record = collect(vector, actions)
        assert record.valid[:30].all() and not record.truncated[:30].any() and not record.env_info.game_over[:30].any()


@pytest.mark.parametrize(
    "spec",
    [
        AleEnv(game="breakout", num_threads=2, sticky=0.25, **{**GAME, "max_frames": 120}),
        EnvPoolEnv(task_id="CartPole-v1", num_threads=2),
    ],
    ids=["ale", "envpool"],
)
def test_asynchronous_columns_equal_lock_step(spec: Any) -> None:
    """Each environment's own sequence is the same, whatever the order in which they answer."""
    num_envs, num_steps = 5, 60
    vector = spec.make(num_envs, 2, 5)
    actions = draw(vector.spaces.action, num_steps + 30, num_envs)
    record = collect(vector, actions)
    engine = spec.make_async(num_envs, 2, 5, batch_size=2)
    columns: list[list[AsyncResults]] = [[] for _ in range(num_envs)]
    engine.start()
    while min(map(len, columns)) < num_steps:
        results = engine.recv()
        assert results.env_ids.shape == (2,) and len(set(results.env_ids)) == 2
        for i, env in enumerate(results.env_ids):
            columns[env].append(tree_map(np.copy, results[i]))
        steps = [len(columns[env]) - 1 for env in results.env_ids]
        engine.send(
            np.stack([actions[min(t, len(actions) - 1)][env] for t, env in zip(steps, results.env_ids)]),
            results.env_ids,
        )
    for env, column in enumerate(columns):
        assert column[0].was_reset and column[0].first
        np.testing.assert_array_equal(column[0].observation, record.observation[0, env])
        for t, result in enumerate(column[1:num_steps]):
            np.testing.assert_array_equal(result.observation, record.observation[t + 1, env])
            assert result.first == record.first[t + 1, env] and result.was_reset == (not record.valid[t, env])
            for name in ("reward", "terminated", "truncated"):
                assert getattr(result, name) == getattr(record, name)[t, env], (name, t)
    assert not record.valid[:num_steps].all()
    with pytest.raises(ValueError, match="started only once"):
        engine.start()
    engine.close()  # with steps under way
    engine.close()


def test_ale_wants_actions_for_those_received() -> None:
    engine = AleEnv(game="pong", **GAME).make_async(4, 0, 0, batch_size=2)
    engine.start()
    results = engine.recv()
    with pytest.raises(ValueError, match="those of the last recv"):
        engine.send(np.zeros(2, np.int64), results.env_ids[::-1])


def test_not_finite_names_the_environment() -> None:
    flags = np.zeros(2, bool)
    results = AsyncResults(
        np.array([1, 3]),
        np.array([[0.0, 1], [np.nan, 0]], np.float32),
        np.zeros(2, np.float32),
        flags,
        flags,
        flags,
        flags,
        None,
    )
    with pytest.raises(EnvError, match=r"environment 13 \(Task\) returned from step observation that is not finite"):
        check_finite("Task", 10, results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnvPoolEnv(task_id="NoSuch-v0").make(1, 0, 0), "task_id is 'NoSuch-v0'"),
        (lambda: EnvPoolEnv(task_id="CartPole-v1", kwargs={"seed": 3}), r"kwargs\['seed'\] is 3; leave it out"),
        (lambda: EnvPoolEnv(task_id="HalfCheetah-v4", info_fields=("speed",)).make(1, 0, 0), "has 'speed'.*x_velocity"),
        (lambda: AleEnv(game="pnog").make(1, 0, 0), "did you mean"),
        (lambda: AleEnv(game="pong", frame_skip=0), "AleEnv: frame_skip is 0"),
    ],
)
def test_bad_recipes(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install rlsurreal\[envpool\]"):
        EnvPoolEnv(task_id="CartPole-v1").make(1, 0, 0)
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    with pytest.raises(ImportError, match=r"pip install rlsurreal\[atari\]"):
        AleEnv(game="pong").make(1, 0, 0)
