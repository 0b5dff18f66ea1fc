"""Experience replay, composed: storage, selector, extractor, limiter."""

from rlsurreal.replays.extractors import NStep, Sequences, Transitions, Windows
from rlsurreal.replays.hindsight import Hindsight
from rlsurreal.replays.limiter import ReplayRatio
from rlsurreal.replays.replay import Replay, Ticket
from rlsurreal.replays.selectors import Fifo, Prioritized, Uniform
from rlsurreal.replays.storage import FrameStorage, FullStorage
from rlsurreal.replays.sum_tree import SumTree

__all__ = [
    "Fifo",
    "FrameStorage",
    "FullStorage",
    "Hindsight",
    "NStep",
    "Prioritized",
    "Replay",
    "ReplayRatio",
    "Sequences",
    "SumTree",
    "Ticket",
    "Transitions",
    "Uniform",
    "Windows",
]
