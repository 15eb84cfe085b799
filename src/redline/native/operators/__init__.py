"""How each ONNX operator becomes nodes; importing this fills registry.OPERATORS."""

from redline.native.operators import (  # noqa: F401
    anchors,
    casts,
    contract,
    control,
    elementwise,
    movement,
    placing,
    recurrent,
    resample,
    rows,
    windows,
)
