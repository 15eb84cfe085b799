"""capture(): whatever holds a model -> Model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redline.capture import torch_files
from redline.capture.huggingface import as_exportable, is_huggingface, is_pipeline
from redline.capture.module import capture_module
from redline.capture.onnx_file import load_onnx
from redline.errors import InputError, ModelError
from redline.graph.model import Model

_ACCEPTED = (
    "a torch.nn.Module, an ExportedProgram, a Hugging Face model or pipeline, or the path of an "
    ".onnx, TorchScript .pt or .pt2 file"
)


def capture(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    name: str | None = None,
    trust: bool = False,
    eval_mode: bool = False,
) -> Model:
    """Turn a model into a graph, a program and a signature, or into notes that say why not.

    Args:
        model: what _ACCEPTED says.
        example_inputs: a tensor, a tuple of positionals, a dict of keywords, or (tuple, dict).
        dynamic: axes that may change (see redline.capture.dynamic.parse).
        name: what to call it; its class or file name by default.
        trust: open a .pt2 file, which can run code when it is loaded.
        eval_mode: capture a model in training mode as in eval mode; the model stays as it was.

    Raises:
        InputError: the model or the inputs cannot be used.
        SpecializedAxisError: an axis of `dynamic` is fixed by the model's code.

    Example:
        >>> capture(torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4)).signature.outputs[0].shape
        (1, 2)
    """
    options: dict[str, Any] = {"dynamic": dynamic, "name": name or "", "eval_mode": eval_mode}
    if isinstance(model, str | Path):
        return _from_path(Path(model), example_inputs, trust, options)
    if is_pipeline(model):
        model = model.model
    if isinstance(model, torch.export.ExportedProgram):
        return torch_files.from_program(model, example_inputs, **options)
    if isinstance(model, torch.jit.ScriptModule):
        return torch_files.from_script(model, example_inputs, **options)
    if isinstance(model, torch.nn.Module):
        if is_huggingface(model):
            options["name"] = options["name"] or type(model).__name__
            return capture_module(
                as_exportable(model), example_inputs, origin="huggingface", **options
            )
        return capture_module(model, example_inputs, **options)
    if isinstance(model, bytes) or type(model).__name__ in ("ModelProto", "Model"):
        return load_onnx(model, example_inputs, dynamic=dynamic, name=name)
    raise ModelError(
        f"got a {type(model).__qualname__}, which is not a model", hint=f"give {_ACCEPTED}"
    )


def _from_path(path: Path, example: Any, trust: bool, options: dict[str, Any]) -> Model:
    if not path.is_file():
        raise _no_such_file(path)
    options["name"] = options["name"] or path.stem
    match path.suffix:
        case ".onnx":
            return load_onnx(path, example, dynamic=options["dynamic"], name=options["name"])
        case ".pt2":
            return torch_files.from_program(torch_files.load_pt2(path, trust), example, **options)
        case ".pt" | ".pth" | ".ts":
            return torch_files.from_script(torch_files.load_script(path), example, **options)
    raise ModelError(f"{path} is not a model that Redline can read", hint=f"give {_ACCEPTED}")


def _no_such_file(path: Path) -> InputError:
    near: list[str] = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(
            path.name, [one.name for one in path.parent.iterdir()], n=1
        )
    guess = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    kind = "is a folder, expected a file" if path.is_dir() else "does not exist"
    return InputError(f"{path} {kind}", hint=guess)
