"""Datasets by name: bundled ones, folders and zips of images, IDX files, texts, other libraries."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from redline.errors import InputError, MissingError, UnknownNameError
from redline.train.data import Data, Windows
from redline.train.libraries import hugging_face_data, torchvision_data
from redline.train.tables import BROKEN_IMAGE, Pictures, arrays

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_MOST_BYTES = 8 << 30  # of an IDX file: everything is held in memory
_MOST_FILE = 256 << 20  # of one compressed file, unpacked
_MOST_TEXT = 1 << 30  # of a text: each character takes up to 28 bytes on the way to a token
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
        InputError: a path that is not there, or files that cannot be used.
        MissingError: the library that has it, or Pillow, is not installed.

    Example:
        >>> load_data("digits").shape
        (1, 8, 8)
    """
    text = str(name)
    if text in BUNDLED:
        return _bundled(text, split, seed)
    if text.startswith("torchvision:"):
        return torchvision_data(text.removeprefix("torchvision:"))
    if text.startswith("hf:"):
        return hugging_face_data(text.removeprefix("hf:"), split, seed, size)
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*idx3-ubyte*"))
        return _idx(path, found, split, seed) if found else _images(path, split, seed, size)
    if path.suffix == ".zip" and path.is_file():
        return _images(path, split, seed, size)
    if path.is_file():
        return _text(path, split, block)
    if isinstance(name, Path) or "/" in text or path.suffix:
        raise InputError(f"no such file or folder: {text}", hint="check the path")
    raise UnknownNameError("dataset", text, BUNDLED)


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
    """Every image decoded once; classes by folder."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("Pillow is not installed", hint="pip install pillow") from None
    pictures = Pictures(str(path), size)
    # An encrypted or unknown compression is a RuntimeError.
    broken = (*BROKEN_IMAGE, zipfile.BadZipFile, RuntimeError)
    for name, read in _files(path):
        parts = name.split("/")
        if len(parts) < 2:
            raise InputError(f"image {name!r} lies in no class folder", where=str(path))
        try:
            image = Image.open(io.BytesIO(read()))
        except (*broken, Image.DecompressionBombError) as error:
            raise InputError(f"{name} cannot be decoded: {error}", where=str(path)) from None
        part = next((_PARTS[p] for p in parts[:-2] if p in _PARTS), "train")
        pictures.add(part, parts[-2], name, image)
    return pictures.data(path.stem, split, seed)


def _read_idx(path: Path, dims: int) -> torch.Tensor:
    """An IDX file of bytes: magic 0 0 8 rank, big-endian sizes, data; no more is unpacked of it
    than its sizes say.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zero, kind, rank = struct.unpack(">HBB", file.read(4))
            if rank != dims:
                raise ValueError(f"{rank} dims, expected {dims}")
            sizes = struct.unpack(f">{rank}I", file.read(4 * rank))
            count = math.prod(sizes)
            if count > _MOST_BYTES:
                raise ValueError(f"sizes {sizes} are more than {_MOST_BYTES >> 30} GiB")
            data = np.frombuffer(file.read(count + 1), np.uint8)
    except (struct.error, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"not an IDX file: {error}", where=str(path)) from None
    if zero or kind != 8 or data.size != count:
        raise InputError(
            f"not an IDX file of bytes: type {kind}, sizes {sizes}, "
            f"{'more' if data.size > count else data.size} bytes",
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
        sets[part] = _read_idx(images, 3).unsqueeze(1), _read_idx(labels, 1).long()
    train = sets.pop("train", None)
    if train is None:  # only the test files are there: they are split
        train = sets.pop("test")
    return arrays(folder.name, *train, sets.get("test"), split=split, seed=seed)


def _text(path: Path, split: float, block: int) -> Data:
    """Characters as tokens; the test set is the end of the text."""
    if path.stat().st_size > _MOST_TEXT:
        raise InputError("more than 1 GiB of text", where=str(path), hint="give a Dataset")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not a text in UTF-8: {error}", where=str(path)) from None
    letters, places = np.unique(
        np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True
    )
    names, tokens = tuple(map(chr, letters)), torch.from_numpy(places.astype(np.int32))
    cut = round(len(tokens) * (1 - split))
    held = Windows(tokens[cut:], block, block) if split else None
    train = Windows(tokens[:cut], block)
    return Data(path.stem, train, held, "tokens", len(names), (block,), names=names)
