"""The models that the benchmarks run: real architectures, random weights, batch 1, eval mode.

Each factory returns (module, example inputs). The classes derived here do nothing: naming them in
this file makes a child process import it, and with it torchvision_ops, before torchvision itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torchvision_ops  # noqa: F401

# isort: split
# Only now torchvision, and timm, which imports it.
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck
from transformers import BertConfig, BertModel

Model = tuple[nn.Module, Any]


class LeNet(nn.Sequential):
    """LeCun et al. 1998, with ReLU and max pooling."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


class Lstm(nn.Module):
    """Two layers, 64 -> 128, over 64 steps; the last step's state is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0][:, -1]


class ResNet(models.ResNet):
    pass


class Vgg(models.VGG):
    pass


class MobileNetV3(models.MobileNetV3):
    pass


class EfficientNet(models.EfficientNet):
    pass


class ViT(VisionTransformer):
    pass


class Bert(BertModel):
    pass


def mlp() -> Model:
    layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
    return nn.Sequential(*layers).eval(), torch.randn(1, 16)


def lenet() -> Model:
    return LeNet().eval(), torch.randn(1, 1, 28, 28)


def lstm() -> Model:
    return Lstm().eval(), torch.randn(1, 64, 64)


def resnet18() -> Model:
    return ResNet(BasicBlock, [2, 2, 2, 2]).eval(), _image()


def resnet50() -> Model:
    return ResNet(Bottleneck, [3, 4, 6, 3]).eval(), _image()


def vgg16() -> Model:
    return _as(Vgg, models.vgg16()), _image()


def mobilenetv3() -> Model:
    return _as(MobileNetV3, models.mobilenet_v3_large()), _image()


def efficientnet() -> Model:
    return _as(EfficientNet, models.efficientnet_b0()), _image()


def vit() -> Model:
    return ViT(patch_size=16, embed_dim=384, depth=12, num_heads=6).eval(), _image()


def bert() -> Model:
    tokens = torch.randint(0, 30000, (1, 128))
    return Bert(BertConfig()).eval(), {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


ZOO: dict[str, tuple[str, Callable[[], Model]]] = {
    "mlp": ("MLP 16-64-64-4", mlp),
    "lenet": ("LeNet 28×28", lenet),
    "lstm": ("LSTM 64→128, 2 layers, T=64", lstm),
    "resnet18": ("ResNet-18", resnet18),
    "resnet50": ("ResNet-50", resnet50),
    "vgg16": ("VGG-16", vgg16),
    "mobilenetv3": ("MobileNetV3-L", mobilenetv3),
    "efficientnet": ("EfficientNet-B0", efficientnet),
    "vit": ("ViT-S/16", vit),
    "bert": ("BERT-base, T=128", bert),
}


def _image() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224)


def _as(kind: type[nn.Module], net: nn.Module) -> nn.Module:
    """The same network under a class of this file."""
    net.__class__ = kind
    return net.eval()
