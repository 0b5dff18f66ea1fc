"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from tests.interpreted import interpreted  # noqa: F401


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """EnvPool has no wheels for Python 3.10."""
    try:
        return (yield)
    except ImportError as error:
        if sys.version_info < (3, 11) and "rlsurreal[envpool]" in str(error):
            pytest.skip("EnvPool is not for this version of Python")
        raise
