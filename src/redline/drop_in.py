"""The engine a user holds: called like the model it came from, saved to one file, explained."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from redline.engine import file as engine_file
from redline.engine.manifest import Check, Manifest, Part
from redline.errors import SaveError
from redline.measure.record import Study
from redline.runtime.load import open_engine
from redline.runtime.session import Session
from redline.signature import Signature

if TYPE_CHECKING:
    from redline.report.report import Report


class Folder:
    """A private temporary folder that goes when nobody holds it any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="redline-engine-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Package:
    """What save() writes: the parts in order of preference, the graph and the self-test."""

    name: str
    parts: Sequence[tuple[Part, Path]]
    graph: Path | None
    graph_hash: str
    inputs: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]
    check: Check
    keep: Folder | None = field(default=None, repr=False)


class Engine:
    """A drop-in for the model: torch in, torch out; NumPy in, NumPy out.

    Attributes:
        signature: names, dtypes and shapes of inputs and outputs (redline.signature.Signature).
        report: every candidate tried, what won, what lost and why.
        backend: the backend that runs it, e.g. "onnxruntime".
        notices: what the user should know, e.g. that a part fell back to a portable one.

    Attributes that are not an engine's own come from the module it was made of, while that is in
    this process: `pipe.model = redline.optimize(pipe.model, tokens)` keeps `.config` and friends.

    Example:
        >>> engine = redline.optimize(torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4))
        >>> engine(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        session: Session,
        study: Study,
        *,
        backend: str,
        package: Package | None = None,
        path: Path | None = None,
        module: Any = None,
        notices: Sequence[str] = (),
    ) -> None:
        self._session = session
        self._study = study
        self._package = package
        self._path = path
        self._module = module
        self.signature: Signature = session.signature
        self.backend = backend
        self.notices = tuple(notices)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine as the model would be called; no gradients.

        Raises:
            SignatureError: a wrong name, dtype, shape or structure; says what was expected.
        """
        return self._session(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__.get("_module")
        if module is None or name.startswith("__"):
            raise AttributeError(f"'Engine' has no attribute {name!r}")
        return getattr(module, name)

    def __repr__(self) -> str:
        inputs = ", ".join(
            f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in self.signature.inputs
        )
        return f"Engine({self._study.model} on {self.backend}; {inputs})"

    @property
    def report(self) -> Report:
        """Every candidate that was tried, what won, what lost and why."""
        from redline.report.report import Report

        return Report(self._study)

    @property
    def latency(self) -> float | None:
        """Seconds a call, as measured when it was chosen; None if it never was."""
        winner = next((record for record in self._study.records if record.winner), None)
        return winner.timing.median if winner and winner.timing else None

    def explain(self) -> str:
        """Where in the chain from model to machine code this engine came from, and why it won."""
        return self.report.explain()

    def save(self, path: str | Path) -> Path:
        """Write the engine to one file that loads without torch; returns its path.

        An engine that runs inside PyTorch (eager, torch.compile) cannot be packed without its
        Python code: the file then holds the fastest part that can, and `notices` says so.

        Raises:
            SaveError: nothing to pack, no space, not writable; what was there before is untouched.
        """
        path = Path(path)
        if self._path is not None:
            return _copy(self._path, path)
        if self._package is None:
            raise SaveError(
                f"this engine runs {self.backend} inside PyTorch, and no other part was built",
                hint="mend what the report says about the export, or save the weights instead",
            )
        package, study = self._package, msgspec.to_builtins(self._study)
        records = tuple(study.pop("records"))
        engine_file.save(
            path,
            name=package.name,
            signature=self.signature,
            parts=package.parts,
            graph=package.graph.read_bytes() if package.graph else None,
            check=package.check,
            inputs=package.inputs,
            outputs=package.outputs,
            machine=study["machine"],
            records=records,
            provenance={"study": study},
            graph_hash=package.graph_hash,
        )
        return path

    def close(self) -> None:
        """Let go of memory and threads; the engine cannot be called afterwards."""
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    path: str | Path, *, trust: bool = False, part: str | None = None, self_test: bool = True
) -> Engine:
    """Open an engine file; needs no torch unless its part does.

    Args:
        path: a file written by Engine.save.
        trust: run machine code in it although no trusted key signed it.
        part: the backend whose part to open; None takes the first that this machine can run.
        self_test: replay the stored inputs and refuse a part whose numbers differ.

    Raises:
        EngineFileError: truncated, tampered, unsafe, newer, untrusted, or made for another machine.

    Example:
        >>> engine = redline.load("model.redline")
        >>> y = engine(x)
    """
    session = open_engine(path, trust=trust, part=part, self_test=self_test)
    manifest, opened = session.manifest, session.part
    assert manifest is not None
    assert opened is not None
    return Engine(
        session,
        read_study(manifest) or Study(manifest.name, "engine file", manifest.machine, "", "", ()),
        backend=opened.backend,
        path=Path(path),
        notices=session.notices,
    )


def read_study(manifest: Manifest) -> Study | None:
    """The study that an engine file carries; None in one that optimize() did not write."""
    study = manifest.provenance.get("study")
    try:
        return msgspec.convert({**study, "records": manifest.records}, Study) if study else None
    except (msgspec.ValidationError, TypeError):
        return None


def _copy(source: Path, path: Path) -> Path:
    """Copy a file to the side and move it into place."""
    if source.resolve() == path.resolve():
        return path
    beside = path.with_name(f".{path.name}.part")
    try:
        shutil.copyfile(source, beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SaveError(
            f"the engine could not be written: {error.strerror or error}", where=str(path)
        ) from error
    return path
