"""Looks into a folder of models: which there are, which versions, and whether they changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline.errors import InputError
from redline.serve.config import ModelConfig, parse_config, read_config
from redline.serve.names import is_name, is_version
from redline.serve.opening import FILES, SUFFIXES

Fingerprint = tuple[Any, ...]


@dataclass(frozen=True)
class Version:
    """One version's model file, and what changes when it does."""

    path: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Found:
    """A model as it lies in the folder: the versions that its policy serves."""

    name: str
    config: ModelConfig
    versions: Mapping[str, Version]


def names(root: Path) -> list[str]:
    """The models in a folder: subfolders, and engine or ONNX files that lie in it as they are.

    Raises:
        InputError: it cannot be read.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"the folder of models cannot be read: {error.strerror}") from error
    found = []
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir() and is_name(entry.name):
            found.append(entry.name)
        elif entry.is_file() and path.suffix in SUFFIXES and is_name(path.stem):
            found.append(path.stem)
    return list(dict.fromkeys(found))


def find(root: Path, name: str, config: Mapping[str, Any] | None = None) -> Found | None:
    """One model, or None where there is none; `config` goes before the folder's own.

    Raises:
        InputError: its configuration is wrong, or it has no version to serve.
    """
    folder = _inside(root, root / name)
    if folder.is_dir():
        given = dict(config) if config is not None else read_config(folder)
        parsed = parse_config(given)
        files = {int(v): path for v in _subfolders(folder) if (path := model_file(root, folder / v))}
        chosen = parsed.policy.choose(list(files))
        if not chosen:
            raise InputError(
                "it has no version to serve",
                hint=f"lay the model in {name}/1/ as {' or '.join(FILES)}",
            )
        stamp = repr(sorted(given.items()))
        versions = {
            str(v): Version(files[v], (stamp, *_stamps(files[v].parent))) for v in chosen
        }
        return Found(name, parsed, versions)
    for suffix in SUFFIXES:
        path = _inside(root, root / f"{name}{suffix}")
        if path.is_file():
            parsed = parse_config(config or {})
            stamp = (repr(sorted((config or {}).items())), _stamp(path))
            return Found(name, parsed, {"1": Version(path, stamp)})
    return None


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and is_version(entry.name)]


def model_file(root: Path, folder: Path) -> Path | None:
    """The model in a version's folder."""
    for name in FILES:
        path = _inside(root, folder / name)
        if path.is_file():
            return path
    return None


def _inside(root: Path, path: Path) -> Path:
    """The path, if it and what it links to lie in the folder of models.

    Raises:
        InputError: it leads out.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path.name[:60]!r} leads out of the folder of models")
    return path


def _stamps(folder: Path) -> list[Any]:
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            found.append((entry.name, *_stamp(Path(entry.path))))
    return found


def _stamp(path: Path) -> tuple[int, int, int]:
    told = path.stat()
    return told.st_mtime_ns, told.st_size, told.st_ino
