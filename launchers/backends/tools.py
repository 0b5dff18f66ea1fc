"""The programs that backends ask: clusters' commands, and what checks a text before it is submitted."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def ask(words: Sequence[str], text: str = "") -> str:
    """The output of a program that is given ``text`` as its input.

    Raises:
        ValueError: it is not there, or refuses; with what it says.
    """
    try:
        done = subprocess.run(words, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise ValueError(f"there is no program {words[0]!r} on the PATH; install it, or use --dry-run") from error
    if done.returncode:
        raise ValueError(f"{' '.join(words[:2])} fails with status {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout.strip()


def check_syntax(script: str) -> None:
    """ValueError if bash cannot read a script."""
    ask(["bash", "-n"], script)
