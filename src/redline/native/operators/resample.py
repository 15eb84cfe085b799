"""Resizing: places and weights are known at build, so each axis is one weighted gather."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from redline.native.dtypes import ALL, FLOATS
from redline.native.ir import No, Value, contiguous, view
from redline.native.literals import literal
from redline.native.read import Op, Reader, constant, operator


@operator("Resize", types=(*FLOATS, "uint8", "int8", "int32", "int64"), note="scales at run")
def _resize(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    rank = len(x.shape)
    axes = [axis % rank for axis in op.attr("axes", range(rank))]
    known = op.opset >= 11
    scales = op.const(2 if known else 1)
    sizes = op.const(3) if known else None
    lengths, factors = _lengths(op, x, axes, scales, sizes)
    region = op.const(1) if known and op.has(1) else None
    if region is not None and not region.size:
        region = None
    settings = {
        "mode": op.attr("mode", "nearest"),
        "place": op.attr("coordinate_transformation_mode", "half_pixel" if known else "asymmetric"),
        "round": op.attr("nearest_mode", "round_prefer_floor" if known else "floor"),
        "cubic": op.attr("cubic_coeff_a", -0.75),
        "antialias": bool(op.attr("antialias", 0)),
        "exclude": bool(op.attr("exclude_outside", 0)),
    }
    outside: dict[int, np.ndarray] = {}
    for i, axis in enumerate(axes):
        part = None if region is None else (float(region[i]), float(region[len(axes) + i]))
        crops = settings["place"] == "tf_crop_and_resize"
        if lengths[i] == x.shape[axis] and factors[i] == 1 and not crops:
            continue
        at = _coordinates(settings["place"], x.shape[axis], lengths[i], factors[i], part)
        if crops:
            outside[axis] = (at < 0) | (at > x.shape[axis] - 1)
        x = _along(r, x, axis, *_taps(at, x.shape[axis], factors[i], settings))
    for axis, gone in outside.items():
        shape = (-1, *[1] * (rank - axis - 1))
        fill = literal(float(op.attr("extrapolation_value", 0.0)))
        form = f"(({{1}}) ? {fill} : ({{0}}))"
        if gone.any():
            x = r.pointwise(form, x, constant(gone.reshape(shape)), vector=False)
    return [x]


@operator("Upsample", types=FLOATS)
def _upsample(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    scales = op.const(1) if op.has(1) else np.asarray(op.attr("scales"))
    settings = {"mode": op.attr("mode", "nearest"), "round": "floor", "cubic": -0.75}
    settings |= {"antialias": False, "exclude": False}
    for axis, scale in enumerate(scales):
        length = int(np.floor(x.shape[axis] * scale))
        if scale != 1:
            at = _coordinates("asymmetric", x.shape[axis], length, float(scale), None)
            x = _along(r, x, axis, *_taps(at, x.shape[axis], float(scale), settings))
    return [x]


def _lengths(
    op: Op, x: Value, axes: list[int], scales: Any, sizes: Any
) -> tuple[list[int], list[float]]:
    """Output lengths and scale factors of the axes that are resized."""
    if sizes is None or not sizes.size:
        factors = [float(s) for s in scales]
        return [int(np.floor(x.shape[a] * f)) for a, f in zip(axes, factors, strict=True)], factors
    lengths = [int(n) for n in sizes]
    factors = [n / x.shape[a] for a, n in zip(axes, lengths, strict=True)]
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        factors = [one] * len(axes)
        lengths = [int(np.floor(one * x.shape[a] + 0.5)) for a in axes]
    return lengths, factors


def _coordinates(
    mode: str, n: int, length: int, scale: float, region: tuple[float, float] | None
) -> np.ndarray:
    """Where each output lies in the input, in pixels."""
    i = np.arange(length, dtype=np.float64)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        wide = scale * n
        return np.zeros(length) if wide == 1 else i * (n - 1) / (wide - 1)
    if mode == "pytorch_half_pixel" and scale * n <= 1:
        return np.full(length, -0.5)
    if mode == "half_pixel_symmetric":
        adjust = length / (scale * n)
        return n / 2 * (1 - adjust) + (i + 0.5) / scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = region or (0.0, 1.0)
        if length == 1:
            return np.full(1, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + i * (end - start) * (n - 1) / (length - 1)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    raise No(f"Resize with coordinates {mode!r}")


def _taps(
    at: np.ndarray, n: int, scale: float, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Places [length, taps] and their weights."""
    if settings["mode"] == "nearest":
        return np.clip(_nearest(at, settings["round"]), 0, n - 1)[:, None], np.ones((len(at), 1))
    shrink = min(1.0, scale) if settings["antialias"] else 1.0
    radius = (1 if settings["mode"] == "linear" else 2) / shrink
    low = np.floor(at - radius).astype(np.int64) + 1
    places = low[:, None] + np.arange(int(np.ceil(2 * radius)) + 1)
    distance = np.abs(at[:, None] - places) * shrink
    if settings["mode"] == "linear":
        weights = np.maximum(0, 1 - distance)
    else:
        weights = _cubic(distance, settings["cubic"])
    if settings["exclude"]:
        weights = np.where((places < 0) | (places >= n), 0, weights)
    if settings["exclude"] or settings["antialias"]:
        weights = weights / weights.sum(1, keepdims=True)
    used = np.flatnonzero(weights.any(0))
    keep = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
    return np.clip(places[:, keep], 0, n - 1), weights[:, keep]


