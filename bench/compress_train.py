"""Claim: training mends what four bits or half of the channels lose, and teaches a small network.

    python bench/compress_train.py --images cifar10.zip --mnist mnist-10k --out runs

Without --weights the base network is trained first and saved there. --only runs a part: base, qat,
channels, control (the base trained on for as long as what was pruned), taught (pruned, with the
control as its teacher), distill, speed; each writes its numbers below --out, so that a part can be
run again alone. Time the part `speed` on a quiet machine: calls of all engines in turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from safetensors.torch import save_file
from torch.nn import functional

from redline import machine
from redline.capture.capture import capture
from redline.compress import Scheme, Training, distill, prune, qat, what_was_done
from redline.compress.finetune import finetune, supervised
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.graph.serialize import to_bytes
from redline.native import isa
from redline.native.compile import compile_graph
from redline.runtime.run_native import open_part
from redline.signature import Signature, TensorSpec, Tree
from redline.train import fit, load_data, load_weights, network, parts

BATCH = 128
EPOCHS = {"base": 3, "qat": 1, "channels": 6, "control": 6, "taught": 6}
PARTS = (*EPOCHS, "distill", "speed")
HALF = Scheme("channels", {"ratio": 0.5, "round": 4})
STUDENTS = ((15, 1e-3, 0.7), (50, 3e-3, 0.9))  # epochs, lr, alpha; T is 4


class Shuffled:
    """Batches in an order of each epoch's own."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, seed: int) -> None:
        self.x, self.y = x, y
        self.random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> Any:
        for rows in torch.randperm(len(self.x), generator=self.random).split(BATCH):
            yield self.seen(self.x[rows]), self.y[rows]

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Augmented(Shuffled):
    """Images are mirrored at random, and moved by up to `shift` pixels."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, seed: int, shift: int) -> None:
        super().__init__(x, y, seed)
        self.changes = parts.augmentations(("flip", f"crop:{shift}") if shift else ("flip",))

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        for change in self.changes:
            x = change(x, self.random)
        return x


class Bench:
    """The data, the base network, and where numbers go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.data, self.out = load_data(args.images), args.out
        self.seed, self.shift, self.lr = args.seed, args.shift, args.lr
        prepare = parts.features((), self.data)[0]
        self.x, self.y = prepare(self.data.train.x), self.data.train.y
        self.test_x, self.test_y = prepare(self.data.test.x), self.data.test.y
        self.net = network("resnet", self.data, width=args.width)
        weights = args.weights or self.out / "base" / "checkpoints" / "best" / "model.safetensors"
        if weights.exists():
            self.net.load_state_dict(load_weights(weights))
        self.net.eval()

    def accuracy(self, model: Callable[..., Any]) -> float:
        with torch.no_grad():
            found = torch.cat([model(x).argmax(1) for x in self.test_x.split(500)])
        return float((found == self.test_y).float().mean())

    def loader(self) -> Augmented:
        return Augmented(self.x, self.y, self.seed, self.shift)

    def write(self, name: str, **numbers: Any) -> None:
        (self.out / f"{name}.json").write_text(json.dumps(numbers))
        print(name, numbers, flush=True)

    def read(self, name: str) -> dict[str, Any]:
        path = self.out / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def keep(self, name: str, model: torch.nn.Module) -> None:
        graph = capture(model, self.test_x[:1]).graph
        assert graph is not None
        (self.out / f"{name}.onnx").write_bytes(to_bytes(graph))


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def base(bench: Bench, epochs: int) -> None:
    """The network that all parts start from."""
    done = fit(
        bench.net, bench.data, epochs=epochs, batch_size=BATCH, optimizer="sgd", lr=0.1,
        weight_decay=5e-4, augment=("flip",), label_smoothing=0.1, out=bench.out / "base",
    )  # fmt: skip
    bench.net = done.model
    bench.write("base", epochs=epochs, accuracy=bench.accuracy(done.model))


def control(bench: Bench, name: str, how: Training) -> None:
    """The base trained on without any change: what training alone gives."""
    same = copy.deepcopy(bench.net)
    finetune(same, bench.loader(), supervised(functional.cross_entropy), how)
    save_file(same.state_dict(), bench.out / f"{name}.safetensors")
    bench.write(name, epochs=how.epochs, accuracy=bench.accuracy(same))


