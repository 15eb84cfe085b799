"""Where each compiler sits between a model and machine code, in a sentence for each stage.

What is said here is what the compilers' own documentation and sources say: PyTorch 2.13
(torch.compiler, AOTInductor), ONNX Runtime 1.32 (graph optimizations, execution providers),
OpenVINO 2026 (CPU device), ncnn and pnnx 2026-10, TensorRT 11 (builder, strongly typed networks,
timing cache).
"""

from __future__ import annotations

from dataclasses import dataclass

from redline.measure.record import Record, Study
from redline.report import figures

STAGES = ("capture", "graph", "optimiser", "code", "runtime")


@dataclass(frozen=True)
class Compiler:
    """One compiler's way through the five stages.

    Attributes:
        backends: names of Redline's backends that are this compiler.
        note: why it has no row of measurements, where it cannot have one.
    """

    name: str
    backends: tuple[str, ...]
    capture: str
    graph: str
    optimiser: str
    code: str
    runtime: str
    note: str = ""


@dataclass(frozen=True)
class Link:
    """A compiler in one study: whether it won, took part, and what it made of this model."""

    compiler: Compiler
    state: str
    counts: str
    winner: bool

    @property
    def stages(self) -> tuple[tuple[str, str], ...]:
        """(stage, what happens there), in order; the optimiser with this model's real counts."""
        told = {stage: getattr(self.compiler, stage) for stage in STAGES}
        if self.counts:
            told["optimiser"] += f" Here: {self.counts}."
        return tuple(told.items())


COMPILERS = (
    Compiler(
        name="PyTorch eager",
        backends=("eager",),
        capture="None: the Python code of forward() runs at every call.",
        graph="None: an operator is known only at the moment it is called.",
        optimiser="None across operators; each one picks its own algorithm.",
        code="Ready-made kernels of ATen, with oneDNN or MKL for convolutions and matrix products.",
        runtime="Python calls the dispatcher once an operator; every result is a new tensor.",
    ),
    Compiler(
        name="Inductor (torch.compile, AOTInductor)",
        backends=("inductor",),
        capture="Dynamo reads the bytecode, or torch.export traces the whole model.",
        graph="An FX graph of ATen operators, decomposed to a smaller set.",
        optimiser="Freezing folds constants and packs weights; pointwise operators and reductions "
        "that share loops are fused.",
        code="Writes C++ with SIMD and OpenMP for a CPU, Triton for a GPU; convolutions and matrix "
        "products mostly stay calls to oneDNN, MKL or templates.",
        runtime="Python wrapper, or with AOTInductor a shared library that needs libtorch.",
    ),
    Compiler(
        name="ONNX Runtime",
        backends=("onnxruntime",),
        capture="Reads ONNX, which the framework exported.",
        graph="Its own graph of ONNX operators, split among execution providers.",
        optimiser="Three levels of rewrites: constants and dead nodes, then fusions, then layout "
        "(NCHWc blocks for convolutions on a CPU).",
        code="Generates none: hand-written MLAS kernels, picked by the CPU's instruction set; "
        "weights are packed when the session opens.",
        runtime="Runs nodes in order from a planned memory arena, on its own spinning threads.",
    ),
    Compiler(
        name="OpenVINO",
        backends=("openvino",),
        capture="Converts ONNX or a PyTorch model.",
        graph="ov::Model, in OpenVINO's own operator set.",
        optimiser="Common transformations, then the CPU plugin fuses what follows a convolution or "
        "matrix product into it and chooses blocked layouts.",
        code="oneDNN and Snippets write machine code for the shapes and the CPU at hand.",
        runtime="Inference requests on streams, each with its share of TBB threads.",
    ),
    Compiler(
        name="ncnn",
        backends=("ncnn",),
        capture="pnnx reads a traced PyTorch model.",
        graph="ncnn's layers, in a .param text and a .bin of weights.",
        optimiser="pnnx fuses batch normalisation and activations into the layer before them.",
        code="Hand-written SIMD kernels; each convolution takes Winograd, matrix product or direct "
        "form by its shape, and its weights are transformed at load.",
        runtime="Walks the layers needed for an output, with OpenMP inside each.",
    ),
    Compiler(
        name="TensorRT 11",
        backends=("tensorrt", "torch_tensorrt"),
        capture="Its parser reads ONNX (Torch-TensorRT: an exported program).",
        graph="A strongly typed network: the types are those in the graph, so lower precision "
        "comes as casts or Q/DQ nodes, not as a builder flag.",
        optimiser="Fuses layers and regions, removes what is not used, chooses tensor formats.",
        code="For each layer it times the candidate kernels (tactics) on the GPU at hand, and "
        "keeps the fastest; a timing cache saves the next build.",
        runtime="A plan file with weights and chosen kernels, by default only for that TensorRT "
        "version and GPU; an execution context queues it on a CUDA stream.",
        note="needs an NVIDIA GPU",
    ),
    Compiler(
        name="Redline native",
        backends=("native",),
        capture="The ONNX graph that Redline's capture hands to every backend.",
        graph="onnx_ir, grouped into an anchor (convolution, matrix product) and what follows.",
        optimiser="Fusion into the anchor, Winograd where it pays, NCHWc blocks, one memory plan.",
        code="Writes C++ with literal shapes, its schedules chosen by timing; g++ compiles it.",
        runtime="One parallel region a call, threads that spin for a while, and no allocation.",
    ),
)


def links(study: Study) -> list[Link]:
    """Every compiler as it stands in this study; the winner's first."""
    found = [_link(compiler, study) for compiler in COMPILERS]
    return sorted(found, key=lambda link: not link.winner)


def _link(compiler: Compiler, study: Study) -> Link:
    mine = [record for record in study.records if record.backend in compiler.backends]
    won = next((record for record in mine if record.winner), None)
    ran = [record for record in mine if record.outcome == "ok" and record.timing]
    known = next((record for record in figures.optimised(study) if record in mine), None)
    counts = _counts(study, won or known)
    return Link(compiler, _state(compiler, won, ran, mine), counts, won is not None)


def _state(compiler: Compiler, won: Record | None, ran: list[Record], mine: list[Record]) -> str:
    if won:
        return "the winner"
    if ran:
        return "took part"
    if mine:
        return mine[0].outcome
    return compiler.note or "not tried"


def _counts(study: Study, record: Record | None) -> str:
    after = sum(record.operators.values()) if record else 0
    if not after:
        return ""
    before = sum(study.operators.values())
    return f"{before} operators became {after}" if before else f"{after} operators"
