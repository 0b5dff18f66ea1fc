"""Files are whole or not there; damaged checkpoints are found out; folders are never shared."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.utils import files
from rlsurreal.utils.files import (
    atomic_write,
    checkpoint_path,
    describe_environment,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    make_run_folder,
    prune_checkpoints,
    remove_partial_files,
    save_checkpoint,
)


def _state(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"model": torch.from_numpy(rng.standard_normal((20, 30))), "step": seed, "rng": rng, "name": "é"}


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    states = [state["rng"].bit_generator.state for state in (first, second)]
    return (
        torch.equal(first["model"], second["model"])
        and states[0] == states[1]
        and (first["step"], first["name"]) == (second["step"], second["name"])
    )


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("é\r\nold")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == "é\r\nold".encode()  # until the end
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.txt"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_that_fails_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, _state(1))
    script = textwrap.dedent(f"""
        import sys, time
        from rlsurreal.utils.files import atomic_write
        with atomic_write({str(path)!r}) as file:
            file.write(b"half")
            file.flush()
            print("writing", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert _same(load_checkpoint(path), _state(1))
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".best.pt.12.ab.tmp").write_bytes(b"half")
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_checkpoints_come_back_and_are_listed_by_step(tmp_path: Path) -> None:
    for step in (0, 999, 10**13, 2000):  # more digits than the names are padded to
        save_checkpoint(checkpoint_path(tmp_path, step), _state(step))
    (tmp_path / "checkpoint_best.pt").write_bytes(b"not numbered")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [0, 999, 2000, 10**13]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and _same(load_checkpoint(latest), _state(10**13))
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_state_that_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, _state())
    with pytest.raises(ValueError, match="'bad'"):
        save_checkpoint(path, {"bad": object()})
    assert _same(load_checkpoint(path), _state()) and os.listdir(tmp_path) == ["c.pt"]


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    before, path = checkpoint_path(tmp_path, 5), checkpoint_path(tmp_path, 10)
    save_checkpoint(before, _state(5))
    save_checkpoint(path, _state(10))
    save_checkpoint(checkpoint_path(tmp_path, 15), _state(15))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for trial in range(150):
        if trial < 50:
            broken = whole[: rng.integers(len(whole))]
        else:
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            broken = bytes(changed)
        path.write_bytes(broken)
        try:
            assert _same(load_checkpoint(path), _state(10))  # the bit means nothing: a time stamp, say
        except ValueError as error:
            assert str(path) in str(error) and f"from the one before it: {before}" in str(error)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    changed = bytearray(whole)
    changed[whole.index(_state(10)["model"].numpy().tobytes()) + 100] ^= 1  # torch.load alone does not notice
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "checkpoint_000000000001.pt", {"a": 1})

    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.zipfile, "ZipFile", refuse)
    with pytest.raises(ValueError, match=r"cannot be read: .*Permission denied"):
        load_checkpoint(tmp_path / "checkpoint_000000000001.pt")


def test_a_folder_is_one_process_s_or_everybody_s_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = pytest.raises(ValueError, match=rf"another run \(process {os.getpid()}\) works on")
    with files.alone_in(tmp_path, ".lock", "run"), refused:
        files.alone_in(tmp_path, ".lock", "run").__enter__()
    with files.alone_in(tmp_path, ".lock", "run"):
        pass

    def missing(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", missing)
    with files.alone_in(tmp_path, ".lock", "run"), files.alone_in(tmp_path, ".lock", "run"):
        pass


def test_missing_checkpoints_and_those_without_predecessor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint .*its folder has no other one"):
        load_checkpoint(checkpoint_path(tmp_path, 3))
    checkpoint_path(tmp_path, 3).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"damaged.*its folder has no other one"):
        load_checkpoint(checkpoint_path(tmp_path, 3))
    save_checkpoint(checkpoint_path(tmp_path, 7), _state())
    with pytest.raises(ValueError, match=r"its folder also has checkpoint_000000000007\.pt"):
        load_checkpoint(checkpoint_path(tmp_path, 3))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"evil": Evil()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="was not written by save_checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("keep_last", "every", "kept"),
    [(1, None, [95]), (3, None, [75, 80, 95]), (1, 30, [0, 35, 60, 95]), (2, 50, [0, 55, 80, 95]), (99, 1, None)],
)
def test_prune(tmp_path: Path, keep_last: int, every: int | None, kept: list[int] | None) -> None:
    steps = [0, 10, 35, 55, 60, 75, 80, 95]
    for step in steps:
        checkpoint_path(tmp_path, step).touch()
    (tmp_path / "other.pt").touch()
    deleted = prune_checkpoints(tmp_path, keep_last, every)
    left = [step for step, _ in list_checkpoints(tmp_path)]
    assert left == (steps if kept is None else kept)
    assert len(deleted) == len(steps) - len(left) and (tmp_path / "other.pt").exists()
    assert prune_checkpoints(tmp_path, keep_last, every) == []


