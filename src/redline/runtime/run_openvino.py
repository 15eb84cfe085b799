"""Runs a part with OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.settings import closed, failed, input_order, threads
from redline.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

# One for the process, and never let go. A core's CPU plugin gives the thread that first asks for it
# another stack for signal handlers, and unmaps that when the core ends, in whatever order and
# thread: the next signal, such as Ctrl-C, would then end the process by SIGSEGV.
CORE = openvino.Core()


class OpenVinoRunner:
    """A compiled model and the infer requests that its callers share, one for each at a time."""

    def __init__(self, part: Part, compiled: openvino.CompiledModel, signature: Signature) -> None:
        self._part = part
        self._compiled = compiled
        names = [port.any_name for port in compiled.inputs]
        order = input_order(part, names, signature)
        self._places = [names.index(name) for name in order]
        self._outputs = range(len(compiled.outputs))
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            with self._request() as request:
                for place, array in zip(self._places, inputs, strict=True):
                    self._fill(request, place, array)
                request.infer(share_outputs=True)
                return [request.get_output_tensor(index).data.copy() for index in self._outputs]
        except Exception as error:
            raise (
                closed(self._part) if self._compiled is None else failed(self._part, error)
            ) from error

    def _fill(self, request: openvino.InferRequest, place: int, array: np.ndarray) -> None:
        """Copy into the request's own memory, which lives as long as it and is never read-only."""
        tensor = request.get_input_tensor(place)
        if tensor.get_shape() != array.shape:
            port = self._compiled.inputs[place]
            if not port.partial_shape.compatible(openvino.PartialShape(list(array.shape))):
                raise ValueError(f"shape {array.shape} does not fit {port.partial_shape}")
            tensor.shape = array.shape
        tensor.data[...] = array

    @contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)

    def close(self) -> None:
        self._compiled = None
        self._idle = SimpleQueue()


def open_part(part: Part, store: Store, signature: Signature) -> OpenVinoRunner:
    """Open "graph.onnx", or the part's own "model.xml" with "model.bin".

    Setting: threads (int), hint ("LATENCY", "THROUGHPUT"), streams (int).

    Raises:
        RunError: OpenVINO cannot read or compile the graph.
    """
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": str(part.setting.get("hint", "LATENCY")),
        "INFERENCE_NUM_THREADS": threads(part),
    }
    if "streams" in part.setting:
        settings["NUM_STREAMS"] = str(part.setting["streams"])
    # A CPU with bf16 would else use it unasked; what Q/DQ marks is computed in int8 all the same.
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        if part.uses_graph:
            model = CORE.read_model(bytes(store.read("graph.onnx")))
        else:
            weights = np.frombuffer(store.read("model.bin"), np.uint8).copy()  # must be writeable
            model = CORE.read_model(bytes(store.read("model.xml")), openvino.Tensor(weights))
        compiled = CORE.compile_model(model, "CPU", settings)
    except Exception as error:
        raise RunError(f"openvino cannot open the graph: {str(error)[:500]}") from error
    return OpenVinoRunner(part, compiled, signature)
