"""The parts of `launchers/local_queue.py`; sweep files import `Sweep` and `Slots` from here."""

from .slots import Slots
from .sweep import Sweep

__all__ = ["Slots", "Sweep"]
