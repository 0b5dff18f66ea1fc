from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from benchmarks.rows import Row, bootstrap_interval, compare_rounds, read, table, write


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    row = compare_rounds("w", "n", "u", [10, 30, 40], "peer 1.0", [10, 10, 20])
    assert row.ratio == 2  # of 1, 3, 2; the ratio of the medians would be 3
    assert (row.ours, row.theirs) == (30, 10)
    assert row.ours_range == (10, 40) and row.theirs_range == (10, 20)


def test_above_one_is_better_also_where_less_is_better():
    row = compare_rounds("w", "n", "s", [5, 5, 5], "peer", [10, 10, 10], less_is_better=True)
    assert row.ratio == 2 and (row.low, row.high) == (2, 2)


def test_the_interval_is_that_of_a_plain_bootstrap():
    values = [1.0, 1.2, 1.5, 1.9, 2.4, 2.5, 3.0]
    rng = np.random.default_rng(1)
    medians = sorted(statistics.median(rng.choice(values, len(values)).tolist()) for _ in range(20_000))
    low, high = bootstrap_interval(values)
    # Medians of resamples are values of the sample, so the quantiles of both agree exactly unless one is on an edge.
    assert low == medians[int(0.025 * len(medians))] and high == medians[int(0.975 * len(medians))]
    assert low < statistics.median(values) < high


def test_one_round_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval([1.0]))


def test_rows_survive_the_file(tmp_path):
    rows = [compare_rounds("w", "n", "u", [1, 2], "p", [3, 4]), Row("w", "n", "u", 1.0, "nobody", math.nan, math.nan)]
    write(rows, tmp_path / "new" / "rows.json")
    again = read(tmp_path / "new" / "rows.json")
    assert again[0] == rows[0]
    assert again[1].ours == 1.0 and math.isnan(again[1].theirs) and math.isnan(again[1].low)
    assert "NaN" not in (tmp_path / "new" / "rows.json").read_text()


def test_rows_of_the_first_format_can_be_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('[{"workload":"w","name":"n","unit":"u","ours":1,"against":"limit","theirs":2,"ratio":0.5}]')
    assert read(path)[0].ratio == 0.5


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="x.json does not hold rows"):
        read(path)


def test_the_table_is_aligned_markdown():
    lines = table([compare_rounds("w", "name", "u", [1234.5, 1300], "peer", [10, 10])])
    assert len({len(line) for line in lines}) == 1
    assert "1,267 [1,234-1,300]" in lines[2] and "126.72" in lines[2]
