"""A sweep as data: which runs there are, by name.  Read from sweep files by `launchers/local_queue.py`."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from rlsurreal.utils.names import name_of

from .slots import Slots

_NAME = re.compile(r"\w[\w.+-]*")
_OWNED = {"seed": "list seeds in seeds", "name": "runs are named after what varies", "root": "use --root"}
_MAX_NAME = 200  # file systems allow 255 bytes


@dataclass(frozen=True)
class Plan:
    """One run: what is asked of `launchers/train.py`."""

    name: str  # of its folder
    label: str  # the same without the seed: what runs to be averaged have in common
    settings: Mapping[str, str]  # what varies, by short names: the variant, the grid's settings
    recipe: str
    words: tuple[str, ...]  # overrides


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Variants x grid x seeds of a recipe.

    Settings are named as on the command line of `launchers/train.py`, and have its texts or plain values; "recipe" is
    a setting, too.  Those of the grid and of variants go before those of all runs.
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of all runs: the budget, the environment
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings that belong together, by name
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # settings tried in all combinations
    seeds: Sequence[int] = (0,)
    name: str = ""  # of the folder with all runs; default: that of the sweep's file
    slots: Slots = field(default_factory=Slots)

    def __post_init__(self) -> None:
        for name in (*self.variants, *([self.name] if self.name else [])):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} names a sweep or variant; use letters, digits and any of _ . + -, a letter first"
                )
        for key, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"grid[{key!r}] is {values!r}; give a list of at least one value")
        if not self.seeds or any(type(seed) is not int for seed in self.seeds):
            raise ValueError(f"seeds is {self.seeds!r}; give a list of at least one whole number, or range(5)")
        for where, keys in {"settings": self.settings, "grid": self.grid, **self.variants}.items():
            for key in keys:
                if key in _OWNED:
                    raise ValueError(f"{where} of the sweep has {key!r}: {_OWNED[key]}")
        for name, changes in self.variants.items():
            both = sorted(changes.keys() & self.grid.keys())
            if both:
                raise ValueError(f"variant {name!r} and the grid both have {', '.join(both)}; leave it in one of them")

    def plans(self) -> list[Plan]:
        """All runs, seed by seed, so that each variant has a result early.

        Raises:
            ValueError: a value cannot be given on a command line, or runs cannot be told apart by their names.
        """
        short = _short_names(self.grid)
        plans = [
            self._plan(variant, dict(zip(self.grid, values)), short, seed)
            for seed in self.seeds
            for variant in self.variants or ("",)
            for values in itertools.product(*self.grid.values())
        ]
        for name, count in Counter(plan.name for plan in plans).items():
            if count > 1:
                raise ValueError(f"{count} runs would be named {name}; remove repeated values, or use named variants")
            if len(name) > _MAX_NAME:
                raise ValueError(f"the name {name} is longer than {_MAX_NAME} letters; use named variants")
        return plans

    def _plan(self, variant: str, chosen: dict[str, Any], short: Mapping[str, str], seed: int) -> Plan:
        varies = {short[key]: _name_text(key, value) for key, value in chosen.items()}
        label = "-".join([*([variant] if variant else []), *(f"{key}={text}" for key, text in varies.items())])
        changes = {"recipe": self.recipe, **self.settings, **self.variants.get(variant, {}), **chosen}
        recipe = changes.pop("recipe")
        changes |= {"seed": seed, "name": label or self.name or recipe}
        return Plan(
            name=f"{label}-seed={seed}".lstrip("-"),
            label=label or self.name or recipe,
            settings={**({"variant": variant} if variant else {}), **varies},
            recipe=recipe,
            words=tuple(f"{key}={to_text(key, value)}" for key, value in changes.items()),
        )


def load_sweep(path: Path) -> Sweep:
    """Run the sweep file ``path``, and return its ``SWEEP``.

    Raises:
        ValueError: there is none.
    """
    if not path.is_file():
        raise ValueError(f"there is no sweep file {path}; examples/sweeps has one to start from")
    sweep = runpy.run_path(str(path)).get("SWEEP")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"{path} does not define SWEEP = Sweep(...), with Sweep from sweep_queue")
    return sweep if sweep.name else replace(sweep, name=path.stem)


def to_text(key: str, value: Any) -> str:
    """``value`` as a command line says it.

    Raises:
        ValueError: it cannot.
    """
    if value is None or isinstance(value, (str, bool, int, float, PurePath)):
        return str(value)
    if isinstance(value, (list, tuple, dict)):
        text = repr(value)
        try:
            ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(f"{key} is {text}; use numbers, texts, True, False and None inside of it") from None
        return text
    try:
        return name_of(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}, each setting of a component by its own dotted key") from error


def _short_names(keys: Mapping[str, Any]) -> dict[str, str]:
    """Each dotted key by as few of its last parts as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        names[key] = next(t for t in tails if sum(f".{other}".endswith(f".{t}") for other in keys) == 1 or t == key)
    return names


def _name_text(key: str, value: Any) -> str:
    """``value`` as a part of a folder's name."""
    text = f"{value:.6g}" if isinstance(value, float) else to_text(key, value).rpartition(":")[2]
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "none"
