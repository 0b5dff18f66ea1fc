"""Evaluate a trained agent:  python launchers/evaluate.py RUN [--episodes 10] [--stochastic] [--video]

Plays episodes with the best checkpoint of a run (or the latest), prints their returns, and films one as MP4 if asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train import resume_experiment

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.runners import Trainer
from rlsurreal.runners.checkpoints import BEST
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.files import latest_checkpoint, load_checkpoint


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--episodes", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument(
        "--stochastic", action="store_true", help="draw actions from the policy instead of the most likely"
    )
    parser.add_argument("--checkpoint", choices=("best", "latest"), help="default: best if there is one")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the environments (default: %(default)s)")
    parser.add_argument("--video", action="store_true", help="film an episode to RUN/video.mp4")
    parser.add_argument("--max-steps", type=int, default=10_000, help="of the film (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes is {args.episodes}; it must be at least 1")
    try:
        trainer = resume_experiment(args.run, [])
        path = find_checkpoint(args.run, args.checkpoint)
        state = load_checkpoint(path)["agent"]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    returns = play(trainer, state, args)
    print(
        f"{path}\nreturn over {len(returns)} episodes: mean {np.mean(returns):,.1f}, standard deviation "
        f"{np.std(returns):,.1f}, from {np.min(returns):,.1f} to {np.max(returns):,.1f}"
    )
    if args.video:
        try:
            print(film(trainer, state, args))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def find_checkpoint(run: Path, which: str | None) -> Path:
    """The best or latest checkpoint of a run; ValueError if there is none."""
    folder = run / "checkpoints"
    best = folder / BEST
    path = best if which == "best" or (which is None and best.exists()) else latest_checkpoint(folder)
    if path is None or not path.exists():
        raise ValueError(f"{run} has no {which or 'best or latest'} checkpoint")
    return path


def play(trainer: Trainer, agent_state: dict[str, Any], args: argparse.Namespace) -> list[float]:
    """Raw scores of episodes, spread evenly over up to ten environments."""
    num_envs = max(n for n in range(1, min(10, args.episodes) + 1) if args.episodes % n == 0)
    sampler = serial_sampler(
        trainer, args.stochastic, {}, num_envs=num_envs, episodes_per_env=args.episodes // num_envs
    )
    try:
        connect(trainer, sampler, agent_state, args.seed)
        return [game.score for game in sampler.evaluate()]
    finally:
        sampler.close()


def serial_sampler(trainer: Trainer, stochastic: bool, env_kwargs: dict[str, Any], **evaluation: int) -> SerialSampler:
    """A sampler that only evaluates."""
    settings: Any = trainer.sampler
    env = settings.eval_env
    if env_kwargs:
        if not isinstance(env, GymnasiumEnv):
            raise ValueError(f"{type(env).__name__} cannot be filmed; only a GymnasiumEnv can")
        env = dataclasses.replace(env, kwargs={**env.kwargs, **env_kwargs})
    spec = dataclasses.replace(settings.evaluation, env=env, deterministic=not stochastic, **evaluation)
    return SerialSampler(env=env, batch=BatchSpec(1, spec.num_envs), evaluation=spec)


def connect(trainer: Trainer, sampler: SerialSampler, agent_state: dict[str, Any], seed: int) -> None:
    """Build environments and agent, and load the agent's parameters."""
    spaces = sampler.connect(seed=seed)
    trainer.agent.initialize(spaces, seed=0)
    trainer.agent.load_state_dict(agent_state)  # type: ignore[attr-defined]
    sampler.initialize(trainer.agent, discount=trainer.algo.discount)


def film(trainer: Trainer, agent_state: dict[str, Any], args: argparse.Namespace) -> Path:
    """Play one episode and write its frames; the file."""
    try:
        from imageio.v2 import get_writer
    except ImportError as error:
        raise ValueError("writing films needs imageio: pip install rlsurreal[video]") from error

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo renders without a screen
    out: Path = args.run / "video.mp4"
    sampler = serial_sampler(trainer, args.stochastic, render_settings(trainer), num_envs=1, num_steps=1)
    try:
        connect(trainer, sampler, agent_state, args.seed)
        with get_writer(out, fps=sampler.render_fps, macro_block_size=2) as video:
            for frame in sampler.film(args.max_steps):
                video.append_data(frame)  # type: ignore[attr-defined]
    finally:
        sampler.close()
    return out


def render_settings(trainer: Trainer) -> dict[str, Any]:
    """Arguments with which the evaluation environment draws frames."""
    settings: dict[str, Any] = {"render_mode": "rgb_array"}
    sampler: Any = trainer.sampler
    env = sampler.eval_env
    if any("gymnasium.envs.mujoco" in module for module in env.preload_modules()):
        settings["camera_name"] = "track"  # or the animal runs out of the picture
    return settings


if __name__ == "__main__":
    sys.exit(main())
