"""Training: the tuner of the training step."""

from redline.train.tuning import Loop, tune

__all__ = ["Loop", "tune"]
