"""Learning curves are of the games that the result is of."""

from __future__ import annotations

import pytest

from benchmarks.learning_tasks import RecordedGames
from rlsurreal.recipes import debug
from rlsurreal.utils import config


def test_a_curve_is_the_mean_of_the_last_games_by_then(tmp_path):
    trainer = config.override(
        debug(), {"root": str(tmp_path), "console": "off", "tensorboard": False, "total_env_steps": 2_000}
    )
    games = RecordedGames(trainer)
    trainer.train()
    curve = games.curve(2_000, 3)
    assert len(games.scores) == len(games.steps) > 20 and curve[-1][0] == 2_000
    for step, mean in curve:
        by_then = [score for score, end in zip(games.scores, games.steps) if end <= step]
        assert mean == pytest.approx(sum(by_then[-3:]) / len(by_then[-3:]), abs=0.006)
