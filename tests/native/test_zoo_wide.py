"""Whole models of many kinds, exported by Redline's own capture, against float64.

The yardstick is eager float32's own error: the compiled model may be off by what the class fp32
allows, as in optimize().
"""

import copy
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from native_models import needs_compiler, opened, targets
from torch import nn
from torch.nn import functional as F

from models import ZOO
from redline.capture.capture import capture
from redline.graph.serialize import to_bytes
from redline.measure.accuracy import error, tolerance
from redline.native import isa
from redline.native.compile import compile_graph

pytestmark = needs_compiler


class Dense(nn.Module):
    """DenseNet: every layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        widths = [8 + 4 * i for i in range(4)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in widths)
        self.convs = nn.ModuleList(nn.Conv2d(n, 4, 3, 1, 1, bias=False) for n in widths)
        self.down = nn.Sequential(
            nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(self.down(x).mean((2, 3)))


class Branches(nn.Module):
    """Inception: branches of different windows, side by side."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(6, 5, 1)
        self.three = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 7, 3, padding=1))
        self.wide = nn.Sequential(
            nn.Conv2d(6, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0))
        )
        self.last = nn.Conv2d(22, 9, 3, 2)

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 1, 1)
        return self.last(F.relu(torch.cat([self.one(x), self.three(x), self.wide(x), pooled], 1)))


class UNet(nn.Module):
    """Down and up again, with transposed convolutions and resizing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 16), (16, 24))
        )
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.d, self.e = nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = F.silu(self.a(x))
        b = F.silu(self.b(F.max_pool2d(a, 2)))
        c = F.silu(self.c(F.max_pool2d(b, 2)))
        d = F.silu(self.d(torch.cat([self.up(c), b], 1)))
        up = F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        return self.e(torch.cat([up, a], 1))


class ConvNext(nn.Module):
    """Depthwise 7x7, LayerNorm over channels last, GELU, a scale for each channel."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.spread = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.one, self.two = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        y = self.scale * self.two(F.gelu(self.one(y)))
        return x + y.permute(0, 3, 1, 2)


