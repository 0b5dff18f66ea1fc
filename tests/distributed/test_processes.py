import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from rlsurreal.distributed.processes import ChildError, Launcher
from rlsurreal.distributed.zygote import send_to_master

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
        from rlsurreal.distributed.zygote import send_to_master
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
        from rlsurreal.distributed.zygote import send_to_master
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
    launcher.start("first", _say, "ready").receive(30)
    start = time.monotonic()
    children = [launcher.start(f"child-{i}", _say, "ready") for i in range(64)]
    assert [child.receive(30) for child in children] == ["ready"] * 64
    assert time.monotonic() - start < 10
