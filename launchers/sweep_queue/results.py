"""What a sweep has come to: a table as Markdown and CSV, and the learning curves.  Called by the local queue."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plot import draw_runs, final_return

from rlsurreal.utils.files import atomic_write

from .run import OUTPUT, Run
from .screen import format_value

_NUMBERS = ("mean", "std", "lowest", "highest", "seeds", "failed", "unfinished")


@dataclass(frozen=True)
class Result:
    """Runs that differ in nothing but the seed."""

    settings: dict[str, str]
    returns: list[float]  # of the last games of each run that is finished
    num_failed: int
    num_unfinished: int

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return statistics.fmean(self.returns) if self.returns else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds, as of a sample; None of one."""
        return statistics.stdev(self.returns) if len(self.returns) > 1 else None


def write_results(name: str, runs: Sequence[Run], folder: Path) -> str:
    """Write ``results.md``, ``results.csv`` and ``learning_curves.png`` into the sweep's folder; the table as text."""
    titles, rows = _table(collect(runs))
    with atomic_write(folder / "results.csv", "w") as file:
        csv.writer(file, lineterminator="\n").writerows([titles, *rows])
    table = _markdown(titles, [[_to_text(cell) for cell in row] for row in rows])
    parts = [f"# {name}", table, "Mean, std, lowest and highest, over seeds, of the return of each run's last games."]
    with_return = [run for run in runs if run.state == "finished" and final_return(run.folder) is not None]
    picture = draw_runs([run.folder for run in with_return], folder / "learning_curves.png") if with_return else None
    if picture:
        parts.append(f"![learning curves]({picture.name})")
    failed = [run for run in runs if run.state == "failed"]
    parts += [
        f"Failed: {run.plan.name}: {run.record.error if run.record else ''} (`{run.plan.name}/{OUTPUT}`)"
        for run in failed
    ]
    silent = [run for run in runs if run.state == "finished" and run not in with_return]
    parts += [f"Finished, but no game ended, so it is in no mean: {run.plan.name}" for run in silent]
    with atomic_write(folder / "results.md", "w") as file:
        file.write("\n\n".join(parts) + "\n")
    return table


def collect(runs: Sequence[Run]) -> dict[str, Result]:
    """Results by label, in the order of the sweep."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.plan.label, []).append(run)
    results = {}
    for label, members in groups.items():
        returns = [final_return(run.folder) for run in members if run.state == "finished"]
        results[label] = Result(
            settings=dict(members[0].plan.settings),
            returns=[value for value in returns if value is not None],
            num_failed=sum(run.state == "failed" for run in members),
            num_unfinished=sum(run.state in ("waiting", "running") for run in members),
        )
    return results


def _table(results: dict[str, Result]) -> tuple[list[str], list[list[object]]]:
    settings = list(dict.fromkeys(name for result in results.values() for name in result.settings))
    titles = [*(settings or ["sweep"]), *_NUMBERS]
    rows: list[list[object]] = []
    for label, result in results.items():
        named: list[object] = [result.settings.get(name, "") for name in settings] or [label]
        ends = [min(result.returns), max(result.returns)] if result.returns else [None, None]
        counts = [len(result.returns), result.num_failed, result.num_unfinished]
        rows.append([*named, result.mean, result.std, *ends, *counts])
    return titles, rows


def _to_text(cell: object) -> str:
    return "" if cell is None else format_value(cell) if isinstance(cell, float) else str(cell)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers, the last columns, to the right."""
    num_texts = len(titles) - len(_NUMBERS)
    widths = [max(len(title), *(len(row[i]) for row in rows)) for i, title in enumerate(titles)]
    lines = [
        [cell.ljust(width) if i < num_texts else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        for row in (titles, *rows)
    ]
    lines.insert(1, ["-" * width if i < num_texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