def taught(bench: Bench, epochs: int) -> None:
    """Half of the channels as in channels(), taught by the control; without one, by the base."""
    teacher, control = copy.deepcopy(bench.net), bench.out / "channels-control.safetensors"
    if control.exists():
        teacher.load_state_dict(load_weights(control))
    cut = prune(bench.net, HALF, bench.test_x[:4])
    scheme = Scheme("distill", {"alpha": 0.7})
    made = distill(cut, teacher, bench.loader(), epochs, scheme=scheme, optimizer=sgd(0.05))
    bench.keep("fp32", bench.net)
    bench.keep("taught", made)
    bench.write("taught", epochs=epochs, cut=bench.accuracy(cut), accuracy=bench.accuracy(made))


def bits(bench: Bench, epochs: int) -> None:
    """Weights of 4 and of 2 bits: rounded to nearest, and trained."""
    bench.keep("fp32", bench.net)
    for count in (4, 2):
        scheme = Scheme("qat", {"weights": count})
        plain = qat(bench.net, bench.loader(), functional.cross_entropy, 0, scheme=scheme)
        start = time.monotonic()
        made = qat(
            bench.net, bench.loader(), functional.cross_entropy, epochs, scheme=scheme, lr=bench.lr
        )
        bench.keep(f"qat{count}", made)
        bench.write(
            f"qat{count}", epochs=epochs, rounded=bench.accuracy(plain),
            trained=bench.accuracy(made), minutes=(time.monotonic() - start) / 60,
        )  # fmt: skip


def channels(bench: Bench, epochs: int) -> None:
    """Half of the channels of every layer but the last."""
    cut = prune(bench.net, HALF, bench.test_x[:4])
    made = prune(
        bench.net, HALF, bench.test_x[:4], bench.loader(), functional.cross_entropy, epochs,
        optimizer=sgd(0.05),
    )  # fmt: skip
    record = what_was_done(made)
    assert record
    bench.keep("channels", made)
    bench.write(
        "channels", epochs=epochs, cut=bench.accuracy(cut), trained=bench.accuracy(made),
        layers={one.node: [one.precision, one.reason, one.sensitivity] for one in record.layers},
    )  # fmt: skip


def students(out: Path, source: str, seeds: int) -> None:
    """Small perceptrons, alone and with a large one as their teacher, as in section 3 of Hinton
    et al.; every student starts from the same weights and sees the same batches as its twin.
    """
    data = load_data(source)
    prepare = parts.features((), data)[0]
    x, y = prepare(data.train.x), data.train.y
    test_x, test_y = prepare(data.test.x), data.test.y

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((model(test_x).argmax(1) == test_y).float().mean())

    def trained(
        model: torch.nn.Module, alpha: float, epochs: int, lr: float, seed: int
    ) -> torch.nn.Module:
        scheme = Scheme("distill", {"alpha": alpha})
        return distill(model, teacher, Shuffled(x, y, seed), epochs, scheme=scheme, lr=lr)

    torch.manual_seed(0)
    teacher = network("mlp", data, width=512).eval()
    teacher = trained(teacher, 0.0, 15, 1e-3, 0)
    found: dict[str, Any] = {"images": len(x), "teacher": accuracy(teacher)}
    for epochs, lr, alpha in STUDENTS:
        for width in (8, 32):
            rows = []
            for seed in range(seeds):
                row = []
                for part in (0.0, alpha):
                    torch.manual_seed(seed)
                    student = network("mlp", data, width=width)
                    row.append(accuracy(trained(student, part, epochs, lr, seed)))
                rows.append(row)
            name = f"width {width}, {epochs} epochs, lr {lr}, alpha {alpha}"
            gains = [round(taught - alone, 4) for alone, taught in rows]
            alone, taught = (statistics.mean(column) for column in zip(*rows, strict=True))
            found[name] = {"alone": alone, "taught": taught, "gains": gains}
            print(name, found[name], flush=True)
    (out / "distill.json").write_text(json.dumps(found))


