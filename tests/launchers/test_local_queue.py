"""The queue over one machine: never more runs than slots, pinned apart, failures reported, stopped and continued."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlsurreal.utils.affinity import count_cpus, usable_cpus
from rlsurreal.utils.files import RUN_LOCK, alone_in

ROOT = Path(__file__).parents[2]
if str(ROOT / "launchers") not in sys.path:
    sys.path.append(str(ROOT / "launchers"))

import local_queue  # noqa: E402
from sweep_queue.run import OUTPUT, Run  # noqa: E402
from sweep_queue.slots import Slot  # noqa: E402
from sweep_queue.sweep import Plan  # noqa: E402

pytestmark = pytest.mark.processes

STAND_IN = Path(__file__).with_name("stand_in_train.py")
NUM_SLOTS = min(2, count_cpus())
LONG = 300  # steps: three seconds, if nothing stops it


def write_sweep(folder: Path, text: str, recipe: str = "stand_in") -> Path:
    path = folder / "tiny.py"
    path.write_text(f"from sweep_queue import Slots, Sweep\nSWEEP = Sweep(recipe={recipe!r}, {text})\n")
    return path


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in this process and on two slots, with the stand-in as what trains; its exit status."""
    monkeypatch.setattr(local_queue, "TRAIN", STAND_IN)
    monkeypatch.setattr(local_queue, "check_plans", lambda plans, num_ranks: False)  # the stand-in is no recipe
    two = ["--slots", str(NUM_SLOTS), "--root", str(tmp_path / "runs")]
    return lambda sweep, *words: local_queue.main([str(sweep), *two, *words])


