"""Data of tensors: what is held out, the moments, the classes; and images as they come in."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import torch

from redline.errors import InputError
from redline.train.data import Arrays, Data

# What Pillow raises for damaged files, as they have taught it.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_MOST_BYTES = 8 << 30  # of decoded images: everything is held in memory


def arrays(
    name: str, x: torch.Tensor, y: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor] | None,
    *, split: float = 0.2, seed: int = 0, names: tuple[str, ...] = (),
) -> Data:  # fmt: skip
    """Data of tensors; integer targets are classes, floats are values."""
    if len(x) != len(y):
        raise InputError(f"{name}: {len(x)} inputs but {len(y)} targets")
    kind = "values" if y.is_floating_point() else "classes"
    if test is None:
        held = held_out(y, split, seed, kind)
        x, y, test = x[~held], y[~held], (x[held], y[held])
    classes = (
        int(max(y.max(), test[1].max() if len(test[1]) else 0)) + 1 if kind == "classes" else 0
    )
    axes = [0, *range(2, x.ndim)]
    mean, std = moments(x, axes)
    remarks = odd_classes(y, test[1], names) if kind == "classes" else ()
    return Data(
        name, Arrays(x, y), Arrays(*test) if len(test[0]) else None, kind,
        classes or (y.shape[1] if y.ndim > 1 else 1), tuple(x.shape[1:]), mean, std, names, remarks,
    )  # fmt: skip


def odd_classes(y: torch.Tensor, tested: torch.Tensor, names: tuple[str, ...]) -> tuple[str, ...]:
    """Classes that the accuracy says nothing about, or that nothing teaches."""
    train, test = set(y.tolist()), set(tested.tolist())
    told = []
    if len(train) == 1:
        told.append("all training samples are of one class")
    for odd, what in ((train - test, "not tested"), (test - train, "tested but not trained on")):
        if odd and test:
            listed = [names[c] if c < len(names) else str(c) for c in sorted(odd)]
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            told.append(f"{what}: class {', '.join(listed[:5])}{more}")
    return tuple(told)


def moments(x: torch.Tensor, axes: list[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by column or channel, a slice at a time: images may be uint8."""
    total = square = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in torch.split(x, 4096):
        part = part.double()
        total, square = total + part.sum(axes), square + part.square().sum(axes)
    number = x.numel() / x.shape[1]
    mean = total / number
    std = (square / number - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-8, std, 1.0).tolist())


def held_out(y: torch.Tensor, split: float, seed: int, kind: str) -> torch.Tensor:
    """Which rows are held out: of every class its part, but never its last sample."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    held = torch.zeros(len(y), dtype=torch.bool)
    groups = [order[y[order] == c] for c in torch.unique(y)] if kind == "classes" else [order]
    for group in groups:
        held[group[: min(round(split * len(group)), len(group) - 1)]] = True
    return held


class Pictures:
    """Images of one size as uint8 (n, 3, height, width), with a class and a part each.

    Args:
        where: what the errors name.
        size: side to which images are resized; 0 takes them as they are.
    """

    def __init__(self, where: str, size: int) -> None:
        self.where, self.size, self.spent = where, size, 0
        self.shape: tuple[int, ...] = ()
        self.rows: dict[str, list[tuple[str, np.ndarray]]] = {}

    def add(self, part: str, label: str, name: str, image: Any) -> None:
        """A PIL image.

        Raises:
            InputError: it cannot be decoded, has another size, or does not fit in memory.
        """
        try:
            image = image.convert("RGB")
            pixels = np.asarray(image.resize((self.size, self.size)) if self.size else image)
        except BROKEN_IMAGE as error:  # Pillow decodes late
            raise InputError(f"{name} cannot be decoded: {error}", where=self.where) from None
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:
            raise InputError(
                f"{name} is {pixels.shape[:2]}, expected {self.shape[:2]} as the first image",
                where=self.where, hint="give size=32 (--size 32) to resize all",
            )  # fmt: skip
        self.spent += pixels.nbytes
        if self.spent > _MOST_BYTES:
            raise InputError("more than 8 GB of images", where=self.where, hint="give a Dataset")
        self.rows.setdefault(part, []).append((label, pixels))

    def data(self, name: str, split: float, seed: int) -> Data:
        """What is held out is val/ where there is one, so that the weights are not chosen by test/.

        Raises:
            InputError: nothing to train on, or a class that is only tested.
        """
        rows = self.rows
        if "train" not in rows:
            raise InputError(
                "no training images", where=self.where, hint="lay them as CLASS/image.png"
            )
        if "val" in rows:
            rows["test"] = rows.pop("val")
        names = tuple(sorted({label for label, _ in rows["train"]}))
        strange = sorted({label for label, _ in rows.get("test", [])} - set(names))
        if strange:
            told = ", ".join(map(repr, strange[:5]))
            raise InputError(f"no training image of class {told}", where=self.where)
        sets = {}
        for part, held in rows.items():
            x = torch.from_numpy(np.stack([pixels for _, pixels in held])).permute(0, 3, 1, 2)
            sets[part] = x.contiguous(), torch.tensor([names.index(label) for label, _ in held])
        return arrays(name, *sets["train"], sets.get("test"), split=split, seed=seed, names=names)
