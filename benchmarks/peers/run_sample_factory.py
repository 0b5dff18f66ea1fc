"""Sample Factory's asynchronous PPO, and its sampler alone.  Runs in its own environment: SETTINGS-AS-JSON.

Its processes go on by themselves whatever the main one does, so it takes its turns as whole runs.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import null_env
import torch
from gate import Gate
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.algo.utils.rl_utils import samples_per_trajectory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner

_MAX_ROLLOUT = 64


def make_env(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> Any:
    """One environment, as Sample Factory asks for it."""
    if name == "Pong":
        import ale_py
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        gym.register_envs(ale_py)
        return FrameStackObservation(AtariPreprocessing(gym.make("PongNoFrameskip-v4")), 4)
    return null_env.NullEnv() if name == null_env.ID else gym.make(name)


class PooledEncoder(Encoder):
    """Every eighth pixel and two layers, for sampling."""

    def __init__(self, cfg: Any, obs_space: Any) -> None:
        super().__init__(cfg)
        linear = torch.nn.Linear
        self.mlp = torch.nn.Sequential(linear(400, 64), torch.nn.Tanh(), linear(64, 64), torch.nn.Tanh())

    def forward(self, obs: Any) -> Any:
        return self.mlp(obs["obs"][..., 2::8, 2::8][..., :10, :10].flatten(1))

    def get_out_size(self) -> int:
        return 64


def make_cfg(settings: dict[str, Any]) -> Any:
    """Settings by Sample Factory's names; a batch has to be made of whole rollouts."""
    rows = settings["num_envs"] * settings["num_steps"]
    rollout = min(_MAX_ROLLOUT, settings["num_steps"])
    values = {
        "algo": "APPO",
        "env": settings["env_id"],
        "experiment": "benchmark",
        "train_dir": tempfile.mkdtemp(),
        "device": "gpu" if settings["device"].startswith("cuda") else "cpu",
        "seed": settings["seed"],
        "num_workers": settings["num_workers"],
        "num_envs_per_worker": settings["num_envs"] // settings["num_workers"],
        "worker_num_splits": 2,
        "async_rl": True,
        "serial_mode": False,
        "batched_sampling": False,
        "decorrelate_envs_on_one_worker": False,  # otherwise the start takes a minute
        "decorrelate_experience_max_seconds": 0,
        "use_rnn": False,
        "actor_critic_share_weights": settings["env_id"] == "Pong",
        "adaptive_stddev": False,
        "encoder_mlp_layers": settings["hidden_sizes"],
        "encoder_conv_architecture": "convnet_atari",
        "encoder_conv_mlp_layers": [512],
        "nonlinearity": "relu" if settings["env_id"] == "Pong" else "tanh",
        "normalize_input": False,
        "normalize_returns": False,
        "rollout": rollout,
        "recurrence": 1,
        "batch_size": max(rollout, settings["minibatch_size"]),
        "num_batches_per_epoch": max(1, rows // max(rollout, settings["minibatch_size"])),
        "num_epochs": settings["num_epochs"],
        "shuffle_minibatches": False,
        "gamma": settings["discount"],
        "gae_lambda": settings["gae_lambda"],
        "ppo_clip_ratio": settings["clip_range"],
        "learning_rate": settings["learning_rate"],
        "value_loss_coeff": settings["value_loss_coeff"],
        "exploration_loss_coeff": settings["entropy_coeff"],
        "max_grad_norm": settings["max_grad_norm"],
        "with_wandb": False,
        "train_for_env_steps": 10**12,
    }
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    parser, _ = parse_sf_args(words)
    parser.set_defaults(env_frameskip=1)
    return parse_full_cfg(parser, words)


class AtGate(AlgoObserver):
    """Counts steps after each training iteration."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Sample Factory's own count of environment steps."""
        if runner.total_env_steps_since_resume is not None:
            self._gate.tick(runner.total_env_steps_since_resume)


def train(settings: dict[str, Any], gate: Gate) -> None:
    """Train, counting."""
    _, runner = make_runner(make_cfg(settings))
    runner.register_observer(AtGate(gate))
    runner.init()
    runner.run()


def sample(settings: dict[str, Any], gate: Gate) -> None:
    """The sampler alone, through its simplified interface."""
    if settings["env_id"] == "Pong":
        from sample_factory.algo.utils.context import global_model_factory

        global_model_factory().register_encoder_factory(PooledEncoder)
    cfg = make_cfg(settings)
    sampler = SyncSamplingAPI(cfg, obtain_env_info_in_a_separate_process(cfg))
    sampler.start()
    steps = 0
    while True:
        gate.tick(steps)
        steps += samples_per_trajectory(sampler.get_trajectories_sync())


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate = Gate(version("sample-factory"))
    register_env(settings["env_id"], make_env)
    {"train": train, "sampling": sample}[settings["what"]](settings, gate)


if __name__ == "__main__":
    main()
