import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from rlsurreal.distributed.processes import ChildError, Launcher
from rlsurreal.distributed.signals import Signal
from rlsurreal.distributed.zygote import at_end, send_to_master

pytestmark = pytest.mark.processes


@pytest.fixture
def launcher():
    made = Launcher()
    yield made
    made.close()


def _say(words: str) -> None:
    send_to_master(words)


def _fail() -> None:
    raise KeyError("no such thing")


def _sleep() -> None:
    send_to_master(os.getpid())
    time.sleep(60)


def _leave() -> None:
    os._exit(3)


def test_messages_and_exit_status(launcher):
    child = launcher.start("talker", _say, "hello")
    assert child.receive(30) == "hello"
    assert child.join(10) and child.exit_code == 0
    with pytest.raises(ChildError, match="ended by itself with exit status 0"):
        child.check()


def test_a_failure_brings_its_own_traceback(launcher):
    child = launcher.start("worker-7", _fail)
    with pytest.raises(ChildError, match=r"(?s)worker-7 failed:.*in _fail.*KeyError: 'no such thing'"):
        child.receive(30)


def test_a_killed_child_is_noticed_at_once(launcher):
    child = launcher.start("victim", _sleep)
    os.kill(child.receive(30), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(ChildError, match="victim.*killed by SIGKILL"):
        child.receive(30)
    assert time.monotonic() - start < 2


def test_a_child_that_leaves_without_a_word(launcher):
    child = launcher.start("quitter", _leave)
    with pytest.raises(ChildError, match="exit status 3"):
        child.receive(30)


def test_receive_times_out(launcher):
    child = launcher.start("sleeper", _sleep)
    child.receive(30)
    with pytest.raises(TimeoutError, match="sleeper.*0.1 s"):
        child.receive(0.1)


def test_close_kills_what_is_left():
    launcher = Launcher()
    pid = launcher.start("sleeper", _sleep).receive(30)
    launcher.close()
    launcher.close()
    assert not psutil.pid_exists(pid)


def test_functions_of_the_main_script_travel_without_importing_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys
        from rlsurreal.distributed.processes import Launcher
        from rlsurreal.distributed.zygote import at_end, send_to_master
        print("imported", flush=True)
        def work():
            send_to_master((sys.modules["__main__"].__dict__.get("__file__"), "torch" in sys.modules))
        if __name__ == "__main__":
            launcher = Launcher()
            print(launcher.start("child", work).receive(30))
            launcher.close()
    """)
    )
    out = subprocess.check_output(
        [sys.executable, script],
        text=True,
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert out.split("\n")[:2] == ["imported", "(None, False)"]


@pytest.mark.parametrize("victim", ["master", "zygote"])
def test_nobody_survives_kill_9(tmp_path, victim):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, time
        from rlsurreal.distributed.processes import Launcher
        from rlsurreal.distributed.zygote import at_end, send_to_master
        def work():
            send_to_master(os.getpid())
            time.sleep(100)
        launcher = Launcher()
        pids = [launcher.start("child", work).receive(30) for _ in range(3)]
        print(launcher._zygote.pid, *pids, flush=True)
        time.sleep(100)
    """)
    )
    master = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids = [int(word) for word in master.stdout.readline().split()]
    assert len(pids) == 4
    os.kill(master.pid if victim == "master" else pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    master.kill()
    master.wait()
    assert not [pid for pid in pids if _running(pid)]


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_64_children_start_within_seconds(launcher):
    # Not a function of this file, which each child would import with pytest and all.
    launcher.start("first", send_to_master, "ready").receive(30)
    start = time.monotonic()
    children = [launcher.start(f"child-{i}", send_to_master, "ready") for i in range(64)]
    assert [child.receive(30) for child in children] == ["ready"] * 64
    assert time.monotonic() - start < 10


def _count(signals: list[Signal]) -> None:
    for signal_ in signals:
        signal_.wait()
    send_to_master(len({signal_.fileno() for signal_ in signals}))


@pytest.mark.parametrize("number", [0, 249, 250, 251, 600])
def test_a_child_can_be_given_hundreds_of_descriptors(launcher, number):
    signals = [Signal() for _ in range(number)]
    child = launcher.start("counter", _count, signals)
    for signal_ in signals:  # each is the master's own, not just any descriptor
        signal_.post()
    assert child.receive(30) == number
    assert child.join(10) and child.exit_code == 0


@pytest.mark.parametrize(
    "content",
    ["raise ValueError('no licence')", "import rlsurreal.no_such_module", "1 / 0", "def broken(:"],
    ids=["value-error", "import-error", "arithmetic", "syntax"],
)
def test_a_module_that_cannot_be_preloaded_stops_nobody(tmp_path, monkeypatch, content):
    (tmp_path / "cannot_be_imported.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    launcher = Launcher(["cannot_be_imported", "json.tool"])
    try:
        assert launcher.start("talker", _loaded).receive(30) == (False, True)
    finally:
        launcher.close()


def _loaded() -> None:
    send_to_master(("cannot_be_imported" in sys.modules, "json.tool" in sys.modules))


def test_paths_may_be_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    launcher = Launcher()
    try:
        child = launcher.start("talker", _places)
        assert str(tmp_path) in child.receive(30)
    finally:
        launcher.close()


def _places() -> None:
    send_to_master(sys.path)


def test_the_end_of_the_process_that_starts_workers_is_said():
    launcher = Launcher()
    try:
        child = launcher.start("worker-3", _sleep)
        child.receive(30)
        launcher._zygote.kill()
        start = time.monotonic()
        with pytest.raises(ChildError, match="(?s)worker-3 failed.*process that starts workers has ended"):
            child.receive(30)
        with pytest.raises(ChildError, match="process that starts workers has ended"):
            child.check()
        launcher._zygote.wait(10)
        with pytest.raises(ChildError, match="process that starts workers ended with status -9 before worker-4"):
            for _ in range(2):  # a socket takes one request more
                launcher.start("worker-4", _sleep)
        assert time.monotonic() - start < 5
    finally:
        launcher.close()


def _leave_badly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sys.stdout = os.fdopen(writer, "w")  # as where `| tee` has ended
    sys.stdout.write("nobody reads this")
    at_end.append(sys.exit)
    at_end.append(lambda: send_to_master("cleaned up"))


def test_a_child_that_cannot_leave_cleanly_harms_no_other(launcher):
    older = launcher.start("older", _sleep)
    older.receive(30)
    child = launcher.start("younger", _leave_badly)
    assert child.receive(30) == "cleaned up"
    assert child.join(10) and child.exit_code == 0
    time.sleep(0.2)
    assert older.alive


def _terminate_what_it_started() -> None:
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    try:
        send_to_master(program.wait(5))
    finally:
        program.kill()


def test_what_children_start_can_be_terminated(launcher):
    assert launcher.start("simulated", _terminate_what_it_started).receive(30) == -signal.SIGTERM


def test_children_are_not_terminated_with_their_group(launcher):
    child = launcher.start("sleeper", _sleep)
    pid = child.receive(30)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
        os.kill(launcher._zygote.pid, number)
    time.sleep(0.3)
    assert child.alive and launcher._zygote.poll() is None
