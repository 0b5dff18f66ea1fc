"""How well agents learn, over seeds, against Stable-Baselines3 with the same hyperparameters."""

from __future__ import annotations

import argparse

from benchmarks.rows import Row


def add_arguments(parser: argparse.ArgumentParser) -> None: ...
def run(args: argparse.Namespace) -> list[Row]:
    return []
