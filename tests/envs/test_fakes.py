"""The public fakes do what they promise (test_gymnasium_env covers CountingEnv's rows and FailingEnv's failures)."""

from __future__ import annotations

import multiprocessing
import signal
import time

import numpy as np
import pytest

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.structs import EnvStep
from rlsurreal.testing.envs import BitFlipEnv, CountingEnv, FailingEnv, NestedEnv, RecallEnv, identity
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.spaces import null_value


def episode_ends(env: CountingEnv, num_steps: int) -> list[tuple[int, bool, bool, bool]]:
    env.reset(seed=1)
    ends = []
    for step in range(1, num_steps + 1):
        _, _, terminated, truncated, info = env.step(0)
        if terminated or truncated:
            ends.append((step, terminated, truncated, info["game_over"]))
        if info["game_over"]:
            env.reset()
    return ends


def test_counting_env_ends_as_told() -> None:
    assert episode_ends(CountingEnv(lengths=(2, 3)), 5) == [(2, True, False, True), (5, True, False, True)]
    assert episode_ends(CountingEnv(lengths=2, end="truncated"), 2) == [(2, False, True, True)]
    assert episode_ends(CountingEnv(lengths=2, end="alternate"), 4) == [(2, True, False, True), (4, False, True, True)]
    assert episode_ends(CountingEnv(lengths=6, lives=3), 6) == [
        (2, True, False, False),
        (4, True, False, False),
        (6, True, False, True),
    ]
    with pytest.raises(ValueError, match="end is 'never'"):
        CountingEnv(end="never")
    with pytest.raises(RuntimeError, match="without a reset"):
        CountingEnv().step(0)


def test_identity_is_exact_in_float32() -> None:
    for seed in (0, 12345, 2**31 - 1):
        env = CountingEnv()
        assert env.reset(seed=seed)[0][0] == identity(seed)


def test_only_the_chosen_environment_fails() -> None:
    env = FailingEnv("raise_in_step", only_seed=5)
    env.reset(seed=4)
    env.step(0)
    with pytest.raises(ValueError, match="mode is 'explode'"):
        FailingEnv("explode")


def test_block_sleeps() -> None:
    env = FailingEnv("block", block_seconds=0.2)
    env.reset(seed=0)
    start = time.monotonic()
    env.step(0)
    assert time.monotonic() - start >= 0.2


def _die() -> None:
    env = FailingEnv("die", at=2)
    env.reset(seed=0)
    env.step(0)
    env.step(0)


def test_die_kills_the_process() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_nested_env_echoes_actions() -> None:
    vector = GymnasiumEnv(factory=NestedEnv).make(2, 0, 0)
    observation, action = (
        tree_map(lambda leaf: np.zeros((2, *leaf.shape), leaf.dtype), null_value(space))
        for space in (vector.spaces.observation, vector.spaces.action)
    )
    vector.reset(observation)
    action = action._replace(
        move=np.array([[-1, -1], [1, 0]], np.float32), button=np.array([0, 2]), switches=np.array([[1, 4], [0, 0]])
    )
    flags = [np.zeros(2, bool) for _ in range(4)]
    vector.step(action, EnvStep(observation, np.zeros(2, np.float32), *flags, env_info=None))
    np.testing.assert_array_equal(observation.past.f0, [[-2, 0], [2, 5]])  # rescaled
    np.testing.assert_array_equal(observation.past.f1, [0, 2])  # counted from 0 on both sides
    np.testing.assert_array_equal(observation.switches, [[1, 4], [0, 0]])
    np.testing.assert_array_equal(observation.bits, [[1, 0, 0]] * 2)


@pytest.mark.parametrize("num_cues", [2, 4])
def test_recall_needs_memory(num_cues: int) -> None:
    env = RecallEnv(num_cues, delay=3)
    rng = np.random.default_rng(0)
    returns: dict[str, list[float]] = {"memory": [], "none": []}
    env.reset(seed=0)
    for episode in range(600):
        kind = "memory" if episode % 2 else "none"
        observation, _ = env.reset()
        assert observation.sum() == 1 and observation[-1] == 0
        cue, total, steps, over = int(observation.argmax()), 0.0, 0, False
        while not over:
            if steps:
                assert observation[:-1].sum() == 0, "the cue is shown in the first observation only"
                assert observation[-1] == (steps == 3)
            observation, reward, over, _, _ = env.step(cue if kind == "memory" else int(rng.integers(num_cues)))
            total, steps = total + reward, steps + 1
        assert steps == 4
        returns[kind].append(total)
    assert np.mean(returns["memory"]) == 1
    assert abs(np.mean(returns["none"]) - 1 / num_cues) < 0.1
    with pytest.raises(ValueError, match="delay is 0"):
        RecallEnv(delay=0)


def test_bit_flip_env_is_solved_by_flipping_what_differs() -> None:
    env = BitFlipEnv(num_bits=6)
    observation, _ = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    wrong = np.flatnonzero(observation["achieved_goal"] != observation["desired_goal"])
    assert len(wrong) > 0
    rewards = []
    for action in [*wrong.tolist(), *[6] * (6 - len(wrong))]:
        before = observation
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        assert (before["observation"] != observation["observation"]).sum() == (action < 6)
        assert (before["desired_goal"] == observation["desired_goal"]).all() and not terminated
    assert truncated and rewards == [-1.0] * (len(wrong) - 1) + [0.0] * (6 - len(wrong) + 1)
    goals = np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 1]])
    assert BitFlipEnv.compute_reward(*goals, None).tolist() == [0.0, -1.0]
    with pytest.raises(ValueError, match="num_bits is 0"):
        BitFlipEnv(0)
