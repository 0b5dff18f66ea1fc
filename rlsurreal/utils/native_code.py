"""Small C sources of the package, compiled when they are first wanted and kept in the cache.

Called where numpy takes several times as long, by modules that have the same in numpy for where no compiler is.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from rlsurreal.utils.files import cache_folder

_OPTIONS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")  # no processor's own instructions: caches may be shared
_TIMEOUT_S = 60.0

_log = logging.getLogger("rlsurreal")


def load_native(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file; None, said in the log, where they cannot be compiled."""
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        _log.info("%s is not compiled, for there is no C compiler: numpy does its work", source.name)
        return None
    key = hashlib.sha256(f"{compiler} {_OPTIONS} {platform.machine()}".encode() + source.read_bytes()).hexdigest()[:20]
    try:
        library = cache_folder("native") / f"{source.stem}-{key}.so"  # RuntimeError: there is no home
        if library.exists():
            with contextlib.suppress(OSError):  # damaged
                return ctypes.CDLL(str(library))
            library.unlink(missing_ok=True)
        _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or error
        _log.warning("%s cannot be compiled or loaded, so numpy does its work: %s", source.name, detail)
        return None


def _compile(compiler: str, source: Path, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    temporary = library.with_name(f".{library.name}.{os.getpid()}.tmp")
    command = [compiler, *_OPTIONS, str(source), "-o", str(temporary), "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        os.replace(temporary, library)  # other processes may be doing the same
    finally:
        temporary.unlink(missing_ok=True)
