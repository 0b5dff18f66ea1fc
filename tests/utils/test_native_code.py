"""Small C sources, compiled at first use."""

import shutil
from pathlib import Path

import pytest

from rlsurreal.utils.native_code import load_native

SOURCE = "int twice(int x) { return 2 * x; }\n"


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler")
def test_a_damaged_library_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "twice.c"
    source.write_text(SOURCE)
    assert load_native(source).twice(4) == 8
    (library,) = tmp_path.rglob("*.so")
    library.unlink()  # not overwritten: this process has it in memory
    library.write_bytes(b"damaged")
    assert load_native(source).twice(5) == 10


def test_without_a_home_numpy_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    source = tmp_path / "twice.c"
    source.write_text(SOURCE)
    assert load_native(source) is None
