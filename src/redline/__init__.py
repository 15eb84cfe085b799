"""From a PyTorch model to the fastest engine your machine can run: verified, explained, served."""

__version__ = "0.1.0"
