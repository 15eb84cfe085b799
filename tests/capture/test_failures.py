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


class Random(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand(x.shape, generator=GENERATOR) * 0


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
        (Loop, "torch.export", "a size, slice or loop count", "torch._check"),
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


# What torch 2.13 on a CPU does not raise any more, or only elsewhere; texts as users reported them.
RECORDED = {
    "data-dependent-other": "DataDependentOutputException: aten._local_scalar_dense.default",
    "constraints-violated": "UserError: Constraints violated (batch)! For more information",
    "range-too-wide": "AssertionError: Expected input at *args[0].shape[0] to be equal to 2",
    "unknown-container": "UserError: Unsupported input type <class 'Cache'>. Export only supports",
    "rnn-length": "torch._dynamo.exc.Unsupported: RNN/GRU/LSTM not supported in dynamic export",
    "scriptmodule": "ValueError: Exporting a ScriptModule is not supported, use TS2EPConverter",
    "autograd-function": "Unsupported: torch.autograd.function.Function with context manager",
    "device-mismatch": "RuntimeError: Expected all tensors to be on the same device, but found",
    "side-effect": "ValueError: The tensor attribute self.h was assigned during export",
    "context-manager": "Unsupported: set_grad_enabled inside of export",
    "complex-numbers": "RuntimeError: ONNX export: complex128 is not supported",
    "sparse-or-quantized": "ConversionError: KeyError: torch.qint8",
    "not-enough-disk-or-home": "KeyError: 'getpwuid(): uid not found: 1000'",
    "shape-in-forward": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
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
