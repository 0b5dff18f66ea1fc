"""Classes and functions by name, ``module:qualname``: how configurations and checkpoints refer to code.

Called by `rlsurreal.utils.config`, `rlsurreal.utils.text_values` and `rlsurreal.utils.plain`.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SCRIPTS = ("__main__", "__mp_main__")


def name_of(value: Any) -> str:
    """``module:qualname`` of a class or function, under which any process that can import the module finds it.

    Raises:
        ValueError: there is no such name; says what to do.
    """
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise ValueError(
            f"{value!r} is neither a plain value nor something that has a name; use numbers, text, "
            "components, classes or functions"
        )
    name = f"{module}:{qualname}"
    if "<" in qualname:
        raise ValueError(f"{name} cannot be found by its name; define it at the top of a module")
    if module in _SCRIPTS:
        raise ValueError(
            f"{name} is defined in the script that runs, where another process does not find it; move it "
            "to a module that can be imported"
        )
    try:
        found = find_named(name)
    except ValueError:
        found = None
    if found != value:
        raise ValueError(f"{name} is not {value!r}; define it at the top of a module under its own name")
    return name


def find_named(name: str) -> Any:
    """The class or function that ``module:qualname`` names.

    Raises:
        ValueError: it is not a name, or there is no such thing.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name; it must look like package.module:Name")
    module, _, qualname = name.partition(":")
    if module in _SCRIPTS:
        raise ValueError(f"{name} was defined in the script of another process; move it to a module")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        is_elsewhere = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = "; launchers find modules of yours in the directory where they are called" if is_elsewhere else ""
        raise ValueError(f"there is no {name} ({error}){hint}") from error
    if not callable(found):
        raise ValueError(f"{name} is {found!r}, neither a class nor a function")
    return found
