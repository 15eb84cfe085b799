"""Claim: by following the copies finder, a Swin block and a hand-written attention each lose two
copies or more, their outputs unchanged.

    python bench/copies.py

Prints what the finder says of each, makes the changes that it names, compares the outputs, and
times before against after in turns. Then it counts the copies of whole networks.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

import torchvision_ops  # noqa: F401

# isort: split
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import resnet18
from transformers import GPT2Config, GPT2Model

from redline import layout
from redline.errors import ModelError
from redline.layout.listing import headline, size
from redline.measure.statistics import ratio

ROUNDS = 81


class HandWritten(nn.Module):
    """Self-attention as tutorials write it; `x` is (batch, sequence, features)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, self.head).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) * self.head**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Advised(HandWritten):
    """matmul-folds and head-merge say: scaled_dot_product_attention, which reads strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class AdvisedSwin(SwinTransformerBlock):
    """pad-of-nothing says: no pad where nothing is to be padded. Fused attention is a switch."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.attn.fused_attn = True

    def _attn(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, channels = x.shape
        down, right = self.shift_size
        x = torch.roll(x, (-down, -right), (1, 2)) if down or right else x
        windows = window_partition(x, self.window_size).view(-1, self.window_area, channels)
        mixed = self.attn(windows, mask=self.attn_mask)
        mixed = mixed.view(-1, *self.window_size, channels)
        x = window_reverse(mixed, self.window_size, height, width)
        return torch.roll(x, (down, right), (1, 2)) if down or right else x


def swin_block(kind: type, shift: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(96, (56, 56), num_heads=3, window_size=7, shift_size=shift).eval()


def attention(kind: type) -> nn.Module:
    torch.manual_seed(0)
    return kind(256, 8).eval()


def seconds(model: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def in_turns(before: nn.Module, after: nn.Module, x: torch.Tensor) -> tuple[float, float, float]:
    """How many times longer `before` takes: median of the rounds and its 95 % interval."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for model in (before, after):
            model(x)
        for turn in range(ROUNDS):
            order = ((0, before), (1, after)) if turn % 2 else ((1, after), (0, before))
            for place, model in order:
                times[place].append(seconds(model, x))
    return ratio(*times)


def compare(name: str, before: nn.Module, after: nn.Module, x: torch.Tensor) -> str:
    """One row of the table; it fails where the claim does."""
    with torch.inference_mode():
        expected = before(x)
        error = float((after(x) - expected).abs().max() / expected.abs().max())
    assert error < 1e-5, error
    found = [layout.copies(model, x) for model in (before, after)]
    assert len(found[0]) - len(found[1]) >= 2
    middle, low, high = in_turns(before, after, x)
    return (
        f"| {name} | {len(found[0])}, {size(found[0].bytes)} | {len(found[1])}, "
        f"{size(found[1].bytes)} | {error:.0e} | {middle:.2f}× ({low:.2f} to {high:.2f}) |"
    )


def blocks() -> None:
    x = torch.randn(4, 256, 256)
    before = attention(HandWritten)
    print(layout.copies(before, x), "\n")
    image = torch.randn(1, 56, 56, 96)
    print(layout.copies(swin_block(SwinTransformerBlock, 0), image), "\n")
    print("| block | copies before | after | largest difference | before / after |")
    print("|---|---|---|---|---|")
    print(compare("hand-written attention, 4×256×256", before, attention(Advised), x))
    for shift in (0, 3):
        pair = (swin_block(kind, shift) for kind in (SwinTransformerBlock, AdvisedSwin))
        print(compare(f"Swin-T block, 56×56×96, shift {shift}", *pair, image))


def gpt2(kind: str) -> nn.Module:
    config = GPT2Config(n_layer=4, use_cache=False, attn_implementation=kind)
    return GPT2Model(config).eval()


def on_meta(model: nn.Module, inputs: object) -> str:
    try:
        return str(len(layout.copies(model, inputs, device="meta")))
    except ModelError:
        return "reads values"


def networks() -> None:
    image = torch.randn(1, 3, 224, 224)
    last = image.to(memory_format=torch.channels_last)
    tokens = torch.randint(0, 50_000, (1, 128))
    # Of 4 dims, or transformers asks the values of the mask, which meta does not have.
    ids = {"input_ids": tokens, "attention_mask": torch.zeros(1, 1, 128, 128)}
    lstm, series = nn.LSTM(64, 128, num_layers=2, batch_first=True), torch.randn(8, 64, 64)
    rows = (
        ("ResNet-18, NCHW", resnet18().eval(), image),
        ("ResNet-18, image channels_last", resnet18().eval(), last),
        ("ResNet-18, both", resnet18().eval().to(memory_format=torch.channels_last), last),
        ("ViT-S/16", VisionTransformer(embed_dim=384, num_heads=6, depth=4).eval(), image),
        ("Swin-T", SwinTransformer().eval(), image),
        ("GPT-2, 4 layers, eager", gpt2("eager"), ids),
        ("GPT-2, 4 layers, sdpa", gpt2("sdpa"), ids),
        ("LSTM, batch_first", lstm, series),
    )
    print("\n| network | forward | by cause | with backward | on meta |\n|---|---|---|---|---|")
    for name, model, inputs in rows:
        found, both = layout.copies(model, inputs), layout.copies(model, inputs, backward=True)
        meta = on_meta(model, inputs)
        causes = Counter(copy.cause for copy in found).most_common()
        told = ", ".join(f"{count} {cause}" for cause, count in causes)
        print(f"| {name} | {headline(found)} | {told} | {headline(both)} | {meta} |")


if __name__ == "__main__":
    blocks()
    networks()
