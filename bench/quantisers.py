"""Claim: NNCF's 7-bit weights are the form of int8 that both runtimes compute exactly, and fast.

    python bench/quantisers.py --images cifar10.zip --weights folder

The CIFAR-10 network of bench/compress.py in every form of int8 that NNCF and ONNX Runtime's own
quantiser make: accuracy and milliseconds a call in ONNX Runtime and OpenVINO, all in one race.
Ratios are over fp32 in the same runtime. ONNX Runtime's exact kernels for 8-bit weights are on, as
in every engine; OpenVINO has none on a CPU without VNNI.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import torchvision_ops  # noqa: F401
from compress import SAMPLES, trained
from redline.capture.capture import capture
from redline.compress.calibrate import collect
from redline.compress.float_nodes import plain_proto
from redline.compress.methods import compress
from redline.compress.scheme import Scheme
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.measure import work
from redline.measure.statistics import ratio
from redline.runtime.runner import open_part
from redline.runtime.session import Session
from redline.search.race import Lane, race
from redline.train import load_data, parts

SETTINGS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"threads": 2, "level": "all"},
    "openvino": {"threads": 2, "hint": "LATENCY"},
}


class Reader(CalibrationDataReader):
    """Calibration data as onnxruntime's quantiser asks for them."""

    def __init__(self, name: str, batches: Any) -> None:
        self._rows = iter([{name: batch[0]} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def forms(plain: Any, calibration: Any, folder: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Name -> what makes the graph."""
    source = folder / "plain.onnx"
    proto = plain_proto(plain)
    source.write_bytes(proto.SerializeToString())

    def nncf(**setting: Any) -> onnx.ModelProto:
        return plain_proto(compress(plain, Scheme("int8", setting), calibration).graph)

    def own(weights: Any, activations: Any, reduced: bool) -> onnx.ModelProto:
        target = folder / "made.onnx"
        reader = Reader(proto.graph.input[0].name, calibration.batches)
        quantize_static(
            str(source), str(target), reader, quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=weights, activation_type=activations, reduce_range=reduced,
        )  # fmt: skip
        return onnx.load(target)

    signed, unsigned = QuantType.QInt8, QuantType.QUInt8
    return {
        "fp32": lambda: proto,
        "NNCF, 7-bit weights": partial(nncf, narrow=True),
        "NNCF, 7-bit weights, minmax": partial(nncf, narrow=True, ranges="minmax"),
        "NNCF, 7-bit weights, mse": partial(nncf, narrow=True, ranges="mse"),
        "NNCF, 8-bit weights": partial(nncf, narrow=False),
        "onnxruntime u8 s7": partial(own, signed, unsigned, True),
        "onnxruntime u8 s8": partial(own, signed, unsigned, False),
        "onnxruntime s8 s7": partial(own, signed, signed, True),
        "onnxruntime u8 u8": partial(own, unsigned, unsigned, False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="a zip or folder of images in classes")
    parser.add_argument("--weights", type=Path, help="a folder to keep trained weights in")
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()
    data = load_data(args.images)
    net = trained("CIFAR-10", data, args.width, 12, args.weights)
    prepare = parts.features((), data)[0]
    x, y = prepare(data.test.x[:SAMPLES]).numpy(), data.test.y[:SAMPLES].numpy()
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:300]
    model = capture(net, torch.from_numpy(x[:1]))
    calibration = collect([prepare(data.train.x[rows])], model.signature)
    lanes, told = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, make in forms(model.graph, calibration, folder).items():
            start = time.monotonic()
            try:
                (folder / "graph.onnx").write_bytes(make().SerializeToString())
            except Exception as error:  # a quantiser that fails is a row of the table
                print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
                continue
            told[name] = [f"{time.monotonic() - start:.1f}"]
            told[name].append(f"{(folder / 'graph.onnx').stat().st_size / 1e6:.2f}")
            for backend, setting in SETTINGS.items():
                store = FolderStore(folder)
                part = Part(backend, setting, uses_graph=True)
                session = Session(open_part(part, store, model.signature), model.signature)
                hits = [session.run([x[i : i + 1]])[0].argmax() == y[i] for i in range(len(x))]
                told[name].append(f"{100 * float(np.mean(hits)):.1f} %")
                state = {"runner": session}
                work.prepare(state, inputs=[x[:1]])
                turn = partial(_turn, state)
                lanes.append(Lane(f"{name}|{backend}", turn))
        race(lanes, time.monotonic() + 60, keep=[lane.id for lane in lanes])
    timed = {lane.id: lane.rounds for lane in lanes}
    heads = [
        "made in s",
        "MB",
        *(f"accuracy in {b}" for b in SETTINGS),
        *(f"ms in {b}" for b in SETTINGS),
    ]
    print(f"| form | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
    for name, cells in told.items():
        for backend in SETTINGS:
            ours, plain = timed[f"{name}|{backend}"], timed[f"fp32|{backend}"]
            middle, low, high = ratio(plain, ours)
            cells.append(f"{np.median(ours) * 1e3:.3g}, {middle:.2f}× ({low:.2f} to {high:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


def _turn(state: dict[str, Any], seconds: float) -> list[float]:
    return work.time_block(state, seconds=seconds)


if __name__ == "__main__":
    main()
