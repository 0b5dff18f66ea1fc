from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import contests, peers, turns
from benchmarks.contests import Plan, contest
from benchmarks.turns import ContestantError, Entry, Process, Progress, take_turns

pytestmark = pytest.mark.processes

PEERS_FOLDER = Path(peers.__file__).parent


def make_entry(tmp_path, body, key="fake", **more):
    """A contestant whose loop is ``body``, which may use ``gate`` and ``total``."""
    script = tmp_path / f"{key}.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, subprocess, sys, time
            import gate as gate_module
            gate_module._WARM_UP_S = 0.0
            print("chatter of a library")
            gate = gate_module.Gate("1.2.3")
            total = 0
            """
        )
        + textwrap.dedent(body)
    )
    environment = {"PYTHONPATH": str(PEERS_FOLDER)}
    return Entry(key=key, title=key, command=[sys.executable, str(script)], environment=environment, **more)


def steady(steps, pause_s=0.005):
    return f"""
    while True:
        gate.tick(total)
        time.sleep({pause_s})
        total += {steps}
    """


@pytest.fixture
def progress():
    return Progress(1.0)


def test_a_turn_reports_the_rate_of_its_own_time(tmp_path):
    process = Process(make_entry(tmp_path, steady(10, 0.01)))
    try:
        process.start()
        assert process.version == "1.2.3"
        time.sleep(0.5)  # not its turn: neither steps nor time may count
        rate = process.rate(0.3)
        assert 300 < rate <= 1000  # 10 steps in at least 10 ms
    finally:
        process.close()


def test_who_waits_uses_no_cpu_and_makes_no_steps(tmp_path):
    body = """
    while True:
        gate.tick(total)
        total += 1
        open(sys.argv[0] + ".count", "w").write(str(total))
    """
    process = Process(make_entry(tmp_path, body))
    try:
        process.rate(0.2)
        count = (tmp_path / "fake.py.count").read_text()
        cpu = process.cpu_seconds()
        time.sleep(0.5)
        assert process.cpu_seconds() - cpu < 0.02
        assert (tmp_path / "fake.py.count").read_text() == count
    finally:
        process.close()


def test_a_contestant_that_fails_says_what_it_printed_last(tmp_path):
    process = Process(make_entry(tmp_path, "raise RuntimeError('no such environment')"))
    with pytest.raises(ContestantError, match=r"(?s)fake ended.*no such environment"):
        process.start()


def test_a_contestant_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "READY_LIMIT_S", 0.5)
    process = Process(make_entry(tmp_path, "time.sleep(60)"))
    with pytest.raises(ContestantError, match="gave no answer within"):
        process.start()
    assert process.cpu_seconds() == 0  # it is gone


def start_with_child(folder: Path) -> tuple[Process, int]:
    body = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(sys.argv[0] + ".pid", "w").write(str(child.pid))
    """ + steady(1)
    process = Process(make_entry(folder, body))
    process.start()
    return process, int((folder / "fake.py.pid").read_text())


def test_closing_ends_the_contestants_own_processes(tmp_path):
    process, child = start_with_child(tmp_path)
    assert psutil.pid_exists(child)
    process.close()
    wait_until_gone(child)


def test_contestants_end_with_the_master(tmp_path):
    process, child = start_with_child(tmp_path)
    process._process.stdin.close()  # what happens when the master dies
    wait_until_gone(child)
    process.close()


def wait_until_gone(pid):
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail(f"process {pid} was left behind")


class Counted:
    """A contestant that remembers when it was asked."""

    def __init__(self, name, asked):
        self.name, self.asked = name, asked

    def rate(self, seconds):
        self.asked.append(self.name)
        return 1.0

    def close(self):
        pass


def test_turns_go_forth_and_back(progress):
    asked = []
    rates = take_turns({name: Counted(name, asked) for name in "ABC"}, 2, 0.0, "steps/s", progress)
    assert "".join(asked) == "ABCCBA"
    assert rates == {"A": [1.0, 1.0], "B": [1.0, 1.0], "C": [1.0, 1.0]}


def test_who_is_busy_while_waiting_is_named(tmp_path, capsys, progress):
    body = """
    import threading
    def spin():
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    """ + steady(1)
    busy, quiet = Process(make_entry(tmp_path, body, "busy")), Process(make_entry(tmp_path, steady(1), "quiet"))
    try:
        take_turns({"busy": busy, "quiet": quiet}, 2, 0.2, "steps/s", progress)
    finally:
        busy.close()
        quiet.close()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert warnings == ["WARNING: busy is busy while it waits; the figures of quiet may be too low"]


@pytest.fixture
def fakes(tmp_path):
    made = {"slow": 1, "middle": 5, "fast": 20}
    entries = {key: make_entry(tmp_path, steady(steps), key) for key, steps in made.items()}
    entries["broken"] = make_entry(tmp_path, "raise SystemExit('broken')", "broken")
    return entries


def test_the_best_two_go_on_and_finished_parts_are_kept(tmp_path, capsys, progress, fakes):
    plan = Plan(rounds=2, seconds=0.05, device="cpu", peers=list(fakes), results=tmp_path / "results")
    asked = []
    ours = {"ours": Counted("ours", asked)}
    rows = contest("task", "Task", "steps/s", ours, fakes, plan, progress, limit=Counted("limit", asked))
    assert [row.against for row in rows] == ["limit", "fast 1.2.3", "middle 1.2.3", "slow 1.2.3 (screened once)"]
    assert all(row.name == "ours" and row.workload == "Task" for row in rows)
    assert "FAILED broken ended" in capsys.readouterr().out
    assert asked == ["limit", "ours", "ours", "limit"]

    again = contest("task", "Task", "steps/s", ours, {}, plan, progress)
    assert again[1:] == rows[1:] and len(asked) == 4  # nothing was measured again


def test_an_interrupted_contest_screens_nobody_twice(tmp_path, monkeypatch, progress, fakes):
    plan = Plan(rounds=1, seconds=0.05, device="cpu", peers=list(fakes), results=tmp_path / "results")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(contests, "_final", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contest("task", "Task", "steps/s", {}, fakes, plan, progress)
    monkeypatch.undo()
    started = []
    start = Process.start
    monkeypatch.setattr(Process, "start", lambda self: (started.append(self.entry.key), start(self)))
    rows = contest("task", "Task", "steps/s", {"ours": Counted("ours", [])}, fakes, plan, progress)
    assert started == ["fast", "middle"]
    assert len(rows) == 3


def test_without_peers_ours_is_shown_alone(tmp_path, progress):
    plan = Plan(rounds=2, seconds=0.0, device="cpu", peers=[], results=tmp_path)
    (row,) = contest("task", "Task", "steps/s", {"ours": Counted("ours", [])}, {}, plan, progress)
    assert (row.ours, row.against) == (1.0, "nobody")


def test_a_contestant_of_whole_runs_is_started_for_each_turn(tmp_path):
    process = Process(make_entry(tmp_path, steady(1), whole_runs=True))
    assert process.rate(0.05) > 0
    assert process.cpu_seconds() == 0  # it has ended
    assert process.rate(0.05) > 0


def test_what_a_contestant_warns_of_can_be_shown(tmp_path):
    body = "print('contestant warns: it is slow', flush=True)\n" + textwrap.dedent(steady(1))
    process = Process(make_entry(tmp_path, body))
    try:
        process.start()
        assert process.warnings() == ["it is slow"]
        assert process.rate(0.05) > 0
    finally:
        process.close()
    assert process.warnings() == []
