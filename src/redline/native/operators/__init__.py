"""How each ONNX operator becomes nodes; importing this fills read.OPERATORS."""

from redline.native.operators import anchors, elementwise, movement, recurrent, rows  # noqa: F401
