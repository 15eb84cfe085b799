"""From an engine file to a model that Triton serves: its ONNX graph and a config.pbtxt."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from redline.engine.file import open_file
from redline.errors import RefusedError, SaveError
from redline.signature import Signature, TensorSpec

_TYPES = {
    "bool": "BOOL", "bfloat16": "BF16", "str": "STRING", "float16": "FP16", "float32": "FP32",
    "float64": "FP64",
}  # fmt: skip


def export_triton(path: Path, target: Path, name: str = "") -> Path:
    """Write target/NAME/config.pbtxt and target/NAME/1/model.onnx; returns the model's folder.

    Triton runs the graph in its own ONNX Runtime; compiled parts stay behind. The folder is made
    beside and moved into place.

    Args:
        path: an engine file.
        target: the model repository.
        name: of the model; the file's own by default.

    Raises:
        EngineFileError: the file cannot be read.
        RefusedError: it holds no graph, or Triton has no type for an input.
        SaveError: the model is there already, or it cannot be written.

    Example:
        >>> export_triton(Path("model.redline"), Path("models"))
        PosixPath('models/model')
    """
    name = name or path.stem
    home = target / name
    if home.exists():
        raise SaveError(f"{home} exists", hint="remove it, or give another --name")
    with open_file(path) as file:
        graph = file.graph()
        if graph is None:
            raise RefusedError(
                f"{path} holds no ONNX graph: its parts run inside PyTorch",
                hint="optimize a model that torch.onnx can export",
            )
        text = triton_config(name, file.manifest.signature)
        data = bytes(graph)
    try:
        target.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target))
        try:
            (made / "1").mkdir()
            (made / "1" / "model.onnx").write_bytes(data)
            (made / "config.pbtxt").write_text(text, encoding="utf-8")
            made.chmod(0o755)
            made.rename(home)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise SaveError(f"the model cannot be written: {error}", where=str(home)) from None
    return home


def triton_config(name: str, signature: Signature) -> str:
    """A config.pbtxt: tensors, the largest batch of a dynamic first axis, dynamic batching.

    Raises:
        RefusedError: Triton has no type for a tensor.
    """
    tensors = (*signature.inputs, *signature.outputs)
    first = {spec.shape[0] if spec.shape else 0 for spec in tensors}
    axis = first.pop() if len(first) == 1 else 0
    dim = signature.dim(axis) if isinstance(axis, str) else None
    lines = [f'name: "{name}"', 'backend: "onnxruntime"']
    lines.append(f"max_batch_size: {dim.max if dim else 0}")
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [_tensor(kind, spec, bool(dim)) for spec in specs]
    if dim:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 0 }")
    lines.append("instance_group [ { count: 1, kind: KIND_CPU } ]")
    return "\n".join([*lines, ""])


def _tensor(kind: str, spec: TensorSpec, batched: bool) -> str:
    dtype = spec.dtype
    triton = _TYPES.get(dtype, dtype.upper() if dtype.lstrip("u").startswith("int") else "")
    if not triton:
        raise RefusedError(f"Triton has no type for {kind} {spec.name!r}, which is {dtype}")
    sizes = [axis if isinstance(axis, int) else -1 for axis in spec.shape[1 if batched else 0 :]]
    dims = ", ".join(map(str, sizes or [1]))
    reshape = "" if sizes else ", reshape: { shape: [ ] }"
    return (
        f'{kind} [ {{ name: "{spec.name}", data_type: TYPE_{triton}, dims: [ {dims} ]{reshape} }} ]'
    )
