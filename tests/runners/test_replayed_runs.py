"""Runs that learn from replay: what their rows of metrics say, and what becomes of the replay."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from rlsurreal.agents import ModelSpec, QAgent
from rlsurreal.algos import DQN
from rlsurreal.models import QNetwork
from rlsurreal.replays import FullStorage, Replay, ReplayRatio
from rlsurreal.runners import Trainer
from tests.runners.test_trainer import rows, trainer


def replayed(root: Path, file: str | None = None, **changes: Any) -> Trainer:
    """An update of 8 rows in each fourth step, from step 400 on."""
    replay = Replay(capacity=2_000, storage=FullStorage(file=file))
    algo = DQN(batch_size=8, replay=replay, limiter=ReplayRatio(ratio=2, min_steps=400))
    agent = QAgent(model=ModelSpec(cls=QNetwork, kwargs={"hidden_sizes": (16,)}))
    return trainer(root, algo=algo, agent=agent, **{"log_interval_steps": 100, "total": 800, **changes})


def test_rows_have_what_was_learned_since_the_row_before(tmp_path):
    found = rows(replayed(tmp_path).train())
    counts = [float(row["update/updates"]) for row in found]
    losses = [row["loss/value"] for row in found]
    assert [bool(loss) for loss in losses] == [now > then for then, now in itertools.pairwise([0.0, *counts])]
    given = [loss for loss in losses if loss]
    assert len(set(given)) == len(given) >= 4, "no figure is there twice"
    assert all(row["update/learning_rate"] for row in found)


def test_what_is_learned_again_after_a_resume_is_said(tmp_path, caplog):
    folder = replayed(tmp_path, total=600).train()
    caplog.clear()
    replayed(tmp_path).train(resume=folder)
    assert "the replay was not saved: learning goes on when it has 400 steps again" in caplog.text
    found = rows(folder)
    assert not any(row["loss/value"] for row in found if int(row["step"]) > 700)


def test_a_run_gives_up_its_replay(tmp_path):
    run = replayed(tmp_path, str(tmp_path / "rows"), total=160)
    folder = run.train()
    run.total_env_steps = 320
    assert run.train(resume=folder) == folder
