"""Runs a part with ncnn on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import ncnn
import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.settings import closed, failed, threads
from redline.signature import Signature, TensorSpec

# ncnn turns these on by itself; the fp32 tier must compute in fp32.
REDUCED = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
)


class NcnnRunner:
    """A net that many threads may read; every call has an Extractor of its own."""

    def __init__(self, part: Part, net: ncnn.Net, signature: Signature) -> None:
        self._part = part
        self._net = net
        self._batched = bool(part.setting.get("batch", True))
        self._inputs = [f"in{index}" for index in range(len(signature.inputs))]
        self._outputs = [
            (f"out{index}", _item_shape(spec, self._batched))
            for index, spec in enumerate(signature.outputs)
        ]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._net is None:
            raise closed(self._part)
        try:
            if not self._batched:
                return self._run_item(inputs)
            items = [self._run_item(item) for item in zip(*inputs, strict=True)]
            return [np.stack(outputs) for outputs in zip(*items, strict=True)]
        except RunError:
            raise
        except Exception as error:
            raise failed(self._part, error) from error

    def _run_item(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        extractor = self._net.create_extractor()
        for name, array in zip(self._inputs, inputs, strict=True):
            if array.dtype != np.float32:
                array = array.astype(np.int32)  # ncnn reads whole numbers as 32 bit
            # Without clone() the Mat borrows NumPy's memory without keeping it alive.
            if extractor.input(name, ncnn.Mat(np.ascontiguousarray(array)).clone()):
                raise RunError(f"ncnn did not take input {name!r} of shape {array.shape}")
        outputs = []
        for name, shape in self._outputs:
            code, mat = extractor.extract(name)
            if code:
                raise RunError(f"ncnn could not compute {name!r} (code {code})")
            result = np.array(mat)
            outputs.append(result.reshape(shape) if shape else result)
        return outputs

    def close(self) -> None:
        self._net = None


def _item_shape(spec: TensorSpec, batched: bool) -> tuple[int, ...] | None:
    """The shape of one item of an output, or None where it is dynamic."""
    shape = spec.shape[1:] if batched else spec.shape
    return tuple(int(axis) for axis in shape) if all(isinstance(a, int) for a in shape) else None


def open_part(part: Part, store: Store, signature: Signature) -> NcnnRunner:
    """Open "model.param" and "model.bin", whose blobs are in0, in1, .. and out0, out1, ..

    ncnn has no batch axis. With setting "batch" true (the default) axis 0 of every input and output
    is the batch: it is taken off and the items run one after the other.

    Setting: threads (int), winograd (bool), batch (bool).

    Raises:
        RunError: ncnn cannot read the files, or an output is not float32.
    """
    if other := [spec for spec in signature.outputs if spec.dtype != "float32"]:
        raise RunError(f"ncnn gives float32 only, output {other[0].name!r} is {other[0].dtype}")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads(part)
    net.opt.use_winograd_convolution = bool(part.setting.get("winograd", True))
    if part.precision == "fp32":
        for option in REDUCED:
            setattr(net.opt, option, False)
    for name, load in (("model.param", net.load_param), ("model.bin", net.load_model)):
        if code := load(str(store.path(name))):
            raise RunError(f"ncnn cannot read {name} (code {code})")
    return NcnnRunner(part, net, signature)
