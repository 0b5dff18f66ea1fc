"""Who of the ranks is alive, what the dead said last, and who keeps the others waiting.

    every rank's thread -- its sign --> store --> first rank's thread -- verdict --> store --> every rank's thread
          |                                                                                        |
          +-- looks after the processes on its own host                main thread: check(), cause() raise RankError

    loop               consumes              produces               waits for            is unblocked by
    watch, first rank  signs of all ranks    the verdict            a second             `close`
    watch, others      verdict, its sign     its own sign           a second             `close`
    guard              what is found         the process's end      a second             `close`

A sign says where the rank is, whether it waits for others, and where its main thread stands if it lets them wait.
Where the store does not answer, or the first rank gives no sign, every rank finds that out for itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil

_log = logging.getLogger("rlsurreal")
_BEAT_S = 1.0
_STALE_S = 10.0  # without a sign for so long, a rank is lost
_STORE_S = 5.0  # for an answer of the store
PATIENCE = 20  # how many times the limit a rank has that evaluates, saves or restores
_LATE_S = 10.0  # first notice of a rank that keeps others waiting; the next after twice the time
_STACK_S = 5.0  # a rank that has met no other for so long says where it is
_LEAVE_S = 5.0  # for the main thread to end after a failure was found
_SAVE_S = 60.0  # the same for the first rank, which saves what was learned
_CLOCK_S = 2.0  # by which the time of a process's start may seem to move
_VERDICT = "rlsurreal/verdict"


class RankError(RuntimeError):
    """Another rank has failed, or is not there any more."""


@dataclass
class Sign:
    """What a rank says of itself."""

    host: str
    pid: int
    born: float  # time of the process's start: hosts of one name may have processes of one number
    beat: int = 0
    waits_s: float = 0.0  # for others, at present
    is_busy: bool = False  # with what it alone may have to do, however long it takes
    stack: str = ""  # of the main thread, where it has met no other for a while
    words: str = ""  # its last: a traceback
    found: str = ""  # of another rank on its host
    is_closed: bool = False  # it has left in peace


class RankWatch:
    """This rank's part of the watch; `start` when all ranks have made theirs.

    Args:
        store: this object's own connection to the ranks' store.
        index: of this rank.
        count: of ranks.
        timeout_s: a rank that lets others wait so long fails the run; `busy`, it may take 20 times as long.
    """

    def __init__(self, store: Any, index: int, count: int, timeout_s: float) -> None:
        self._store, self._index, self._count, self._timeout_s = store, index, count, timeout_s
        self._store.set_timeout(timedelta(seconds=_STORE_S))
        self._sign = Sign(socket.gethostname(), os.getpid(), psutil.Process().create_time())
        self._neighbours: dict[int, psutil.Process] = {}
        self._judge = _Judge(timeout_s, self._is_seen_alive)
        self._failure = ""
        self._noticed = ""
        self._parent = os.getppid()
        self._lock = threading.Lock()  # one user of the store at a time
        self._answered = self._met = self._looked = time.monotonic()
        self._waits_since: float | None = None
        self._failed_at: float | None = None
        self._closing = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
        self._guard_thread = threading.Thread(target=self._guard, name="rank guard", daemon=True)
        self._store.set(self._key(index), json.dumps(asdict(self._sign)))
        if index == 0:
            self._store.set(_VERDICT, json.dumps({"failure": "", "notice": ""}))

    def start(self) -> None:
        """Begin."""
        self._met = self._answered = self._looked = time.monotonic()
        self._neighbours = self._find_neighbours()
        self._thread.start()
        self._guard_thread.start()

    # ------------------------------------------------------------ the main thread

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In here the other ranks are waited for."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since, self._met = None, time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """In here the others have to wait for longer than usual."""
        self._sign.is_busy = True
        try:
            yield
        finally:
            self._sign.is_busy = False

    def check(self) -> None:
        """RankError if the run cannot go on."""
        if self._failure:
            raise RankError(self._failure)

    def cause(self, fallback: str) -> RankError:
        """Why a connection has broken, as soon as somebody says it; ``fallback`` if nobody does."""
        deadline = time.monotonic() + _STALE_S + 2 * _BEAT_S
        while time.monotonic() < deadline:
            try:
                self.check()
            except RankError as error:
                return error
            time.sleep(0.1)
        return RankError(fallback)

    def say_last_words(self, error: BaseException) -> None:
        """Tell the others why this rank ends; not if it ends because of them."""
        if isinstance(error, RankError):
            return
        self._sign.words = "".join(traceback.format_exception(error))
        with contextlib.suppress(RuntimeError):
            self._publish()

    def close(self) -> None:
        """Leave: from now on no sign is expected."""
        self._closing.set()
        self._sign.is_closed = True
        self._guard_thread.join()
        if not self._failure:  # else nobody looks any more, and the store may never answer
            self._thread.join(_STORE_S)
            if not self._thread.is_alive():  # else it is stuck in the store, and so would this one be
                with contextlib.suppress(RuntimeError):
                    self._publish()

    # ------------------------------------------------------------ the threads

    def _run(self) -> None:
        while not self._closing.wait(_BEAT_S):
            with contextlib.suppress(RuntimeError):  # of the store
                self._look()
                self._answered = time.monotonic()

    def _guard(self) -> None:
        """The store's own time limit does not hold: over a link that is cut, a call of it may never return."""
        looked = time.monotonic()
        while not self._closing.wait(_BEAT_S):
            if time.monotonic() - looked > _STALE_S:  # nobody in this process could do anything: it was suspended
                self._answered = time.monotonic()
            looked = time.monotonic()
            silent = looked - self._answered
            if silent > _STALE_S + _STORE_S:
                self._fail(self._store_is_lost(silent))
            if os.getppid() != self._parent:
                self._fail("torchrun's agent, which started this rank, has ended")
            self._leave_if_stuck()

    def _look(self) -> None:
        now, sign = time.monotonic(), self._sign
        if now - self._looked > _STALE_S:  # this process was suspended, and perhaps all the others
            self._judge.forget()
        self._looked = now
        waits_since = self._waits_since
        sign.beat += 1
        sign.waits_s = 0.0 if waits_since is None else now - waits_since
        sign.stack = self._main_stack() if waits_since is None and now - self._met > _STACK_S else ""
        sign.found = sign.found or self._look_after_neighbours()
        self._publish()
        if self._index == 0:
            signs = [Sign(**json.loads(text)) for text in self._get([self._key(i) for i in range(self._count)])]
            failure, notice = self._judge(signs)
            self._set(_VERDICT, json.dumps({"failure": failure, "notice": notice}))
        else:
            verdict, first = self._get([_VERDICT, self._key(0)])
            failure, notice = json.loads(verdict)["failure"], json.loads(verdict)["notice"]
            judge = Sign(**json.loads(first))  # which says no more about itself
            said = f"{_name(0, judge)} failed:\n\n{judge.words}" if judge.words else ""
            failure = said or failure or sign.found or self._judge.lost(0, judge)
        if failure:
            self._fail(failure)
        elif notice and notice != self._noticed:
            _log.warning("%s", notice)
        self._noticed = notice

    def _main_stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)[-8:]) if frame else ""

    def _find_neighbours(self) -> dict[int, psutil.Process]:
        """The other ranks on this host."""
        signs = [Sign(**json.loads(text)) for text in self._get([self._key(i) for i in range(self._count)])]
        found = {}
        for i, sign in enumerate(signs):
            if i != self._index and sign.host == self._sign.host:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(sign.pid)
                    if abs(process.create_time() - sign.born) < _CLOCK_S:
                        found[i] = process
        return found

    def _is_seen_alive(self, index: int) -> bool:
        """Whether rank ``index`` is on this host, and at work: then a call may keep Python from all its threads."""
        process = self._neighbours.get(index)
        if process is None or has_ended(process):
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(process.status() != psutil.STATUS_STOPPED)
        return False

    def _look_after_neighbours(self) -> str:
        for i, process in self._neighbours.items():
            if has_ended(process):
                sign = Sign(**json.loads(self._get([self._key(i)])[0]))
                if not sign.is_closed and not sign.words:
                    return f"{_name(i, sign)} has ended without a word: it was killed, or crashed outside Python"
        return ""

    def _fail(self, failure: str) -> None:
        if not self._failure:
            self._failure, self._failed_at = failure, time.monotonic()

    def _leave_if_stuck(self) -> None:
        """The main thread is told by `check`; where it waits elsewhere, it never asks.

        For a device, say; or in a backward pass, for the connection to a host that has gone without a word.
        """
        saves = self._index == 0 and self._waits_since is None
        limit = _SAVE_S if saves else _LEAVE_S
        is_late = self._failed_at is not None and time.monotonic() - self._failed_at > limit
        if is_late and not self._closing.is_set():
            sys.stderr.write(f"rank {self._index} ends: RankError: {self._failure}\n")
            sys.stderr.flush()
            os._exit(1)

    def _store_is_lost(self, silent_s: float) -> str:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        return f"the ranks' store ({address}) has not answered for {silent_s:.0f} s: its host or the link is lost"

    # ------------------------------------------------------------ the store

    def _publish(self) -> None:
        self._set(self._key(self._index), json.dumps(asdict(self._sign)))

    def _set(self, key: str, text: str) -> None:
        with self._lock:
            self._store.set(key, text)

    def _get(self, keys: list[str]) -> list[str]:
        with self._lock:
            return [text.decode() for text in self._store.multi_get(keys)]

    @staticmethod
    def _key(index: int) -> str:
        return f"rlsurreal/sign/{index}"


