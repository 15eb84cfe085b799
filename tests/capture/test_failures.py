"""Every class of failure, provoked for real: by capture(), or by torch called by hand."""

import getpass
import os

import pytest
import torch

from redline.capture.capture import capture
from redline.capture.failures import FAILURES, classify, explain

X = torch.randn(3, 4)
GENERATOR = torch.Generator()


@torch.library.custom_op("redline_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # here
            return x + 1
        return x - 1


class EmptyCheck(torch.nn.Module):
    def forward(self, x):
        kept = x[x > 0]
        if kept.numel() == 0:  # here
            return x.sum()
        return kept.sum()


class Slice(torch.nn.Module):
    def forward(self, x):
        return x[: int(x.abs().max().item()) + 1]  # here


class Loop(torch.nn.Module):
    def forward(self, x):
        for _ in range(int(x.abs().max()) + 1):  # here
            x = x + 1
        return x


class ThroughNumpy(torch.nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)  # here


class Custom(torch.nn.Module):
    def forward(self, x):
        return twice(x)  # here


class Pointer(torch.nn.Module):
    def forward(self, x):
        return x + x.data_ptr() * 0  # here


class Svd(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]  # here


class Eigenvalues(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x @ x.T).abs()  # here


class Sparse(torch.nn.Module):
    def forward(self, x):
        return x.to_sparse().to_dense()  # here


class Number(torch.nn.Module):
    def forward(self, x):
        return x * float(x.sum())  # here


class Packed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 4)

    def forward(self, x):
        ends = (x[0] > 9).sum(0, keepdim=True) + 2
        packed = torch.nn.utils.rnn.pack_padded_sequence(x[:, None], ends)
        return torch.nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]  # here


class Quantized(torch.nn.Module):
    def forward(self, x):
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()  # here


class Multiplied(torch.nn.Module):
    def forward(self, x):
        return torch.sparse.mm(x.to_sparse_csr(), x.T)  # here


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part = torch.jit.script(torch.nn.Linear(4, 2))

    def forward(self, x):
        return self.part(x)  # here


class Random(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand(x.shape, generator=GENERATOR) * 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit warns of its own age
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("module", "stage", "words", "hint"),
    [
        (Branch, "torch.export", "depends on the values in a tensor (Eq(u0, 1))", "torch.where"),
        (
            EmptyCheck,
            "torch.export",
            "depends on the values in a tensor (Eq(u0, 0))",
            "torch._check",
        ),
        (Slice, "torch.export", "a size, slice or loop count", "mask"),
        (Loop, "torch.export", "a tensor's value into a Python number", "masks"),
        (Number, "torch.export", "a tensor's value into a Python number", "keep it a tensor"),
        (Packed, "torch.export", "a size, slice or loop count", "mask"),
        (Scripted, "torch.export", "part of the model is TorchScript", "its Python class"),
        (Quantized, "torch.onnx.export", "quantized tensors", "quantize after export"),
        (Multiplied, "torch.onnx.export", "sparse", "to_dense()"),
        (ThroughNumpy, "torch.export", "goes through NumPy", "torch function"),
        (Custom, "torch.export", "custom operator", "register_fake"),
        (Pointer, "torch.export", "custom operator", "register_fake"),
        (Svd, "torch.onnx.export", "operator aten._linalg_svd", "other operators"),
        (Eigenvalues, "torch.onnx.export", "operator aten.linalg_eig", "other operators"),
        (Sparse, "torch.onnx.export", "operator aten._to_sparse", "other operators"),
    ],
)
def test_the_users_line_and_what_to_write_instead(module, stage, words, hint):
    model = capture(module().eval(), X)
    (note,) = model.notes
    assert note.what.startswith(f"{stage} failed: ")
    assert words in note.what
    assert hint in note.hint
    assert note.where.startswith("test_failures.py:")
    assert note.where.endswith("# here")
    assert model.graph is None
    assert model.module is not None
    assert (model.program is None) == (stage == "torch.export")
    assert len(model.graph_hash) == 64


def test_what_fails_without_a_line_of_the_users():
    (note,) = capture(Random().eval(), X).notes
    assert "Generator" in note.what
    assert note.hint


class Calling(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pair:
    def __init__(self, a):
        self.a = a


class Forwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 2


class Replaced(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(3, 4))

    def forward(self, x):
        self.last = x
        return x + 1


def exported(function, x=X):
    return torch.export.export(Calling(function), (x,))


def compiled(function, x=X):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="eager")(x)


def without_a_name(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    getpass.getuser()


# capture() prevents these, or its export does no longer raise them; torch, called by hand, does.
BY_HAND = {
    # It takes containers apart before torch sees them, and runs forward before exporting it.
    "unknown-container": lambda: exported(lambda pair: pair.a, Pair(X)),
    "device-mismatch": lambda: torch.export.export(torch.nn.Linear(4, 2).to("meta"), (X,)),
    "shape-in-forward": lambda: exported(lambda x: x.view(5, 5)),
    # Programs check their guards first, unless they are told not to.
    "range-too-wide": lambda: exported(lambda x: x * 2).module(check_guards=False)(X[:2]),
    # Only the strict way, which torch.compile goes, still refuses these.
    "rnn-length": lambda: compiled(torch.nn.LSTM(4, 4)),
    "autograd-function": lambda: compiled(Forwards.apply, X.clone().requires_grad_()),
    "context-manager": lambda: compiled(lambda x: torch.set_grad_enabled(bool(x.sum() > 0))),
    "side-effect": lambda: torch.export.export(Replaced(), (X,)),
    "complex-numbers": lambda: torch.complex(X, X).sort(),
    # It needs a machine without a home folder, or a full disk.
    "not-enough-disk-or-home": without_a_name,
}


@pytest.mark.filterwarnings("ignore")  # here a warning is not the failure in question
@pytest.mark.parametrize("name", BY_HAND)
def test_what_capture_prevents_is_told_when_torch_is_called_by_hand(name, monkeypatch):
    function = BY_HAND[name]
    given = (monkeypatch,) if function.__code__.co_argcount else ()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text is what is asked about
        function(*given)
    assert classify(caught.value) == name, str(caught.value)
    note = explain(caught.value, "torch.export")
    assert note.hint == next(failure.hint for failure in FAILURES if failure.id == name)


def test_every_class_is_provoked():
    above = {
        "data-dependent-branch",
        "data-dependent-size",
        "data-dependent-other",
        "constraints-violated",  # in test_dynamic.py
        "scriptmodule",
        "sparse-or-quantized",
        "numpy-in-forward",
        "custom-operator",
        "missing-operator",
        "random-control-flow",
    }
    assert above | set(BY_HAND) == {failure.id for failure in FAILURES}
    assert not above & set(BY_HAND)


def test_the_cause_is_found_behind_the_wrapping():
    error = RuntimeError("Failed to export, step 1/3")
    error.__cause__ = KeyError("getpwuid(): uid not found")
    assert classify(error) == "not-enough-disk-or-home"


def test_something_new_still_says_what_happened():
    note = explain(RuntimeError("a failure that nobody has seen"), "torch.export")
    assert "a failure that nobody has seen" in note.what


def test_every_class_is_on_the_page(root):
    page = (root / "docs/capture.md").read_text()
    assert [failure.id for failure in FAILURES if f"`{failure.id}`" not in page] == []