def compiled(path: Path, x: np.ndarray, folder: Path) -> Callable[[], Any]:
    """Our compiler's call of a graph, with Winograd or without, whichever is faster."""
    target = isa.usable(sorted(machine.isa_flags()))[0]
    found = []
    for winograd in (False, True):
        home = folder / f"{path.stem}-{winograd}"
        home.mkdir()
        model = onnx_ir.load(path)
        compile_graph(model, target, 1, home, winograd=winograd)
        ends = [
            tuple(TensorSpec(v.name, "float32", tuple(v.shape.numpy())) for v in values)
            for values in (model.graph.inputs, model.graph.outputs)
        ]
        part = Part("native", {"threads": 1}, files=tuple(p.name for p in home.iterdir()))
        runner = open_part(part, FolderStore(home), Signature(*ends, Tree(), Tree()))
        run = partial(runner.run, [x])
        found.append((min(timeit.repeat(run, number=20, repeat=10)), winograd, run))
    best = min(found, key=lambda one: one[0])
    print(f"native {path.stem}: winograd {best[1]}", flush=True)
    return best[2]


def speed(out: Path, rounds: int) -> None:
    """Calls of every graph that is there in turns, on ONNX Runtime, OpenVINO and our compiler."""
    import openvino

    core, folder = openvino.Core(), tempfile.TemporaryDirectory()
    calls: dict[str, Callable[[], Any]] = {}
    for path in sorted(out.glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # two pools that spin would take each other's cores
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )  # fmt: skip
        given = session.get_inputs()[0]
        x = np.random.default_rng(0).normal(size=given.shape).astype(np.float32)
        calls[f"onnxruntime {path.stem}"] = lambda s=session, n=given.name, x=x: s.run(None, {n: x})
        model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
        request = model.create_infer_request()
        calls[f"openvino {path.stem}"] = lambda r=request, x=x: r.infer([x])
        if not any(node.op_type == "QuantizeLinear" for node in onnx_ir.load(path).graph):
            calls[f"native {path.stem}"] = compiled(path, x, Path(folder.name))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            run()
            start = time.perf_counter()
            for _ in range(10):
                run()
            samples[name].append((time.perf_counter() - start) / 10)
    found = {}
    for name, times in samples.items():
        plain = samples[f"{name.split()[0]} fp32"]
        ratios = sorted(a / b for a, b in zip(plain, times, strict=True))
        low, high = np.quantile(
            [statistics.median(np.random.default_rng(i).choice(ratios, len(ratios)))
             for i in range(500)], (0.025, 0.975),
        )  # fmt: skip
        found[name] = [
            statistics.median(times) * 1e3, statistics.median(ratios), float(low), float(high)
        ]  # fmt: skip
    for name, (milliseconds, ratio, low, high) in found.items():
        print(f"{name}: {milliseconds:.4f} ms, fp32 / it {ratio:.2f} ({low:.2f} to {high:.2f})")
    (out / "speed.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", help="a zip or folder of images in classes")
    parser.add_argument("--mnist", help="a folder of IDX files, for the part distill")
    parser.add_argument("--weights", type=Path, help="a trained base")
    parser.add_argument("--out", type=Path, default=Path("compress-train"))
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--width", type=int, default=8, help="of the base network")
    parser.add_argument("--epochs", type=int, help=f"of the part, in place of {EPOCHS}")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the part qat")
    parser.add_argument("--shift", type=int, default=0, help="pixels that images move by")
    parser.add_argument("--seeds", type=int, default=5, help="students of each kind")
    parser.add_argument("--rounds", type=int, default=60, help="of the part speed")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the batches")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only == "speed":  # the graphs are there; nothing is loaded beside them
        speed(args.out, args.rounds)
        return
    if args.only in (None, "distill") and args.mnist:
        students(args.out, args.mnist, args.seeds)
    if args.images:
        on_images(Bench(args), args)
    if args.images and args.only is None:
        speed(args.out, args.rounds)


def on_images(bench: Bench, args: argparse.Namespace) -> None:
    """The parts that take the base network, or the one of them that was asked for."""

    def bare(epochs: int) -> None:
        if args.weights is None:
            base(bench, epochs)
        bench.write("given", accuracy=bench.accuracy(bench.net))

    def quantised(epochs: int) -> None:
        control(bench, "qat-control", Training(epochs, bench.lr))
        bits(bench, epochs)

    ways: dict[str, Callable[[int], None]] = {
        "base": bare,
        "qat": quantised,
        "channels": partial(channels, bench),
        "control": lambda epochs: control(
            bench, "channels-control", Training(epochs, optimizer=sgd(0.05))
        ),
        "taught": partial(taught, bench),
    }
    for name, way in ways.items():
        if args.only in (None, name):
            way(args.epochs or EPOCHS[name])


if __name__ == "__main__":
    main()
