"""Datasets by name: bundled ones, folders and zips of images, IDX files, texts, other libraries."""

from __future__ import annotations

import gzip
import inspect
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redline.errors import InputError, MissingError, UnknownNameError
from redline.train.data import Arrays, Data, Windows

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_MOST_BYTES = 8 << 30  # of decoded images: everything is held in memory
_MOST_FILE = 256 << 20  # of one compressed file, unpacked
_PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


def load_data(
    name: str | Path, *, split: float = 0.2, seed: int = 0, block: int = 128, size: int = 0
) -> Data:
    """A dataset by name or path.

    Args:
        name: digits, iris, wine, breast_cancer, diabetes or linnerud (scikit-learn's own); a folder
            or zip with CLASS/image or train/CLASS/image and test/CLASS/image; a folder with IDX
            files (…-images-idx3-ubyte, also .gz); a text file; torchvision:NAME:FOLDER; hf:FOLDER.
        split: part that is held out, stratified by class, when there is no test set.
        seed: of that split.
        block: characters of a window of a text.
        size: side to which images are resized; 0 takes them as they are.

    Raises:
        UnknownNameError: neither a known name nor a path that is there.
        InputError: the files cannot be used.
        MissingError: the library that has it, or Pillow, is not installed.

    Example:
        >>> load_data("digits").shape
        (1, 8, 8)
    """
    text = str(name)
    if text in BUNDLED:
        return _bundled(text, split, seed)
    for prefix, read in (("torchvision:", _torchvision), ("hf:", _hugging_face)):
        if text.startswith(prefix):
            return read(text.removeprefix(prefix), split, seed)
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*idx3-ubyte*"))
        return _idx(path, found, split, seed) if found else _images(path, split, seed, size)
    if path.suffix == ".zip" and path.is_file():
        return _images(path, split, seed, size)
    if path.is_file():
        return _text(path, split, block)
    raise UnknownNameError("dataset", text, BUNDLED)


def arrays(
    name: str, x: torch.Tensor, y: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor] | None,
    *, split: float = 0.2, seed: int = 0, names: tuple[str, ...] = (),
) -> Data:  # fmt: skip
    """Data of tensors; integer targets are classes, floats are values."""
    if len(x) != len(y):
        raise InputError(f"{name}: {len(x)} inputs but {len(y)} targets")
    kind = "values" if y.is_floating_point() else "classes"
    if test is None:
        held = _held_out(y, split, seed, kind)
        x, y, test = x[~held], y[~held], (x[held], y[held])
    classes = (
        int(max(y.max(), test[1].max() if len(test[1]) else 0)) + 1 if kind == "classes" else 0
    )
    axes = [0, *range(2, x.ndim)]
    mean, std = _moments(x, axes)
    return Data(
        name, Arrays(x, y), Arrays(*test) if len(test[0]) else None, kind,
        classes or (y.shape[1] if y.ndim > 1 else 1), tuple(x.shape[1:]), mean, std, names,
    )  # fmt: skip


