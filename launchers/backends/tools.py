"""The programs that backends ask: clusters' commands, and what checks a text before it is submitted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def ask(words: Sequence[str], text: str = "") -> str:
    """The output of a program that is given ``text`` as its input; what it says beside that is shown.

    Raises:
        ValueError: it is not there, or refuses; with what it says.
    """
    try:
        done = subprocess.run(words, input=text, text=True, capture_output=True)
    except FileNotFoundError as error:
        raise ValueError(f"there is no program {words[0]!r} on the PATH; install it, or use --dry-run") from error
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise ValueError(f"{' '.join(words[:2])} fails with status {done.returncode}:\n{said}")
    output, beside = done.stdout.strip(), done.stderr.strip()
    if output and beside:
        print(beside, file=sys.stderr)
    return output or beside


def check_syntax(script: str) -> None:
    """ValueError if bash cannot read a script."""
    ask(["bash", "-n"], script)
