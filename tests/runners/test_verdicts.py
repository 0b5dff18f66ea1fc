"""Runs that end before their budget is used, since they have reached what they were for."""

from __future__ import annotations

import pytest

from rlsurreal.utils.files import list_checkpoints
from tests.runners.test_trainer import rows, trainer


def test_a_run_ends_when_it_has_reached_its_return(tmp_path, capsys):
    run = trainer(tmp_path, total=100_000, stop_at_return=15.0, console="line")
    folder = run.train()
    last = rows(folder)[-1]
    assert float(last["return/mean"]) >= 15 and int(last["trajectories"]) >= 100
    assert all(float(row["return/mean"]) < 15 or int(row["trajectories"]) < 100 for row in rows(folder)[:-1])
    steps = int(last["step"])
    assert list_checkpoints(folder / "checkpoints")[-1][0] == steps
    assert run.interrupted_by is None
    said = capsys.readouterr().out
    assert f"ended after {steps} of 100000 environment steps: the mean return is" in said and "stop_at_return" in said


def test_evaluations_decide_where_there_are_any(tmp_path):
    """CartPole gives 1 a step: each evaluated game reaches 5, and the first 100 training games have not ended."""
    folder = trainer(tmp_path, total=8_000, stop_at_return=5.0, eval_interval_steps=800).train()
    last = rows(folder)[-1]
    assert float(last["eval/return/mean"]) >= 5 and 800 <= int(last["step"]) < 880 and int(last["trajectories"]) < 100


def test_rows_are_shown_and_may_end_the_run(tmp_path):
    seen: list[tuple[int, float]] = []

    def on_row(env_steps: int, row: dict[str, float]) -> object:
        seen.append((env_steps, row["return/mean"]))
        return env_steps >= 800 or "what is not True ends nothing"  # as what `file.write` returns

    folder = trainer(tmp_path).train(on_row=on_row)
    written = [(int(row["step"]), float(row["return/mean"])) for row in rows(folder)]
    assert seen == written and len(seen) == 2
    trainer(tmp_path).train(resume=folder)
    assert int(rows(folder)[-1]["step"]) >= 1600


def test_what_goes_wrong_in_on_row_is_raised_and_loses_nothing(tmp_path):
    def on_row(env_steps: int, row: dict[str, float]) -> None:
        if env_steps >= 800:
            raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        trainer(tmp_path).train(on_row=on_row)
    (folder,) = tmp_path.iterdir()
    assert list_checkpoints(folder / "checkpoints")[-1][0] >= 800


def test_a_run_that_has_reached_its_goal_is_over_until_the_goal_is_another(tmp_path, capsys):
    folder = trainer(tmp_path, total=100_000, stop_at_return=15.0).train()
    before = (folder / "progress.csv").read_bytes()
    steps = int(rows(folder)[-1]["step"])
    capsys.readouterr()
    trainer(tmp_path, total=100_000, stop_at_return=15.0, console="line").train(folder=folder)
    assert (folder / "progress.csv").read_bytes() == before
    assert f"ended after {steps} of 100000 environment steps: the mean return is" in capsys.readouterr().out
    trainer(tmp_path, total=steps + 800, stop_at_return=1e6).train(folder=folder)
    assert int(rows(folder)[-1]["step"]) >= steps + 800
