"""Draw rows as bars: how fast each contestant is, workload by workload.

A panel for each workload; ours is its first variant, which does the very same as the peers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from benchmarks.compare import BASELINES, key_of
from benchmarks.rows import Row, read

_OURS, _THEIRS = "#d1495b", "#9aa5b1"
_SCREENED = "(screened once)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    default = BASELINES / "epyc-zen4-2-cores.json"
    parser.add_argument("--rows", type=Path, default=default, help="rows, as --json writes them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.png"), help="picture (default: %(default)s)")
    parser.add_argument(
        "--workloads",
        nargs="+",
        metavar="TITLE",
        default=["W1 PPO", "W3 PPO", "W2 SAC", "W5 Ant-v5, Python"],
        help="how the workloads' titles begin (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw; the exit status."""
    try:
        panels = [bars(read(args.rows), beginning) for beginning in args.workloads]
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    draw(panels, args.out)
    print(args.out)
    return 0


Panel = tuple[str, str, list[tuple[str, float]]]  # title, unit, and rates by name, ours first


def bars(rows: Sequence[Row], beginning: str) -> Panel:
    """One workload: our first variant, then everybody it was held against, fastest first; a star: in one turn alone.

    Raises:
        ValueError: there is no such workload.
    """
    found = [row for row in rows if row.workload.startswith(beginning)]
    if not found:
        known = ", ".join(sorted({row.workload for row in rows}))
        raise ValueError(f"no workload begins with {beginning!r}; there are: {known}")
    ours = found[0]
    held = [row for row in found if row.name == ours.name and row.against != "limit"]
    peers = {key_of(row)[2] + ("*" if _SCREENED in row.against else ""): row.theirs for row in held}
    ranked = sorted(peers.items(), key=lambda peer: -peer[1])
    return ours.workload, ours.unit, [("rlsurreal", ours.ours), *ranked]


def draw(panels: Sequence[Panel], out: Path) -> None:
    """Write the picture ``out``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flatten()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, unit, rates) in zip(axes, panels):
        names, values = zip(*rates)
        drawn = ax.barh([fill(name, 22) for name in names], values, color=[_OURS] + [_THEIRS] * (len(values) - 1))
        ax.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3, fontsize=9)
        ax.set_title(fill(title, 44), fontsize=10, loc="left")
        ax.set_xlabel(unit, fontsize=9)
        ax.margins(x=0.14)
        ax.tick_params(labelsize=9)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(str(out))
