"""The sample engine's model as a part of every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_samples import GRAPH, SIGNATURE, B, W

from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.runtime.runner import Runner, open_part

NCNN_PARAM = """7767517
2 2
Input in0 0 1 in0
InnerProduct fc 1 1 in0 out0 0=3 1=1 2=12
"""


def make_part(backend: str, folder: Path, **setting: Any) -> Part:
    """Write a backend's files into a folder. A dash names a variant: "openvino-xml"."""
    (folder / "graph.onnx").write_bytes(GRAPH)
    setting = {"threads": 1, **setting}
    if backend == "ncnn":
        pytest.importorskip("ncnn")
        (folder / "model.param").write_text(NCNN_PARAM)
        weights = np.ascontiguousarray(W.T).tobytes()
        (folder / "model.bin").write_bytes(bytes(4) + weights + B.tobytes())
        return Part("ncnn", setting, files=("model.param", "model.bin"))
    if backend == "openvino-xml":
        openvino = pytest.importorskip("openvino")
        model = openvino.Core().read_model(GRAPH)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        return Part("openvino", setting, files=("model.xml", "model.bin"))
    if backend == "onnxruntime-own":
        (folder / "model.onnx").write_bytes(GRAPH)
        return Part("onnxruntime", setting, files=("model.onnx",))
    if backend == "openvino":
        pytest.importorskip("openvino")
    return Part(backend, setting, uses_graph=True)


BACKENDS = ["onnxruntime", "onnxruntime-own", "openvino", "openvino-xml", "ncnn", "null"]


def open_sample(backend: str, folder: Path, **setting: Any) -> Runner:
    part = make_part(backend, folder, **setting)
    return open_part(part, FolderStore(folder, folder / "graph.onnx"), SIGNATURE)
