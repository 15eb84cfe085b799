"""Where a part's bytes come from: a folder while building, an engine file afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """The files of one part, and the graph they share ("graph.onnx")."""

    def read(self, name: str) -> bytes | memoryview:
        """The bytes of a file of the part, or of "graph.onnx"."""
        ...

    def path(self, name: str) -> Path:
        """The same as a real path, for libraries that read only files."""
        ...


class FolderStore:
    """A part that lies in a folder, next to its graph.

    Example:
        >>> store = FolderStore(Path("build/ncnn"), graph=Path("work/graph.onnx"))
    """

    def __init__(self, folder: Path, graph: Path | None = None) -> None:
        self.folder = folder
        self.graph = graph

    def path(self, name: str) -> Path:
        return self.graph if name == "graph.onnx" and self.graph else self.folder / name

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()
