"""Example inputs in any of the forms that users have, bound to forward's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from redline.errors import InputError, ModelError
from redline.tree import describe, unflatten

_FORMS = "a tensor, a tuple of positionals, a dict of keywords, or (tuple, dict)"


def bind(module: torch.nn.Module, example: Any) -> dict[str, Any]:
    """Parameter name -> example value, in forward's order; arrays become tensors.

    A forward that takes *args has its positionals named args_0, args_1, ...

    Raises:
        InputError: forward does not take these inputs, or there are none.

    Example:
        >>> list(bind(torch.nn.Linear(4, 2), torch.zeros(1, 4)))
        ['input']
    """
    args, kwargs = _split(example)
    signature = _signature(module)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit forward{signature}: {error}",
            hint=f"give {_FORMS}",
        ) from None
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    given: dict[str, Any] = {}
    starred = any(kinds[name] is inspect.Parameter.VAR_POSITIONAL for name in bound.arguments)
    if starred:
        given.update({f"args_{number}": value for number, value in enumerate(bound.args)})
        given.update(bound.kwargs)
    else:
        for name, value in bound.arguments.items():
            if kinds[name] is inspect.Parameter.VAR_KEYWORD:
                given.update(value)
            else:
                given[name] = value
    return _as_tensors(given)


def check_mode(module: torch.nn.Module) -> None:
    """Refuse a module in training mode: dropout and batch norm would be captured as they train.

    Raises:
        ModelError: names the first submodule that trains.
    """
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(
            f"the model is in training mode ({training[0]} and {len(training) - 1} more parts)"
            if len(training) > 1
            else f"the model is in training mode ({training[0]})",
            hint="call model.eval() first, or pass eval_mode=True (on the command line: --eval)",
        )


def check_device(module: torch.nn.Module, leaves: Sequence[Any]) -> None:
    """Refuse weights or inputs that are not on the CPU.

    Raises:
        ModelError: names the first tensor and its device.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    tensors += [(f"example input {i}", leaf) for i, leaf in enumerate(leaves)]
    for name, tensor in tensors:
        if tensor.device.type != "cpu":
            raise ModelError(
                f"{name} is on {tensor.device}, expected cpu",
                hint="engines here run on the CPU: use model.cpu() and inputs.cpu()",
            )


def _signature(module: torch.nn.Module) -> inspect.Signature:
    """The parameters of forward: a wrapper says whose, TorchScript keeps them in a schema."""
    declared = module.__dict__.get("signature")
    if isinstance(declared, inspect.Signature):
        return declared
    if not isinstance(module, torch.jit.ScriptModule):
        return inspect.signature(module.forward)
    arguments = module._c._get_method("forward").schema.arguments[1:]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(argument.name, kind) for argument in arguments])


def _split(example: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if example is None:
        raise InputError(
            "example_inputs is missing",
            hint=f"give {_FORMS} (on the command line: --input 1x3x224x224)",
        )
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        if len(example) == 2 and isinstance(example[0], tuple) and _is_keywords(example[1]):
            return example
        return example, {}
    if isinstance(example, list):
        return example, {}
    return ((), example) if _is_keywords(example) else ((example,), {})


def _is_keywords(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _as_tensors(given: dict[str, Any]) -> dict[str, Any]:
    tree, leaves = describe(given)
    tensors = [
        torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf.detach()
        for leaf in leaves
    ]
    return dict(unflatten(tree, tensors))
