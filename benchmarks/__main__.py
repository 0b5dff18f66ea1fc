"""Benchmarks: python -m benchmarks WHAT [--json FILE].  See docs/benchmarks.md.

Every figure comes with what it is held against, measured in the same run: a peer library on the same work, or the limit
of the machine.  A ratio above 1 means that ours is better, whatever the unit.  Start with:

    python -m benchmarks all --quick --peers sb3,sbx --install-peers
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks import (
    compare,
    draw,
    everything,
    learning,
    memory,
    ranks,
    replay,
    rows,
    sampling,
    scaling,
    serving,
    train,
    update,
)
from benchmarks.turns import ContestantError

_MEASURING = {
    "sampling": sampling,
    "update": update,
    "train": train,
    "learning": learning,
    "replay": replay,
    "serving": serving,
    "memory": memory,
    "ranks": ranks,
    "all": everything,
}


_READING = {"compare": compare, "draw": draw}  # what was measured before


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = make_parser().parse_args(argv)
    if args.command in _READING:
        return int(_READING[args.command].run(args))
    if args.command == "scaling":
        print("\n".join(scaling.run(args)))
        return 0
    print(rows.describe_machine(), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # contestants are ended on the way out
    try:
        made = _MEASURING[args.command].run(args)
    except ContestantError as error:
        raise SystemExit(f"FAILED {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    rows.show(made)
    rows.write(made, args.json)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, module in {**_MEASURING, **_READING, "scaling": scaling}.items():
        text = module.__doc__ or ""
        summary = text.partition("\n")[0].rstrip(".")
        command = commands.add_parser(name, help=summary, description=text, formatter_class=formatter)
        if name in _MEASURING:
            command.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
