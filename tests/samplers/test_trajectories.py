"""Statistics of games against plain definitions: lives, lost games, waiting, decorrelated starts, and going on."""

import copy
import re
from typing import Any

import numpy as np
import pytest

from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.samplers import InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.samplers.trajectories import TrajectoryTracker
from rlsurreal.structs import BatchSpec, EnvSamples, TrajInfo
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import CountingEnv
from rlsurreal.utils.namedarraytuple import namedarraytuple, tree_map

FIRST_ENV = 5
DISCOUNT = 0.9
Info = namedarraytuple("EnvInfo", "score game_over success position")
# One letter is one row of one environment.
STEP, LIFE, OVER, CUT = "slot"  # steps: an ordinary one, a life lost, game over, truncated
RESET, HELD, LOST = "rhx"  # no steps: a reset row, a wait for the slot's end, a reset row after a worker was lost


def reward(t: int, b: int) -> float:
    return float((7 * t + 3 * b) % 5 - 1)


def succeeds(t: int, b: int) -> bool:
    return (3 * t + b) % 2 == 0


def slots(columns: list[str], num_steps: int) -> list[EnvSamples]:
    """What ``columns`` look like in slots of ``num_steps`` rows, with score ten times the reward."""
    made = []
    for start in range(0, len(columns[0]), num_steps):
        shape = (num_steps + 1, len(columns))
        flags = {name: np.zeros(shape, bool) for name in ("terminated", "truncated", "valid", "first", "over")}
        rewards, score, success = np.zeros(shape, np.float32), np.zeros(shape), np.zeros(shape, bool)
        for b, column in enumerate(columns):
            for t, kind in enumerate(column[start : start + num_steps]):
                valid = kind in (STEP, LIFE, OVER, CUT)
                flags["valid"][t, b] = valid
                flags["terminated"][t, b] = kind in (LIFE, OVER)
                flags["truncated"][t, b] = kind == CUT
                flags["over"][t, b] = kind in (OVER, CUT)
                without_reset_row = kind == LIFE and column[start + t + 1 : start + t + 2] != RESET
                flags["first"][t + 1, b] = kind in (RESET, LOST) or without_reset_row
                rewards[t, b] = reward(start + t, b) if valid else 0
                success[t, b] = succeeds(start + t, b)
                score[t, b] = 10 * reward(start + t, b)  # EnvPool has a reward in reset rows, too: it must not count
        made.append(
            EnvSamples(
                observation=None,
                reward=rewards,
                prev_reward=None,
                terminated=flags["terminated"],
                truncated=flags["truncated"],
                valid=flags["valid"],
                first=flags["first"],
                env_info=Info(score, flags["over"], success, np.zeros((*shape, 2))),
            )
        )
    return made


def games(column: str, b: int) -> list[TrajInfo]:
    """The definition: the games of one environment, one after the other."""
    found, rewards = [], []
    for t, kind in enumerate(column):
        if kind == LOST:
            rewards = []
        if kind in (STEP, LIFE, OVER, CUT):
            rewards.append(reward(t, b))
        if kind in (OVER, CUT):
            found.append(
                TrajInfo(
                    env=FIRST_ENV + b,
                    total_reward=sum(rewards),
                    length=len(rewards),
                    discounted_return=sum(DISCOUNT**k * r for k, r in enumerate(rewards)),
                    score=10 * sum(rewards),
                    info={"success": float(succeeds(t, b))},  # of the last row; neither score nor vectors
                )
            )
            rewards = []
    return found


def flat(game: TrajInfo) -> dict[str, float]:
    own = dict(vars(game))
    return own.pop("info") | own


def assert_games(found: list[TrajInfo], expected: list[TrajInfo]) -> None:
    for env in {game.env for game in found + expected}:
        ours, theirs = ([flat(game) for game in side if game.env == env] for side in (found, expected))
        assert len(ours) == len(theirs), env
        for one, other in zip(ours, theirs):
            assert one == pytest.approx(other), env


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12])
def test_a_game_of_several_lives_with_reset_rows_is_one_game(num_steps):
    columns = ["sslrssslrsor", "lrlrorsslrss"]
    tracker = TrajectoryTracker(2, FIRST_ENV, DISCOUNT)
    found = [game for slot in slots(columns, num_steps) for game in tracker.update(slot)]
    assert [(game.env, game.length) for game in found] == [(6, 3), (5, 9)]
    assert_games(found, games(columns[0], 0) + games(columns[1], 1))


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_a_game_lost_with_its_worker_counts_for_nothing(num_steps):
    # The worker is lost in a game; right after one, and again in the next; in a game that has lost a life.
    columns = ["sssxssorsssxssor", "ssorxsssorssxsor", "slrssxsslrsorsor"]
    tracker = TrajectoryTracker(3, FIRST_ENV, DISCOUNT)
    found = [game for slot in slots(columns, num_steps) for game in tracker.update(slot)]
    lengths = [[game.length for game in found if game.env == FIRST_ENV + b] for b in range(3)]
    assert lengths == [[3, 3], [3, 4, 2], [5, 2]]
    assert_games(found, [game for b, column in enumerate(columns) for game in games(column, b)])


def test_a_game_lost_with_its_worker_right_after_a_life_counts_for_nothing():
    # Without a reset row the life's end leads to a first row, so that a reset row there is one of a new worker.
    columns = ["sslxssor"]
    tracker = TrajectoryTracker(1, FIRST_ENV, DISCOUNT)
    found = [game for slot in slots(columns, 4) for game in tracker.update(slot)]
    assert_games(found, games(columns[0], 0))


