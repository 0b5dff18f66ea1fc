"""Runners: the training loop and what watches it."""

from rlsurreal.runners.checkpoints import CheckpointPolicy
from rlsurreal.runners.trainer import Trainer

__all__ = ["CheckpointPolicy", "Trainer"]
