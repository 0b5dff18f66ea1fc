"""What the peers are held against: rlsurreal doing the benchmarks' work.  python -m benchmarks.ours SETTINGS-AS-JSON

Started by `benchmarks.contests` in a process of its own, as every contestant.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from typing import Any

import torch

import rlsurreal
from benchmarks.peers import null_env
from benchmarks.peers.gate import Gate
from benchmarks.tasks import Settings
from benchmarks.turns import WARNING_MARK
from rlsurreal.agents import ActorCriticAgent, ModelSpec, PolicyAgent, QAgent
from rlsurreal.algos import DQN, PPO, SAC
from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.models import ActorCritic, CriticEnsemble, StochasticPolicy
from rlsurreal.replays import FrameStorage, Replay, ReplayRatio
from rlsurreal.samplers import AsyncSampler, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec


def make_sampler(settings: Settings) -> Any:
    """The sampler that ``settings["sampler"]`` names."""
    batch = BatchSpec(settings["num_steps"], settings["num_envs"])
    how, env_id = settings["sampler"], settings["env_id"]
    if how in ("envpool", "envpool, asynchronous"):
        atari = {"episodic_life": True, "reward_clip": True}
        task_id, kwargs = ("Pong-v5", atari) if env_id == "Pong" else (env_id, {})
        engine = EnvPoolEnv(task_id=task_id, kwargs=kwargs)
        if how == "envpool":
            return SerialSampler(env=engine, batch=batch)
        # Three quarters: the rest keeps two threads at work while the policy acts.
        return AsyncSampler(env=engine, batch=batch, num_ready=batch.num_envs * 3 // 4)
    env = make_python_env(env_id)
    if how in ("served", "served in two groups"):
        schedule: Any = "lock_step" if how == "served" else "alternating"
        return ParallelSampler(env=env, batch=batch, inference=InferenceServer(schedule=schedule))
    return {"workers": ParallelSampler, "serial": SerialSampler}[how](env=env, batch=batch)


def make_python_env(env_id: str) -> GymnasiumEnv:
    """The environment as Gymnasium has it; Pong as Stable-Baselines3's Atari wrappers make it."""
    if env_id == "Pong":
        settings = {"game": "Pong", "episodic_life": True, "clip_reward": True}
        return GymnasiumEnv(factory=make_atari, kwargs=settings, info_fields={"score": 0.0, "game_over": False})
    return GymnasiumEnv(factory=null_env.NullEnv if env_id == null_env.ID else env_id)


def make_agent(settings: Settings) -> Any:
    """PPO: two networks for vectors, one Nature CNN with two heads for images.  SAC, DQN: those of the recipes."""
    if settings["algo"] == "sac":
        return PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={"hidden_sizes": settings["hidden_sizes"]}))
    if settings["algo"] == "dqn":
        return QAgent(epsilon=settings["epsilon"])
    kwargs: dict[str, Any] = {
        "normalize_observation": settings.get("normalize", False),
        "precision": settings.get("precision", "float32"),
    }
    if settings["env_id"] != "Pong":
        kwargs |= {"hidden_sizes": settings["hidden_sizes"], "shared": False}
    return ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs), init_std=settings["init_std"])


def make_algo(settings: Settings) -> Any:
    """With the same hyperparameters as the peers'."""
    if settings["algo"] in ("sac", "dqn"):
        return make_replayed(settings)
    num_rows = settings["num_steps"] * settings["num_envs"]
    same = "discount gae_lambda learning_rate clip_range entropy_coeff max_grad_norm num_epochs"
    return PPO(
        num_minibatches=num_rows // settings["minibatch_size"],
        scale_rewards=settings.get("normalize", False),
        value_loss_coeff=2 * settings["value_loss_coeff"],  # of half the squared error; the peers' lack the half
        **{name: settings[name] for name in same.split()},
    )


