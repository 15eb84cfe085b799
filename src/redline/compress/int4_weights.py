"""Weights of products in int4, in groups: rounded to nearest, or with their errors made good.

GPTQ (Frantar et al., arXiv 2210.17323) rounds one row of weights after the other and lets the rows
that follow take up its error; AWQ (Lin et al., arXiv 2306.00978) first scales up the rows that
meet large activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from redline.compress.float_nodes import cleaned, named, plain_proto
from redline.compress.scheme import Calibration, Compressed, Layer, Scheme
from redline.compress.weights import products, readers
from redline.errors import InputError, RefusedError

ERRORS = ("rtn", "gptq", "awq")
GROUPS = (16, 32, 64, 128, 256)
_ROWS = 512  # of activations that AWQ tries its scales on
_DAMPING = 0.01  # of the Hessian's mean diagonal, as in GPTQ's own code


@dataclass(frozen=True)
class Packed:
    """Weights [K, N] as whole numbers 0..15, with scale and zero point for each group of rows."""

    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: int

    def floats(self) -> np.ndarray:
        """The weights that these numbers stand for."""
        rows = np.arange(len(self.levels)) // self.group
        zero = self.zero[rows].astype(np.float32)
        return np.asarray((self.levels - zero) * self.scale[rows], np.float32)


def int4_weights(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Products by constant weights as MatMulNBits, four bits a weight.

    Settings: error ("rtn", "gptq" or "awq"; "gptq" where there is calibration), group (16 to 256
    rows that share a scale; 32).

    Raises:
        RefusedError: no product has constant weights; gptq or awq without calibration.
        InputError: a setting that does not exist.

    Example:
        >>> int4_weights(graph, Scheme("int4-weights", {"error": "awq"}), calibration)
    """
    group = int(scheme.setting.get("group", 32))
    error = str(scheme.setting.get("error", "gptq" if calibration else "rtn"))
    if group not in GROUPS:
        raise InputError(f"group is {group}, expected one of {', '.join(map(str, GROUPS))}")
    if error not in ERRORS:
        raise InputError(f"error is {error!r}, expected one of {', '.join(ERRORS)}")
    if error != "rtn" and calibration is None:
        raise RefusedError(f"{error} needs calibration data, and none was given")
    model = products(named(plain_proto(graph)))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [node for node, _ in readers(model, held) if node.op_type == "MatMul"]
    inside = [node for node in found if node.name not in scheme.keep]
    if not inside:
        raise RefusedError("no product has constant weights; int4 is for linear layers")
    seen = {} if error == "rtn" or calibration is None else _activations(model, inside, calibration)
    ways: Mapping[str, Callable[..., tuple[Packed, np.ndarray | None]]] = {
        "rtn": lambda w, x: (nearest(w, group), None),
        "gptq": lambda w, x: (gptq(w, x, group), None),
        "awq": lambda w, x: awq(w, x, group),
    }
    for node in inside:
        weights = numpy_helper.to_array(held[node.input[1]]).astype(np.float32)
        packed, scales = ways[error](weights, seen.get(node.input[0]))
        _replace(model, node, packed, scales)
    if not any(one.domain == "com.microsoft" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    layers = [Layer(node.name, "MatMul", "int4") for node in inside]
    kept = [node.name for node in found if node.name in scheme.keep]
    layers += [Layer(name, "MatMul", "fp32", "kept for accuracy") for name in kept]
    return Compressed(cleaned(model), scheme, tuple(layers), (error,))


def nearest(weights: np.ndarray, group: int) -> Packed:
    """Rounded to nearest, each group of rows over its own range.

    Example:
        >>> nearest(np.ones((32, 4), np.float32), 32).floats()[0, 0]
        1.0
    """
    blocks = [weights[i : i + group] for i in range(0, len(weights), group)]
    pairs = [_range(block) for block in blocks]
    scale, zero = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
    levels = [_levels(b, s, z) for b, s, z in zip(blocks, scale, zero, strict=True)]
    return Packed(np.concatenate(levels), scale, zero, group)


def _range(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each column; zero is always a level."""
    low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
    scale = (high - low) / 15
    scale[scale == 0] = 1
    return scale.astype(np.float32), np.clip(np.rint(-low / scale), 0, 15).astype(np.uint8)


def _levels(block: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(block / scale) + zero, 0, 15), np.uint8)


def gptq(weights: np.ndarray, x: np.ndarray, group: int) -> Packed:
    """Row after row; what rounding a row costs the outputs is taken up by the rows that follow.

    Args:
        weights: [K, N].
        x: [samples, K], what they were multiplied by.
    """
    left = weights.astype(np.float64)
    hessian = x.T.astype(np.float64) @ x
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    left[dead] = 0
    hessian += _DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    # The upper Cholesky factor of the inverse: row i says how the rest makes good an error of i.
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    levels = np.zeros(weights.shape, np.uint8)
    scales, zeros = [], []
    for row in range(len(left)):
        if row % group == 0:
            scale, zero = _range(left[row : row + group])
            scales.append(scale)
            zeros.append(zero)
        levels[row] = _levels(left[row], scale, zero)
        error = (left[row] - (levels[row] - zero.astype(float)) * scale) / upper[row, row]
        left[row + 1 :] -= np.outer(upper[row, row + 1 :], error)
    return Packed(levels, np.stack(scales), np.stack(zeros), group)


def awq(weights: np.ndarray, x: np.ndarray, group: int) -> tuple[Packed, np.ndarray | None]:
    """Rows that meet large activations scaled up before rounding, by the power that costs least.

    Returns:
        The packed weights, and what the activations are to be divided by; None where it is best
        to leave them alone.
    """
    x = x[:_ROWS]
    size = np.abs(x).mean(0) + 1e-8
    wanted = x @ weights
    best = (np.inf, nearest(weights, group), None)
    for power in np.linspace(0, 1, 11):
        scale = size**power
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        packed = nearest(weights * scale[:, None], group)
        lost = float(np.square((x / scale) @ packed.floats() - wanted).sum())
        if lost < best[0]:
            best = (lost, packed, scale if power else None)
    return best[1], best[2]


def _activations(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], calibration: Calibration
) -> dict[str, np.ndarray]:
    """What the products read, as rows; of long ones an even sample."""
    import onnxruntime

    names = list(dict.fromkeys(node.input[0] for node in nodes))
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = [value.name for value in session.get_inputs()]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    most = max(16, 8192 // len(calibration.batches))
    for batch in calibration.batches:
        for name, array in zip(
            names, session.run(names, dict(zip(inputs, batch, strict=True))), strict=True
        ):
            rows = array.reshape(-1, array.shape[-1])
            found[name].append(rows[:: -(-len(rows) // most)])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _replace(
    model: onnx.ModelProto, node: onnx.NodeProto, packed: Packed, scales: np.ndarray | None
) -> None:
    """The product as MatMulNBits: low four bits first, columns outermost, groups next."""
    k, n = packed.levels.shape
    blocks, group = len(packed.scale), packed.group
    full = np.zeros((blocks * group, n), np.uint8)
    full[:k] = packed.levels
    columns = full.T.reshape(n, blocks, group)
    data = columns[..., 0::2] | (columns[..., 1::2] << 4)
    zero = np.zeros((n, (blocks + 1) // 2 * 2), np.uint8)
    zero[:, :blocks] = packed.zero.T
    parts = {
        "q4": data,
        "scale": np.ascontiguousarray(packed.scale.T).reshape(-1),
        "zero": (zero[:, 0::2] | (zero[:, 1::2] << 4)).reshape(-1),
    }
    names = [f"{node.name}_{what}" for what in parts]
    for name, array in zip(names, parts.values(), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    given = node.input[0]
    if scales is not None:
        inverse = numpy_helper.from_array((1 / scales).astype(np.float32), f"{node.name}_smooth")
        model.graph.initializer.append(inverse)
        given = f"{node.input[0]}_{node.name}_smooth"
        place = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
        smooth = helper.make_node("Mul", [node.input[0], inverse.name], [given])
        model.graph.node.insert(place, smooth)
        node = next(other for other in model.graph.node if other.name == node.name)
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.input[:] = [given, *names]
    sizes = {"K": k, "N": n, "bits": 4, "block_size": group, "accuracy_level": 4}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sizes.items())
