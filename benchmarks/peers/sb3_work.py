"""The benchmarks' work, done with Stable-Baselines3's interface, which is SBX's, too."""

import json
import sys
import time
from typing import Any

import null_env
import numpy as np
import torch
from gate import Gate
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

FOREVER = 10**12


def make_envs(settings: dict[str, Any]) -> Any:
    """The vector environment that is said, with the usual wrappers."""
    cls = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[settings["vector"]]
    options = {"n_envs": settings["num_envs"], "seed": settings["seed"], "vec_env_cls": cls}
    if settings["env_id"] == "Pong":
        return VecFrameStack(make_atari_env("ale_py:PongNoFrameskip-v4", **options), n_stack=4)
    envs = make_vec_env(null_env.NullEnv if settings["env_id"] == null_env.ID else settings["env_id"], **options)
    return VecNormalize(envs, gamma=settings["discount"]) if settings.get("normalize") else envs


def make_replayed(cls: Any, settings: dict[str, Any]) -> Any:
    """SAC or DQN with the settings, by Stable-Baselines3's names."""
    own: dict[str, Any]
    if settings["algo"] == "dqn":
        own = {
            "exploration_fraction": 1e-9,
            "exploration_final_eps": settings["epsilon"],
            "target_update_interval": settings["target_interval"] * settings["num_steps"],  # they count steps
        }
    else:
        own = {"policy_kwargs": {"net_arch": settings["hidden_sizes"]}, "tau": settings["tau"]}
    if settings["algo"] == "td3":
        six = np.ones(6)  # HalfCheetah's joints
        own["action_noise"] = NormalActionNoise(0 * six, settings["action_noise"] * six)
    return cls(
        "CnnPolicy" if settings["env_id"] == "Pong" else "MlpPolicy",
        make_envs(settings),
        seed=settings["seed"],
        learning_rate=settings["learning_rate"],
        buffer_size=settings["capacity"],
        learning_starts=settings["min_steps"],
        batch_size=settings["batch_size"],
        gamma=settings["discount"],
        train_freq=settings["num_steps"],
        gradient_steps=round(settings["num_steps"] * settings["updates_per_step"]),
        device=settings["device"],
        **own,
    )


def make_model(cls: Any, settings: dict[str, Any], **more: Any) -> Any:
    """PPO with the settings, by Stable-Baselines3's names."""
    if settings.get("algo", "ppo") != "ppo":
        return make_replayed(cls, settings)
    size = settings["hidden_sizes"]
    is_image = settings["env_id"] == "Pong"
    policy = more.pop("policy_kwargs", None) or (
        {} if is_image else {"net_arch": {"pi": size, "vf": size}, "log_std_init": float(np.log(settings["init_std"]))}
    )
    rate = settings["learning_rate"]
    return cls(
        "CnnPolicy" if is_image else "MlpPolicy",
        make_envs(settings),
        seed=settings["seed"],
        learning_rate=(lambda left: rate * left) if settings.get("decay") else rate,
        n_steps=settings["num_steps"],
        batch_size=settings["minibatch_size"],
        n_epochs=settings["num_epochs"],
        gamma=settings["discount"],
        gae_lambda=settings["gae_lambda"],
        clip_range=settings["clip_range"],
        ent_coef=settings["entropy_coeff"],
        vf_coef=settings["value_loss_coeff"],
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs=policy,
        device=settings["device"],
        **more,
    )


class AtGate(BaseCallback):
    """Stops between two iterations."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._gate.tick(self.num_timesteps)


def train(cls: Any, settings: dict[str, Any], version: str) -> None:
    """Train in turns."""
    gate = Gate(version)
    make_model(cls, settings).learn(FOREVER, callback=AtGate(gate))


def sample(cls: Any, settings: dict[str, Any], version: str, policy_kwargs: dict[str, Any] | None = None) -> None:
    """Collect rollouts in turns, and learn nothing from them."""
    gate = Gate(version)

    class Sampling(cls):
        def train(self) -> None:
            """Nothing."""

    make_model(Sampling, settings, policy_kwargs=policy_kwargs).learn(FOREVER, callback=AtGate(gate))


def update(cls: Any, settings: dict[str, Any], version: str) -> None:
    """Updates from one full buffer, again and again, in turns."""
    gate = Gate(version)
    model = make_model(cls, settings)
    num_rows = settings["num_envs"] * settings["num_steps"]
    model.learn(num_rows)
    num_updates = 0
    while True:
        gate.tick(num_updates)
        model.train()
        num_updates += settings["num_epochs"] * (num_rows // settings["minibatch_size"])


class Recorder(BaseCallback):
    """Returns of all games and the curve of the last hundred; stops when their mean has reached the target."""

    def __init__(self, target: float | None = None, num_games: int = 100) -> None:
        super().__init__()
        self.returns: list[float] = []
        self.curve: list[tuple[int, float]] = []
        self._target, self._num_games = target, num_games
        self.reached = False

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return not self.reached

    def _on_rollout_end(self) -> None:
        if not self.returns:
            return
        mean = float(np.mean(self.returns[-self._num_games :]))
        self.curve.append((self.num_timesteps, round(mean, 2)))
        enough = len(self.returns) >= self._num_games
        self.reached = self._target is not None and enough and mean >= self._target


def learn(cls: Any, settings: dict[str, Any], version: str) -> None:
    """Train once, to the end of the budget or to the target return; print the result."""
    start = time.perf_counter()
    target = settings.get("target")
    recorder = Recorder(target, settings.get("num_games", 100))
    model = make_model(cls, settings)
    model.learn(settings["total_env_steps"], callback=recorder)
    last = float(np.mean(recorder.returns[-settings.get("num_games", 100) :]))
    result = {
        "seed": settings["seed"],
        "version": version,
        "final": last,
        "last_100": last,
        "reached": recorder.reached,
        "env_steps": model.num_timesteps,
        "seconds": time.perf_counter() - start,
        "curve": recorder.curve[:: max(1, len(recorder.curve) // 100)],
    }
    print(json.dumps(result))


def main(classes: dict[str, Any], version: str, pooled: dict[str, Any] | None = None) -> None:
    """Do what the command line says.

    ``classes``: by the name of the algorithm; ``pooled``: policy settings for sampling images with a small network.
    """
    settings = json.loads(sys.argv[1])
    cls = classes[settings.get("algo", "ppo")]
    torch.set_num_threads(settings["num_threads"])
    if settings["what"] == "sampling":
        sample(cls, settings, version, pooled if settings["env_id"] == "Pong" else None)
    else:
        {"train": train, "update": update, "learn": learn}[settings["what"]](cls, settings, version)
