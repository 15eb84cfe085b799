"""Every backend builds real parts, and what it builds gives the model's numbers."""

import re
import threading
import zipfile
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest
import torch
from torch._inductor import cpu_vec_isa

from redline import backends
from redline.backends import inductor
from redline.backends.base import Candidate, Traits
from redline.backends.worker import build, open_module, pack_module, pack_program
from redline.capture.capture import capture
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.errors import (
    BuildError,
    CrashedError,
    OutOfMemoryError,
    RefusedError,
    TimedOutError,
    UnknownNameError,
)
from redline.graph.cost import operators
from redline.graph.serialize import to_bytes
from redline.machine import isa_flags
from redline.measure.accuracy import TOLERANCE_CLASSES, error
from redline.measure.child import Child
from redline.runtime.runner import open_part
from redline.tree import flatten


class Tagger(torch.nn.Module):
    """Integers in, two outputs."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, ids):
        hidden = torch.relu(self.table(ids))
        return self.head(hidden), hidden.mean(1)


def conv():
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 64, 5),
    ]
    return torch.nn.Sequential(*layers).eval(), torch.randn(1, 3, 16, 16)


def tagger():
    torch.manual_seed(0)
    return Tagger().eval(), torch.randint(0, 20, (1, 6))


MODELS = {"conv": conv, "tagger": tagger}


@pytest.fixture(scope="module")
def captured():
    return {name: capture(*make()) for name, make in MODELS.items()}


def traits(model):
    return Traits(model.signature, 2, model.graph is not None, True, True, operators(model.graph))


def built(model, candidate, folder):
    """The part, and a runner that has it open."""
    graph = folder / "graph.onnx"
    graph.write_bytes(to_bytes(model.graph))
    home = folder / "part"
    home.mkdir()
    described = build(
        {},
        entry=backends.BACKENDS[candidate.backend],
        candidate=msgspec.to_builtins(candidate),
        signature=msgspec.to_builtins(model.signature),
        example=list(model.example),
        graph=str(graph),
        program=pack_program(model.program),
        module=None,
        folder=str(home),
    )
    part = msgspec.convert(msgspec.json.decode(msgspec.json.encode(described)), Part)
    return part, open_part(part, FolderStore(home, graph=graph), model.signature)


def assert_right(model, runner, tolerance_class="fp32"):
    _, floor = TOLERANCE_CLASSES[tolerance_class]
    with torch.no_grad():
        result = model.module(*[torch.from_numpy(array) for array in model.example])
    wanted = [leaf.numpy() for leaf in flatten(model.signature.output_tree, result)]
    assert error(runner.run(list(model.example)), wanted) < 10 * floor


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("onnxruntime", "conv"),
        ("onnxruntime", "tagger"),
        ("openvino", "conv"),
        ("openvino", "tagger"),
        ("ncnn", "conv"),
    ],
)
def test_every_candidate_builds_and_is_right(captured, tmp_path, name, backend):
    pytest.importorskip(backend)
    model = captured[name]
    for number, candidate in enumerate(backends.get(backend).candidates(traits(model))):
        folder = tmp_path / str(number)
        folder.mkdir()
        part, runner = built(model, candidate, folder)
        assert part.backend == backend
        assert part.setting == candidate.setting
        assert part.operators
        assert part.needs
        assert not part.code
        assert_right(model, runner, part.tolerance_class)
        runner.close()


def test_the_first_candidate_is_the_plain_default(captured):
    for name in backends.names():
        backend = backends.get(name)
        if backend.missing() is None:
            first = backend.candidates(traits(captured["conv"]))[0]
            assert first.precision == "fp32"
            assert first.setting.get("threads", 2) == 2


def test_winograd_is_a_looser_class_than_plain_convolution(captured, tmp_path):
    pytest.importorskip("ncnn")
    classes = {}
    for winograd in (True, False):
        folder = tmp_path / str(winograd)
        folder.mkdir()
        candidate = Candidate("ncnn", {"threads": 1, "winograd": winograd})
        classes[winograd] = built(captured["conv"], candidate, folder)[0].tolerance_class
    assert classes == {True: "winograd-f63", False: "fp32"}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("setting", [{}, {"memory_format": "channels_last"}])
def test_eager_runs_the_module_where_it_is(captured, setting, threads):
    model, state = captured["conv"], {}
    before = torch.get_num_threads()
    open_module(
        state,
        entry=backends.BACKENDS["eager"],
        candidate=msgspec.to_builtins(Candidate("eager", {**setting, "threads": threads})),
        signature=msgspec.to_builtins(model.signature),
        module=pack_module(model.module),
    )
    assert_right(model, state["runner"])
    assert state["runner"].bind(list(model.example))().shape == (1, 5)
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit warns of its own age
@pytest.mark.parametrize("name", MODELS)
def test_inductor_packages_ahead_of_time(captured, tmp_path, name):
    model = captured[name]
    (candidate,) = backends.get("inductor").candidates(traits(model))
    part, runner = built(model, candidate, tmp_path)
    assert part.code
    assert part.files == ("model.pt2",)
    assert part.operators.get("fused kernel", 0) >= 1
    assert set(part.isa) <= isa_flags()
    assert_right(model, runner)
    # The package keeps its compile commands: no flag may go beyond what `isa` asks of a CPU.
    with zipfile.ZipFile(tmp_path / "part" / "model.pt2") as package:
        sources = [package.read(name).decode() for name in package.namelist() if "cpp" in name]
    asked = set(re.findall(r"(?<=\s)-m[\w=+-]+", " ".join(sources)))
    assert asked
    assert "-march=native" not in asked
    assert set(inductor._cpu_flags(" ".join(asked))) == set(part.isa)


@pytest.mark.parametrize(
    ("told", "flags"),
    [
        ("-mavx2 -mfma -mf16c", ("avx2", "fma", "f16c")),
        ("-mavx512f -mavx512vnni -mavx512f", ("avx512f", "avx512_vnni")),
        ("-mavx512bf16 -mamx-tile", ("avx512_bf16", "amx_tile")),
        ("-march=armv9-a+sve2+fp16fml -msve-vector-bits=128", ("sve2", "asimdfhm")),
        ("", ()),
    ],
)
def test_compiler_flags_become_those_of_the_cpu(told, flags):
    assert inductor._cpu_flags(told) == flags


def test_every_instruction_set_that_inductor_finds_here_is_one_of_this_cpu():
    for isa in cpu_vec_isa.valid_vec_isa_list():
        assert set(inductor._cpu_flags(isa.build_arch_flags())) <= isa_flags()


def test_calls_are_counted_and_declarations_are_not():
    source = """
        extern "C"  void  cpp_fused_relu_0(const float* in_ptr0);
        void* cpp_fused_relu_0{nullptr};
        cpp_fused_relu_0((const float*)(x));
        CHECK(aoti_torch_cpu_mkldnn__convolution_pointwise(x, &y));
        cpp_fused_relu_0((const float*)(y));
    """
    fused, conv = "fused kernel", "mkldnn__convolution_pointwise"
    assert inductor._calls(source) == [fused, conv, fused]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit warns of its own age
def test_inductor_with_a_dynamic_batch(tmp_path):
    module, example = conv()
    model = capture(module, example, dynamic={"batch": (1, 2, 8)})
    _, runner = built(model, Candidate("inductor", {"mode": "aot", "threads": 1}), tmp_path)
    for size in (1, 5, 8):
        x = torch.randn(size, 3, 16, 16)
        with torch.no_grad():
            assert error(runner.run([x.numpy()]), [module(x).numpy()]) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit warns of its own age
def test_inductor_compiles_what_cannot_be_exported():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    model = capture(Branch().eval(), torch.ones(2, 3))
    have = Traits(model.signature, 1, has_graph=False, has_program=False, has_module=True)
    (candidate,) = backends.get("inductor").candidates(have)
    assert candidate.setting["mode"] == "jit"
    runner = backends.get("inductor").open_module(model.module, candidate, model.signature)
    np.testing.assert_array_equal(runner.run([np.ones((2, 3), np.float32)])[0], 2)


NO_GRAPH = {"has_graph": False, "has_program": False, "has_module": False}


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino", "ncnn", "inductor"])
def test_nothing_to_work_with_is_a_refusal_with_a_reason(captured, name):
    have = Traits(captured["conv"].signature, 2, **NO_GRAPH)
    with pytest.raises(RefusedError) as caught:
        backends.get(name).candidates(have)
    assert len(caught.value.what) > 20


@pytest.mark.parametrize(
    ("shape", "dynamic", "words"),
    [((2, 3, 16, 16), None, "batch 1 only"), ((1, 3, 16, 16), {"batch": (1, 1, 4)}, "batch may")],
)
def test_ncnn_says_what_it_cannot_take(shape, dynamic, words):
    model = capture(conv()[0], torch.randn(shape), dynamic=dynamic)
    with pytest.raises(RefusedError, match=words):
        backends.get("ncnn").candidates(traits(model))


def test_ncnn_counts_the_axes_and_looks_at_the_outputs():
    class Winner(torch.nn.Module):
        def forward(self, x):
            return x.argmax(1)

    model = capture(Winner().eval(), torch.randn(1, 4))
    with pytest.raises(RefusedError, match="int64; ncnn gives float32 only"):
        backends.get("ncnn").candidates(traits(model))
    model = capture(torch.nn.ReLU().eval(), torch.randn(1, 2, 2, 2, 2))
    with pytest.raises(RefusedError, match="has 5 axes"):
        backends.get("ncnn").candidates(traits(model))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "status -11"),
        ("echo no such layer >&2; exit 1", "status 1: no such layer"),
    ],
)
def test_a_pnnx_that_dies_is_a_build_error(captured, tmp_path, monkeypatch, script, words):
    pytest.importorskip("ncnn")
    program = tmp_path / "pnnx"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("redline.backends.ncnn._pnnx", lambda: str(program))
    with pytest.raises(BuildError, match=words):
        built(captured["conv"], Candidate("ncnn", {"threads": 1, "winograd": False}), tmp_path)


def test_ncnn_names_the_operators_that_it_lacks(captured, tmp_path):
    pytest.importorskip("ncnn")

    model = captured["tagger"]
    with pytest.raises(RefusedError, match="ncnn has no layer for Gather"):
        built(model, Candidate("ncnn", {"threads": 1, "winograd": False}), tmp_path)


def test_tensorrt_refuses_here_with_its_reason():
    if torch.cuda.is_available():
        pytest.skip("there is an NVIDIA GPU")
    missing = backends.get("tensorrt").missing()
    assert "NVIDIA GPU" in missing.reason


def test_cuda_inductor_refuses_here_with_its_reason(captured, tmp_path):
    candidate = Candidate("inductor", {"mode": "aot", "threads": 1, "device": "cuda"})
    with pytest.raises(RefusedError, match="NVIDIA GPU"):
        built(captured["conv"], candidate, tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        ("build-crash", CrashedError, "SIGSEGV"),
        ("build-hang", TimedOutError, "no answer"),
        ("build-memory", OutOfMemoryError, "MiB"),
        ("build-error", BuildError, "told to fail"),
    ],
)
def test_whatever_a_build_does_its_child_tells(captured, tmp_path, behaviour, kind, words):
    model = captured["conv"]
    with Child(memory=1 << 30) as child, pytest.raises(kind, match=words):
        child.call(
            "redline.backends.worker:build",
            timeout=3 if behaviour == "build-hang" else 60,
            entry=backends.BACKENDS["null"],
            candidate=msgspec.to_builtins(Candidate("null", {"behaviour": behaviour})),
            signature=msgspec.to_builtins(model.signature),
            example=list(model.example),
            graph=None,
            program=None,
            module=None,
            folder=str(tmp_path),
        )


def test_unknown_names_say_did_you_mean():
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        backends.get("openvno")
    assert "null" not in backends.names()
    assert "null" in backends.names(hidden=True)


def test_a_module_that_cannot_be_sent_to_a_child():
    class Holding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, x):
            return x

    with pytest.raises(RefusedError, match="cannot be sent to a child"):
        pack_module(Holding())


def test_every_backend_has_its_library_or_a_command():
    for name in backends.names():
        missing = backends.get(name).missing()
        assert missing is None or missing.reason
    assert find_spec("onnxruntime")
    assert backends.get("onnxruntime").missing() is None
