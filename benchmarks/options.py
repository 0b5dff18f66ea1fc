"""Options that commands share, and what they come to."""

from __future__ import annotations

import argparse
import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.contests import Plan

_ROUNDS, _QUICK_ROUNDS = 5, 3
_SECONDS, _QUICK_SECONDS = 20.0, 4.0
_QUICK_PEERS = ("sb3", "sbx", "envpool")


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Who takes part."""
    names = ",".join(peers.PEERS)
    parser.add_argument(
        "--peers",
        metavar="NAMES",
        help=f"comma-separated, of {names}; '' for none (default: those that are installed)",
    )
    parser.add_argument(
        "--install-peers", action="store_true", help="install peers where they are missing, under ~/.cache/rlsurreal"
    )


def add_contest(parser: argparse.ArgumentParser) -> None:
    """Options of everything that is measured in turns with peers."""
    add_peers(parser)
    parser.add_argument("--device", default="cpu", help="of networks and updates (default: %(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a bounded run: fewer tasks, at most {', '.join(_QUICK_PEERS)}, {_QUICK_ROUNDS} rounds of "
        f"{_QUICK_SECONDS:.0f} s",
    )
    parser.add_argument("--rounds", type=int, help=f"turns of each contestant (default: {_ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"of a turn (default: {_SECONDS:.0f})")


def make_plan(args: argparse.Namespace, results: Path | None = None) -> Plan:
    """The plan that the options come to; without ``results`` nothing is kept for later.

    Raises:
        SystemExit: an option does not fit.
    """
    if (args.rounds is not None and args.rounds < 1) or (args.seconds is not None and args.seconds <= 0):
        raise SystemExit("--rounds must be at least 1, and --seconds positive")
    chosen = peers.choose(args.peers, args.install_peers)
    if args.quick and args.peers is None:
        chosen = [name for name in chosen if name in _QUICK_PEERS]
    if not chosen:
        print("no peers take part: none is installed; --install-peers installs them", flush=True)
    return Plan(
        rounds=args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS),
        seconds=args.seconds or (_QUICK_SECONDS if args.quick else _SECONDS),
        device=args.device,
        peers=chosen,
        results=results or _temporary_folder(),
    )


def _temporary_folder() -> Path:
    """A folder that is gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="rlsurreal-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def choose_names(asked: str | None, known: Sequence[str], quick: Sequence[str] | None, option: str) -> list[str]:
    """The names of a comma-separated option; where nothing was asked for, ``quick`` or all.

    Raises:
        SystemExit: a name is not known.
    """
    if asked is None:
        return list(known if quick is None else quick)
    names = [name for name in asked.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{option}: there is no {', '.join(unknown)}; choose from {','.join(known)}")
    return names
