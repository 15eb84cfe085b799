"""The run side works where torch is not installed."""

import json
import subprocess
import sys
import textwrap

import msgspec
import numpy as np
import onnx
import pytest

from redline.engine.file import save
from redline.engine.manifest import Check
from redline.measure.record import Study
from redline.runtime.load import PORTABLE
from redline.signature import Dim, Signature, TensorSpec, Tree

BLOCK = "import sys; sys.modules['torch'] = None; "


def without_torch(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + "\n" + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def engine_file(tmp_path):
    """y = 2x for any batch from 1 to 8, with its self-test."""
    path, x = tmp_path / "double.redline", np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [onnx.helper.make_tensor_value_info("x", tensor, ["batch", 3])],
        [onnx.helper.make_tensor_value_info("y", tensor, ["batch", 3])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    specs = [TensorSpec(name, "float32", ("batch", 3)) for name in "xy"]
    tree = Tree("dict", ("x",), (Tree(),))
    study = Study("double", "onnx", {}, "minimize latency", "met", records=())
    save(
        path,
        name="double",
        signature=Signature((specs[0],), (specs[1],), tree, Tree(), (Dim("batch", 1, 2, 8),)),
        parts=[(PORTABLE, tmp_path)],
        graph=model.SerializeToString(),
        check=Check(tolerance=1e-6, latency_s=1e-6),
        inputs=[x],
        outputs=[x + x],
        provenance={"study": msgspec.to_builtins(study)},
    )
    return path


@pytest.mark.parametrize(
    "module",
    [
        "redline",
        "redline.engine.file",
        "redline.runtime.load",
        "redline.drop_in",
        "redline.machine",
        "redline.serve.server",
        "redline.serve.child_main",
        "redline.report.html",
        "redline.report.terminal",
    ],
)
def test_it_imports_without_torch(module):
    without_torch(f"import {module}")


def test_an_engine_runs_without_torch(engine_file):
    told = without_torch(
        """
        import json
        import numpy as np
        import redline
        with redline.load(sys.argv[1]) as engine:
            y = engine(np.full((5, 3), 1.5, np.float32))
            print(json.dumps([engine.backend, str(y.dtype), y.tolist()]))
        """,
        engine_file,
    )
    backend, dtype, y = json.loads(told)
    assert (backend, dtype) == ("onnxruntime", "float32")
    assert y == [[3.0] * 3] * 5


def test_the_block_does_block():
    with pytest.raises(AssertionError, match="torch"):
        without_torch("import torch")
