"""Draw learning curves:  python launchers/plot.py RUN [RUN ...] [--out FILE] [--x step|seconds] [--y COLUMN]

Runs of one experiment with different seeds become one curve: the mean of the seeds and, shaded, from the lowest to the
highest (from the 25th to the 75th percentile with five seeds or more), of those that have come so far.  Runs are one
experiment when their settings differ in nothing but the seed; of several runs of one seed the longest is drawn.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_COLUMNS = ("score/mean", "return/mean", "eval/return/mean")  # the first that a run has
_IGNORED = ("seed", "name", "root", "console")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of run folders")
    parser.add_argument(
        "--out", type=Path, default=Path("learning_curves.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--x", choices=("step", "seconds"), default="step", help="what to draw against")
    parser.add_argument(
        "--y", help=f"column of progress.csv (default: the first there is of {', '.join(DEFAULT_COLUMNS)})"
    )
    args = parser.parse_args(argv)
    folders = [
        path.parent
        for run in args.runs
        for path in ([run / "progress.csv"] if (run / "progress.csv").exists() else sorted(run.glob("**/progress.csv")))
    ]
    if not folders:
        print(f"error: no progress.csv in {', '.join(map(str, args.runs))}", file=sys.stderr)
        return 2
    problems = {folder: problem_of(folder, args.x, args.y) for folder in folders}
    drawn = [folder for folder, problem in problems.items() if problem is None]
    for problem in filter(None, problems.values()):
        print(f"{'left out' if drawn else 'error'}: {problem}", file=sys.stderr)
    if not drawn:
        return 2
    again = repeated(drawn, args.x, args.y)
    for folder, longer in again.items():
        print(f"left out: {folder}: {longer} is a longer run of the same seed", file=sys.stderr)
    picture = draw_runs([folder for folder in drawn if folder not in again], args.out, x=args.x, y=args.y)
    if picture is None:
        print('error: drawing needs matplotlib: pip install -c constraints.txt -e ".[plot]"', file=sys.stderr)
        return 1
    print(picture)
    return 0


def read_column(folder: Path, x: str, y: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """One run's curve: abscissae, values, and the name of the column; ValueError names what there is."""
    with open(folder / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    column = y or next((name for name in DEFAULT_COLUMNS if name in names), None)
    if column is None or column not in names:
        raise ValueError(
            f"{folder}/progress.csv has no column {column or ' or '.join(DEFAULT_COLUMNS)!r}; it has "
            f"{', '.join(names) or 'no rows'}"
        )
    across = "time/seconds" if x == "seconds" else "step"
    pairs = [(float(row[across]), float(row[column])) for row in rows if row[column] and row[across]]
    values = np.array(pairs).reshape(-1, 2)
    return values[:, 0], values[:, 1], column


def problem_of(folder: Path, x: str, y: str | None) -> str | None:
    """Why a run cannot be drawn, or None if it can."""
    try:
        _, values, _ = read_column(folder, x, y)
    except ValueError as error:
        return str(error)
    return None if len(values) else f"{folder}/progress.csv has no value yet; wait for its first games to end"


def final_return(folder: Path) -> float | None:
    """The last mean return (or raw score) of training games, or None if no game ended."""
    try:
        _, values, _ = read_column(folder, "step", None)
    except (ValueError, OSError):  # nothing yet, or no longer
        return None
    return float(values[-1]) if len(values) else None


def draw_runs(folders: Sequence[Path], out: Path, *, x: str = "step", y: str | None = None) -> Path | None:
    """Draw runs, all of which have values, into the picture ``out``; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    label = ""
    for name, members in group_by_experiment(folders).items():
        curves = [read_column(folder, x, y) for folder in members]
        label = curves[0][2]
        grid, rows = on_common_grid([(across, values) for across, values, _ in curves])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of a gap where there is no curve
            mean = np.nanmean(rows, 0)
            low, high = np.nanpercentile(rows, (25, 75) if len(members) >= 5 else (0, 100), axis=0)
        title = f"{name} ({len(members)} seeds)" if len(members) > 1 else name
        (line,) = axes.plot(grid, mean, label=title, marker="o" if len(grid) == 1 else None)
        if len(members) > 1:
            axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            if len(grid) == 1:  # which has no area
                axes.vlines(grid, low, high, color=line.get_color(), alpha=0.4)
    axes.set_xlabel("environment steps" if x == "step" else "seconds")
    of_games = label.startswith(("return/", "score/", "length/"))
    axes.set_ylabel(label.removesuffix("/mean").replace("/", " ") + (" (mean of recent games)" if of_games else ""))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    FigureCanvasAgg(figure)  # draws without a screen; other endings than .png have their own
    figure.savefig(out)
    return out


def on_common_grid(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], num_points: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated curves: the grid ``[P]``, and values ``[num_curves, P]``, NaN where a curve is not (yet) there.

    Curves of a single value each are one point.
    """
    if all(len(across) == 1 for across, _ in curves):
        return np.array([np.mean([across[0] for across, _ in curves])]), np.stack([values for _, values in curves])
    ends = np.array([(across[0], across[-1]) for across, _ in curves])
    # Where several curves begin, or end, none of them is alone because its first or last row is a few steps apart.
    step = (ends[:, 1].max() - ends[:, 0].min()) / num_points
    start, stop = ends[:, 0].min(), ends[:, 1].max()
    starts = ends[ends[:, 0] <= start + step, 0]
    stops = ends[ends[:, 1] >= stop - step, 1]
    grid = np.linspace(starts.max(), max(starts.max(), stops.min()), num_points)
    return grid, np.stack([np.interp(grid, across, values, left=np.nan, right=np.nan) for across, values in curves])


def repeated(folders: Sequence[Path], x: str, y: str | None) -> dict[Path, Path]:
    """Runs of a seed of which there is a longer run of the same experiment, and that one."""
    found = {}
    for members in group_by_experiment(folders).values():
        longest: dict[Any, Path] = {}
        length = {folder: read_column(folder, x, y)[0][-1] for folder in members}
        for folder in sorted(members, key=lambda folder: length[folder], reverse=True):
            first = longest.setdefault(settings_of(folder).get("seed", folder), folder)
            if first != folder:
                found[folder] = first
    return found


def group_by_experiment(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs whose settings differ in nothing but the seed, by the name of the experiment."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for folder in folders:
        settings = settings_of(folder)
        name = str(settings.get("name", folder.name))
        key = json.dumps({k: v for k, v in settings.items() if k not in _IGNORED}, sort_keys=True)
        groups.setdefault((name, key), []).append(folder)
    named: dict[str, list[Path]] = {}
    for (name, _), members in groups.items():
        unique = next(label for label in (name, members[0].name, str(members[0])) if label not in named)
        named[unique] = members
    return named


def settings_of(folder: Path) -> dict[str, Any]:
    """The fields of the experiment that made a run folder."""
    path = folder / "config.json"
    fields: dict[str, Any] = json.loads(path.read_text()).get("fields", {}) if path.exists() else {}
    return fields


if __name__ == "__main__":
    sys.exit(main())
