"""Weights from files, without running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from redline.errors import InputError, ModelError, UnsafeError


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from a .safetensors file, a torch.save'd .pt file, or a checkpoint's folder.

    Raises:
        UnsafeError: a pickle of more than tensors; the hint lists its globals. It is not run.
        InputError: no such file, or not such a file.
        ModelError: it holds no state dict.

    Example:
        >>> model.load_state_dict(load_weights("runs/digits/checkpoints/best"))
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise InputError(f"not a safetensors file: {error}", where=str(file)) from None
    try:
        held = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise _refusal(file, error) from None
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not all(isinstance(v, torch.Tensor) for v in held.values()):
        raise ModelError(f"holds {type(held).__name__}, expected a state dict", where=str(file))
    return dict(held)


def _refusal(file: Path, error: Exception) -> InputError | UnsafeError:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:
        unsafe = []
    if unsafe:
        return UnsafeError(
            "the file is a pickle that would run code: " + ", ".join(sorted(unsafe)),
            where=str(file),
            hint="where it was made, save model.state_dict() instead of the model",
        )
    return InputError(f"torch cannot read it: {type(error).__name__}", where=str(file))
