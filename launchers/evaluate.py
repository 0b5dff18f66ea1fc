"""Evaluate a trained agent:  python launchers/evaluate.py RUN [--episodes 10] [--stochastic] [--video]

Plays episodes with the best checkpoint of a run (or the latest), prints their returns, and films one as MP4 if asked.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from train import see_modules_here

from rlsurreal.envs import EnvError
from rlsurreal.trained import TrainedAgent, load_agent


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--episodes", type=int, default=10, help="how many (default: %(default)s)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stochastic", dest="deterministic", action="store_false", default=None, help="draw actions")
    how.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="take the most likely ones (default: as the experiment evaluates)",
    )
    parser.add_argument("--checkpoint", help='"best", "latest", or a number of steps (default: best if there is one)')
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the environments (default: %(default)s)")
    parser.add_argument("--video", action="store_true", help="film an episode to RUN/video.mp4")
    parser.add_argument("--max-steps", type=int, default=10_000, help="of the film (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes is {args.episodes}; it must be at least 1")
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}; it must be at least 0")
    torch.set_num_threads(1)
    see_modules_here()
    try:
        agent = load_agent(args.run, args.checkpoint)
        games = agent.evaluate(args.episodes, deterministic=args.deterministic, seed=args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    returns = [game.score for game in games]
    print(
        f"{agent.path}\nreturn over {len(returns)} episodes: mean {np.mean(returns):,.1f}, standard deviation "
        f"{np.std(returns):,.1f}, from {np.min(returns):,.1f} to {np.max(returns):,.1f}"
    )
    if args.video:
        try:
            print(film(agent, args.run / "video.mp4", args.max_steps, deterministic=args.deterministic, seed=args.seed))
        except (ValueError, EnvError, gym.error.Error, NotImplementedError) as error:
            print(f"error: no film: {str(error) or 'the environment does not render'}", file=sys.stderr)
            return 1
    return 0


def film(agent: TrainedAgent, out: Path, max_steps: int, **options: Any) -> Path:
    """Play one episode and write its frames; the file."""
    try:
        from imageio.v2 import get_writer
    except ImportError as error:
        raise ValueError('writing films needs imageio: pip install -e ".[video]"') from error

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo renders without a screen
    frames = agent.film(max_steps, **options)
    try:
        first, fps = next(frames)
    except (ValueError, EnvError, gym.error.Error, NotImplementedError):
        raise
    except Exception as error:  # what graphics raise is of any class
        raise ValueError(
            f"nothing is rendered ({type(error).__name__}: {error}); without a screen MuJoCo needs EGL (libegl1 on "
            "Debian and Ubuntu), or MUJOCO_GL=osmesa"
        ) from error
    with get_writer(out, fps=fps, macro_block_size=2) as video:
        for frame in itertools.chain([first], (frame for frame, _ in frames)):
            video.append_data(frame)  # type: ignore[attr-defined]
    return out


if __name__ == "__main__":
    sys.exit(main())