def test_environments_that_wait_for_the_slots_end():
    columns = ["ssohhhrsssoh", "sthhhhrsssss", "sssssorssthh"]
    tracker = TrajectoryTracker(3, FIRST_ENV, DISCOUNT)
    found = [game for slot in slots(columns, 6) for game in tracker.update(slot)]
    assert [(game.env, game.length) for game in found] == [(6, 2), (5, 3), (7, 6), (7, 3), (5, 4)]
    assert_games(found, [game for b, column in enumerate(columns) for game in games(column, b)])


def random_column(rng: np.random.Generator, length: int) -> str:
    column = ""
    while len(column) < length:
        kind = rng.choice(list("ssssssslotx"))
        column += {LIFE: rng.choice(["l", "lr"]), OVER: "or", CUT: "tr", LOST: "sx"}.get(kind, kind)
    return column[:length]


@pytest.mark.parametrize("num_steps", [1, 5, 60])
def test_random_games_equal_the_definition(num_steps):
    rng = np.random.default_rng(0)
    columns = [random_column(rng, 240) for _ in range(6)]
    tracker = TrajectoryTracker(6, FIRST_ENV, DISCOUNT)
    found = [game for slot in slots(columns, num_steps) for game in tracker.update(slot)]
    assert len(found) > 60
    assert_games(found, [game for b, column in enumerate(columns) for game in games(column, b)])


@pytest.mark.parametrize("drop_first", [False, True])
def test_a_tracker_goes_on_from_its_state_in_mid_game(drop_first):
    rng = np.random.default_rng(1)
    columns = [random_column(rng, 60) for _ in range(4)]
    tracker = TrajectoryTracker(4, FIRST_ENV, DISCOUNT, drop_first=drop_first)
    found: list[TrajInfo] = []
    for slot in slots(columns, 3):
        found += tracker.update(slot)
        state = copy.deepcopy(tracker.get_state())
        tracker.update(slot)  # what comes after must not change the saved state
        tracker = TrajectoryTracker(4, FIRST_ENV, DISCOUNT)
        tracker.set_state(state)
    expected = []
    for b, column in enumerate(columns):
        end_of_first = re.search(f"[{OVER}{CUT}{LOST}]", column).start() if drop_first else -1
        expected += games(HELD * (end_of_first + 1) + column[end_of_first + 1 :], b)
    assert len(found) > 8
    assert_games(found, expected)


def sample(sampler: Any, num_slots: int) -> tuple[list[EnvSamples], list[TrajInfo]]:
    agent = TapeAgent(memory=False)
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=DISCOUNT)
        envs = []
        for _ in range(num_slots):
            samples = sampler.obtain()
            envs.append(tree_map(lambda leaf: leaf.numpy().copy(), samples.env))
            sampler.release(samples)
        return envs, sampler.pop_trajectories()
    finally:
        sampler.close()


@pytest.mark.parametrize("max_decorrelation_steps", [0, 9])
@pytest.mark.parametrize(
    "kind", ["serial", pytest.param("parallel", marks=pytest.mark.processes)], ids=["serial", "parallel"]
)
def test_exactly_the_games_that_began_before_the_first_slot_are_dropped(kind, max_decorrelation_steps):
    lengths = (6, 9, 4)
    settings: dict[str, Any] = dict(
        env=GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": lengths}),
        batch=BatchSpec(11, 6),
        max_decorrelation_steps=max_decorrelation_steps,
    )
    serial = SerialSampler(**settings)
    parallel = ParallelSampler(**settings, num_workers=2, inference=InferenceServer())
    envs, found = sample(serial if kind == "serial" else parallel, 6)
    ends = np.concatenate([env.terminated[:-1] for env in envs])
    numbers = np.concatenate([env.observation[:-1, :, 1] for env in envs]).astype(int)
    if max_decorrelation_steps:
        assert len(set(envs[0].observation[0, :, 2].tolist())) > 2, "the environments must start at different points"
    for b in range(6):
        began = numbers[ends[:, b], b].tolist()[1 if max_decorrelation_steps else 0 :]
        ours = [game for game in found if game.env == b]
        assert [game.length for game in ours] == [lengths[number % 3] for number in began] and len(ours) > 5
        for game in ours:
            steps = np.arange(1, game.length + 1)
            assert game.total_reward == steps.sum() and game.score == 10 * steps.sum()
            assert game.discounted_return == pytest.approx((DISCOUNT ** (steps - 1) * steps).sum())


def test_atari_games_of_envpool_are_those_that_the_engine_tells_of():
    env = EnvPoolEnv(
        task_id="Breakout-v5",
        kwargs={"episodic_life": True, "reward_clip": True, "stack_num": 1, "img_height": 8, "img_width": 8},
        info_fields=("lives", "reward"),
    )
    envs, found = sample(SerialSampler(env=env, batch=BatchSpec(100, 3)), 9)
    lives, raw, valid, rewards = (
        np.concatenate([part[:-1] for part in parts])
        for parts in zip(*[(env.env_info.lives, env.env_info.reward, env.valid, env.reward) for env in envs])
    )
    expected, lives_lost = [], 0
    for b in range(3):
        start = 0
        for t in range(len(lives)):
            lives_lost += valid[t, b] and t > 0 and lives[t, b] < lives[t - 1, b]
            if valid[t, b] and lives[t, b] == 0:
                rows = [k for k in range(start, t + 1) if valid[k, b]]
                expected.append((b, len(rows), float(rewards[rows, b].sum()), float(raw[rows, b].sum())))
                start = t + 1
    assert lives_lost >= 5 * len(expected) > 0
    assert sorted((game.env, game.length, game.total_reward, game.score) for game in found) == sorted(expected)
    assert min(game.length for game in found) > 90, "five lives take longer than one"
