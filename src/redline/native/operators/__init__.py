"""How each ONNX operator becomes nodes; importing this fills read.OPERATORS."""

from redline.native.operators import anchors, elementwise, movement, rows  # noqa: F401
