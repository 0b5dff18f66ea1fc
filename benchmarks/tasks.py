"""What is trained, updated and timed: sizes and hyperparameters, the same for us and for every peer.

Nobody normalises observations or rewards in W1, W3 and W6, and everybody keeps count of the games' returns.  How each
peer is run beyond that (vector environment, threads) is what was fastest for it on two cores; one that is run in
several ways has a variant behind a comma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]

_PPO: Settings = {
    "algo": "ppo",
    "discount": 0.99,
    "gae_lambda": 0.95,
    "learning_rate": 3e-4,
    "clip_range": 0.2,
    "entropy_coeff": 0.0,
    "value_loss_coeff": 0.5,
    "max_grad_norm": 0.5,
    "init_std": 1.0,
    "hidden_sizes": [64, 64],
    "num_threads": 1,
    "seed": 1,
}


@dataclass(frozen=True)
class Task:
    """One table row's work."""

    title: str
    settings: Settings
    ours: Mapping[str, Settings]  # by name of the variant; what it sets besides
    peers: Mapping[str, Settings]
    is_quick: bool = False  # part of the bounded run
    ours_on_gpu: Mapping[str, Settings] = field(default_factory=dict)  # more variants, where there is one
    is_arithmetic: bool = False  # bound by floating-point operations: their limit is measured, too

    def sized(self, own: Settings) -> Settings:
        """All settings of one contestant."""
        return {**self.settings, **own}


def _ppo(env_id: str, num_envs: int, num_steps: int, num_epochs: int, minibatch_size: int, **more: Any) -> Settings:
    sizes = {"num_envs": num_envs, "num_steps": num_steps, "num_epochs": num_epochs, "minibatch_size": minibatch_size}
    return {**_PPO, "env_id": env_id, **sizes, **more}


def _replayed(algo: str, env_id: str, **more: Any) -> Settings:
    """One environment, or a few, and learning from replay; updates begin after a thousand steps."""
    own = {"algo": algo, "env_id": env_id, "discount": 0.99, "min_steps": 1_000, "num_threads": 2, "seed": 1}
    return {**own, **more}


_MUJOCO_OURS: dict[str, Settings] = {"gymnasium": {"sampler": "workers"}, "EnvPool": {"sampler": "envpool"}}
_DUMMY: Settings = {"vector": "dummy"}
_COMPILED: Settings = {"vector": "envpool", "compile": True}  # as LeanRL does it
_SERIAL: dict[str, Settings] = {
    "sb3": _DUMMY,
    "sbx": _DUMMY,
    "cleanrl": {"vector": "sync"},
    "cleanrl, EnvPool": {"vector": "envpool"},
    "cleanrl, EnvPool, compiled": _COMPILED,
    "sample-factory": {"num_workers": 2},
    "torchrl": {"vector": "serial"},
}
_ATARI: Settings = {"entropy_coeff": 0.01, "clip_range": 0.1, "learning_rate": 2.5e-4}

TRAIN: dict[str, Task] = {
    "W1": Task(
        "W1 PPO HalfCheetah-v5, 16x128, 10 epochs, 32 of 64",
        _ppo("HalfCheetah-v5", 16, 128, 10, 64),
        _MUJOCO_OURS,
        _SERIAL,
        is_quick=True,
    ),
    "W1b": Task(
        "W1b PPO HalfCheetah-v5, 16x128, 10 epochs, 4 of 512",
        _ppo("HalfCheetah-v5", 16, 128, 10, 512),
        _MUJOCO_OURS,
        {**_SERIAL, "sb3": {**_DUMMY, "num_threads": 2}},
    ),
    "W1c": Task(
        "W1c PPO HalfCheetah-v5, 64x64, 4 epochs, 4 of 1,024",
        _ppo("HalfCheetah-v5", 64, 64, 4, 1024),
        {
            name: {**own, "num_threads": 2}
            for name, own in {**_MUJOCO_OURS, "EnvPool, asynchronous": {"sampler": "envpool, asynchronous"}}.items()
        },
        {**_SERIAL, "torchrl": {"vector": "processes", "num_workers": 2}},
        is_quick=True,
    ),
    "W3": Task(
        "W3 PPO Pong, Nature CNN, 8x128, 4 epochs, 4 of 256",
        _ppo("Pong", 8, 128, 4, 256, num_threads=2, **_ATARI),
        {
            "float32": {"sampler": "workers"},
            "bfloat16": {"sampler": "workers", "precision": "bfloat16"},
            "EnvPool, float32": {"sampler": "envpool"},
        },
        {
            "sb3": {"vector": "subproc"},
            "cleanrl, EnvPool": {"vector": "envpool"},
            "cleanrl, EnvPool, compiled": _COMPILED,
            "sample-factory": {"num_workers": 2},
        },
        ours_on_gpu={
            "served, float32": {"sampler": "served"},
            "served, bfloat16": {"sampler": "served", "precision": "bfloat16"},
            "served in two groups, float32": {"sampler": "served in two groups"},
        },
        is_arithmetic=True,
    ),
}

