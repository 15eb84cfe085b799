"""A few small networks by name, so that training works before there is a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from redline.errors import InputError, UnknownNameError
from redline.train.data import Data


def mlp(data: Data, width: int = 128, depth: int = 2) -> nn.Module:
    """Linear and ReLU; any input is flattened."""
    inside = int(torch.Size(data.shape).numel())
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inside, width), nn.ReLU()]
        inside = width
    return nn.Sequential(*layers, nn.Linear(inside, data.classes))


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside: torch.Tensor = self.inside(x)
        return x + inside


def resnet(data: Data, width: int = 32) -> nn.Module:
    """A ResNet of nine layers for images of 8 to 64 pixels: width, 2, 4 and 8 times width channels,
    halved between by pooling, residual blocks in the second and last stage.
    """
    if len(data.shape) != 3:
        raise InputError(
            f"resnet takes images (channels, height, width), got {data.shape}", hint="use mlp"
        )
    stages = 3 if min(data.shape[1:]) >= 16 else 2
    layers: list[nn.Module] = [_conv(data.shape[0], width)]
    for stage in range(stages):
        layers += [_conv(width << stage, width << (stage + 1)), nn.MaxPool2d(2)]
        if stage in (0, stages - 1):
            layers.append(Residual(width << (stage + 1)))
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width << stages, data.classes)]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):
    """Causal attention and an MLP, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return x + functional.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """A character transformer: tokens (batch, time) to logits (batch, time, characters)."""

    def __init__(
        self, vocabulary: int, block: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.blocks:  # the sum over blocks keeps its variance, as in GPT-2
            assert isinstance(module, Block)
            for last in (module.out, module.mlp[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        place = self.place(torch.arange(tokens.shape[1], device=tokens.device))
        logits: torch.Tensor = self.head(self.norm(self.blocks(self.token(tokens) + place)))
        return logits


def gpt(
    data: Data, width: int = 128, depth: int = 4, heads: int = 4, dropout: float = 0.0
) -> nn.Module:
    """A small GPT for text."""
    if data.kind != "tokens":
        raise InputError(f"gpt takes a text, got {data.name!r}", hint="use mlp or resnet")
    if width % heads:
        raise InputError(f"width {width} is not a multiple of heads {heads}")
    return GPT(data.classes, data.shape[0], width, depth, heads, dropout)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "resnet": resnet, "gpt": gpt}


def network(name: str, data: Data, **sizes: Any) -> nn.Module:
    """A network by name that fits the data; "auto" picks gpt, resnet or mlp by its kind.

    Raises:
        UnknownNameError: there is no such network.
        InputError: it does not fit the data, or a size that it does not have.

    Example:
        >>> network("auto", load_data("digits"), width=16)
    """
    if name == "auto":
        name = "gpt" if data.kind == "tokens" else "resnet" if len(data.shape) == 3 else "mlp"
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    if not data.classes or not data.shape:
        raise InputError(
            f"how many classes {data.name!r} has is not known", hint="pass a model of your own"
        )
    try:
        return NETWORKS[name](data, **sizes)
    except TypeError as error:
        raise InputError(f"network {name!r}: {error}") from None
