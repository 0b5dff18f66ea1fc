"""What environments returned, written into arrays; see `test_gymnasium_env` for most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces as gs

from rlsurreal.envs.rows import RowError, observation_writer


@pytest.mark.parametrize("where", [slice(None), np.array([0, 2, 1])])
@pytest.mark.parametrize("elements", [[3, 0, 4], [3, np.int64(0), 4], [3, True, np.int32(4)]])
def test_whole_numbers_of_any_kind(elements: list[Any], where: Any) -> None:
    array = np.full(3, -1)
    observation_writer(gs.Discrete(5))(array, where, elements)
    assert array[where].tolist() == [int(element) for element in elements]


@pytest.mark.parametrize("bad", [2**70, 0.5, "3", None, [1]])
def test_what_is_no_whole_number_is_named(bad: Any) -> None:
    with pytest.raises(RowError) as caught:
        observation_writer(gs.Discrete(5))(np.zeros(3, np.int64), slice(None), [1, bad, 2])
    assert caught.value.position == 1


def test_numbers_that_begin_elsewhere() -> None:
    array = np.zeros(2, np.int64)
    observation_writer(gs.Discrete(5, start=10))(array, slice(None), [10, 14])
    assert array.tolist() == [0, 4]