def _moments(x: torch.Tensor, axes: list[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by column or channel, a slice at a time: images may be uint8."""
    total = square = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in torch.split(x, 4096):
        part = part.double()
        total, square = total + part.sum(axes), square + part.square().sum(axes)
    number = x.numel() / x.shape[1]
    mean = total / number
    std = (square / number - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-8, std, 1.0).tolist())


def _held_out(y: torch.Tensor, split: float, seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    held = torch.zeros(len(y), dtype=torch.bool)
    groups = [order[y[order] == c] for c in torch.unique(y)] if kind == "classes" else [order]
    for group in groups:
        held[group[: round(split * len(group))]] = True
    return held


def _bundled(name: str, split: float, seed: int) -> Data:
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingError(
            "scikit-learn is not installed", hint="pip install scikit-learn"
        ) from None
    bunch = getattr(datasets, f"load_{name}")()
    x, target = torch.tensor(bunch.data, dtype=torch.float32), np.asarray(bunch.target)
    if name == "digits":
        x = x.view(-1, 1, 8, 8)
    values = name in ("diabetes", "linnerud")
    y = torch.tensor(target, dtype=torch.float32 if values else torch.int64)
    names = () if values else tuple(map(str, bunch.target_names))
    return arrays(
        name, x, y.view(len(y), -1) if values else y, None, split=split, seed=seed, names=names
    )


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name inside, how to read it) of every image below a folder or in a zip."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in _IMAGES:
                yield file.relative_to(path).as_posix(), file.read_bytes
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"not a zip file: {error}", where=str(path)) from None
    with archive:
        for name in sorted(archive.namelist()):
            if Path(name).suffix.lower() not in _IMAGES:
                continue
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(f"{name!r} lies outside of the zip", where=str(path))
            yield name, lambda name=name: _member(archive, name)  # type: ignore[misc]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip, unpacked as far as it may be large."""
    with archive.open(name) as file:
        raw = file.read(_MOST_FILE + 1)
    if len(raw) > _MOST_FILE:
        raise ValueError(f"it unpacks to more than {_MOST_FILE >> 20} MiB")
    return raw


def _images(path: Path, split: float, seed: int, size: int) -> Data:
    """Every image decoded once to uint8 (n, 3, height, width); classes by folder."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("Pillow is not installed", hint="pip install pillow") from None
    rows: dict[str, list[tuple[str, np.ndarray]]] = {}
    shape, spent = None, 0
    for name, read in _files(path):
        parts = name.split("/")
        if len(parts) < 2:
            raise InputError(f"image {name!r} lies in no class folder", where=str(path))
        try:
            image = Image.open(io.BytesIO(read())).convert("RGB")
        except Exception as error:
            raise InputError(f"{name} cannot be decoded: {error}", where=str(path)) from None
        pixels = np.asarray(image.resize((size, size)) if size else image)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise InputError(
                f"{name} is {pixels.shape[:2]}, expected {shape[:2]} as the first image",
                where=str(path), hint="give size=32 (--size 32) to resize all",
            )  # fmt: skip
        spent += pixels.nbytes
        if spent > _MOST_BYTES:
            raise InputError("more than 8 GB of images", where=str(path), hint="give a Dataset")
        part = next((_PARTS[p] for p in parts[:-2] if p in _PARTS), "train")
        rows.setdefault(part, []).append((parts[-2], pixels))
    return _pictures(path, rows, split, seed)


def _pictures(
    path: Path, rows: dict[str, list[tuple[str, np.ndarray]]], split: float, seed: int
) -> Data:
    """Data of decoded images; what is held out is val/ where there is one, so that the weights are
    not chosen by test/.
    """
    if "train" not in rows:
        raise InputError("no training images", where=str(path), hint="lay them as CLASS/image.png")
    if "val" in rows:
        rows["test"] = rows.pop("val")
    names = tuple(sorted({label for label, _ in rows["train"]}))
    strange = sorted({label for label, _ in rows.get("test", [])} - set(names))
    if strange:
        told = ", ".join(map(repr, strange[:5]))
        raise InputError(f"no training image of class {told}", where=str(path))
    sets = {}
    for part, held in rows.items():
        x = torch.from_numpy(np.stack([pixels for _, pixels in held])).permute(0, 3, 1, 2)
        sets[part] = x.contiguous(), torch.tensor([names.index(label) for label, _ in held])
    return arrays(
        path.stem, *sets["train"], sets.get("test"), split=split, seed=seed, names=names
    )  # fmt: skip


def _read_idx(path: Path) -> torch.Tensor:
    """An IDX file of bytes: magic 0 0 8 rank, big-endian sizes, data."""
    try:
        raw = b"" if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                raw = file.read(_MOST_BYTES)
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        sizes = struct.unpack_from(f">{rank}I", raw, 4)
        data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    except (struct.error, OSError, EOFError, ValueError) as error:
        raise InputError(f"not an IDX file: {error}", where=str(path)) from None
    if zero or kind != 8 or data.size != np.prod(sizes, dtype=np.int64):
        raise InputError(
            f"not an IDX file of bytes: type {kind}, sizes {sizes}, {data.size} bytes",
            where=str(path),
        )
    return torch.from_numpy(data.reshape(sizes).copy())


def _idx(folder: Path, found: list[Path], split: float, seed: int) -> Data:
    sets = {}
    for images in found:
        plain = images.name.replace("images-idx3", "labels-idx1").removesuffix(".gz")
        labels = images.with_name(plain)
        if not labels.is_file():
            labels = images.with_name(plain + ".gz")
        if not labels.is_file():
            raise InputError(f"{images.name} has no {plain} beside it", where=str(folder))
        part = "train" if images.name.startswith("train") else "test"
        sets[part] = _read_idx(images).unsqueeze(1), _read_idx(labels).long()
    train = sets.pop("train", None)
    if train is None:  # only the test files are there: they are split
        train = sets.pop("test")
    return arrays(folder.name, *train, sets.get("test"), split=split, seed=seed)


def _text(path: Path, split: float, block: int) -> Data:
    """Characters as tokens; the test set is the end of the text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not a text in UTF-8: {error}", where=str(path)) from None
    names = sorted(set(text))
    place = {character: number for number, character in enumerate(names)}
    tokens = torch.tensor([place[c] for c in text], dtype=torch.int32)
    cut = round(len(tokens) * (1 - split))
    held = Windows(tokens[cut:], block, block) if split else None
    train = Windows(tokens[:cut], block)
    return Data(path.stem, train, held, "tokens", len(names), (block,), names=tuple(names))


def _torchvision(text: str, split: float, seed: int) -> Data:
    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError) as error:
        raise MissingError(
            f"torchvision does not import: {error}", hint="redline doctor tells how to mend it"
        ) from None
    name, _, root = text.partition(":")
    if not hasattr(datasets, name):
        known = [each for each in datasets.__all__ if each[0].isupper()]
        raise UnknownNameError("torchvision dataset", name, known)
    make, tensor = getattr(datasets, name), transforms.ToTensor()
    try:
        ways = inspect.signature(make).parameters
        if "train" in ways:
            parts: list[dict[str, Any]] = [{"train": True}, {"train": False}]
        elif "split" in ways:
            parts = [{"split": "train"}, {"split": "test"}]
        else:
            raise InputError(f"torchvision's {name} has no test set", hint="give a Dataset")
        train, test = (
            make(root or ".", transform=tensor, download=False, **part) for part in parts
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"torchvision's {name}: {error}", hint="nothing is downloaded") from None
    names = tuple(map(str, getattr(train, "classes", ())))
    return Data(name, train, test, "classes", len(names), tuple(train[0][0].shape), names=names)


def _hugging_face(text: str, split: float, seed: int) -> Data:
    try:
        from datasets import load_from_disk  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingError("datasets is not installed", hint="pip install datasets") from None
    try:
        held = load_from_disk(text)
        held = held if hasattr(held, "keys") else held.train_test_split(split, seed=seed)
        part = next(name for name in ("validation", "test") if name in held)
        train, test = (held[name].with_format("torch") for name in ("train", part))
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise InputError(
            f"no dataset with a train part and a test or validation part: {error}", where=text
        ) from None
    classes = [f.names for f in train.features.values() if type(f).__name__ == "ClassLabel"]
    names = tuple(classes[0]) if len(classes) == 1 else ()
    return Data(text, train, test, "other", len(names), names=names)