@contextlib.contextmanager
def queue_process(folder: Path, sweep: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The same as a process of its own."""
    script = folder / "queue_of_stand_ins.py"
    script.write_text(
        textwrap.dedent(f"""\
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "launchers")!r})
        import local_queue
        local_queue.TRAIN = Path({str(STAND_IN)!r})
        local_queue.check_plans = lambda plans, num_ranks: False
        sys.exit(local_queue.main())
        """)
    )
    words = [sys.executable, str(script), str(sweep), "--root", str(folder / "runs"), "--slots", str(NUM_SLOTS)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    with subprocess.Popen(words, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def tries(run: Path) -> list[dict[str, Any]]:
    """What the stand-in noted of tries that it saw the end of."""
    path = run / "tries.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "queue.json").read_text())
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first value of ``condition()`` that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it has not happened")


def wait_until_stepping(*runs: Path, steps: int = 12) -> list[int]:
    """Process numbers of the runs, once each has made so many steps: it has saved."""

    def stepping() -> bool:
        tables = [run / "progress.csv" for run in runs]
        return all(table.exists() and len(table.read_text().splitlines()) > steps for table in tables)

    wait_for(stepping)
    return [int((run / "pid").read_text()) for run in runs]


def assert_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 5.0)


# ---------------------------------------------------------------- twelve runs, two slots


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or NUM_SLOTS < 2, reason="needs two CPUs to pin to")
def test_twelve_runs_on_two_slots_of_which_one_fails(queue, tmp_path, capsys):
    sweep = write_sweep(
        tmp_path,
        "settings={'total_env_steps': 15}, seeds=range(6), variants={'a': {}, 'b': {'does': 'fail', 'where': 4}}",
    )
    folder = tmp_path / "runs/tiny"
    runs = [folder / f"{variant}-seed={seed}" for variant in "ab" for seed in range(6)]
    failing = folder / "b-seed=4"
    assert queue(sweep) == 1
    output = capsys.readouterr().out

    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(run.name for run in runs)
    records = {run: record(run) for run in runs}
    assert [run for run in runs if records[run]["status"] != "finished"] == [failing]
    assert all(len(tries(run)) == records[run]["tries"] == 1 for run in runs)

    def at_once(run: Path) -> list[Path]:
        """Runs that ran when this one started, itself among them."""
        at = records[run]["started"]
        return [other for other in runs if records[other]["started"] <= at < records[other]["ended"]]

    together = [at_once(run) for run in runs]
    assert max(map(len, together)) == 2
    for members in together:
        cpus = [cpu for run in members for cpu in tries(run)[0]["cpus"]]
        assert len(cpus) == len(set(cpus)), "pinned apart"
    assert {len(tries(run)[0]["cpus"]) for run in runs} <= {len(usable_cpus()) // 2, (len(usable_cpus()) + 1) // 2}
    assert all(1 <= int(tries(run)[0]["threads"]) <= len(tries(run)[0]["cpus"]) for run in runs)
    assert all(tries(run)[0]["gpus"] == "" for run in runs)

    error = "exit status 1: RuntimeError: the simulator has exploded in step 3"
    assert (records[failing]["status"], records[failing]["exit_status"], records[failing]["error"]) == (
        "failed",
        1,
        error,
    )
    assert f"failed: b-seed=4: {error}; see {failing / OUTPUT}" in output
    assert "Traceback" in (failing / OUTPUT).read_text()

    with open(folder / "results.csv", newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["variant"], float(a["mean"]), a["seeds"], a["failed"]) == ("a", 265.0, "6", "0")  # 15 + 100 * seed
    assert (float(a["lowest"]), float(a["highest"]), round(float(a["std"]), 1)) == (15.0, 515.0, 187.1)
    assert (b["variant"], float(b["mean"]), b["seeds"], b["failed"]) == ("b", 235.0, "5", "1")
    page = (folder / "results.md").read_text()
    assert "| a       | 265.0 |" in page and f"Failed: b-seed=4: {error} (`b-seed=4/output.txt`)" in page
    assert "![learning curves](learning_curves.png)" in page
    assert (folder / "learning_curves.png").stat().st_size > 5_000

    # Once more: nothing that has ended is begun again, and the failure is not forgotten.
    assert queue(sweep) == 1
    assert all(len(tries(run)) == 1 for run in runs)
    assert "failed: b-seed=4" in capsys.readouterr().out
    assert queue(sweep, "--retry", "2") == 1
    assert {run: len(tries(run)) for run in runs} == {run: 3 if run == failing else 1 for run in runs}


def test_what_fails_is_tried_again_if_asked(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 5, 'does': 'fail once'}, seeds=[0, 1]")
    assert queue(sweep, "--retry", "1") == 0
    for run in (tmp_path / "runs/tiny").glob("seed=*"):
        assert (record(run)["status"], record(run)["tries"], len(tries(run))) == ("finished", 2, 2)
    output = capsys.readouterr().out
    assert output.count("the simulator has exploded") == 2, "it was said, though all went well in the end"
    assert output.index("continued seed=0") > output.index("started   seed=1"), "others come first"


def test_what_is_killed_from_outside_has_failed(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, f"settings={{'total_env_steps': {LONG}}}, seeds=[0, 1]")
    run = tmp_path / "runs/tiny/seed=0"
    other = tmp_path / "runs/tiny/seed=1"
    with queue_process(tmp_path, sweep) as process:
        first, second = wait_until_stepping(run, other)
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGTERM)
        assert process.wait(30) == 1
    assert record(run)["error"].startswith("killed by SIGKILL (out of memory?)")
    assert record(other)["error"].startswith("stopped by SIGTERM, not from the queue")


# ---------------------------------------------------------------- stopped, killed, continued


def test_a_killed_queue_leaves_no_process_and_is_continued(queue, tmp_path):
    sweep = write_sweep(
        tmp_path,
        f"variants={{'short': {{'total_env_steps': 5}}, 'long': {{'total_env_steps': {LONG}}}, "
        f"'other': {{'total_env_steps': {LONG}}}}}",
    )
    short, long, other = (tmp_path / f"runs/tiny/{name}-seed=0" for name in ("short", "long", "other"))
    with queue_process(tmp_path, sweep) as process:
        running = [long, other][:NUM_SLOTS]
        pids = wait_until_stepping(*running)
        process.kill()
        process.wait()
        assert_gone(pids)
    assert record(short)["status"] == "finished" and record(long)["status"] == "running"
    assert queue(sweep) == 0
    assert (record(short)["tries"], len(tries(short))) == (1, 1)
    for run in running:
        (noted,) = tries(run)
        assert record(run)["status"] == "finished" and record(run)["tries"] == 2
        assert noted["begun_at"] >= 10, "from what it had saved"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_runs_save_and_leave(queue, tmp_path, number):
    sweep = write_sweep(tmp_path, f"settings={{'total_env_steps': {LONG}}}, seeds=range(3)")
    runs = [tmp_path / f"runs/tiny/seed={seed}" for seed in range(3)]
    with queue_process(tmp_path, sweep) as process:
        running = runs[:NUM_SLOTS]
        pids = wait_until_stepping(*running)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 128 + number, output
    assert_gone(pids)
    for run in running:
        assert (record(run)["status"], record(run)["exit_status"]) == ("stopped", 128 + signal.SIGTERM)
        assert f"stopped   {run.name}" in output and int((run / "saved_steps").read_text()) > 10
    assert not runs[2].exists(), "no new ones"
    assert queue(sweep) == 0
    for run in runs:
        assert record(run)["status"] == "finished"
        assert (tries(run)[-1]["begun_at"] > 10) == (run in running)


def test_a_second_signal_kills(tmp_path):
    sweep = write_sweep(tmp_path, f"settings={{'total_env_steps': {LONG}, 'does': 'hang'}}")
    run = tmp_path / "runs/tiny/seed=0"
    with queue_process(tmp_path, sweep) as process:
        pids = wait_until_stepping(run)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(5.0) == 128 + signal.SIGINT
    assert_gone(pids)
    assert record(run)["status"] == "stopped"


def test_one_queue_for_a_sweep(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, f"settings={{'total_env_steps': {LONG}}}")
    with queue_process(tmp_path, sweep) as process:
        wait_until_stepping(tmp_path / "runs/tiny/seed=0", steps=1)
        assert queue(sweep) == 2
        assert f"another queue (process {process.pid}) works on" in capsys.readouterr().err
        assert len(tries(tmp_path / "runs/tiny/seed=0")) == 0
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert queue(sweep, "--dry-run") == 0


def test_a_run_that_cannot_begin_leaves_the_others_alone(queue, tmp_path, capsys):
    """Its folder cannot be made here; as where the disk is full."""
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 5}, seeds=range(3)")
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/seed=1").symlink_to(tmp_path / "gone/away")
    assert queue(sweep) == 1
    output = capsys.readouterr().out
    assert "cannot begin in" in output and "failed: seed=1" in output
    for seed in (0, 2):
        assert record(tmp_path / f"runs/tiny/seed={seed}")["status"] == "finished"


def test_a_folder_in_which_another_process_writes_waits_for_it(tmp_path):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 5}")
    run = tmp_path / "runs/tiny/seed=0"
    run.mkdir(parents=True)
    with open(run / ".queue.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with queue_process(tmp_path, sweep, bufsize=1) as process:
            assert process.stdout is not None
            said = next(line for line in process.stdout if "held back" in line)
            assert "seed=0" in said and not (run / "pid").exists()
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(30) == 0
    assert record(run)["status"] == "finished"


def test_a_run_is_held_back_while_ranks_of_a_killed_queue_still_save(tmp_path):
    run = Run(Plan("r", "r", {}, "stand_in", ("seed=0", "name=r", "total_env_steps=5")), tmp_path / "r")
    slot = Slot(0, usable_cpus()[:1], (), 1)
    with alone_in(run.folder, RUN_LOCK, "run"):
        assert not run.start(slot, STAND_IN) and run.state == "waiting"
    assert run.start(slot, STAND_IN)
    wait_for(lambda: run.poll(is_stopping=False), 60.0)
    assert run.state == "finished"


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_several_gpus_are_ranks(tmp_path, end):
    steps, does = (LONG, "finish") if end == "stopped" else (5, "fail" if end == "failed" else "finish")
    words = ("seed=0", "name=r", f"total_env_steps={steps}", f"does={does}")
    run = Run(Plan("r", "r", {}, "stand_in", words), tmp_path / "r")
    assert run.start(Slot(0, usable_cpus()[:1], ("4", "7"), 4), STAND_IN)
    if end == "stopped":
        wait_until_stepping(run.folder)
        wait_for(lambda: (run.folder / "progress.csv").read_text().count("\n12,") == 2)
        run.stop()
    wait_for(lambda: run.poll(is_stopping=end == "stopped"), 60.0)
    assert record(run.folder)["status"] == end, (run.folder / OUTPUT).read_text()
    assert record(run.folder)["error"].endswith(
        "RuntimeError: the simulator has exploded in step 3" * (end == "failed")
    )
    noted = tries(run.folder)
    assert {(each["gpus"], each["threads"]) for each in noted} == {("4,7", "2")}
    assert end == "failed" or sorted(each["rank"] for each in noted) == ["0", "1"]


def test_whoever_reads_its_output_may_leave(tmp_path):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 20}, seeds=range(3)")
    with queue_process(tmp_path, sweep, bufsize=1) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if "started" in line)
        process.stdout.close()
        assert process.wait(30) == 0
    assert (tmp_path / "runs/tiny/results.md").exists()


# ---------------------------------------------------------------- the command line


def test_dry_run_lists_and_does_nothing(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 5}, grid={'x': [1, 2]}, seeds=range(2)")
    assert queue(sweep, "--dry-run", "--only", "seed=1") == 0
    output = capsys.readouterr().out
    assert output.count("slot ") == NUM_SLOTS
    assert [line.split()[1] for line in output.splitlines() if line.startswith("waiting")] == [
        "x=1-seed=1",
        "x=2-seed=1",
    ]
    assert "stand_in total_env_steps=5 x=2 seed=1 name=x=2" in output
    assert not (tmp_path / "runs").exists()


def test_only_some_runs(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 2}, grid={'x': [1, 2]}, seeds=range(2)")
    assert queue(sweep, "--only", "x=2") == 0
    assert sorted(path.parent.name for path in tmp_path.glob("runs/tiny/*/queue.json")) == ["x=2-seed=0", "x=2-seed=1"]
    with open(tmp_path / "runs/tiny/results.csv", newline="") as file:
        rows = [(row["x"], row["seeds"], row["unfinished"]) for row in csv.DictReader(file)]
    assert rows == [("1", "0", "2"), ("2", "2", "0")]
    assert queue(sweep, "--only", "x=3") == 2
    assert "no run's name has 'x=3' in it; the first is x=1-seed=0" in capsys.readouterr().err


def test_runs_are_not_continued_with_other_settings(queue, tmp_path, capsys):
    assert queue(write_sweep(tmp_path, "settings={'total_env_steps': 2}")) == 0
    assert queue(write_sweep(tmp_path, "settings={'total_env_steps': 3}")) == 2
    error = capsys.readouterr().err
    assert "was begun with total_env_steps=2 where the sweep now has total_env_steps=3; remove that folder" in error
    assert len(tries(tmp_path / "runs/tiny/seed=0")) == 1
    assert queue(write_sweep(tmp_path, "settings={'total_env_steps': 2}, seeds=[0, 1]")) == 0, "more runs may come"
    assert len(tries(tmp_path / "runs/tiny/seed=0")) == len(tries(tmp_path / "runs/tiny/seed=1")) == 1


def test_wrong_arguments(queue, tmp_path, capsys):
    sweep = write_sweep(tmp_path, "settings={'total_env_steps': 2}")
    assert queue(sweep, "--cpus-per-run", "1000") == 2
    assert "have room for 0: ask for fewer or smaller ones" in capsys.readouterr().err
    assert queue(tmp_path / "none.py") == 2
    with pytest.raises(SystemExit):
        queue(sweep, "--slots", "many")
    assert "'many' is neither auto nor a number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        queue(sweep, "--help")
    assert "--gpus-per-run" in capsys.readouterr().out


# ---------------------------------------------------------------- the real thing


def real_queue(*words: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launchers/local_queue.py"), *map(str, words)],
        text=True,
        capture_output=True,
        timeout=110,
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_training(tmp_path):
    sweep = write_sweep(
        tmp_path,
        "settings={'total_env_steps': 768, 'tensorboard': False, 'log_interval_steps': 256}, "
        "grid={'algo.learning_rate': [1e-3, 1e-4]}",
        recipe="debug",
    )
    output = real_queue(sweep, "--root", tmp_path)
    folder = tmp_path / "tiny"
    assert str(folder / "results.md") in output
    for rate in ("0.001", "0.0001"):
        run = folder / f"learning_rate={rate}-seed=0"
        fields = json.loads((run / "config.json").read_text())["fields"]
        assert (fields["algo"]["fields"]["learning_rate"], fields["total_env_steps"]) == (float(rate), 768)
        assert record(run)["status"] == "finished" and list((run / "checkpoints").glob("*.pt"))
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["learning_rate"] for row in rows] == ["0.001", "0.0001"]
    assert all(float(row["mean"]) > 5 and row["seeds"] == "1" for row in rows)
    assert (folder / "learning_curves.png").stat().st_size > 5_000
    assert "started" not in real_queue(sweep, "--root", tmp_path), "all is done"


def test_every_run_is_checked_before_the_first_starts(tmp_path):
    sweep = write_sweep(tmp_path, "grid={'algo.num_epochs': [1, 0]}", recipe="debug")
    output = real_queue(sweep, "--root", tmp_path / "runs", status=2)
    assert "error: num_epochs=0-seed=0: " in output and "num_epochs is 0; it must be at least 1" in output
    assert not (tmp_path / "runs").exists()
    sweep = write_sweep(tmp_path, "settings={'device': 'cuda:1'}", recipe="debug")
    assert "the queue chooses GPUs: make it 'cuda'" in real_queue(sweep, "--root", tmp_path / "runs", status=2)


def test_runs_that_cannot_be_divided_among_ranks_are_refused():
    plan = Plan("seed=0", "debug", {}, "debug", ("seed=0", "sampler.batch.num_envs=4"))
    assert local_queue.check_plans([plan], 2) is False
    with pytest.raises(ValueError, match=r"seed=0: .*num_envs"):
        local_queue.check_plans([plan], 5)
    on_gpu = Plan("seed=1", "debug", {}, "debug", ("device=cuda",))
    assert local_queue.check_plans([on_gpu], 1) is True
    with pytest.raises(ValueError, match="make it two sweeps"):
        local_queue.check_plans([plan, on_gpu], 1)


def test_runs_with_a_value_of_the_wrong_kind_are_refused(tmp_path, monkeypatch):
    text = "from rlsurreal.recipes import debug\n\ndef make():\n    made = debug()\n    made.algo.num_epochs = 2.0\n"
    (tmp_path / "kinds_of_mine.py").write_text(f"{text}    return made\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^one: algo.num_epochs is 2.0, a float; it must be an int: write 2$"):
        local_queue.check_plans([Plan("one", "one", {}, "kinds_of_mine:make", ())], 1)


# ---------------------------------------------------------------- on a terminal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_the_end_of_a_terminal(tmp_path, number):
    sweep = write_sweep(tmp_path, f"settings={{'total_env_steps': {LONG}}}")
    run = tmp_path / "runs/tiny/seed=0"
    ours, theirs = pty.openpty()
    with queue_process(
        tmp_path,
        sweep,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        wait_until_stepping(run)
        if number == signal.SIGINT:
            os.write(ours, b"\x03")
            shown = b""
            with contextlib.suppress(OSError):  # when the other end is closed
                while part := os.read(ours, 4096):
                    shown += part
            assert b"tiny: 1 running, 0 waiting, 0 finished" in shown and b"SIGINT: runs save and leave" in shown
        os.close(ours)
        assert process.wait(30) == 128 + number
    assert record(run)["exit_status"] == 128 + signal.SIGTERM, "the terminal's signal came to the queue alone"
