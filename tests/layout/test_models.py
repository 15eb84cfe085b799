"""The finder on real architectures with small random weights."""

import pytest
import torch
from torch import nn

import torchvision_ops  # noqa: F401

# isort: split
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet
from transformers import GPT2Config, GPT2Model

from redline import layout

IMAGE = torch.randn(1, 3, 32, 32)


def resnet():
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval()


def vit(fused=True):
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=10
    ).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def swin():
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
        num_classes=10,
    ).eval()  # fmt: skip


def gpt2(attention):
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=16, use_cache=False,
        bos_token_id=None, eos_token_id=None, attn_implementation=attention,
    )  # fmt: skip
    return GPT2Model(config).eval()


def causes(found):
    return [copy.cause for copy in found]


def test_resnet_copies_nothing_when_formats_agree():
    model = resnet()
    assert len(layout.copies(model, IMAGE)) == 0
    model = model.to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    assert len(layout.copies(model, image)) == 0


def test_resnet_converts_every_weight_when_only_the_image_is_channels_last():
    model = resnet()
    found = layout.copies(model, torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last))
    mixed = [copy for copy in found if copy.cause == "mixed-memory-format"]
    ones = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    # A 1x1 weight is in both formats at once, so nothing has to be moved.
    assert len(mixed) == convolutions - len(ones)
    assert all(copy.inside for copy in mixed)
    assert len({copy.place.module for copy in mixed}) == len(mixed)


def test_vit_is_free_with_fused_attention_and_not_without():
    images = torch.randn(2, 3, 32, 32)
    assert len(layout.copies(vit(), images)) == 0
    found = layout.copies(vit(fused=False), images)
    assert causes(found).count("matmul-folds") >= 2  # of q, k or v, in each of two blocks
    assert causes(found).count("head-merge") == 2


def test_swin_partitions_its_windows():
    found = layout.copies(swin(), IMAGE)
    assert causes(found).count("window") >= 8  # in and out of windows, in each of four blocks
    (line,) = {copy.place.line for copy in found if copy.place.function == "window_partition"}
    assert line > 0


def test_gpt2_both_ways():
    ids = torch.randint(0, 50, (2, 16))
    found = {kind: layout.copies(gpt2(kind), {"input_ids": ids}) for kind in ("eager", "sdpa")}
    assert len(found["sdpa"]) < len(found["eager"])
    assert "matmul-folds" in causes(found["eager"])
    assert "head-merge" in causes(found["eager"])


def test_the_backward_pass_of_vit():
    found = layout.copies(vit(), IMAGE, backward=True)
    assert {bool(copy.backward) for copy in found} == {True}
    assert all(copy.bytes > 0 for copy in found)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_network(batch_first):
    model = nn.LSTM(8, 16, num_layers=2, batch_first=batch_first)
    assert causes(layout.copies(model, torch.randn(4, 6, 8))) == (
        ["recurrent-batch-first"] if batch_first else []
    )


@pytest.mark.parametrize("make", [vit, swin, resnet])
def test_meta_is_at_least_what_the_dispatch_mode_sees(make):
    model = make()
    real = [copy for copy in layout.copies(model, IMAGE) if not copy.inside]
    meta = layout.copies(model, IMAGE, device="meta")
    assert len(meta) >= len(real)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_parameters_copied_gradient_is_named():
    found = layout.copies(vit(), IMAGE, backward=True)
    (copy,) = [one for one in found if one.cause == "accumulated"]
    assert str(copy.place) == "the gradient of pos_embed"


def test_a_training_resnet_in_both_formats():
    image, last = torch.randn(2, 3, 64, 64), torch.channels_last
    found = layout.copies(resnet().train(), image, backward=True)
    assert set(causes(found)) == {"convolution-input-gradient"}
    strided = {n for n, m in resnet().named_modules() if isinstance(m, nn.Conv2d)}
    assert {copy.place.module for copy in found} < strided
    model = resnet().train().to(memory_format=last)
    found = layout.copies(model, image.to(memory_format=last), backward=True)
    assert set(causes(found)) == {"convolution-weight-gradient"}
    assert {copy.place.module for copy in found} == strided


def test_swin_and_gpt2_and_lstm_backwards():
    found = layout.copies(swin(), IMAGE, backward=True)
    assert {"gradient-layout", "gradient-of-a-split"} <= set(causes(found))
    assert any(copy.place.module == "layers.1.blocks.1.attn" for copy in found if copy.backward)
    ids = torch.randint(0, 50, (2, 16))
    found = layout.copies(gpt2("eager"), {"input_ids": ids}, backward=True)
    assert any(copy.backward for copy in found)
    assert all(copy.place.file for copy in found if copy.cause != "accumulated")
    lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
    found = layout.copies(lstm, torch.randn(4, 6, 8), backward=True)
    assert set(causes(found)) == {"recurrent-batch-first"}
    assert {bool(copy.backward) for copy in found} == {True, False}


def test_meta_leaves_out_what_only_meta_does():
    assert len(layout.copies(resnet(), IMAGE, device="meta")) == 0
    mask = torch.zeros(2, 1, 16, 16)
    inputs = {"input_ids": torch.randint(0, 50, (2, 16)), "attention_mask": mask}
    assert len(layout.copies(gpt2("sdpa"), inputs, device="meta")) >= 2
