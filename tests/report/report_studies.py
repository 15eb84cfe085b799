"""Studies of every kind that a report may have to tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redline.measure.record import Kept, Record, Study, Timing, Tried

MACHINE: dict[str, object] = {
    "cpu": "AMD EPYC 9B45",
    "cores": 2,
    "isa": ["avx", "avx2", "fma", "avx512f", "avx512_vnni"],
    "peak_flops_one": 210e9,
    "peak_flops": 412e9,
    "bandwidth_one": 24.8e9,
    "bandwidth": 31.2e9,
    "wake_seconds": 10.3e-6,
    "cores_total": 8,
    "l1d": 49_152,
    "l2": 1_048_576,
    "l3": 33_554_432,
    "memory": 25_276_502_016,
    "method": "C++ loops, avx512f, g++",
    "system": "Linux 6.18",
    "python": "3.12.4",
}
BEFORE = {
    "Conv": 20,
    "Relu": 17,
    "Add": 8,
    "MaxPool": 1,
    "GlobalAveragePool": 1,
    "Flatten": 1,
    "Gemm": 1,
}


def timing(milliseconds: float, spread: float = 0.012) -> Timing:
    median = milliseconds / 1000
    return Timing(median, median * (1 - spread), median * (1 + spread), median * 1.2, (median,) * 7)


def ok(id: str, milliseconds: float, winner: float = 21.8, **more: Any) -> Record:
    backend, _, settings = id.partition(" ")
    over = milliseconds / winner
    filled: dict[str, Any] = {
        "setting": dict(pair.split("=") for pair in settings.split()),
        "timing": timing(milliseconds),
        "throughput": 1000 / milliseconds,
        "ratio": (over, over * 0.985, over * 1.015),
        "error": 1.1e-6,
        "tolerance": 1.3e-5,
        "reason": f"{over:.2f}× the winner's time ({over * 0.985:.2f} to {over * 1.015:.2f})",
    } | more
    return Record(id=id, backend=backend, outcome="ok", **filled)


def records() -> tuple[Record, ...]:
    fused = {"Conv": 20, "MaxPool": 1, "ReduceMean": 1, "FullyConnected": 1, "Reorder": 2}
    blocked = {"com.microsoft.nchwc::Conv": 20, "com.microsoft.nchwc::MaxPool": 1,
               "com.microsoft.nchwc::GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}  # fmt: skip
    return (
        ok("eager", 35.8, peak_memory=412_000_000, packaged=False, error=1.0e-6),
        ok("eager memory_format=channels_last", 31.2, peak_memory=418_000_000, packaged=False),
        ok("inductor mode=aot", 26.9, build_seconds=38.4, peak_memory=521_000_000, size=47_900_000),
        ok(
            "onnxruntime threads=2 level=all",
            24.4,
            build_seconds=0.61,
            peak_memory=171_000_000,
            size=46_800_000,
            operators=blocked,
            error=9.1e-7,
        ),
        ok(
            "onnxruntime threads=1 level=all",
            44.9,
            build_seconds=0.58,
            peak_memory=169_000_000,
            size=46_800_000,
            operators=blocked,
            ratio=None,
            reason="2.06× the winner's time; left before the final",
        ),
        ok(
            "openvino hint=latency threads=2",
            21.8,
            build_seconds=1.9,
            peak_memory=243_000_000,
            size=46_750_000,
            operators=fused,
            winner=21.8,
            reason="",
            ratio=(1.0, 1.0, 1.0),
        ),
        ok(
            "ncnn winograd=on threads=2",
            22.3,
            build_seconds=4.2,
            peak_memory=152_000_000,
            size=46_720_000,
            operators={"Convolution": 20, "Eltwise": 8, "ReLU": 8, "Pooling": 2, "InnerProduct": 1},
            error=6.4e-5,
            tolerance=1.3e-3,
            tolerance_class="winograd-f63",
        ),
        Record(
            "openvino hint=throughput",
            "openvino",
            "wrong result",
            error=0.031,
            tolerance=1.3e-5,
            reason="error 0.031 is above the allowed 1.3e-05, on case 'random 2'",
        ),
        Record(
            "tensorrt",
            "tensorrt",
            "missing",
            reason="no NVIDIA GPU is visible to the driver",
            hint="pip install 'redline[gpu]' on a machine with an NVIDIA GPU",
        ),
        Record(
            "null mode=segfault",
            "null",
            "crashed",
            reason="its process ended by SIGSEGV while running",
        ),
    )


def realistic() -> Study:
    found = tuple(
        replace(one, winner=one.id.startswith("openvino hint=latency")) for one in records()
    )
    return Study(
        model="ResNet-18",
        origin="module",
        machine=MACHINE,
        goal="minimize latency, max_size 60 MB",
        verdict="met",
        records=found,
        operators=BEFORE,
        flops=3.64e9,
        bytes=71.3e6,
        parameters=11_689_512,
        yardstick=1.1e-6,
        reference="the module in float64",
        notes=(
            ("BatchNorm was folded into 20 convolutions", "resnet.py:268", ""),
            ("the batch axis is fixed at 1", "input 'x'", 'dynamic={"batch": (1, 8, 32)}'),
        ),
        seconds=74.2,
        budget=90.0,
        inputs=("x: float32[1, 3, 224, 224]",),
        versions={"eager": "2.13.0+cpu", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
        created="2026-11-24T02:31:00+00:00",
    )


def all_failed() -> Study:
    rows = [one for one in records() if one.outcome != "ok"]
    return Study("Broken", "onnx", MACHINE, "minimize latency", "", tuple(rows))


def one_row() -> Study:
    only = replace(ok("eager", 0.042, 0.042), winner=True, reason="", packaged=False)
    return Study("MLP", "module", {}, "minimize latency", "met", (only,))


def from_cache() -> Study:
    base = realistic()
    rows = tuple(replace(one, from_cache=one.outcome not in ("missing",)) for one in base.records)
    return replace(base, records=rows, seconds=2.1)


def huge_names() -> Study:
    base = realistic()
    name = "Very" * 60 + "LongModelName"
    rows = tuple(
        replace(one, id=one.id + " option=" + "x" * 150, reason=one.reason + " and so on" * 40)
        for one in base.records
    )
    notes = (("n" * 400, "w" * 300, "h" * 300),)
    return replace(
        base, model=name, records=rows, notes=notes, inputs=("i" * 200 + ": float32[1]",)
    )


def lower_precisions() -> Study:
    base = realistic()
    how = "evaluate, 0.7600 in fp32"
    stem = Kept("stem", "Conv", "int8", "", 0.01)
    first = (stem, Kept("head", "Gemm", "int8", "", 0.4))
    then = (stem, Kept("head", "Gemm", "fp32", "kept for accuracy", 0.4))
    best = ok("onnxruntime threads=2", 12.0, 12.0, size=12_000_000, accuracy=0.757)
    won = replace(best, id="onnxruntime int8-keep1", precision="int8-keep1", reason="")
    rows = [replace(one, winner=False) for one in base.records]
    refused = Record(
        "int4-weights", "int4-weights", "refused", precision="int4-weights", reason="nothing to do"
    )
    return replace(
        base,
        records=(replace(won, winner=True), *rows, refused),
        compressed=(
            Tried("int8", 11_800_000, 0.06, 0.005, how, first, 0.0048, 0.01),
            Tried("int8-keep1", 12_000_000, 0.003, 0.005, how, then, 0.005, 0.01),
            Tried("fp16", 23_400_000, float("inf"), 0.005, how, (), 0.011, 0.01),
        ),
    )


STUDIES = {
    "lower precisions": lower_precisions,
    "realistic": realistic,
    "all failed": all_failed,
    "one row": one_row,
    "from cache": from_cache,
    "huge names": huge_names,
}
