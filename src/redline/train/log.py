"""Where a training's records go: log.jsonl always, TensorBoard and others when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from redline.errors import MissingError, UnknownNameError


class Tracker(Protocol):
    """Gets every record: "start" once, then "step" and "epoch", and "end"."""

    def start(self, out: Path, recipe: Mapping[str, Any]) -> None:
        """Before the first step."""
        ...

    def log(self, record: Mapping[str, Any]) -> None:
        """One record: its "kind", "step" and numbers."""
        ...

    def close(self) -> None:
        """After the last record, also when training failed."""
        ...


class JsonLines:
    """One JSON object a line in out/log.jsonl; a resumed run goes on in the same file."""

    def start(self, out: Path, recipe: Mapping[str, Any]) -> None:
        self._file = (out / "log.jsonl").open("a", encoding="utf-8")
        self.log({"kind": "start", "recipe": recipe})

    def log(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars for TensorBoard in out/tensorboard."""

    def start(self, out: Path, recipe: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingError(
                "TensorBoard is not installed", hint="pip install tensorboard"
            ) from None
        self._writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(self, record: Mapping[str, Any]) -> None:
        flat = {**record, **record.get("metrics", {})}
        for name, value in flat.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self._writer.close()


def trackers(given: Any) -> list[Tracker]:
    """JsonLines and what was asked for, by name or as objects.

    Raises:
        UnknownNameError: a name other than "tensorboard".
    """
    found: list[Tracker] = [JsonLines()]
    for each in given:
        if isinstance(each, str) and each != "tensorboard":
            raise UnknownNameError("tracker", each, ["tensorboard"])
        found.append(TensorBoard() if isinstance(each, str) else each)
    return found
