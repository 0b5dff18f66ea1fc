"""Compare ratios with a baseline's: what was lost, and an exit status for a script.

Ratios are compared, never rates: they are what can be carried from one run, or machine of the same kind, to another.
Versions, ranges and what stands in parentheses do not count when rows are matched.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row, read

BASELINES = Path(__file__).parent / "baselines"
_NOISE = re.compile(r"\s*\([^()]*\)|\s*\[[^\]]*\]|\s+v?\d+(\.\d+)+\S*|,?\s*\d+ seeds")

Key = tuple[str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("new", type=Path, metavar="NEW.json", help="rows, as --json writes them")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="rows to compare with (default: the file in benchmarks/baselines with the most rows in common)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.15,
        help="a ratio may be lower by this part of it (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what was lost; 1 if anything was."""
    if not 0 <= args.tolerance < 1:
        raise SystemExit(f"--tolerance is {args.tolerance}; it must lie in [0, 1)")
    try:
        new = read(args.new)
        path = args.baseline or nearest_baseline(new, BASELINES)
        old = read(path)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    result = compare(new, old, args.tolerance)
    print(f"{args.new} against {path}, tolerance {args.tolerance:.0%}:")
    for old_row, new_row in result.lost:
        print(f"  LOST    {describe(new_row)}: {old_row.ratio:.2f} -> {new_row.ratio:.2f}")
    for old_row, new_row in result.gained:
        print(f"  gained  {describe(new_row)}: {old_row.ratio:.2f} -> {new_row.ratio:.2f}")
    for row in result.missing:
        print(f"  not measured  {describe(row)}")
    print(f"{result.num_compared} ratios compared, {len(result.lost)} lost, {len(result.gained)} gained")
    if result.num_compared == 0:
        raise SystemExit(f"nothing was compared: {args.new} and {path} have no rows in common")
    return 1 if result.lost else 0


@dataclass(frozen=True)
class Comparison:
    """Pairs of old and new rows whose ratios differ by more than the tolerance, and old rows that are not there."""

    lost: list[tuple[Row, Row]]
    gained: list[tuple[Row, Row]]
    missing: list[Row]
    num_compared: int


def compare(new: Sequence[Row], old: Sequence[Row], tolerance: float) -> Comparison:
    """Rows are matched by workload, name and opponent."""
    by_key = {key_of(row): row for row in new}
    pairs = [(row, by_key[key_of(row)]) for row in old if key_of(row) in by_key]
    pairs = [(a, b) for a, b in pairs if math.isfinite(a.ratio)]
    return Comparison(
        lost=[(a, b) for a, b in pairs if not b.ratio >= a.ratio * (1 - tolerance)],  # NaN is a loss, too
        gained=[(a, b) for a, b in pairs if b.ratio > a.ratio * (1 + tolerance)],
        missing=[row for row in old if key_of(row) not in by_key],
        num_compared=len(pairs),
    )


def key_of(row: Row) -> Key:
    """What makes two rows the same: their names without versions, ranges and remarks."""
    workload, name, against = (_NOISE.sub("", text).strip() for text in (row.workload, row.name, row.against))
    return workload, name, against


def describe(row: Row) -> str:
    """A row's names in one line."""
    return f"{row.workload} | {row.name} | against {row.against}"


def nearest_baseline(new: Sequence[Row], folder: Path) -> Path:
    """The file with the most rows in common.

    Raises:
        ValueError: there is none.
    """
    keys = {key_of(row) for row in new}
    common = {path: len(keys & {key_of(row) for row in read(path)}) for path in sorted(folder.glob("*.json"))}
    if not common or max(common.values()) == 0:
        raise ValueError(f"no file in {folder} has rows in common; name one with --baseline")
    return max(common, key=lambda path: common[path])
