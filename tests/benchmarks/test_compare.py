from __future__ import annotations

import math

import pytest

from benchmarks.__main__ import main
from benchmarks.compare import compare, key_of, nearest_baseline
from benchmarks.rows import Row, write


def make_row(ratio, name="rlsurreal, EnvPool", against="SB3 2.9.2", workload="W1"):
    return Row(workload, name, "env steps/s", ratio, against, 1.0, ratio)


def test_a_loss_is_a_ratio_lower_by_more_than_the_tolerance():
    old = [make_row(2.0), make_row(2.0, workload="W1b"), make_row(2.0, workload="W3")]
    new = [make_row(1.71), make_row(1.69, workload="W1b"), make_row(2.4, workload="W3")]
    result = compare(new, old, 0.15)
    assert [b.workload for _, b in result.lost] == ["W1b"]
    assert [b.workload for _, b in result.gained] == ["W3"]
    assert result.num_compared == 3


def test_rows_match_whatever_the_version_and_the_winner():
    one = make_row(1.0, "our best (workers, 64 envs)", "EnvPool, lock step 1.2.5")
    other = make_row(1.0, "our best (serial, 16 envs)", "EnvPool, lock step 1.3.0 (screened once)")
    assert key_of(one) == key_of(other)
    assert key_of(make_row(1.0, "workers, 16 envs")) != key_of(make_row(1.0, "workers, 64 envs"))
    assert key_of(make_row(1.0, against="SB3 2.9.2")) != key_of(make_row(1.0, against="SBX 0.28.0"))
    assert key_of(make_row(1.0, workload="W1 16x128, 32 of 64")) != key_of(
        make_row(1.0, workload="W1b 16x128, 4 of 512")
    )


def test_a_ratio_that_is_gone_is_a_loss_and_a_row_that_was_not_measured_is_none():
    result = compare([make_row(math.nan)], [make_row(2.0), make_row(2.0, workload="W3")], 0.15)
    assert len(result.lost) == 1
    assert [row.workload for row in result.missing] == ["W3"]


@pytest.mark.parametrize(("ratio", "status"), [(2.0, 0), (1.8, 0), (1.6, 1)])
def test_the_exit_status_says_whether_anything_was_lost(tmp_path, capsys, ratio, status):
    write([make_row(2.0)], tmp_path / "old.json")
    write([make_row(ratio)], tmp_path / "new.json")
    assert main(["compare", str(tmp_path / "new.json"), "--baseline", str(tmp_path / "old.json")]) == status
    assert ("LOST" in capsys.readouterr().out) == bool(status)


def test_the_nearest_baseline_has_the_most_rows_in_common(tmp_path):
    write([make_row(2.0)], tmp_path / "a.json")
    write([make_row(2.0), make_row(2.0, workload="W3")], tmp_path / "b.json")
    assert nearest_baseline([make_row(1.0), make_row(1.0, workload="W3")], tmp_path).name == "b.json"
    with pytest.raises(ValueError, match="name one with --baseline"):
        nearest_baseline([make_row(1.0, workload="other")], tmp_path)


def test_comparing_nothing_is_an_error(tmp_path):
    write([make_row(2.0)], tmp_path / "old.json")
    write([make_row(2.0, workload="other")], tmp_path / "new.json")
    with pytest.raises(SystemExit, match="no rows in common"):
        main(["compare", str(tmp_path / "new.json"), "--baseline", str(tmp_path / "old.json")])
