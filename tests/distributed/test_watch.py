"""A rank whose store never answers: it ends all the same, and says why, wherever its main thread stands."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from rlsurreal.distributed import watch
from tests.torchrun import environment

SCRIPT = """
import sys, time
from rlsurreal.distributed import watch

class Store:
    "Answers until the link is cut; then a call never returns."
    def __init__(self):
        self.texts, self.is_cut = {}, False
    def set_timeout(self, limit):
        pass
    def set(self, key, text):
        self.texts[key] = text.encode()
    def multi_get(self, keys):
        while self.is_cut:
            time.sleep(1)
        return [self.texts[key] for key in keys]

watch._BEAT_S, watch._STALE_S, watch._STORE_S, watch._LEAVE_S = 0.1, 0.5, 0.5, 0.5
store = Store()
mine = watch.RankWatch(store, 0, 1, timeout_s=100)
mine.start()
time.sleep(0.5)
mine.check()
store.is_cut = True
where, = sys.argv[1:]
if where == "asks":  # in a collective of ours
    with mine.waiting():
        while True:
            mine.check()
            time.sleep(0.1)
if where == "waits":  # in a backward pass
    with mine.waiting():
        time.sleep(1000)
time.sleep(0.3)
mine.close()  # a peaceful end, before anybody has noticed
print("closed", flush=True)
"""


NOWHERE = lambda index: False  # noqa: E731  # no rank is on this host


def test_a_rank_that_is_busy_has_more_time():
    judge = watch._Judge(10.0, NOWHERE)
    busy, waits = watch.Sign("a", 1, 0.0, is_busy=True), watch.Sign("a", 2, 0.0, waits_s=150.0)
    assert judge([busy, waits]) == ("", "")
    waits.waits_s = 250.0
    assert "The limit is 20 times rank_timeout_s=10." in judge([busy, waits])[0]
    busy.is_busy, waits.waits_s = False, 11.0
    failure, _ = judge([busy, waits])
    assert "for 11 s ranks have waited for rank 0 on host a" in failure and "The limit is rank_timeout_s=10." in failure


def test_a_rank_without_a_sign_is_lost_unless_it_is_seen_to_be_at_work(monkeypatch):
    now = 0.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    far, near = watch._Judge(300.0, NOWHERE), watch._Judge(300.0, lambda index: True)
    silent, waits = watch.Sign("a", 1, 0.0, waits_s=1.0), watch.Sign("a", 2, 0.0, waits_s=0.5)

    def ask(judge: watch._Judge) -> str:
        waits.beat += 1
        return judge([silent, waits])[0]

    assert ask(far) == ask(near) == ""
    now, waits.waits_s = 12.0, 12.0
    assert "rank 0 on host a (pid 1) has given no sign of life for 12 s" in ask(far) and ask(near) == ""
    now, waits.waits_s = 301.0, 301.0
    assert "ranks have waited for rank 0" in ask(near), "what it said of waiting is long ago"
    far.forget()  # this process was suspended, too
    assert ask(far) == ""


def test_a_rank_that_left_is_not_waited_for() -> None:
    judge = watch._Judge(1e6, NOWHERE)
    left, waits = watch.Sign("a", 1, 0.0, is_closed=True), watch.Sign("a", 2, 0.0, waits_s=3.0)
    assert judge([left, waits]) == ("", ""), "it may be about to leave, too"
    waits.waits_s = 30.0
    failure, _ = judge([left, waits])
    assert "rank 0 on host a (pid 1) has left the run, and others have waited for 30 s" in failure


@pytest.mark.processes
@pytest.mark.parametrize("where", ["asks", "waits", "leaves"])
def test_a_store_that_never_answers_holds_nobody(tmp_path, where: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), where], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert time.monotonic() - started < 30
    if where == "leaves":
        assert done.returncode == 0 and "closed" in done.stdout, done.stderr
    else:
        assert done.returncode == 1 and "RankError: the ranks' store" in done.stderr, done.stderr
        assert ("rank 0 ends:" in done.stderr) == (where == "waits")
