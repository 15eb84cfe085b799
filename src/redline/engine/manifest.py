"""What an engine file says about itself: plain data, decoded strictly by msgspec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from redline.signature import Signature

SCHEMA = 1

Setting = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Part:
    """One backend's build of the model.

    Attributes:
        backend: the backend's name; runtime finds the runner by it.
        setting: what the backend was told (threads, graph level, layout, hint, ...).
        precision: "fp32", or the compressed graph it was built from: "int8", "int8-keep4", ...
        files: names of its files inside its folder; empty when it only reads graph.onnx.
        uses_graph: it reads the engine's shared graph.onnx.
        code: it holds machine code, so it runs only when trusted.
        isa: CPU flags it needs, as Linux spells them ("avx2", "fma").
        needs: Python distributions its runner imports, with the version it was built by.
        operators: operator type -> count after the backend's own graph optimisation.
        tolerance_class: "fp32", or a named looser class such as "winograd-f63".
    """

    backend: str
    setting: Setting = field(default_factory=dict)
    precision: str = "fp32"
    files: tuple[str, ...] = ()
    uses_graph: bool = False
    code: bool = False
    isa: tuple[str, ...] = ()
    needs: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    tolerance_class: str = "fp32"


@dataclass(frozen=True)
class Member:
    """One file inside the engine: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Check:
    """The self-test: check.npz holds in_0.., out_0..; outputs must agree within `tolerance`.

    The error is max|y - ref| / rms(ref) for each output; `latency_s` was measured at build.
    """

    tolerance: float
    latency_s: float


@dataclass(frozen=True)
class Manifest:
    """The manifest.json of an engine file. Part i has its files in the folder parts/<i>/."""

    schema: int
    redline: str
    created: str
    name: str
    signature: Signature
    parts: tuple[Part, ...]
    members: dict[str, Member]
    machine: dict[str, Any]
    check: Check | None = None
    graph_hash: str = ""
    records: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
