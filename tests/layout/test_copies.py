"""The finder on small patterns with known copies: research 1.6's table, seen from both sides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redline import layout
from redline.errors import InputError, ModelError

B, S, H, D = 2, 5, 4, 8
BHSD = torch.randn(B, H, S, D)
NHWC = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
NCHW = torch.randn(2, 8, 6, 6)


def conv(channels_last):
    made = nn.Conv2d(8, 4, 3)
    return made.to(memory_format=torch.channels_last) if channels_last else made


def after_attention(x):
    q = x.view(B, S, H, D).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(B, S, H * D)


# pattern: (function, inputs, (kernel-made, cause) for each copy in order)
TABLE = {
    "head merge": (
        lambda x: x.transpose(1, 2).reshape(B, S, H * D),
        (BHSD,),
        [(False, "head-merge")],
    ),
    "head merge after attention": (after_attention, (torch.randn(B, S, H * D),), []),
    "repeat_interleave": (
        lambda x: x.repeat_interleave(2, dim=1),
        (BHSD,),
        [(False, "expanded")],
    ),
    "expand and reshape": (
        lambda x: x[:, :, None].expand(B, H, 2, S, D).reshape(B, 2 * H, S, D),
        (BHSD,),
        [(False, "expanded")],
    ),
    "matmul with a broadcast batch": (
        torch.matmul,
        (BHSD, torch.randn(B, 1, D, S)),
        [(False, "expanded")],
    ),
    "matmul of a transposed 4-D with a matrix": (
        torch.matmul,
        (BHSD.transpose(1, 2), torch.randn(D, 3)),
        [(False, "matmul-folds")],
    ),
    "window partition": (
        lambda x: x.view(2, 8, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).contiguous(),
        (NCHW,),
        [(False, "window")],
    ),
    "channel shuffle": (
        lambda x: x.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6),
        (NCHW,),
        [(False, "window")],
    ),
    "layer_norm of a permuted": (
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)),
        (NCHW,),
        [(True, "norm-of-a-permuted")],
    ),
    "layer_norm of a permuted channels_last": (
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)),
        (NHWC,),
        [],
    ),
    "softmax of a permuted": (
        lambda x: x.permute(0, 2, 3, 1).softmax(-1),
        (NCHW,),
        [(True, "norm-of-a-permuted")],
    ),
    "convolution of a slice": (
        lambda x: F.conv2d(x[:, ::2], torch.ones(3, 4, 3, 3)),
        (NCHW,),
        [(True, "convolution-of-a-slice")],
    ),
    "channels_last into NCHW weights": (
        conv(False),
        (NHWC,),
        [(True, "mixed-memory-format")],
    ),
    "NCHW into channels_last weights": (conv(True), (NCHW,), [(True, "mixed-memory-format")]),
    "channels_last into channels_last": (conv(True), (NHWC,), []),
    "NCHW into NCHW": (conv(False), (NCHW,), []),
    "linear of a column-strided": (
        lambda x: F.linear(x[:, ::2], torch.ones(3, 4)),
        (torch.randn(6, 8),),
        [(True, "product-of-strided")],
    ),
    "embedding of transposed indices": (
        nn.Embedding(10, 4),
        (torch.zeros(3, 4, dtype=torch.long).t(),),
        [(True, "embedding-indices")],
    ),
    "LSTM batch_first": (
        nn.LSTM(4, 6, batch_first=True),
        (torch.randn(3, 5, 4),),
        [(False, "recurrent-batch-first")],
    ),
    "LSTM time first": (nn.LSTM(4, 6), (torch.randn(5, 3, 4),), []),
}


@pytest.mark.parametrize("pattern", TABLE)
def test_the_table_of_hidden_copies(pattern):
    function, inputs, expected = TABLE[pattern]
    found = layout.copies(function, inputs)
    assert [(copy.inside, copy.cause) for copy in found] == expected


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


def test_autocast_converts_each_weight_and_the_first_activation():
    causes = sorted(copy.cause for copy in layout.copies(Cast(), torch.randn(3, 8)))
    assert causes == ["cast", "weight-cast", "weight-cast"]


def test_a_copy_has_its_line_its_bytes_and_its_change():
    (copy,) = layout.copies(lambda x: x.transpose(1, 2).reshape(B, S, H * D), (BHSD,))
    assert copy.place.file == __file__
    assert "reshape(B, S, H * D)" in copy.place.code
    assert copy.bytes == B * H * S * D * 4
    assert copy.seconds > 0
    assert "do not merge: stride[2] = 40" in copy.why
    assert "scaled_dot_product_attention" in copy.change
    assert copy.path == ("reshape", "clone", "copy_")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1))  # the line


def test_the_module_and_its_line_are_named():
    (copy,) = layout.copies(nn.Sequential(Block()), NCHW)
    assert copy.place.module == "0.norm"
    assert copy.place.code.endswith("# the line")


def test_the_backward_pass_names_the_line_of_the_forward():
    found = layout.copies(nn.Sequential(Block()), NCHW, backward=True)
    forward = [copy for copy in found if not copy.backward]
    backward = [copy for copy in found if copy.backward]
    assert [copy.cause for copy in forward] == ["norm-of-a-permuted"]
    assert backward
    for copy in backward:
        assert copy.place.code.endswith("# the line")
        assert copy.backward == "NativeLayerNormBackward0"


def test_a_copy_that_comes_twice_is_counted():
    def twice(x):
        y = x.transpose(1, 2)
        return F.layer_norm(y, y.shape[-1:]) + y.softmax(-1)

    found = layout.copies(twice, torch.randn(2, 6, 4))
    assert [copy.again for copy in found] == [0, 1]
    assert "copied before" in str(found)


def test_the_users_state_is_untouched():
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    layout.copies(model, NHWC, backward=True)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 7.0))
    assert model[0].bias.grad is None


def test_meta_needs_no_memory_and_says_that_it_is_an_upper_bound():
    big = nn.Linear(1 << 20, 1 << 20, device="meta")  # 4 TB
    x = torch.empty(4, 1 << 20, device="meta")
    found = layout.copies(nn.Sequential(big, nn.Unflatten(1, (16, -1)), Turned()), x, device="meta")
    (copy,) = found
    assert copy.bytes == 4 * (1 << 20) * 4
    assert copy.seconds is None
    assert found.seconds is None
    assert "upper bound" in str(found)
    assert "upper bound" in found._repr_html_()


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1).reshape(-1)


class Asking(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x  # the question


def test_a_model_that_looks_at_values_cannot_run_on_meta():
    with pytest.raises(ModelError, match="reads values") as caught:
        layout.copies(Asking(), torch.ones(3), device="meta")
    assert "test_copies.py" in caught.value.where


def test_meta_marks_what_attention_would_do():
    real = layout.copies(after_attention, (torch.randn(B, S, H * D),))
    meta = layout.copies(after_attention, (torch.randn(B, S, H * D),), device="meta")
    assert len(real) == 0
    assert len(meta) > 0
    assert all(not copy.certain for copy in meta if copy.cause == "attention-math")


def test_the_largest_group_comes_first_and_the_page_is_closed():
    found = layout.copies(conv(False), NHWC, backward=True)
    sums = [sum(copy.bytes for copy in group) for group in found.by_line()]
    assert sums == sorted(sums, reverse=True)
    assert sum(sums) == found.bytes
    assert "default-src 'none'" in found.html()
    assert str(found).startswith(f"{len(found)} copies")


def test_nothing_copied_is_said():
    assert str(layout.copies(nn.Linear(4, 4), torch.zeros(2, 4))) == "no copies"


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "words"),
    [
        (3, torch.zeros(2), {}, ModelError, "cannot be called"),
        (nn.Linear(2, 2), "x", {}, InputError, "inputs are a str"),
        (nn.Linear(2, 2), torch.zeros(2), {"device": "cuda"}, InputError, "None or 'meta'"),
        (torch.relu, torch.zeros(2), {"backward": True}, InputError, "needs a gradient"),
    ],
)
def test_bad_input_is_one_clear_error(model, inputs, options, error, words):
    with pytest.raises(error, match=words):
        layout.copies(model, inputs, **options)
