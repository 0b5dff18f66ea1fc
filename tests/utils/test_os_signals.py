"""Signals handled for a while."""

import signal

import pytest

from rlsurreal.utils.os_signals import handled


def test_handlers_are_put_back_and_those_of_libraries_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = signal.getsignal(signal.SIGUSR1), []
    with handled([signal.SIGUSR1], seen.append):
        signal.raise_signal(signal.SIGUSR1)
    assert seen == [signal.SIGUSR1] and signal.getsignal(signal.SIGUSR1) == before
    # Python cannot put back what was installed in C, of which it knows nothing.
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *arguments: pytest.fail("a library's handler was replaced"))
    with handled([signal.SIGUSR1], seen.append, even_ignored=True):
        pass
