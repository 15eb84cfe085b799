"""Failures of export and of compilers, provoked for real; the twenty of users' reports by number.

Five of the twenty raise nothing (a dim that is static without a word, a wrong ONNX file, one that
is slow to load, slow compiling, lost side effects): docs/why.md says what shows them.
"""

import getpass
import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from redline.capture.failures import FAILURES
from redline.corpus_compilers import COMPILER_ENTRIES
from redline.diagnosis import why, why_of_log

pytestmark = pytest.mark.filterwarnings("ignore")  # here a warning is not the failure in question

X = torch.randn(4, 6)
BATCH = ({0: Dim("b")},)


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6)

    def forward(self, x):
        return self.lstm(x)[0]


class Buffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 6))

    def forward(self, x):
        self.last = x
        return x + 1


@torch.library.custom_op("redline_why::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def exported(function, **options):
    return export(Model(function), (X,), **options)


def whole(function, *inputs):
    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend="eager")(*(inputs or (X,)))


def branch(x):
    return x + 1 if x.sum() > 0 else x


def overwritten():
    """torch's own words; the test below has a GPU raise them."""
    from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

    raise RuntimeError(CUDAGraphTreeManager.format_dealloc_msg("File 'model.py', line 3"))


def no_triton():
    """torch's own exception, which Inductor raises for a GPU where Triton is missing."""
    from torch._inductor.exc import TritonMissing

    raise TritonMissing(inspect.currentframe())


def no_headers(tmp_path):
    from torch._inductor.cpp_builder import run_compile_cmd

    source = tmp_path / "kernel.cpp"
    source.write_text("#include <Python.h>\n")
    run_compile_cmd(f"g++ -c {source} -o {tmp_path}/kernel.o", str(tmp_path))


def no_name(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    getpass.getuser()


PROVOKED = {
    "export-size-of-one": (
        lambda: export(Model(lambda x: x * 2), (X[:1],), dynamic_shapes=BATCH),
        "size 2 or more",
    ),
    "export-dim-fixed": (
        lambda: exported(lambda x: x.view(4, -1), dynamic_shapes=BATCH),
        "fixes it to 4",
    ),
    "export-dynamic-shapes": (
        lambda: export(Model(lambda x: x[0]), ([X],), dynamic_shapes=BATCH),
        "a dict from argument names to {dim: Dim(...)}",
    ),
    "export-guard": (
        lambda: exported(lambda x: x * 2).module()(torch.zeros(5, 6)),
        "{0: Dim('d', min=2, max=...)} for x",
    ),
    "export-output-type": (lambda: exported(lambda x: Pair(x, x)), "returns a test_compilers.Pair"),
    "export-buffer-replaced": (lambda: export(Buffer(), (X,)), "self.name.copy_(x)"),
    "traced-product": (lambda: export(nn.Linear(5, 2), (X,)), "nn.Linear(6, 2)"),
    "runtime-assertion": (
        lambda: whole(lambda x: x[x > 0].view(2, -1), torch.ones(3)),
        "Eq(Mod(u0, 2), 0)",
    ),
    "compile-branch": (lambda: whole(branch), "torch.cond"),
    "compile-recurrent": (lambda: whole(Recurrent()), "allow_rnn"),
    "cudagraph-overwritten": (overwritten, "clone() what is kept"),
    "no-triton": (no_triton, "redline doctor"),
    "no-python-headers": (no_headers, "python3-dev"),
    "no-user-name": (no_name, "the user with number 987654"),
    "numbers-differ": (
        lambda: torch.testing.assert_close(X, X + torch.eye(4, 6)),
        "4 of 24 numbers differ",
    ),
    "graph-break": (lambda: whole(lambda x: (print("x"), x + 1)[1]), "print"),
}


def provoke(function, request):
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text is what is asked about
        function(**{name: request.getfixturevalue(name) for name in names})
    return caught.value


@pytest.mark.parametrize("id", PROVOKED)
def test_the_real_error_is_explained(id, request):
    function, words = PROVOKED[id]
    error = provoke(function, request)
    told = why(error)
    assert told.id == id, str(error)
    assert words in str(told).replace("\n    ", " "), str(told)
    assert told.what
    assert told.change
    assert why(f"{type(error).__name__}: {error}").id == id  # from the words alone


def test_every_entry_is_provoked():
    assert [entry.id for entry in COMPILER_ENTRIES] == list(PROVOKED)


# What capture() keeps from torch, and so only shows when torch.export is called by hand.
BY_HAND = {
    "data-dependent-branch": lambda: exported(branch),
    "data-dependent-size": lambda: exported(lambda x: x[: int(x.abs().max().item())]),
    "data-dependent-other": lambda: torch.vmap(branch)(X),
    "unknown-container": lambda: export(Model(lambda pair: pair.a), (Pair(X, X),)),
    "numpy-in-forward": lambda: exported(lambda x: torch.from_numpy(x.numpy())),
    "custom-operator": lambda: exported(twice),
    "scriptmodule": lambda: export(torch.jit.script(nn.Linear(6, 2)), (X,)),
    "missing-operator": lambda: torch.onnx.export(
        Model(lambda x: torch.linalg.svd(x)[1]), (X,), dynamo=True, verbose=False
    ),
}


@pytest.mark.parametrize("id", BY_HAND)
def test_a_class_of_capture_is_found_without_capture(id, request):
    told = why(provoke(BY_HAND[id], request))
    assert told.id == id
    assert told.change == next(failure.hint for failure in FAILURES if failure.id == id)


def test_an_lstms_length_is_named():
    def lengths():
        export(Recurrent(), (torch.randn(5, 2, 6),), dynamic_shapes=({0: Dim("t")},))

    with pytest.raises(Exception) as caught:  # noqa: PT011
        lengths()
    told = why(caught.value)
    assert told.id == "export-dim-fixed"
    assert "one of the layers is recurrent: lstm" in str(told)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.autograd.grad((x * x).sum(), x)[0],
        lambda x: (torch.autocast("cpu").__enter__(), x)[1],
    ],
)
def test_whatever_dynamo_refuses_has_its_number_and_hint(function, request):
    told = why(provoke(lambda: whole(function, X.clone().requires_grad_()), request))
    assert told.id == "graph-break"
    assert "(gb" in told.what
    assert told.where.startswith("test_compilers.py")
    assert "lambda x" in told.where  # the line that was traced, not the call
    assert told.why
    assert "without fullgraph=True" in told.change


def test_the_cause_is_found_behind_the_exporters_wrapping():
    error = RuntimeError("Failed to export the model. This is step 1/3")
    error.__cause__ = KeyError("getpwuid(): uid not found: 1000")
    assert why(error).id == "no-user-name"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_output_of_a_cuda_graph_that_was_overwritten():
    twice_as_much = torch.compile(lambda x: x * 2, mode="reduce-overhead")
    x = torch.ones(8, device="cuda")
    for _ in range(3):
        kept = twice_as_much(x)
    twice_as_much(x + 1)
    with pytest.raises(RuntimeError) as caught:
        kept + 1
    assert why(caught.value).id == "cudagraph-overwritten"


def test_a_script_that_fails_in_export_is_explained(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "torch.export.export(Net(), (torch.zeros(3),))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    told = why_of_log(done.stderr)
    assert told.id == "data-dependent-branch"
    assert told.where.startswith("failing.py:4 in forward")
