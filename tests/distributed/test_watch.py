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


def test_a_rank_that_left_is_not_waited_for() -> None:
    judge = watch._Judge(timeout_s=1e6)
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
