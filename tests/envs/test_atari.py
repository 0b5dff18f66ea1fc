"""`make_atari` against Gymnasium's preprocessing and the rules of lives, frames and scores."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms

from rlsurreal.envs import GymnasiumEnv, check_env, make_atari
from rlsurreal.envs.atari import AtariGame, rom_name

pytest.importorskip("ale_py")
cv2 = pytest.importorskip("cv2")

PLAIN: dict[str, Any] = {"noop_max": 0, "fire_reset": False, "episodic_life": False, "clip_reward": False}


def play(env: gym.Env, num_steps: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    results: list[Any] = []
    for _ in range(num_steps):
        results.append(env.step(int(rng.integers(env.action_space.n))))  # type: ignore[attr-defined]
        if results[-1][4]["game_over"]:
            env.reset()
    return results


@pytest.mark.parametrize("game", ["Breakout", "Pong"])
def test_frames_equal_gymnasiums(game: str) -> None:
    ours = make_atari(game, **PLAIN)
    theirs = gym.wrappers.FrameStackObservation(
        gym.wrappers.AtariPreprocessing(
            gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0), noop_max=0
        ),
        4,
        padding_type="zero",
    )
    own, other = ours.reset(seed=0)[0], theirs.reset(seed=0)[0]
    rng = np.random.default_rng(0)
    total = 0.0
    for _ in range(200):
        np.testing.assert_array_equal(own, other)
        action = int(rng.integers(ours.action_space.n))
        own, reward, terminated, truncated, info = ours.step(action)
        other, their_reward, ended, _, _ = theirs.step(action)
        assert (reward, terminated, truncated) == (their_reward, ended, False) and info["score"] == reward
        total += abs(reward)
        if terminated:
            own, other = ours.reset()[0], theirs.reset()[0]
    assert total > 0


def test_observation_starts_with_zeros_and_slides() -> None:
    env = make_atari("pong", frame_stack=3, size=40)
    assert env.observation_space == gym.spaces.Box(0, 255, (3, 40, 40), np.uint8)
    observation, _ = env.reset(seed=0)
    assert not observation[:2].any() and observation[2].any()
    for _ in range(5):
        before, (observation, *_) = observation, env.step(2)
        np.testing.assert_array_equal(observation[:2], before[1:])
    again, _ = env.reset()
    assert not again[:2].any()


def test_colour_has_three_channels_a_frame() -> None:
    env = make_atari("breakout", grayscale=False, frame_stack=2, **PLAIN)
    env.reset(seed=0)
    observation = env.step(0)[0]
    assert observation.shape == (6, 84, 84)
    screen = cv2.resize(env.render(), (84, 84), interpolation=cv2.INTER_AREA)
    assert np.abs(observation[3:].transpose(1, 2, 0).astype(int) - screen).mean() < 1


def test_lost_life_ends_the_episode_but_not_the_game() -> None:
    env = make_atari("breakout", clip_reward=False, size=20)
    env.reset(seed=0)
    rng, lives, lost, over = np.random.default_rng(0), 5, 0, 0
    for _ in range(600):
        before = env._stack.copy()
        observation, _, terminated, truncated, info = env.step(int(rng.integers(4)))
        assert not truncated
        np.testing.assert_array_equal(observation[:-1], before[1:])  # the frames go on
        if info["lives"] < lives:
            assert terminated and info["game_over"] == (info["lives"] == 0)
            lost, over = lost + 1, over + info["game_over"]
        else:
            assert not terminated
        lives = info["lives"]
        if info["game_over"]:
            lives = env.reset()[1]["lives"]
            assert lives == 5
    assert over >= 1 and lost >= 5 * over


def test_lost_life_is_nothing_without_episodic_life() -> None:
    results = play(make_atari("breakout", episodic_life=False, size=20), 350)
    assert any(result[2] for result in results)
    assert all(result[2] == result[4]["game_over"] for result in results)


def test_last_observation_of_a_game_is_its_last_frame() -> None:
    """Gymnasium's preprocessing shows an older frame here."""
    env = make_atari("breakout", frame_skip=4, **PLAIN)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    terminated = False
    while not terminated:
        observation, _, terminated, _, _ = env.step(int(rng.integers(4)))
    last = cv2.resize(env._ale.getScreenGrayscale(), (84, 84), interpolation=cv2.INTER_AREA)
    shown = observation[-1].astype(int)
    assert (shown >= last.astype(int) - 1).all(), "the maximum of the last two frames is at least the last"
    assert np.abs(shown - last).mean() < 1


def test_rewards_are_clipped_and_scores_are_not() -> None:
    results = play(make_atari("ms_pacman"), 200)
    scores, rewards = [r[4]["score"] for r in results], [r[1] for r in results]
    assert max(scores) >= 10
    assert rewards == [float(np.sign(score)) for score in scores]


def test_game_is_cut_off_after_max_frames() -> None:
    env = make_atari("pong", max_frames=100, noop_max=0)
    env.reset(seed=0)
    for step in range(1, 26):
        _, _, terminated, truncated, info = env.step(0)
        assert not terminated
        assert truncated == info["game_over"] == (step == 25)


@pytest.mark.parametrize(("sticky", "noop_max"), [(0.25, 0), (0.0, 30)])
def test_chance_is_seeded(sticky: float, noop_max: int) -> None:
    def frames(seed: int) -> np.ndarray:
        env = make_atari("pong", sticky=sticky, noop_max=noop_max)
        env.reset(seed=seed)
        first = [env.step(i % 6)[0] for i in range(60)]
        env.reset()
        return np.stack(first + [env.step(i % 6)[0] for i in range(60)])

    one, again, other = frames(1), frames(1), frames(2)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[:60] != one[60:]).any(), "the second game must draw new random numbers"


def test_full_action_space_and_names() -> None:
    assert make_atari("pong", full_action_space=True).action_space.n == 18  # type: ignore[attr-defined]
    for name in ("ms_pacman", "MsPacman", "ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4"):
        assert rom_name(name) == "ms_pacman"
    assert rom_name("UpNDown-v5") == "up_n_down" and rom_name("ALE/TicTacToe3D-v5") == "tic_tac_toe_3d"
    for rom in roms.get_all_rom_ids():  # as Gymnasium has them
        assert rom_name(f"ALE/{rom.title().replace('_', '')}-v5") == rom
    speeds = [make_atari("pong", frame_skip=skip).metadata["render_fps"] for skip in (1, 2, 4)]
    assert speeds == [60, 30, 15]
    with pytest.raises(ValueError, match=r"game is 'Brekout', .* did you mean 'breakout'"):
        make_atari("Brekout")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sticky": 1.5}, "sticky is 1.5; it must be between 0 and 1"),
        ({"frame_skip": 0}, "frame_skip is 0; it must be at least 1"),
        ({"noop_max": -1}, "noop_max is -1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"make_atari: {message}"):
        make_atari("pong", **settings)


def test_is_a_proper_environment_with_info_declared() -> None:
    spec = GymnasiumEnv(factory=make_atari, kwargs={"game": "breakout", "max_frames": 400})
    assert check_env(spec, max_steps=300) == []
    assert spec.make(1, 0, 0).info_example._fields == ("score", "game_over")
    assert isinstance(spec.make_one(), AtariGame)
