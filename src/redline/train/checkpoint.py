"""Checkpoints: safetensors and JSON in one folder each, written whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redline.errors import SaveError, SchemaError, TamperedError

_SCHEMA = 1


def pack(value: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """A nest of containers as JSON, its tensors moved to `tensors`.

    Raises:
        SaveError: something that is neither a tensor nor plain data, with its place.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"$tensor": name, "strides": list(value.stride())}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        pairs = [[pack(k, tensors), pack(v, tensors, f"{name}.{k}")] for k, v in value.items()]
        return {"$dict": pairs}
    if isinstance(value, list | tuple):
        items = [pack(v, tensors, f"{name}.{k}") for k, v in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, set | np.generic):
        return pack(sorted(value) if isinstance(value, set) else value.item(), tensors, name)
    raise SaveError(
        f"{type(value).__name__} cannot be stored without a pickle",
        where=name, hint="keep only tensors, numbers and texts in the state",
    )  # fmt: skip


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What pack() took apart, with every tensor in its own strides.

    Raises:
        TamperedError: a tensor is missing.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        if value["$tensor"] not in tensors:
            raise TamperedError(f"the checkpoint lacks tensor {value['$tensor']!r}")
        held = tensors[value["$tensor"]]
        strides = tuple(value["strides"])
        if strides == held.stride() or 0 in strides:
            return held
        return torch.empty_strided(held.shape, strides, dtype=held.dtype).copy_(held)
    if "$tuple" in value:
        return tuple(unpack(item, tensors) for item in value["$tuple"])
    return {unpack(k, tensors): unpack(v, tensors) for k, v in value["$dict"]}


def random_state() -> torch.Tensor:
    """Torch's, NumPy's and Python's generators of this process as bytes of a fixed length."""
    python = np.array(random.getstate()[1], np.uint64)
    numpy: Any = np.random.get_state(legacy=True)
    gauss = np.array([numpy[2], numpy[3]], np.int64), np.array([numpy[4]], np.float64)
    parts = [python, numpy[1].astype(np.uint32), *gauss]
    found = [torch.get_rng_state(), *(torch.from_numpy(p.view(np.uint8)) for p in parts)]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_rng_state())
    elif torch.backends.mps.is_available():
        found.append(torch.mps.get_rng_state())
    return torch.cat(found)


def set_random_state(state: torch.Tensor) -> None:
    """Put the generators back where random_state() found them."""
    sizes = [len(torch.get_rng_state()), 625 * 8, 624 * 4, 16, 8]
    torch_, python, keys, place, gauss = (
        part.clone() for part in torch.split(state[: sum(sizes)], sizes)
    )
    torch.set_rng_state(torch_)
    random.setstate((3, tuple(map(int, python.numpy().view(np.uint64))), None))
    where = place.numpy().view(np.int64)
    value = float(gauss.numpy().view(np.float64)[0])
    np.random.set_state(
        ("MT19937", keys.numpy().view(np.uint32), int(where[0]), int(where[1]), value)
    )
    rest = state[sum(sizes) :].clone()
    if len(rest) and torch.cuda.is_available():
        torch.cuda.set_rng_state(rest)
    elif len(rest) and torch.backends.mps.is_available():
        torch.mps.set_rng_state(rest)


def write(
    folder: Path, name: str, weights: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint: model.safetensors, state.safetensors and state.json.

    It is made under another name and renamed when every byte is on the disk; what was there under
    its name stays until then.

    Raises:
        SaveError: it cannot be written; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    target, made = folder / name, folder / f".{name}.new"
    tensors: dict[str, torch.Tensor] = {}
    state = {"schema": _SCHEMA, "state": pack(state, tensors)}
    # Two names of one tensor, as tied weights are, are stored once and noted.
    first: dict[Any, str] = {}
    aliases, single = {}, {}
    for key, value in weights.items():
        same = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and same in first:
            aliases[key] = first[same]
        else:
            first[same] = key
            single[key] = value.detach().cpu().contiguous().clone()
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        save_file(single, made / "model.safetensors", metadata={"format": "pt"})
        save_file(tensors, made / "state.safetensors")
        (made / "state.json").write_text(json.dumps({**state, "aliases": aliases}), "utf-8")
        for file in [*made.iterdir(), made]:
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
        _sync(folder)
    except OSError as error:
        raise SaveError(f"the checkpoint cannot be written: {error}", where=str(target)) from None
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the state of a checkpoint.

    Raises:
        TamperedError: a file is missing or damaged.
        SchemaError: written by a newer Redline.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = json.loads((path / "state.json").read_text("utf-8"))
        weights = load_file(path / "model.safetensors")
        tensors = load_file(path / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise TamperedError(
            f"the checkpoint cannot be read: {error}", where=str(path),
            hint="delete this folder to go on from the one before",
        ) from None  # fmt: skip
    if held["schema"] > _SCHEMA:
        raise SchemaError(f"schema {held['schema']}, known up to {_SCHEMA}", where=str(path))
    for key, other in held["aliases"].items():
        weights[key] = weights[other]
    return weights, unpack(held["state"], tensors)


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; half-written ones are no checkpoints."""
    return sorted(folder.glob("epoch-*")) if folder.is_dir() else []


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints; `best` is not among them."""
    for old in steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
