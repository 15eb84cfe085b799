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
        self._outputs = signature.outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._net is None:
            raise closed(self._part)
        try:
            items = list(zip(*inputs, strict=True)) if self._batched else [inputs]
            results = zip(*[self._run_item(item) for item in items], strict=True)
            return [
                self._assemble(mats, spec)
                for mats, spec in zip(results, self._outputs, strict=True)
            ]
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
        for index in range(len(self._outputs)):
            code, mat = extractor.extract(f"out{index}")
            if code:
                raise RunError(f"ncnn could not compute output {index} (code {code})")
            outputs.append(np.array(mat))
        return outputs

    def _assemble(self, items: Sequence[np.ndarray], spec: TensorSpec) -> np.ndarray:
        """The items' outputs as one array of the signature's shape; ncnn drops axes of size 1."""
        head = [len(items)] if self._batched and isinstance(spec.shape[0], str) else spec.shape[:1]
        shape = (*head, *spec.shape[1:])
        if any(isinstance(axis, str) for axis in shape):
            return np.stack(items) if self._batched else items[0]
        return np.concatenate([item.ravel() for item in items]).reshape(shape)

    def close(self) -> None:
        self._net = None


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
