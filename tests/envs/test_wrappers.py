"""Wrappers for users' environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rlsurreal.envs import ChannelsFirst, check_env


class Camera(gym.Env):
    """An image and speeds, the image as cameras give it."""

    observation_space = gym.spaces.Dict(
        image=gym.spaces.Box(0, 255, (8, 6, 3), np.uint8),
        pair=gym.spaces.Tuple([gym.spaces.Box(0, 1, (5, 5, 1)), gym.spaces.Discrete(3)]),
        speed=gym.spaces.Box(-1, 1, (2,)),
    )
    action_space = gym.spaces.Discrete(2)
    count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self.see(), {}

    def see(self) -> Any:
        random = self.np_random
        image = random.integers(256, size=(8, 6, 3), dtype=np.uint8)
        pair = (random.random((5, 5, 1), np.float32), 1)
        return {"image": image, "pair": pair, "speed": np.full(2, self.count / 9, np.float32)}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self.see(), 0.0, self.count == 9, False, {}


def test_images_come_with_their_channels_first_and_all_else_as_it_is() -> None:
    env, plain = ChannelsFirst(Camera()), Camera()
    assert env.observation_space["image"].shape == (3, 8, 6) and env.observation_space["image"].dtype == np.uint8
    observation, _ = env.reset(seed=3)
    expected, _ = plain.reset(seed=3)
    for _ in range(3):
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(observation["image"], expected["image"].transpose(2, 0, 1))
        np.testing.assert_array_equal(observation["pair"][0], expected["pair"][0].transpose(2, 0, 1))
        assert observation["pair"][1] == 1
        np.testing.assert_array_equal(observation["speed"], expected["speed"])
        observation, expected = env.step(0)[0], plain.step(0)[0]
    assert check_env(env) == []


def test_images_that_are_in_order_stay() -> None:
    class Ordered(Camera):
        observation_space = gym.spaces.Box(0, 255, (3, 8, 6), np.uint8)

    assert ChannelsFirst(Ordered()).observation_space == Ordered.observation_space
