"""Saved in mid-episode and continued in new environments, bit for bit."""

from __future__ import annotations

import enum
import random
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from rlsurreal.envs import GymnasiumEnv, make_atari, make_minatar
from rlsurreal.envs.gymnasium_env import GymnasiumVectorEnv
from rlsurreal.envs.state import get_env_states, set_env_states, state_problem
from rlsurreal.structs import EnvStep, HasState
from rlsurreal.testing.envs import CountingEnv, NestedEnv, RecallEnv
from rlsurreal.utils.files import load_checkpoint, save_checkpoint
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map
from rlsurreal.utils.spaces import null_value, random_actions


def classic_atari() -> gym.Env:
    """Gymnasium's own preprocessing around ale-py's own environment."""
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.25, max_num_frames_per_episode=160)
    env = gym.wrappers.AtariPreprocessing(env, noop_max=10)
    return gym.wrappers.FrameStackObservation(env, 4)


def wrapped(wrapper: Any, **kwargs: Any) -> gym.Env:
    return wrapper(gym.make("CartPole-v1", max_episode_steps=25), **kwargs)


class Mood(enum.Enum):
    CALM = 1.0
    WILD = 2.0


class Move(NamedTuple):
    row: int
    column: float


@dataclass(frozen=True)
class Cell:
    row: int
    column: int


@dataclass
class Particle:
    position: np.ndarray
    ages: list[int]
    peers: list[Particle]


class Slotted:
    __slots__ = ("value",)


class Task:
    """Knows its environment."""

    def __init__(self, env: Motley) -> None:
        self.env, self.cells = env, {Cell(0, 0): 1}


