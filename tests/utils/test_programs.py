"""Programs: what they compute, what they refuse, and how they are kept."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsurreal.utils import program_builder, programs
from rlsurreal.utils.namedarraytuple import NamedArrayTuple
from rlsurreal.utils.programs import CompileError, Specialized, compile_program, should_compile

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(300)  # some compile twice


class Pair(NamedArrayTuple):
    left: Any
    right: Any = None


def scaled(weights: Tensor, inputs: Pair, nothing: None, out: dict[str, Tensor]) -> None:
    assert nothing is None
    out["sum"].copy_((inputs.left @ weights).sum(-1))
    inputs.left.add_(1)


def arguments(num_rows: int = 3) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(num_rows, 4, generator=generator)
    return torch.rand(4, 2, generator=generator), Pair(left), None, {"sum": torch.zeros(num_rows)}


def test_auto_compiles_what_earns_back_the_time():
    assert should_compile("auto", 1_000_000, 1e-3) and not should_compile("auto", 1_000_000, 1e-6)
    assert not should_compile("auto", None, 1.0)
    assert should_compile("on", None, 0.0) and not should_compile("off", 1_000_000, 1.0)


def test_recurrent_updates_are_not_compiled_and_say_so_if_that_was_wanted(caplog):
    assert not should_compile("auto", 1_000_000, 1.0, recurrent=True) and not caplog.records
    assert not should_compile("on", None, 1.0, recurrent=True) and "the model is recurrent" in caplog.text


@pytest.mark.compiles
def test_program_does_what_the_function_does(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own, theirs = arguments(), arguments()
    with caplog.at_level(logging.INFO, "rlsurreal"):
        program = compile_program(scaled, *own)
    scaled(*theirs)
    for each in (program, pickle.loads(pickle.dumps(program))):
        own = arguments()
        each.run(each.bind(*own))
        torch.testing.assert_close(own[3]["sum"], theirs[3]["sum"])
        torch.testing.assert_close(own[1].left, theirs[1].left)
    files = list(tmp_path.rglob("*"))
    assert sorted(file.suffix for file in files if file.is_file()) == [".lock", ".so"]
    assert "compiled in" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "rlsurreal"):
        compile_program(scaled, *arguments())
    assert "compiled in" not in caplog.text and list(tmp_path.rglob("*")) == files
    with pytest.raises(ValueError, match=r"compiled for .*float32\[3, 4\].* is given .*float32\[5, 4\]"):
        program.bind(*arguments(5))
    weights, inputs, nothing, out = arguments()
    with pytest.raises(ValueError, match="compiled for"):
        program.bind(weights, Pair(inputs.left.T.contiguous().T), nothing, out)  # the same shape, another layout
    (library,) = tmp_path.rglob("*.so")
    library.unlink()  # not overwritten: this process has it in memory
    library.write_bytes(b"damaged")
    program = compile_program(scaled, *arguments())
    program.run(program.bind(*arguments()))


@pytest.mark.compiles
def test_tanh_is_exact_to_2e_7_and_stays_within_its_bounds():
    inputs = torch.cat([torch.linspace(-12, 12, 20_001), torch.tensor([-200.0, -0.0, 200.0])])
    out = torch.empty_like(inputs)
    program = compile_program(lambda x, out: out.copy_(torch.tanh(x)), inputs, out)
    program.run([inputs, out])
    assert (out - torch.tanh(inputs.double())).abs().max() < 2e-7 and out.abs().max() <= 1


def test_what_a_function_takes_for_constant_makes_programs_of_their_own():
    def key(function: Any, num_threads: int = 1) -> str:
        example = [torch.ones(2)]
        return programs._key(programs._export(programs._trace(function, example), example), example, num_threads)

    def times(factor: float, constant: list[float]) -> Any:
        return lambda x: x.mul_(factor * torch.tensor(constant))

    same = key(times(2.0, [1.0, 2.0]))
    assert key(times(2.0, [1.0, 2.0])) == same
    others = key(times(3.0, [1.0, 2.0])), key(times(2.0, [1.0, 3.0])), key(times(2.0, [1.0, 2.0]), num_threads=2)
    assert len({same, *others}) == 4


def test_sizes_make_programs_of_their_own(interpreted):
    own, longer = torch.ones(2), torch.ones(3, 2)
    specialized = Specialized(lambda x: x.mul_(2.0 * torch.tensor([1.0, 2.0])), 0)
    for each in (own, longer, own):
        specialized(each)
    assert len(specialized._programs) == 2
    assert (own.tolist(), longer.tolist()) == ([4.0, 16.0], [[2.0, 4.0]] * 3)


def test_tensors_that_are_no_arguments_and_branches_are_refused():
    elsewhere = torch.ones(2)
    for function in (lambda x: x.add_(elsewhere), lambda x: x.add_(1 if float(x.sum()) > 0 else 2)):
        own = torch.ones(2)
        with pytest.raises(CompileError):
            compile_program(function, own)
        assert own.tolist() == [1, 1], "nothing has been run"


def test_a_library_that_crashes_takes_only_its_builder_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "crashing_builder.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(program_builder, "__name__", "crashing_builder")
    with pytest.raises(CompileError, match="exit status -11"):
        compile_program(scaled, *arguments())
    assert not [file for file in tmp_path.rglob("*.so") if file.is_file()]
