"""Bars of what was measured."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main
from benchmarks.draw import bars
from benchmarks.rows import Row, read, write


def rows():
    names = [("first", 10.0), ("first in less precision", 20.0)]
    peers = [("SB3 2.9.2 (screened once)", 3.0), ("limit", 40.0), ("SBX 0.28.0", 5.0)]
    return [
        Row("W1 PPO", name, "env steps/s", ours, peer, theirs, ours / theirs)
        for name, ours in names
        for peer, theirs in peers
    ]


def test_bars_are_ours_and_every_peer_s_fastest_first():
    assert bars(rows(), "W1") == ("W1 PPO", "env steps/s", [("rlsurreal", 10.0), ("SBX", 5.0), ("SB3*", 3.0)])
    with pytest.raises(ValueError, match="no workload begins with 'W9'; there are: W1 PPO"):
        bars(rows(), "W9")


def test_the_picture_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    write(rows(), tmp_path / "rows.json")
    assert read(tmp_path / "rows.json")
    words = ["draw", "--rows", str(tmp_path / "rows.json"), "--out", str(tmp_path / "bars.png"), "--workloads", "W1"]
    assert main(words) == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
