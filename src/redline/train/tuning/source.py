"""The lines of the user's own file that a change is about."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline.train.tuning.setup import Setup


@dataclass(frozen=True)
class Edit:
    """One place to change: where ("train.py:31", or in words), what stands there, what should."""

    where: str
    old: str
    new: str
    why: str = ""


class Source:
    """A file with a training loop; without one, places are told in words.

    Example:
        >>> Source(None).place("zero_grad")
        ('in your loop', '')
    """

    def __init__(self, path: str | None) -> None:
        self.name, self._lines = "", []
        self.calls: dict[str, ast.Call] = {}
        if path is None:
            return
        try:
            text = Path(path).read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, SyntaxError, UnicodeDecodeError):
            return  # advice in words is still advice
        self.name, self._lines = Path(path).name, text.splitlines()
        self._read(tree)

    def place(self, kind: str) -> tuple[str, str]:
        """(where, the line that stands there)."""
        call = self.calls.get(kind)
        if call is None:
            return _WORDS.get(kind, "in your loop"), ""
        return f"{self.name}:{call.lineno}", self._lines[call.lineno - 1].strip()

    def changed(self, kind: str, fallback: str, **keywords: Any) -> tuple[str, str, str]:
        """(where, old, new): the call of this kind with other keywords."""
        call = self.calls.get(kind)
        if call is None:
            return _WORDS.get(kind, "in your loop"), "", fallback
        names = {key: value for key, value in keywords.items() if value is not None}
        kept = [one for one in call.keywords if one.arg not in keywords]
        added = [ast.keyword(key, ast.Constant(value)) for key, value in names.items()]
        new = ast.Call(call.func, call.args, kept + added)
        return f"{self.name}:{call.lineno}", ast.unparse(call), ast.unparse(new)

    def _read(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self._note(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.For) and _has(node, "backward"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Call) and _name(inner) in _LOGS:
                        self.calls.setdefault("log", inner)
                    if isinstance(inner, ast.Call) and _name(inner) == "model":
                        self.calls.setdefault("forward", inner)

    def _note(self, call: ast.Call) -> None:
        name = _name(call)
        if name in ("DataLoader", "zero_grad"):
            self.calls.setdefault({"DataLoader": "loader"}.get(name, name), call)
        if any(one.arg == "memory_format" for one in call.keywords):
            self.calls.setdefault("layout", call)
        if name in _OPTIMIZERS and call.args:
            self.calls.setdefault("optimizer", call)


_LOGS = ("item", "print", "log", "add_scalar", "tolist")
_OPTIMIZERS = ("Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta")
_WORDS = {
    "loader": "where you make the DataLoader",
    "optimizer": "where you make the optimizer",
    "zero_grad": "where the loop calls zero_grad",
    "log": "where the loop logs",
    "forward": "around forward and loss",
    "layout": "before the loop",
}


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _has(node: ast.AST, name: str) -> bool:
    return any(isinstance(one, ast.Call) and _name(one) == name for one in ast.walk(node))


def edits(path: str | None, old: Setup, new: Setup, device: str) -> list[Edit]:
    """The places to change so that the loop runs as `new` and not as `old`."""
    source = Source(path)
    found = _input(source, old, new) + _loop(source, old, new)
    if new.layout != old.layout:
        where, line = source.place("layout")
        kind = "channels_last" if new.layout == "channels_last" else "contiguous_format"
        text = f"model = model.to(memory_format=torch.{kind})"
        found.append(Edit(where, line, text, "weights"))
        text = f"x = x.contiguous(memory_format=torch.{kind})"
        found.append(Edit("in your loop, before model(x)", "", text, "the input, the same format"))
    if new.autocast != old.autocast:
        where, line = source.place("forward")
        if new.autocast:
            text = f'with torch.autocast("{device}", dtype=torch.{new.autocast}):'
            found.append(Edit(where, line, text, "forward and loss inside, backward outside"))
        else:
            found.append(
                Edit(where, line, "the same, outside of torch.autocast", "forward and loss")
            )
        if new.autocast == "float16":
            text = 'scaler = torch.amp.GradScaler("cuda")  # scale(loss).backward(), step, update'
            found.append(Edit("before the loop", "", text, "float16 underflows without it"))
    before = {
        "threads": f"torch.set_num_threads({new.threads})",
        "tf32": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
        "cudnn_benchmark": "torch.backends.cudnn.benchmark = True",
        "compile": "model = torch.compile(model)",
    }
    found += [
        Edit("before the loop", "", text) for field, text in before.items()
        if getattr(new, field) != getattr(old, field)
    ]  # fmt: skip
    return found


def _input(source: Source, old: Setup, new: Setup) -> list[Edit]:
    found: list[Edit] = []
    keywords: dict[str, Any] = {}
    if new.feed == "memory" != old.feed:
        where, _ = source.place("loader")
        text = "dataset = [dataset[i] for i in range(len(dataset))]"
        found.append(
            Edit(f"{where}, before it", "", text, "transforms run once, not once an epoch")
        )
    if new.feed == "slices" != old.feed:
        where, line = source.place("loader")
        text = (
            "DataLoader(dataset, batch_size=None, sampler=BatchSampler("
            "RandomSampler(dataset), batch_size, drop_last=False))"
        )
        found.append(
            Edit(where, line, text, "a batch is one slice; SequentialSampler if unshuffled")
        )
        return found
    if new.workers != old.workers:
        keywords["num_workers"] = new.workers
    if new.persistent != old.persistent:
        keywords["persistent_workers"] = new.persistent
    if new.workers and new.prefetch != old.prefetch:
        keywords["prefetch_factor"] = new.prefetch
    elif not new.workers and old.prefetch:
        keywords["prefetch_factor"] = None
    if new.pin != old.pin:
        keywords["pin_memory"] = new.pin
    if keywords:
        listed = ", ".join(f"{key}={value}" for key, value in keywords.items())
        found.append(Edit(*source.changed("loader", f"DataLoader(..., {listed})", **keywords)))
    return found


def _loop(source: Source, old: Setup, new: Setup) -> list[Edit]:
    found = []
    if new.set_to_none != old.set_to_none:
        where, was, text = source.changed("zero_grad", "optimizer.zero_grad()", set_to_none=None)
        found.append(Edit(where, was, text))
    if new.kernel != old.kernel:
        other = "foreach" if new.kernel == "fused" else "fused"
        keywords: dict[str, Any] = {new.kernel: True, other: None}
        fallback = f"{new.kernel}=True among the optimizer's arguments"
        found.append(Edit(*source.changed("optimizer", fallback, **keywords)))
    if new.log_every != old.log_every:
        where, line = source.place("log")
        text = f"if step % {new.log_every} == 0:  {line or 'log(step, loss)'}"
        found.append(Edit(where, line, text, "also keeps the .item() out of the other steps"))
    if new.non_blocking != old.non_blocking:
        text = "x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)"
        found.append(Edit("where the loop moves a batch", "", text))
    return found
