"""python -m benchmarks WHAT [--json FILE]: sampling (steps per second against the bare limit) or learning (returns).

Every figure comes with what it is held against, measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import learning, rows, sampling


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in (("sampling", sampling), ("learning", learning)):
        command = commands.add_parser(
            name,
            help=(module.__doc__ or "").splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
        module.add_arguments(command)
    args = parser.parse_args(argv)
    print(rows.describe_machine())
    made = {"sampling": sampling.run, "learning": learning.run}[args.command](args)
    rows.show(made)
    rows.write(made, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
