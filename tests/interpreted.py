"""Programs without a C++ compiler: the graphs that would be compiled, run operation by operation.

What may differ between what is run eagerly and compiled is the graph: what was taken for constant, what is written
where.  That shows here in a second.  What the compiler makes of graphs is tested with some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlsurreal.agents import base
from rlsurreal.utils import programs


class _Interpreter:
    def __init__(self, exported: Any) -> None:
        self._module = exported.module()

    @torch.no_grad()
    def run(self, tensors: list[torch.Tensor]) -> None:
        """Like a loaded library's."""
        self._module(*tensors)


def _interpret(function: Callable[..., None], *example: Any, num_threads: int | None = None) -> programs.Program:
    """Like `programs.compile_program`."""
    on_leaves, tensors = programs._on_leaves(function, example)
    exported = programs._export(programs._trace(on_leaves, tensors), tensors)
    return programs.Program("", programs.signature_of(tensors), _Interpreter(exported))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this test, compiled means interpreted."""
    for module in (programs, base):
        monkeypatch.setattr(module, "compile_program", _interpret)
