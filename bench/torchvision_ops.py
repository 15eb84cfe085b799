"""Make `import torchvision` work beside a CPU build of torch; import this first.

PyPI has only torchvision's CUDA build for Linux. Its compiled operators do not load beside a CPU
torch, and its Python code then stops at registering shapes for operators that nobody declared.
Declaring the names is enough for the model definitions, which call none of them. For benchmarks
and tests only.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_NAMES = (
    "nms",
    "qnms",
    "roi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)

for _name in _NAMES:
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