def _nearest(at: np.ndarray, how: str) -> np.ndarray:
    rounded: dict[str, np.ndarray] = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }
    return rounded[how].astype(np.int64)


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _along(r: Reader, x: Value, axis: int, places: np.ndarray, weights: np.ndarray) -> Value:
    """One axis; whole repeats of each element are a view."""
    length, taps = places.shape
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    times = length // max(1, x.shape[axis])
    if taps == 1 and np.array_equal(places[:, 0], np.repeat(np.arange(x.shape[axis]), times)):
        spread = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
        steps = (*x.steps[: axis + 1], 0, *x.steps[axis + 1 :])
        return r.reshape(view(x, spread, steps), shape)
    out, inner = r.new(shape, x.dtype), prod(x.shape[axis + 1 :])
    wide = np.float64 if x.dtype == np.float64 else np.float32
    tables = constant(places.astype(np.int64)), constant(weights.astype(wide))
    return r.call(
        "resample.hpp", "weighted", out, x, *tables, units=prod(x.shape[:axis]) * length,
        numbers=(x.shape[axis], length, taps, inner), work=out.size * taps,
    )  # fmt: skip


@operator("GridSample", types=FLOATS)
def _grid_sample(r: Reader, op: Op) -> list[Value]:
    x, grid = op.value(0), op.value(1)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        op.attr("mode", "linear"), op.attr("mode", "linear")
    )
    rank = len(x.shape) - 2
    if rank not in (2, 3):
        raise No(f"GridSample over {rank} axes")
    if rank == 3 and mode == "cubic":
        raise No("GridSample by cubic polynomials over three axes")
    full = (1,) * (3 - rank) + x.shape[2:]
    points = prod(grid.shape[1:-1])
    out = r.new((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
    kinds = {"nearest": 0, "linear": 1, "cubic": 2}
    pads = {"zeros": 0, "border": 1, "reflection": 2}
    numbers = (
        x.shape[1], full, rank, points, kinds[mode], pads[op.attr("padding_mode", "zeros")],
        op.attr("align_corners", 0),
    )  # fmt: skip
    return [
        r.call(
            "resample.hpp", "grid_sample", out, x, grid,
            units=x.shape[0] * points, numbers=numbers, work=out.size * 8,
        )
    ]  # fmt: skip


@operator("RoiAlign", types=FLOATS)
def _roi_align(r: Reader, op: Op) -> list[Value]:
    x, regions, batch = op.value(0), op.value(1), op.value(2)
    high, wide = op.attr("output_height", 1), op.attr("output_width", 1)
    default = "half_pixel" if op.opset >= 16 else "output_half_pixel"
    shift = 0.5 if op.attr("coordinate_transformation_mode", default) == "half_pixel" else 0.0
    out = r.new((regions.shape[0], x.shape[1], high, wide), x.dtype)
    numbers = (
        x.shape[1], x.shape[2], x.shape[3], high, wide, op.attr("sampling_ratio", 0),
        float(op.attr("spatial_scale", 1.0)), shift, int(op.attr("mode", "avg") == "max"),
    )  # fmt: skip
    units = regions.shape[0] * x.shape[1]
    return [
        r.call("resample.hpp", "roi_align", out, x, regions, batch, units=units, numbers=numbers,
               work=out.size * 16)
    ]  # fmt: skip


@operator("Col2Im", types=FLOATS)
def _col2im(r: Reader, op: Op) -> list[Value]:
    x, image, block = op.value(0), op.ints(1), op.ints(2)
    rank = len(image)
    if rank > 3:
        raise No(f"Col2Im over {rank} axes")
    ones = (1,) * rank
    strides, dilations = op.attr("strides", ones), op.attr("dilations", ones)
    pads = op.attr("pads", (0,) * (2 * rank))
    from redline.native.operators.anchors import geometry

    counts = tuple(
        (image[i] + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    )
    window = {
        "kernel": block, "strides": strides, "dilations": dilations, "pads": pads, "sizes": image,
    }  # fmt: skip
    channels = x.shape[1] // prod(block)
    out = r.new((x.shape[0], channels, *image), x.dtype)
    numbers = geometry(counts, window)
    return [
        r.call("windows.hpp", "gathered", out, x, units=x.shape[0] * channels, numbers=numbers,
               work=x.size)
    ]  # fmt: skip


@operator("MaxUnpool", types=ALL)
def _max_unpool(r: Reader, op: Op) -> list[Value]:
    x, places = op.value(0), op.value(1)
    rank = len(x.shape) - 2
    kernel = op.attr("kernel_shape")
    strides, pads = op.attr("strides", (1,) * rank), op.attr("pads", (0,) * (2 * rank))
    sizes = tuple(
        (n - 1) * s + k - pads[i] - pads[rank + i]
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    )
    own = (*x.shape[:2], *sizes)
    shape = tuple(int(n) for n in op.const(2)) if op.has(2) else own
    out = r.new(own, x.dtype)
    flat = r.call("resample.hpp", "unpooled", out, x, places, numbers=(x.size, out.size))
    if shape == own:
        return [flat]
    # The places count in the smaller image; the larger one holds it at its low corner.
    from redline.native.operators.placing import padded

    high = [want - have for want, have in zip(shape, own, strict=True)]
    fill = constant(np.zeros((), x.dtype))
    if min(high) < 0:
        part = tuple(map(min, own, shape))
        flat = view(flat, part, contiguous(own))
        high = [want - have for want, have in zip(shape, part, strict=True)]
    return [padded(r, flat, [0] * len(own), high, fill)]
