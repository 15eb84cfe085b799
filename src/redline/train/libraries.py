"""Datasets of other libraries, where those are installed: torchvision and Hugging Face."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from redline.errors import InputError, MissingError, UnknownNameError
from redline.train.data import Data
from redline.train.tables import Pictures, arrays


def torchvision_data(text: str) -> Data:
    """NAME:FOLDER, which is there already: nothing is downloaded.

    Raises:
        UnknownNameError: torchvision has no such dataset.
        InputError: it is not in the folder, or has no test set.
        MissingError: torchvision does not import.
    """
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


def hugging_face_data(text: str, split: float, seed: int, size: int) -> Data:
    """A folder that save_to_disk() wrote. An image or numbers, and one ClassLabel, become tensors;
    anything else stays batches of dicts, for a model of the caller's own.

    Raises:
        InputError: it cannot be read, or has no part to train on.
        MissingError: datasets is not installed.
    """
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise MissingError("datasets is not installed", hint="pip install datasets") from None
    try:
        held = datasets.load_from_disk(text)
        if not hasattr(held, "keys"):
            held = {"train": held}
        train = held["train"]
        part = next((name for name in ("validation", "test") if name in held), "")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"no dataset with a train part: {error}", where=text) from None
    kinds = {name: type(feature).__name__ for name, feature in train.features.items()}
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    others = [name for name in kinds if name not in labels]
    sets = [train, *([held[part]] if part else [])]
    if len(labels) == 1:
        names = tuple(train.features[labels[0]].names)
        if [kinds[name] for name in others] == ["Image"]:
            return _pictures(text, sets, labels[0], others[0], names, split, seed, size)
        if others and all(_is_number(train.features[name]) for name in others):
            tables = [_table(each, labels[0], others, text) for each in sets]
            test = tables[1] if part else None
            return arrays(text, *tables[0], test, split=split, seed=seed, names=names)
    if not part and split:
        parts = train.train_test_split(split, seed=seed)
        sets = [parts["train"], parts["test"]]
    train, test = [*(each.with_format("torch") for each in sets), None][:2]
    return Data(text, train, test, "other", 0)


def _is_number(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "float", "uint", "bool"))


def _labels(dataset: Any, label: str, where: str) -> torch.Tensor:
    y = torch.tensor([-1 if value is None else value for value in dataset[label]])
    if len(y) and int(y.min()) < 0:
        raise InputError("some samples have no label", where=where)
    return y


def _table(
    dataset: Any, label: str, columns: list[str], where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    held = [np.asarray(dataset[name][:], np.float32) for name in columns]
    return torch.from_numpy(np.stack(held, axis=1)), _labels(dataset, label, where)


def _pictures(
    text: str, sets: list[Any], label: str, image: str, names: tuple[str, ...], split: float,
    seed: int, size: int,
) -> Data:  # fmt: skip
    pictures = Pictures(text, size)
    for part, held in zip(("train", "test"), sets, strict=False):
        _labels(held, label, text)
        for number, row in enumerate(held):
            pictures.add(part, names[row[label]], f"image {number} of {part}", row[image])
    return pictures.data(text, split, seed)