class Motley(gym.Env):
    """Has attributes of every kind that can be saved.  What is observed depends on all of them."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (13,))
    action_space = gym.spaces.Discrete(2)
    Size = enum.IntEnum("Size", "SMALL LARGE", qualname="Motley.Size")

    def __init__(self) -> None:
        self.task = Task(self)
        self.older, self.pure = np.random.RandomState(1), random.Random(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.visited, self.recent, self.counts = {(0, 0)}, deque([0.0], maxlen=3), defaultdict(int)
        self.moods, self.size = {Mood.CALM: 1.0}, Motley.Size.SMALL
        self.letters, self.letter = np.array(list("SFG")), np.str_("F")
        self.objects = np.array([[], None], object)
        self.board = {(0, 0): 1.0}
        self.order = OrderedDict(a=1.0, b=2.0)
        self.corners = frozenset({1})
        self.last = Move(0, 0.0)
        self.slotted = Slotted()
        self.slotted.value = 0.0
        self.shared = np.zeros(2)
        self.particles: list[Particle] = []
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        x = float(self.np_random.normal() + self.older.normal() + self.pure.gauss(0, 1) + action)
        cell = int(abs(x) * 3), int(self.np_random.integers(3))
        self.task.cells[Cell(*cell)] = self.task.cells.get(Cell(*cell), 0) + 1
        self.visited.add(cell)
        self.recent.append(x)
        self.counts[Mood.WILD if x > 0 else "calm"] += 1
        self.moods = {mood: x * mood.value for mood in Mood if x > 0 or mood is Mood.CALM}
        self.size = Motley.Size.LARGE if x > 1 else Motley.Size.SMALL
        self.letters[cell[1]] = "ABC"[cell[1]]
        self.letter = np.str_("xyz"[cell[1]])
        self.objects[0].append(x)
        self.board[cell] = x
        self.order.move_to_end("a" if x > 0 else "b")
        self.corners |= {cell[0]}
        self.last = Move(cell[0], x)
        self.slotted.value += x
        if x > 0.5:
            self.particles.append(Particle(self.shared, [len(self.recent)], self.particles))
            self.particles[-1].peers[0].position[0] += x  # another name for `shared`, and for `particles`
        return self._observe(), x, len(self.visited) > 12, False, {}

    def _observe(self) -> np.ndarray:
        sums = [
            sum(row + 10 * column for row, column in self.visited),
            sum(self.recent),
            self.counts[Mood.WILD] + 10 * self.counts["calm"],
            sum(self.moods.values()) + self.size.value,
            ord(self.letter) + sum(map(ord, self.letters)),
            sum(self.objects[0]),
            sum(self.board.values()),
            sum(float(i) * value for i, value in enumerate(self.order.values())),
            len(self.corners),
            self.last.row + self.last.column,
            self.slotted.value,
            self.shared[0] + len(self.particles),
            sum(cell.row * n for cell, n in self.task.env.task.cells.items()),
        ]
        return np.array(sums, np.float32)


def limited(env_id: str, steps: int) -> GymnasiumEnv:
    return GymnasiumEnv(factory=env_id, kwargs={"max_episode_steps": steps})


# Each has an end of an episode within the 50 steps after the state is saved at step 15, and a reset that draws random
# numbers.
SPECS = {
    "cartpole": GymnasiumEnv(factory="CartPole-v1"),
    "pendulum": limited("Pendulum-v1", 30),
    "mountain-car": limited("MountainCarContinuous-v0", 40),
    "taxi": limited("Taxi-v4", 25),
    "blackjack": GymnasiumEnv(factory="Blackjack-v1"),
    "cheetah": limited("HalfCheetah-v5", 40),
    "ant": GymnasiumEnv(factory="Ant-v5", kwargs={"max_episode_steps": 40}, info_fields={"x_position": 0.0}),
    "humanoid": GymnasiumEnv(factory="Humanoid-v5"),
    "pong": GymnasiumEnv(factory=make_atari, kwargs={"game": "ALE/Pong-v5", "max_frames": 160, "size": 30}),
    "sticky breakout": GymnasiumEnv(
        factory=make_atari, kwargs={"game": "breakout", "max_frames": 160, "size": 30, "sticky": 0.25}
    ),
    "gymnasium breakout": GymnasiumEnv(factory=classic_atari),
    "counting": GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": (9, 20), "lives": 2}),
    "nested": GymnasiumEnv(factory=NestedEnv),
    "recall": GymnasiumEnv(factory=RecallEnv),
    "frozen lake": limited("FrozenLake-v1", 25),
    "frame stack": GymnasiumEnv(factory=partial(wrapped, gym.wrappers.FrameStackObservation, stack_size=3)),
    "delay": GymnasiumEnv(factory=partial(wrapped, gym.wrappers.DelayObservation, delay=2)),
    "statistics": GymnasiumEnv(factory=partial(wrapped, gym.wrappers.RecordEpisodeStatistics)),
    "normalized observation": GymnasiumEnv(factory=partial(wrapped, gym.wrappers.NormalizeObservation)),
    "normalized reward": GymnasiumEnv(factory=partial(wrapped, gym.wrappers.NormalizeReward)),
    "motley": GymnasiumEnv(factory=Motley),
}
MINATAR = ("asterix", "breakout")


def run(vector: GymnasiumVectorEnv, actions: list[Any]) -> list[EnvStep]:
    """What the environments do; each step in arrays of its own."""
    n = vector.num_envs

    def zeros(example: Any) -> Any:
        return tree_map(lambda leaf: np.zeros((n, *np.shape(leaf)), np.asarray(leaf).dtype), example)

    steps = []
    for action in actions:
        flags = [np.zeros(n, bool) for _ in range(4)]
        step = EnvStep(
            zeros(null_value(vector.spaces.observation)),
            np.zeros(n, np.float32),
            *flags,
            env_info=zeros(vector.info_example),
        )
        vector.step(action, step)
        steps.append(step)
    return steps


class Drawing(CountingEnv):
    """What it does depends on what its spaces draw."""

    def __init__(self) -> None:
        super().__init__(lengths=(9, 20))
        self.cards = gs.Dict({"suit": gs.Discrete(4), "values": gs.Tuple([gs.Box(-1, 1), gs.MultiBinary(3)])})
        self.cards.seed(3)

    def step(self, action: Any) -> Any:
        observation, _, *others = super().step(action)
        drawn = self.cards.sample()
        reward = drawn["suit"] + drawn["values"][0].sum() + drawn["values"][1].sum() + self.action_space.sample()
        return observation, float(reward), *others


SPECS["drawing"] = GymnasiumEnv(factory=Drawing)


@pytest.mark.parametrize("name", [*SPECS, *MINATAR])
@pytest.mark.parametrize("saved_at", [15, "the end of an episode"])
def test_continues_bit_for_bit(name: str, saved_at: Any, tmp_path: Path) -> None:
    if name in MINATAR:
        pytest.importorskip("minatar", reason="the extra minatar is not installed")
        spec = GymnasiumEnv(factory=make_minatar, kwargs={"game": name, "max_episode_steps": 60})
    else:
        spec = SPECS[name]
    num_envs = 2
    vector = spec.make(num_envs, 0, 1)
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[Any]:
        batches = [[random_actions(vector.spaces.action, rng) for _ in range(num_envs)] for _ in range(count)]
        return [tree_map(lambda *leaves: np.stack(leaves), *batch) for batch in batches]

    observation = tree_map(
        lambda leaf: np.zeros((num_envs, *leaf.shape), leaf.dtype), null_value(vector.spaces.observation)
    )
    vector.reset(observation)
    if saved_at == 15:
        run(vector, draw(15))
    else:
        for _ in range(200):
            if vector._ended:
                break
            run(vector, draw(1))
        assert vector._ended
    assert isinstance(vector, HasState) and vector.state_problem() is None
    save_checkpoint(tmp_path / "state.pt", {"state": vector.get_state()})
    state = load_checkpoint(tmp_path / "state.pt")["state"]
    actions = draw(50)
    expected = run(vector, actions)
    if name != "humanoid":
        assert sum(step.first.sum() for step in expected) >= 1, "the test must cross the end of an episode"

    restored = spec.make(num_envs, 0, 999)
    if saved_at == 15:
        restored.reset(observation)  # must not matter
        run(restored, draw(3))
    restored.set_state(state)
    for attempt in range(2):  # the state is not used up
        for t, (own, other) in enumerate(zip(run(restored, actions), expected)):
            for (field, array), (_, right) in zip(named_leaves(own), named_leaves(other)):
                np.testing.assert_array_equal(array, right, err_msg=f"{field}, step {t}, attempt {attempt}")
        restored.set_state(state)


def test_saving_does_not_disturb() -> None:
    runs = []
    for save in (False, True):
        vector = SPECS["cheetah"].make(1, 0, 0)
        vector.reset(np.zeros((1, 17), np.float32))
        for _ in range(10):
            runs.append(run(vector, [np.full((1, 6), 0.3, np.float32)])[0].observation)
            if save:
                vector.get_state()
    np.testing.assert_array_equal(runs[:10], runs[10:])


def test_saved_state_does_not_change_with_the_environment() -> None:
    class Mutating(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.counts = np.zeros(2)
            self.alias = [self.counts]

    env = Mutating()
    state = get_env_states([env])
    env.counts += 1
    set_env_states([env], state)
    assert env.counts.tolist() == [0, 0]
    assert env.alias[0] is env.counts, "what was one object stays one"
    env.counts += 1
    set_env_states([env], state)
    assert env.counts.tolist() == [0, 0]


def test_lives_are_part_of_a_saved_game() -> None:
    one, other = make_atari("breakout"), make_atari("breakout")
    one.reset(seed=0)
    other.reset(seed=0)
    lives = 5
    while lives == 5:
        lives = one.step(2)[4]["lives"]
    other.set_state(one.get_state())
    assert [step(0)[2] for step in (one.step, other.step)] == [False, False]


class Opaque(CountingEnv):
    """Holds what cannot be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = (i for i in range(10))