def make_replayed(settings: Settings) -> Any:
    """SAC or DQN."""
    same = {name: settings[name] for name in ("batch_size", "discount", "learning_rate")}
    ratio = settings["updates_per_step"] * settings["batch_size"]
    limiter = ReplayRatio(ratio=ratio, min_steps=settings["min_steps"])
    if settings["algo"] == "dqn":
        replay = Replay(capacity=settings["capacity"], storage=FrameStorage())
        return DQN(double=False, target_interval=settings["target_interval"], replay=replay, limiter=limiter, **same)
    critic = ModelSpec(cls=CriticEnsemble, kwargs={"hidden_sizes": settings["hidden_sizes"]})
    replay = Replay(capacity=settings["capacity"])
    return SAC(critic=critic, target_tau=settings["tau"], replay=replay, limiter=limiter, **same)


def build(settings: Settings) -> tuple[Any, Any, Any]:
    """Sampler, agent and algorithm, ready."""
    sampler, agent, algo = make_sampler(settings), make_agent(settings), make_algo(settings)
    agent.initialize(sampler.connect(seed=settings["seed"]), seed=settings["seed"], device=settings["device"])
    # A rate is measured compiled, whatever it cost; a whole run decides as it does for users.
    num_iterations = settings["total_env_steps"] // sampler.batch.size if "total_env_steps" in settings else None
    speed: Any = {"compile": settings.get("compile", "on"), "num_iterations": num_iterations}
    algo.initialize(agent, sampler.batch, seed=settings["seed"], **speed)
    sampler.initialize(agent, discount=algo.discount, **speed)
    return sampler, agent, algo


def train(settings: Settings) -> None:
    """Train in turns."""
    gate = Gate(rlsurreal.__version__)
    sampler, agent, algo = build(settings)
    env_steps, version = 0, 0
    while True:
        gate.tick(env_steps)
        samples = sampler.obtain()
        env_steps += int(samples.env.valid[:-1].sum())
        algo.update(samples, 0.0)
        version += 1
        agent.publish(version)
        sampler.pop_trajectories()
        sampler.release(samples)


def update(settings: Settings) -> None:
    """Updates from one slot, again and again, in turns."""
    gate = Gate(rlsurreal.__version__)
    sampler, _, algo = build(settings)
    samples = sampler.obtain()
    num_updates = 0
    while True:
        gate.tick(num_updates)
        algo.update(samples, 0.0)
        synchronize(settings["device"])
        num_updates += algo.num_epochs * algo.num_minibatches


def synchronize(device: str) -> None:
    """Wait until the accelerator has done what it was told; an update by itself need not."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def learn(settings: Settings) -> None:
    """Train until the mean return of the last games is at the target; print the result."""
    start = time.perf_counter()
    sampler, agent, algo = build({**settings, "compile": "auto"})
    num_games, budget = settings["num_games"], settings["total_env_steps"]
    scores: list[float] = []
    env_steps, version, reached = 0, 0, False
    while env_steps < budget and not reached:
        samples = sampler.obtain()
        env_steps += int(samples.env.valid[:-1].sum())
        algo.update(samples, env_steps / budget)
        version += 1
        agent.publish(version)
        scores += [game.score for game in sampler.pop_trajectories()]
        reached = len(scores) >= num_games and statistics.mean(scores[-num_games:]) >= settings["target"]
        sampler.release(samples)
    seconds = time.perf_counter() - start
    sampler.close()
    final = statistics.mean(scores[-num_games:])
    result = {"version": rlsurreal.__version__, "seed": settings["seed"], "final": final, "reached": reached}
    print(json.dumps({**result, "env_steps": env_steps, "seconds": seconds}))


def main() -> None:
    """Do what the command line says."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    logging.basicConfig(level=logging.WARNING, format=f"{WARNING_MARK}%(message)s")
    {"train": train, "update": update, "learn": learn}[settings["what"]](settings)


if __name__ == "__main__":
    main()
