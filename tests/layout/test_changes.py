"""Every cause says what to change: here the change is made, a copy goes, and the outputs stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import redline.layout.causes
from redline import layout

B, S, H, D = 2, 6, 4, 8
X = torch.randn(B, S, H * D)
NCHW = torch.randn(2, 8, 6, 6)
NHWC = NCHW.to(memory_format=torch.channels_last)
torch.manual_seed(0)
LINEAR = nn.Linear(H * D, 3 * H * D)
CONV = nn.Conv2d(8, 8, 3, stride=2)
LAST = nn.Conv2d(8, 8, 3, stride=2).to(memory_format=torch.channels_last)
LAST.load_state_dict(CONV.state_dict())
WEIGHT = torch.randn(3, 4, 3, 3)
EMBED = nn.Embedding(9, 5)
IDS = torch.randint(0, 9, (3, 4))
SERIES = torch.randn(3, 5, 4)
LSTM, TURNED = nn.LSTM(4, 6, batch_first=True), nn.LSTM(4, 6)
TURNED.load_state_dict(LSTM.state_dict())


def heads(x):
    return x.view(B, S, H, D).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).reshape(B, S, H * D)


def by_hand(x):
    q = heads(x)
    return merged((q @ q.transpose(-2, -1) * D**-0.5).softmax(-1) @ q)


def fused(x):
    q = heads(x)
    return merged(F.scaled_dot_product_attention(q, q, q))


def grouped(x, repeat):
    q, kv = heads(x), heads(x)[:, ::2]
    kv = kv.repeat_interleave(2, 1) if repeat else kv
    return merged(F.scaled_dot_product_attention(q, kv, kv, enable_gqa=not repeat))


def permuted_then_split(x):
    q, k, v = LINEAR(x).reshape(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return merged(F.scaled_dot_product_attention(q, k, v))


def split_then_permuted(x):
    q, k, v = (t.transpose(1, 2) for t in LINEAR(x).view(B, S, 3, H, D).unbind(2))
    return merged(F.scaled_dot_product_attention(q, k, v))


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = LINEAR

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x)


def windows(x, twice):
    x = x.view(2, 8, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5)
    x = x.contiguous() if twice else x
    return x.transpose(3, 4).reshape(18, 2, 16)


HALF = nn.Linear(H * D, 3 * H * D)
HALF.load_state_dict(LINEAR.state_dict())
HALF.bfloat16()
LEAF = X.clone().requires_grad_()
IMAGE, IMAGE_LAST = NCHW.clone().requires_grad_(), NHWC.clone().requires_grad_()

# cause: ((function, input) before, the same after)
CHANGES = {
    "mixed-memory-format": ((CONV, NHWC), (LAST, NHWC)),
    "convolution-of-a-slice": (
        (lambda x: F.conv2d(x[:, ::2], WEIGHT), NCHW),
        (lambda x: F.conv2d(x, torch.stack([WEIGHT, WEIGHT * 0], 2).flatten(1, 2)), NCHW),
    ),
    "norm-of-a-permuted": (
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)), NCHW),
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)), NHWC),
    ),
    "matmul-folds": ((by_hand, X), (fused, X)),
    "head-merge": ((by_hand, X), (fused, X)),
    "expanded": ((lambda x: grouped(x, True), X), (lambda x: grouped(x, False), X)),
    "recurrent-batch-first": (
        (lambda x: LSTM(x)[0], SERIES),
        (lambda x: TURNED(x)[0].transpose(0, 1), SERIES.transpose(0, 1).contiguous()),
    ),
    "product-of-strided": (
        (lambda x: F.linear(x[:, ::2], torch.ones(3, 4)), torch.ones(6, 8)),
        (lambda x: F.linear(x, torch.ones(3, 4)), torch.ones(6, 4)),
    ),
    "embedding-indices": ((lambda x: EMBED(x.t()), IDS), (lambda x: EMBED(x).transpose(0, 1), IDS)),
    "window": ((lambda x: windows(x, True), NCHW), (lambda x: windows(x, False), NCHW)),
    "reshape": (
        (lambda x: x.mT.reshape(-1).sum(), torch.ones(3, 4)),
        (lambda x: x.mT.sum(), torch.ones(3, 4)),
    ),
    "contiguous": ((lambda x: LINEAR(x.mT.contiguous().mT), X), (LINEAR, X)),
    "clone": ((lambda x: x.clone() + 1, X), (lambda x: x + 1, X)),
    "written": (
        (lambda x: torch.empty(B, S, H * D).copy_(x), X),
        (lambda x: x, X),
    ),
    "pad-of-nothing": ((lambda x: F.pad(x, (0, 0)) + 1, X), (lambda x: x + 1, X)),
    "weight-cast": ((Autocast(), X), (HALF, X.bfloat16())),
    "cast": ((lambda x: x.double().float(), X), (lambda x: x, X)),
}
BACKWARD = {
    "gradient-of-a-split": ((permuted_then_split, LEAF), (split_then_permuted, LEAF)),
    "convolution-input-gradient": ((CONV, IMAGE), (LAST, IMAGE_LAST)),
    "convolution-weight-gradient": ((LAST, IMAGE_LAST), (CONV, IMAGE)),
    "gradient-expanded": (
        (lambda x: LINEAR(x).view(B, S * 3, H * D).transpose(0, 1).sum(1).mT, LEAF),
        (lambda x: (LINEAR(x).view(B, S * 3, H * D) * 1.0).transpose(0, 1).sum(1).mT, LEAF),
    ),
}


def found(function, x, backward):
    return [copy.cause for copy in layout.copies(function, x, backward=backward)]


@pytest.mark.parametrize("cause", [*CHANGES, *BACKWARD])
def test_the_change_removes_the_copy(cause):
    backward = cause in BACKWARD
    (before, x), (after, y) = (CHANGES | BACKWARD)[cause]
    first, changed = found(before, x, backward), found(after, y, backward)
    assert first.count(cause) > changed.count(cause)
    assert cause not in changed or cause == "window"  # of which one is needed
    torch.testing.assert_close(after(y), before(x), rtol=2e-5, atol=2e-5, check_dtype=False)


# Their change is that nothing needs to change, or no CPU alone can show it.
ELSEWHERE = {
    "device",  # a second device
    "accumulated",  # in test_models.py, the backward pass of ViT
    "attention-math",  # in test_copies.py, on meta
    "gradient-layout",  # in test_models.py, Swin
    "other",
}


def test_every_cause_that_is_counted_has_its_change_tried():
    counted = {cause.id for cause in redline.layout.causes.CAUSES if cause.counted}
    assert counted == {*CHANGES, *BACKWARD, *ELSEWHERE}


def test_every_cause_is_on_the_page(root):
    page = (root / "docs/copies.md").read_text(encoding="utf-8")
    assert [one.id for one in redline.layout.causes.CAUSES if f"`{one.id}`" not in page] == []
