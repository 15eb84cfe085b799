"""fp8 and fp4 for linear layers on GPUs that multiply them, through torchao.

Micikevicius et al., arXiv 2209.05433 (fp8); NVIDIA et al., arXiv 2509.25149 (NVFP4: blocks of 16
with a scale in fp8 each). The module runs inside PyTorch; there is no ONNX graph of it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from redline.compress.finetune import place_of
from redline.compress.modules import CompressedModule, copied, layers_of, with_record
from redline.compress.scheme import Layer, Scheme
from redline.errors import InputError, MissingError, RefusedError, UnknownNameError

# What the arithmetic needs: compute capability, and in words.
NEEDS = {
    "fp8": ((8, 9), "compute capability 8.9 (Ada, Hopper) or more"),
    "fp4": ((10, 0), "compute capability 10.0 (Blackwell) or more"),
}
_BLOCK = 16  # both sizes of a weight are multiples of it


def refusal(method: str, device: str = "cuda") -> str:
    """Why this machine has no fast fp8 or fp4; "" where it has.

    Example:
        >>> refusal("fp8", "cpu")
        'fp8 needs a GPU with hardware for it, and the model is on cpu'
    """
    least, words = NEEDS[method]
    if not torch.cuda.is_available():
        return f"{method} needs a GPU with hardware for it, and this machine has none"
    if torch.device(device).type != "cuda":
        return f"{method} needs a GPU with hardware for it, and the model is on {device}"
    has = torch.cuda.get_device_capability(device)
    return "" if has >= least else f"{method} needs {words}, and this GPU has {has[0]}.{has[1]}"


def low_float(model: nn.Module, scheme: Scheme) -> nn.Module:
    """A copy of the model whose linear layers multiply in fp8 or fp4.

    Args:
        model: on a GPU, in eval mode; for fp4 in bfloat16.
        scheme: Scheme("fp8") or Scheme("fp4"), with keep: layers by name that stay as they are.

    Raises:
        RefusedError: no GPU with hardware for it, or no layer that fits.
        MissingError: torchao is not installed.

    Example:
        >>> fast = low_float(model.cuda(), Scheme("fp8"))
    """
    if scheme.method not in NEEDS:
        raise UnknownNameError("method", scheme.method, NEEDS)
    if scheme.setting:
        raise InputError(f"{scheme.method} has no settings, got {sorted(scheme.setting)[0]!r}")
    own = copied(model).eval()
    reason = refusal(scheme.method, str(place_of(own)))
    if reason:
        raise RefusedError(reason, hint="int8 is what CPUs multiply fast")
    return quantized(own, scheme, _config(scheme.method, weights_only=False))


def quantized(model: nn.Module, scheme: Scheme, config: Any) -> nn.Module:
    """The model with torchao's tensors in the place of weights, in place.

    Raises:
        RefusedError: there is no linear layer whose sizes are multiples of 16.
    """
    from torchao.quantization import quantize_

    layers, chosen = [], set()
    for name, layer in layers_of(model).items():
        kind = type(layer).__name__
        if name in scheme.keep:
            layers.append(Layer(name, kind, "fp32", "kept"))
        elif not isinstance(layer, nn.Linear):
            layers.append(Layer(name, kind, "fp32", f"{scheme.method} is for linear layers"))
        elif any(size % _BLOCK for size in layer.weight.shape):
            reason = f"{list(layer.weight.shape)} are no multiples of {_BLOCK}"
            layers.append(Layer(name, kind, "fp32", reason))
        else:
            layers.append(Layer(name, kind, scheme.method))
            chosen.add(name)
    if not chosen:
        raise RefusedError("; ".join(sorted({layer.reason for layer in layers})) or "no layers")
    quantize_(model, config, filter_fn=lambda _, name: name in chosen)
    return with_record(model, CompressedModule(scheme, tuple(layers)))


def _config(method: str, *, weights_only: bool) -> Any:
    """torchao's own configuration; weights_only computes in the model's precision, anywhere."""
    level = logging.getLogger("torchao").level
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells which kernels it cannot load
    try:
        from torchao.prototype import mx_formats
        from torchao import quantization  # isort: skip
    except ImportError:
        raise MissingError("torchao is not installed", hint='pip install "redline[gpu]"') from None
    finally:
        logging.getLogger("torchao").setLevel(level)
    if method == "fp8":
        if weights_only:
            return quantization.Float8WeightOnlyConfig()
        return quantization.Float8DynamicActivationFloat8WeightConfig()
    if weights_only:
        return mx_formats.NVFP4WeightOnlyConfig()
    return mx_formats.NVFP4DynamicActivationNVFP4WeightConfig()
