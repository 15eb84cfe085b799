"""Every class of failure that torch 2.13 still has on a CPU, provoked for real."""

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


# What cannot be provoked here: its reason, and the text as users reported it.
RECORDED = {
    # capture() takes containers apart before torch sees them, and runs forward before exporting it.
    "unknown-container": "UserError: Unsupported input type <class 'Cache'>. Export only supports",
    "device-mismatch": "RuntimeError: Expected all tensors to be on the same device, but found",
    "shape-in-forward": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    # torch 2.13 exports these, or (rnn-length) reports a violated constraint.
    "range-too-wide": "AssertionError: Expected input at *args[0].shape[0] to be equal to 2",
    "rnn-length": "torch._dynamo.exc.Unsupported: RNN/GRU/LSTM not supported in dynamic export",
    "autograd-function": "Unsupported: torch.autograd.function.Function with context manager",
    "side-effect": "ValueError: The tensor attribute self.h was assigned during export",
    "context-manager": "Unsupported: set_grad_enabled inside of export",
    "complex-numbers": "RuntimeError: ONNX export: complex128 is not supported",
    # It needs a machine without a home folder, or a full disk.
    "not-enough-disk-or-home": "KeyError: 'getpwuid(): uid not found: 1000'",
}


@pytest.mark.parametrize(("name", "text"), RECORDED.items())
def test_texts_that_cannot_be_provoked_here(name, text):
    assert classify(RuntimeError(text)) == name
    note = explain(RuntimeError(text), "torch.export")
    assert note.hint == next(failure.hint for failure in FAILURES if failure.id == name)


def test_every_class_is_covered():
    provoked = {
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
    assert provoked | set(RECORDED) == {failure.id for failure in FAILURES}
    assert not provoked & set(RECORDED)


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
