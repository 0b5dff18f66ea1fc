"""Stable-Baselines3's PPO, SAC and DQN.  Runs in its own environment: SETTINGS-AS-JSON."""

import stable_baselines3
from sb3_work import main
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor


class Pooled(BaseFeaturesExtractor):
    """Images ``[4, 84, 84]`` as every eighth pixel, for a small network."""

    def __init__(self, observation_space: object) -> None:
        super().__init__(observation_space, 400)

    def forward(self, image: Tensor) -> Tensor:
        """``[N, 400]``."""
        return image[..., 2::8, 2::8][..., :10, :10].flatten(1) / 255


if __name__ == "__main__":
    pooled = {
        "net_arch": {"pi": [64, 64], "vf": [64, 64]},
        "features_extractor_class": Pooled,
        "normalize_images": False,
    }
    main({"ppo": PPO, "sac": SAC, "td3": TD3, "dqn": DQN}, stable_baselines3.__version__, pooled)