class Saving(Opaque):
    """Knows how to save itself all the same."""

    def get_state(self) -> Any:
        return (self.identity, self.game, self.steps)

    def set_state(self, state: Any) -> None:
        self.identity, self.game, self.steps = state


class HalfSaving(Opaque):
    """MuJoCo environments have a set_state(qpos, qvel), which is another thing."""

    def get_state(self) -> Any:
        return ()

    def set_state(self, qpos: Any, qvel: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize("kind", [Opaque, HalfSaving])
def test_what_cannot_be_saved_says_so(kind: type[CountingEnv]) -> None:
    vector = GymnasiumEnv(factory=kind).make(2, 0, 0)
    assert vector.state_problem() is not None and vector.get_state() is None
    problem = state_problem(vector.envs)
    assert problem is not None and "attribute 'generator'" in problem and "get_state()" in problem


def test_own_methods_are_asked_through_wrappers() -> None:
    vector = GymnasiumEnv(factory=lambda: gym.wrappers.TimeLimit(Saving(), 7)).make(1, 0, 0)
    vector.reset(np.zeros((1, 4), np.float32))
    actions = [np.array([2])] * 10
    run(vector, actions[:4])
    state = vector.get_state()
    expected = run(vector, actions)
    assert expected[2].truncated[0], "the wrapper's count is part of the state"
    vector.set_state(state)
    for own, other in zip(run(vector, actions), expected):
        np.testing.assert_array_equal(own.observation, other.observation)
        np.testing.assert_array_equal(own.truncated, other.truncated)


class Helper:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.values = [np.zeros(2)]


class Lossy(Helper):
    """Pickles, but not all of itself."""

    def __getstate__(self) -> Any:
        return {}


@pytest.mark.parametrize(
    ("kind", "savable"),
    [
        (Helper, True),
        (Lossy, False),
        (lambda: open, True),
        (lambda: [open], False),
        (lambda: np.array([object()]), True),
        (iter, False),
    ],
)
def test_attributes_are_saved_only_if_nothing_is_lost(kind: Any, savable: bool) -> None:
    env = CountingEnv()
    env.extra = iter([]) if kind is iter else kind()  # type: ignore[attr-defined]
    assert (state_problem([env]) is None) == savable


def test_names_of_attributes_do_not_matter() -> None:
    """What is within an environment that is no wrapper must not be forgotten, nor a counter named like a viewer."""

    class Outer(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.env = gym.make("CartPole-v1")

    assert "'env'" in str(state_problem([Outer()]))
    env = CountingEnv()
    env.clock = 3  # type: ignore[attr-defined]
    state = get_env_states([env])
    env.clock = 4  # type: ignore[attr-defined]
    set_env_states([env], state)
    assert env.clock == 3  # type: ignore[attr-defined]
    env.window = type("Clock", (), {"__module__": "pygame.time", "__slots__": ("x",)})()  # type: ignore[attr-defined]
    assert state_problem([env]) is None


def test_state_of_another_kind_is_refused() -> None:
    state = SPECS["cartpole"].make(2, 0, 0).get_state()
    assert state is not None
    with pytest.raises(ValueError, match="resume with the environment"):
        SPECS["pendulum"].make(2, 0, 0).set_state(state)
    with pytest.raises(ValueError, match="of 2 environments, here are 3"):
        SPECS["cartpole"].make(3, 0, 0).set_state(state)