class Swin(nn.Module):
    """Attention within shifted windows, with a bias for each place."""

    def __init__(self, width=12, window=4, heads=3):
        super().__init__()
        self.window, self.heads = window, heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))
        mask = torch.zeros(4, window**2, window**2)
        mask[:, : window * 2, window * 2 :] = -100.0
        self.register_buffer("mask", mask)

    def forward(self, x):
        b, h, w, c = x.shape
        n = self.window
        y = torch.roll(self.norm(x), (-n // 2, -n // 2), (1, 2))
        y = y.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(y).view(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + self.bias
        scores = scores + self.mask[:, None]
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c)
        y = (
            self.out(y)
            .view(b, h // n, w // n, n, n, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, h, w, c)
        )
        return x + torch.roll(y, (n // 2, n // 2), (1, 2))


class Decoder(nn.Module):
    """A GPT-2 block: embeddings, causal attention, the tanh GELU, tied output."""

    def __init__(self, width=24, heads=4, words=50):
        super().__init__()
        self.heads = heads
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(16, width)
        self.one, self.two, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens):
        b, t = tokens.shape
        x = self.words(tokens) + self.places(torch.arange(t))
        q, k, v = self.qkv(self.one(x)).chunk(3, -1)
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        x = x + self.back(F.gelu(self.wide(self.two(x)), approximate="tanh"))
        return self.last(x) @ self.words.weight.T


class Recurrent(nn.Module):
    """A GRU both ways, an LSTM whose last cell is read, an RNN."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 10, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(20, 9, batch_first=True)
        self.rnn = nn.RNN(9, 7, nonlinearity="relu", batch_first=True)

    def forward(self, x):
        y, _ = self.gru(x)
        z, (_, cell) = self.lstm(y)
        return self.rnn(z)[1], cell


class Wave(nn.Module):
    """A stack of 1-D convolutions with growing dilation, as for audio."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 12, 5, 2, 2)
        self.layers = nn.ModuleList(
            nn.Conv1d(12, 24, 3, padding=2**i, dilation=2**i) for i in range(4)
        )
        self.norm = nn.GroupNorm(3, 12)
        self.up = nn.ConvTranspose1d(12, 4, 4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + F.glu(layer(x), 1)
        return self.up(self.norm(x))


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up with output_padding and groups."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ELU()
        )
        self.code = nn.Linear(16 * 16, 10)
        self.back = nn.Linear(10, 16 * 16)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, groups=2),
            nn.InstanceNorm2d(8, affine=True),
            nn.LeakyReLU(0.1), nn.ConvTranspose2d(8, 1, 5, 2, 2, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        code = self.code(self.down(x).flatten(1))
        return self.up(self.back(code).view(-1, 16, 4, 4)), code


class Volume(nn.Module):
    """Convolution, pooling and transposed convolution over three axes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 8, 3, 2, 1, groups=2)
        self.up = nn.ConvTranspose3d(8, 3, 2, 2)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.a(x)), 2)
        return self.up(F.relu(self.b(x)))


class Pieces(nn.Module):
    """What glues models together: pads, shuffles, einsum, top-k, cumulative sums, masks."""

    def forward(self, x):
        y = F.pixel_shuffle(F.pad(x, (1, 1, 2, 0), mode="reflect"), 2)
        z = torch.einsum("bchw,bdhw->bcd", y, y.flip(1)).softmax(-1)
        best, places = torch.topk(x.flatten(1), 5)
        kept = torch.where(y > 0, y.cumsum(-1), torch.full_like(y, -1.0)).tril()
        return kept, z, best, places, F.pixel_unshuffle(y, 2).std((2, 3)), x.argmax(1)


MODELS = {
    "dense": lambda: (Dense(), torch.randn(1, 3, 17, 16)),
    "branches": lambda: (Branches(), torch.randn(2, 6, 14, 13)),
    "unet": lambda: (UNet(), torch.randn(1, 3, 16, 24)),
    "convnext": lambda: (ConvNext(), torch.randn(1, 3, 32, 24)),
    "swin": lambda: (Swin(), torch.randn(1, 8, 8, 12)),
    "decoder": lambda: (Decoder(), torch.randint(0, 50, (1, 11))),
    "recurrent": lambda: (Recurrent(), torch.randn(2, 9, 6)),
    "wave": lambda: (Wave(), torch.randn(1, 2, 64)),
    "autoencoder": lambda: (Autoencoder(), torch.rand(1, 1, 16, 16)),
    "volume": lambda: (Volume(), torch.randn(1, 2, 8, 9, 10)),
    "pieces": lambda: (Pieces(), torch.randn(1, 8, 6, 7)),
}
QUICK = ("unet", "recurrent", "decoder", "pieces")


def prepared(name):
    torch.manual_seed(0)
    module, example = MODELS[name]()
    with torch.no_grad():  # a few steps, so that running statistics are not all zero and one
        module(example)
    return module.eval(), example


def leaves(found):
    if hasattr(found, "to_tuple"):  # of transformers
        found = found.to_tuple()
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


def doubled(example):
    if isinstance(example, dict):
        return {name: doubled(array) for name, array in example.items()}
    return example.double() if example.is_floating_point() else example


def called(module, example):
    """A dict is for keywords."""
    return module(**example) if isinstance(example, dict) else module(example)


def check(module, example, folder, target, *flags):
    model = capture(module, example)
    proto = onnx.load_from_string(to_bytes(model.graph))
    quickly = replace(target, flags=(*target.flags, *flags))
    compile_graph(onnx_ir.serde.deserialize_model(proto), quickly, 2, folder)
    arrays = list(model.example)
    runner = opened(proto, arrays, folder)
    try:
        with torch.no_grad():
            eager = leaves(called(module, example))
            wanted = leaves(called(copy.deepcopy(module).double(), doubled(example)))
        found = runner.run(arrays)
    finally:
        runner.close()
    assert [f.shape for f in found] == [w.shape for w in wanted]
    floats = [i for i, w in enumerate(wanted) if w.dtype.kind == "f"]
    for i in set(range(len(wanted))) - set(floats):
        np.testing.assert_array_equal(found[i], wanted[i])
    chosen = [[side[i] for i in floats] for side in (eager, found, wanted)]
    own = error(chosen[0], chosen[2])
    assert error(chosen[1], chosen[2]) <= tolerance(own, "fp32")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_within_the_yardstick(name, tmp_path):
    check(*prepared(name), tmp_path, isa.get(targets()[0]), "-O1")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_portable_twin(name, tmp_path):
    check(*prepared(name), tmp_path, isa.get("portable"), "-O1")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ZOO)
def test_the_networks_of_the_benchmarks(name, tmp_path):
    """Compiled as they are measured."""
    torch.manual_seed(0)
    check(*ZOO[name][1](), tmp_path, isa.get(targets()[0]))
