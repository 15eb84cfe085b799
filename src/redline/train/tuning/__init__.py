"""What bounds a training step, and the lines that make it faster."""

from redline.train.tuning.loop import Loop
from redline.train.tuning.tuner import tune

__all__ = ["Loop", "tune"]
