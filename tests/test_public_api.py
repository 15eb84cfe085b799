"""What `import redline` gives: few names, each there, and quickly."""

import subprocess
import sys
from pathlib import Path

import pytest

import redline

NAMES = {
    "__version__", "Engine", "Goal", "Report", "autograd_view", "compare", "errors", "grad_report",
    "graph_view", "load", "machine", "optimize", "watch", "why",
}  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "onnxscript", "onnx_ir", "rich", "typer")


def test_the_public_names_are_these():
    assert set(redline.__all__) == NAMES
    assert set(dir(redline)) == {*NAMES, "compress", "layout"}
    assert redline.layout.__name__ == "redline.layout"
    assert redline.compress.__name__ == "redline.compress"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there_and_documented(name):
    found = getattr(redline, name)
    if name != "__version__":
        assert found.__doc__


def test_no_public_name_hides_a_folder():
    folders = {path.name for path in Path(redline.__file__).parent.iterdir() if path.is_dir()}
    assert "capture" in folders
    assert not folders & set(redline.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        redline.optimise  # noqa: B018


def test_importing_redline_imports_nothing_heavy():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, redline; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in told.stdout.split()}
    assert "redline" in loaded
    assert not loaded & set(HEAVY)
