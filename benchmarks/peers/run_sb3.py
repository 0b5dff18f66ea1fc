"""Stable-Baselines3's PPO with given settings.  Runs in its own environment: SETTINGS-AS-JSON SEED."""

import json
import sys
import time

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


class Recorder(BaseCallback):
    """Returns of all games, and the curve of the last hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []
        self.curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        if self.returns:
            self.curve.append((self.num_timesteps, round(float(np.mean(self.returns[-100:])), 2)))


def main() -> None:
    settings, seed = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    start = time.perf_counter()
    envs = make_vec_env(lambda: gym.make(settings["env_id"]), n_envs=settings["num_envs"], seed=seed)
    envs = VecNormalize(envs, gamma=settings["discount"])
    size = settings["hidden_sizes"]
    model = PPO(
        "MlpPolicy",
        envs,
        seed=seed,
        learning_rate=lambda left: settings["learning_rate"] * left,
        n_steps=settings["num_steps"],
        batch_size=settings["minibatch_size"],
        n_epochs=settings["num_epochs"],
        gamma=settings["discount"],
        gae_lambda=settings["gae_lambda"],
        clip_range=settings["clip_range"],
        vf_coef=settings["value_loss_coeff"],
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs={"net_arch": {"pi": size, "vf": size}, "log_std_init": float(np.log(settings["init_std"]))},
        device="cpu",
    )
    recorder = Recorder()
    model.learn(settings["total_env_steps"], callback=recorder)
    last = float(np.mean(recorder.returns[-100:]))
    print(
        json.dumps(
            {
                "seed": seed,
                "version": stable_baselines3.__version__,
                "final": last,
                "last_100": last,
                "seconds": time.perf_counter() - start,
                "curve": recorder.curve[:: max(1, len(recorder.curve) // 100)],
            }
        )
    )


if __name__ == "__main__":
    main()
