"""MinAtar behind Gymnasium's interface."""

from __future__ import annotations

import numpy as np
import pytest

from rlsurreal.envs import GymnasiumEnv, check_env, make_minatar
from rlsurreal.envs.minatar_env import GAMES

pytest.importorskip("minatar", reason="the extra minatar is not installed")


@pytest.mark.parametrize("game", GAMES)
def test_games_keep_to_the_interface(game: str) -> None:
    check_env(GymnasiumEnv(factory=make_minatar, kwargs={"game": game}))
    env = make_minatar(game)
    observation, _ = env.reset(seed=0)
    assert observation.shape[1:] == (10, 10) and set(np.unique(observation)) <= {0, 255}
    assert env.action_space.n == 6 and make_minatar(game, minimal_actions=True).action_space.n <= 6


def test_the_same_seed_gives_the_same_game() -> None:
    def play(seed: int) -> list[float]:
        env = make_minatar("asterix")
        env.reset(seed=seed)
        seen = []
        for i in range(300):
            observation, reward, terminated, _, _ = env.step(i % 6)
            seen.append(float(observation.sum()) + reward)
            if terminated:
                env.reset()
        return seen

    assert play(1) == play(1) != play(2)


def test_a_seed_says_all_about_a_game() -> None:
    fresh, used = make_minatar("asterix", sticky_action_prob=1.0), make_minatar("asterix", sticky_action_prob=1.0)
    used.reset(seed=0)
    used.step(2)
    for env in (fresh, used):
        env.reset(seed=1)
    for _ in range(20):
        np.testing.assert_array_equal(fresh.step(1)[0], used.step(1)[0])


def test_time_limit_and_bad_settings() -> None:
    env = make_minatar("seaquest", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="game is 'pong'"):
        make_minatar("pong")