@dataclass
class _Seen:
    beat: int
    at: float


class _Judge:
    """What signs come to: a failure, or a notice."""

    def __init__(self, timeout_s: float, is_seen_alive: Callable[[int], bool]) -> None:
        self._timeout_s, self._is_seen_alive = timeout_s, is_seen_alive
        self._seen: dict[int, _Seen] = {}
        self._notice, self._next_notice_s = "", _LATE_S

    def __call__(self, signs: list[Sign]) -> tuple[str, str]:
        """Failure and notice, either may be empty."""
        for i, sign in enumerate(signs):
            if sign.words:
                return f"{_name(i, sign)} failed:\n\n{sign.words}", ""
        found = [sign.found for sign in signs if sign.found] + [self.lost(i, sign) for i, sign in enumerate(signs)]
        if any(found):
            return next(filter(None, found)), ""
        longest = max(sign.waits_s for sign in signs)
        left = [i for i, sign in enumerate(signs) if sign.is_closed]
        if left and longest > _LATE_S:
            return f"{_name(left[0], signs[left[0]])} has left the run, and others have waited for {longest:.0f} s", ""
        late = [i for i, sign in enumerate(signs) if not sign.is_closed and (sign.waits_s == 0 or self._is_stale(i))]
        idle = [i for i in late if not signs[i].is_busy]
        if longest < _LATE_S or not idle:
            self._notice, self._next_notice_s = "", _LATE_S
        elif longest >= self._next_notice_s:
            self._notice = self._tell(longest, idle, signs)
            self._next_notice_s = 2 * longest
        times = 1 if idle else PATIENCE
        if longest > self._timeout_s * times and late:
            limit = f"{'' if idle else f'{times} times '}rank_timeout_s={self._timeout_s:g}"
            return f"{self._tell(longest, late, signs)}\n\nThe limit is {limit}.", ""
        return "", self._notice

    @staticmethod
    def _tell(waited_s: float, late: list[int], signs: list[Sign]) -> str:
        names = "\n\n".join(f"{_name(i, signs[i])}, which is here:\n{signs[i].stack}" for i in late[:3])
        more = f"\n\nand {len(late) - 3} more" if len(late) > 3 else ""
        return f"for {waited_s:.0f} s ranks have waited for {names}{more}"

    def lost(self, index: int, sign: Sign) -> str:
        """What is to be said of a rank that gives no sign any more."""
        now, seen = time.monotonic(), self._seen.get(index)
        if seen is None or seen.beat != sign.beat or sign.is_closed:
            self._seen[index] = _Seen(sign.beat, now)
        elif now - seen.at > _STALE_S and not self._is_seen_alive(index):
            return f"{_name(index, sign)} has given no sign of life for {now - seen.at:.0f} s"
        return ""

    def _is_stale(self, index: int) -> bool:
        """Whether a sign is so old that its rank may not wait any more."""
        seen = self._seen.get(index)
        return seen is not None and time.monotonic() - seen.at > _STALE_S

    def forget(self) -> None:
        """Count anew for how long ranks have given no sign."""
        self._seen.clear()


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has, even if nobody has asked for its exit status yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _name(index: int, sign: Sign) -> str:
    return f"rank {index} on host {sign.host} (pid {sign.pid})"