TRAIN |= {
    "W2": Task(
        "W2 SAC HalfCheetah-v5, 256x256, batch 256, an update each step",
        _replayed("sac", "HalfCheetah-v5", num_envs=1, num_steps=1, batch_size=256, updates_per_step=1.0)
        | {"hidden_sizes": [256, 256], "learning_rate": 3e-4, "tau": 0.005, "capacity": 1_000_000},
        {"2 threads": {"sampler": "serial"}, "1 thread": {"sampler": "serial", "num_threads": 1}},
        {"sb3": _DUMMY, "sbx": _DUMMY, "cleanrl": {"vector": "sync"}},
        is_arithmetic=True,
    ),
    "W4": Task(
        "W4 DQN Pong, Nature CNN, batch 32, an update every 4 steps",
        _replayed("dqn", "Pong", num_envs=1, num_steps=4, batch_size=32, updates_per_step=0.25)
        | {"learning_rate": 1e-4, "capacity": 100_000, "target_interval": 250, "epsilon": 0.05},
        {"one environment": {"sampler": "serial"}},
        {"sb3": _DUMMY, "cleanrl": {"vector": "sync"}},
        is_arithmetic=True,
    ),
}

_UPDATE_PEERS: dict[str, Settings] = {
    "sb3": _DUMMY,
    "sbx": _DUMMY,
    "cleanrl": {"vector": "sync"},
    "cleanrl, compiled": {"vector": "sync", "compile": True},
}
UPDATE: dict[str, Task] = {
    "mlp-64": Task(
        "W6 PPO 2x64, minibatch 64",
        _ppo("HalfCheetah-v5", 16, 128, 10, 64),
        {"update": {"sampler": "serial"}},
        _UPDATE_PEERS,
        is_quick=True,
    ),
    "mlp-1024": Task(
        "W6 PPO 2x64, minibatch 1,024",
        _ppo("HalfCheetah-v5", 64, 64, 4, 1024),
        {"update": {"sampler": "serial", "num_threads": 2}},
        _UPDATE_PEERS,
    ),
    "cnn-256": Task(
        "W6 PPO Nature CNN, minibatch 256",
        _ppo("Pong", 8, 128, 4, 256, num_threads=2, **_ATARI),
        {"update": {"sampler": "serial"}},
        _UPDATE_PEERS,
    ),
}


@dataclass(frozen=True)
class ReturnTask:
    """Time until the mean return of the last games reaches a target."""

    title: str
    settings: Settings
    ours: Settings
    peers: Mapping[str, Settings] = field(default_factory=lambda: {"sb3": _DUMMY, "sbx": _DUMMY})


RETURN: dict[str, ReturnTask] = {
    "W8-HalfCheetah": ReturnTask(
        "W8 PPO HalfCheetah-v5 to a return of 2,000",
        _ppo("HalfCheetah-v5", 16, 128, 10, 64, init_std=0.5)
        | {"normalize": True, "target": 2000.0, "num_games": 20, "total_env_steps": 2_000_000},
        {"sampler": "workers"},
    ),
    "W8-CartPole": ReturnTask(
        "W8 PPO CartPole-v1 to a return of 475",
        _ppo("CartPole-v1", 16, 32, 10, 128, learning_rate=1e-3, discount=0.98, gae_lambda=0.8)
        | {"target": 475.0, "num_games": 20, "total_env_steps": 500_000},
        {"sampler": "serial"},
    ),
}

_ENVPOOL: dict[tuple[str, str], Settings] = {
    ("envpool", f"{mode}, {num_envs} envs"): {"num_envs": num_envs, "batch_size": num_envs // parts}
    for num_envs in (64, 128)
    for mode, parts in (("lock step", 1), ("asynchronous", 2))
}
# A policy that acts in the environments' own process costs each the less, the more there are.
_VECTORS: dict[tuple[str, str], Settings] = {
    ("sb3", ""): {"num_envs": 64, "vector": "dummy"},
    ("gymnasium", "SyncVectorEnv"): {"num_envs": 64, "vector": "sync"},
    ("gymnasium", "AsyncVectorEnv"): {"num_envs": 16, "vector": "async"},
    ("sample-factory", ""): {"num_envs": 64, "num_workers": 2},
    ("torchrl", ""): {"num_envs": 16, "num_workers": 2, "vector": "processes"},
}

# By environment; peers that run in several ways have a name for each.
SAMPLING_PEERS: dict[str, dict[tuple[str, str], Settings]] = {
    "HalfCheetah-v5": {**_VECTORS, **_ENVPOOL},
    "Ant-v5": {**_VECTORS, **_ENVPOOL},
    "CartPole-v1": {**_VECTORS, **_ENVPOOL},
    "Null": _VECTORS,
    "Pong": {
        ("sb3", ""): {"num_envs": 8, "vector": "subproc"},
        ("gymnasium", "AsyncVectorEnv"): {"num_envs": 8, "vector": "async"},
        ("sample-factory", ""): {"num_envs": 16, "num_workers": 2},
        ("torchrl", ""): {"num_envs": 8, "num_workers": 2, "vector": "processes"},
        ("envpool", "lock step, 32 envs"): {"num_envs": 32, "batch_size": 32},
        ("envpool", "asynchronous, 32 envs"): {"num_envs": 32, "batch_size": 16},
        ("envpool", "asynchronous, 64 envs"): {"num_envs": 64, "batch_size": 32},
    },
}


def sampling_settings(env_id: str, own: Settings) -> Settings:
    """Everything a peer is told when it samples only; hyperparameters are there but do not matter."""
    return {**_ppo(env_id, 16, 64, 1, 64), "what": "sampling", "device": "cpu", **own}


WORKER_LIMITS = (10.0, 60.0)  # seconds until 64 workers are ready on two cores; megabytes of each