def test_prune_after_each_checkpoint_keeps_what_prune_at_the_end_keeps(tmp_path: Path) -> None:
    for step in range(0, 100, 7):
        checkpoint_path(tmp_path, step).touch()
        prune_checkpoints(tmp_path, 2, 25)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [0, 28, 56, 77, 91, 98]


def test_prune_refuses() -> None:
    for arguments, name in (((0,), "keep_last is 0"), ((1, 0), "keep_every_steps is 0")):
        with pytest.raises(ValueError, match=name):
            prune_checkpoints(".", *arguments)


def test_run_folders_are_unique_also_when_made_at_once(tmp_path: Path) -> None:
    made: list[Path] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        for _ in range(10):
            made.append(make_run_folder(tmp_path / "runs", "ppo"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name for path in made} == {f"ppo_{i}" for i in range(80)} and all(path.is_dir() for path in made)


def test_a_run_folder_that_appears_in_between_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ppo_0").mkdir()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])  # as if it had come after the listing
    assert make_run_folder(tmp_path, "ppo").name == "ppo_1"


def test_run_folder_counts_on_and_keeps_names_apart(tmp_path: Path) -> None:
    for name in ("ppo_7", "ppo_big_9", "ppo_x", "ppo-9"):
        (tmp_path / name).mkdir()
    assert make_run_folder(tmp_path, "ppo").name == "ppo_8"
    assert make_run_folder(tmp_path, "ppo_big").name == "ppo_big_10"
    for wrong in ("", "a/b", "a b"):
        with pytest.raises(ValueError, match="name of the run"):
            make_run_folder(tmp_path, wrong)


def test_describe_environment_of_a_project(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e", *words],
            cwd=tmp_path,
            check=True,
            timeout=30,
            capture_output=True,
        )

    git("init", "-q")
    found = describe_environment(tmp_path)["git"]
    assert found["commit"] is None and found["dirty"] is False
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", "-A")
    git("commit", "-qm", "first")
    found = describe_environment(tmp_path)["git"]
    assert len(found["commit"]) == 40 and found["dirty"] is False and found["diff"] == ""
    (tmp_path / "a.py").write_text("x = 2\n")
    (tmp_path / "b.py").touch()
    found = describe_environment(tmp_path)["git"]
    assert found["dirty"] is True and "+x = 2" in found["diff"] and "b.py" in found["status"]


def test_describe_environment_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = describe_environment(tmp_path)
    assert found["git"] == {"commit": None, "dirty": None, "status": None, "diff": None}
    assert found["versions"]["numpy"] == np.__version__ and found["num_cpus"] == os.cpu_count()
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setenv("PATH", "")  # no git
    assert describe_environment(tmp_path)["git"]["commit"] is None
    assert describe_environment(tmp_path / "gone")["git"]["commit"] is None
    monkeypatch.setattr(files, "_PACKAGES", ("not-a-package",))
    assert describe_environment(tmp_path)["versions"] == {"not-a-package": None}


def test_a_long_diff_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_git", lambda folder, *words: "x" * 50)
    monkeypatch.setattr(files, "_MAX_DIFF_CHARS", 20)
    assert describe_environment(tmp_path)["git"]["diff"] == "x" * 20 + "\n[30 more characters]"


def test_large_checkpoints_are_fast(tmp_path: Path) -> None:
    state = {"replay": np.zeros(64 * 2**20, np.uint8)}
    save_checkpoint(tmp_path / "c.pt", state)
    start = time.perf_counter()
    load_checkpoint(tmp_path / "c.pt")
    assert time.perf_counter() - start < 2  # measured: 0.1 s
