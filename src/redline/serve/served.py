"""One version of one model that is served: its engine, its queue, and what is told about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redline.errors import InputError, RedlineError
from redline.runtime.self_test import output_error
from redline.serve.batcher import Batcher, Item, Queueing
from redline.serve.checking import Checker
from redline.serve.config import ModelConfig
from redline.serve.dtypes import BYTES, config_type
from redline.serve.messages import Request, ServeError, Status
from redline.serve.opening import Opened, Run, Tensor, example, open_model
from redline.serve.settings import Settings
from redline.serve.statistics import Statistics
from redline.serve.turns import Turns

_MERGED = 1e-2  # error of a batch against its requests alone, above which they are not independent


@dataclass(frozen=True)
class Prepared:
    """A model that is open, has passed its self-test and is warm, but does not serve yet."""

    opened: Opened
    config: ModelConfig
    runs: tuple[Run, ...]
    min_batch: int
    max_batch: int
    close: Callable[[], None]
    notices: tuple[str, ...]
    isolated: bool


def prepare(path: Path, config: ModelConfig, settings: Settings) -> Prepared:
    """Open, test and warm up; blocks, so it runs in a thread.

    Raises:
        RedlineError: why this file does not serve.
    """
    instances = config.instances or settings.instances
    threads = config.threads if config.threads is not None else settings.threads
    isolation = config.isolation or settings.isolation
    limit = config.max_batch_size or settings.max_batch
    if isolation == "process":
        from redline.serve.child import open_isolated

        seconds = run_timeout_of(config, settings)
        opened, runs, close, arm = open_isolated(
            path, trust=settings.trust, threads=threads, max_batch=limit, count=instances,
            run_timeout=seconds,
        )  # fmt: skip
    else:
        opened = open_model(path, trust=settings.trust, threads=threads, max_batch=limit)
        runs, close = (opened.run,) * instances, opened.close
        arm = _nothing
    try:
        notices = list(opened.notices)
        max_batch = _max_batch(opened, config, runs[0], notices)
        _warm(opened, runs, max_batch)
        arm()
    except BaseException:
        close()
        raise
    least = opened.min_batch if max_batch else 0
    isolated = isolation == "process"
    return Prepared(opened, config, tuple(runs), least, max_batch, close, tuple(notices), isolated)


def _nothing() -> None:
    """Threads have their time limit in the batcher."""


def run_timeout_of(config: ModelConfig, settings: Settings) -> float:
    """Seconds after which a run counts as hung."""
    return settings.run_timeout if config.run_timeout is None else config.run_timeout


def _max_batch(opened: Opened, config: ModelConfig, run: Run, notices: list[str]) -> int:
    """Rows of a batch; 0 where requests run one by one."""
    asked, allowed = config.max_batch_size, opened.max_batch
    if asked is not None and asked > 0:
        if allowed is None:
            raise InputError(
                f"max_batch_size is {asked}, but the inputs and outputs of the model have no free "
                "first axis in common",
                hint="set max_batch_size to 0, or export the model with a dynamic batch",
            )
        if asked > allowed:
            raise InputError(f"max_batch_size is {asked}, the engine takes at most {allowed}")
        return asked
    if asked == 0 or allowed is None or allowed < 1:
        return 0
    reason = _not_mergeable(opened, run)
    if reason:
        notices.append(f"requests are not batched: {reason}")
        return 0
    return allowed


def _not_mergeable(opened: Opened, run: Run) -> str:
    """Why a batch does not give each request what it gets alone; "" if it does.

    A first axis that is free may be time or anything else: only running tells.
    """
    least = max(1, opened.min_batch)
    sizes = (least, least + 1) if (opened.max_batch or 0) > 2 * least else (least, least)
    if sum(sizes) > (opened.max_batch or 0):
        return "" if opened.max_batch == least else "its batches have no room for two"
    parts = [
        [example(tensor, rows, seed) for tensor in opened.inputs] for seed, rows in enumerate(sizes)
    ]
    try:
        alone = [run(part) for part in parts]
        together = run([np.concatenate(column) for column in zip(*parts, strict=True)])
        expected = [np.concatenate(column) for column in zip(*alone, strict=True)]
    except ServeError:
        raise  # its process died or hung
    except (RedlineError, ValueError) as error:
        return f"a batch made up for a test failed ({str(error)[:200]})"
    for got, want in zip(together, expected, strict=True):
        if got.dtype == BYTES:
            same = got.shape == want.shape and bool(np.all(got == want))
        else:
            same = output_error([got], [want]) <= _MERGED
        if not same:
            return "requests in one batch change each other's results"
    return ""


def _warm(opened: Opened, runs: Sequence[Run], max_batch: int) -> None:
    """Run once with the smallest and the largest batch: memory and code paths are then there.

    Made-up values may be wrong for a model whose inputs have meanings (lengths, indices): its own
    errors are no reason not to serve it, as its self-test was passed.
    """
    for run in {id(run): run for run in runs}.values():
        for rows in sorted({opened.min_batch, max_batch} - {0}) if max_batch else (None,):
            try:
                outputs = run([example(tensor, rows, 0) for tensor in opened.inputs])
            except ServeError:
                raise  # its process died or hung
            except RedlineError:
                continue
            if len(outputs) != len(opened.outputs):
                raise InputError(
                    f"the engine gave {len(outputs)} outputs, expected {len(opened.outputs)}"
                )


class Served:
    """A version in service; made and used on the event loop.

    Attributes:
        fingerprint: of the files and configuration it was loaded from.
    """

    def __init__(
        self, name: str, version: str, prepared: Prepared, settings: Settings, turns: Turns,
        fingerprint: object = None,
    ) -> None:  # fmt: skip
        self.name, self.version = name, version
        self.prepared = prepared
        self.fingerprint = fingerprint
        self.config = config = prepared.config
        self.inputs, self.outputs = prepared.opened.inputs, prepared.opened.outputs
        self.max_batch = prepared.max_batch
        self.statistics = Statistics()
        self._names = tuple(tensor.name for tensor in self.outputs)
        self.checker = Checker(
            name, self.inputs, self.outputs,
            min_batch=prepared.min_batch, max_batch=prepared.max_batch,
        )  # fmt: skip
        self._queueing = Queueing(
            max_batch=self.max_batch,
            preferred=tuple(size for size in config.preferred if size <= self.max_batch),
            delay=settings.delay if config.delay is None else config.delay,
            size=config.queue_size or settings.queue_size,
            timeout=settings.queue_timeout if config.timeout is None else config.timeout,
            override=config.override,
            late=config.late,
            levels=config.levels,
            default_priority=config.default_priority,
            run_timeout=0.0 if prepared.isolated else run_timeout_of(config, settings),
            inline=0.0 if prepared.isolated else settings.inline,
        )
        self.batcher = Batcher(
            prepared.runs, len(self.inputs), self._queueing,
            turns=turns, statistics=self.statistics, name=name,
        )  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether it can run anything."""
        return self.batcher.alive

    def submit(self, request: Request) -> Item:
        """Check a request and queue it.

        Raises:
            ServeError: INVALID or UNAVAILABLE.
        """
        arrays, rows, key = self.checker.check(request)
        return self.batcher.submit(arrays, rows, key, request.priority, request.timeout)

    def answer(self, request: Request, outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs that were asked for, in that order.

        Raises:
            ServeError: INTERNAL, the engine gave another number of outputs than it has.
        """
        if len(outputs) != len(self._names):
            what = f"the engine gave {len(outputs)} outputs, expected {len(self._names)}"
            raise ServeError(Status.INTERNAL, what)
        found = dict(zip(self._names, outputs, strict=True))
        return {name: found[name] for name in request.outputs} if request.outputs else found

    async def retire(self, grace: float) -> None:
        """Wait for what was accepted, then let go of threads and engine.

        grace: seconds; what is left afterwards is answered with UNAVAILABLE.
        """
        import asyncio

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.batcher.drained(), grace)
        instances = self.batcher.close()
        deadline = time.monotonic() + 5.0

        def end() -> bool:
            left = [i.join(max(0.01, deadline - time.monotonic())) for i in instances]
            return all(left)

        if await asyncio.to_thread(end):  # an engine that still runs must keep its memory
            await asyncio.to_thread(self.prepared.close)

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """As the protocol's model metadata has it."""
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": self.prepared.opened.platform,
            "inputs": [self._row(tensor) for tensor in self.inputs],
            "outputs": [self._row(tensor) for tensor in self.outputs],
        }

    def _row(self, tensor: Tensor) -> dict[str, Any]:
        shape = [-1, *tensor.shape[1:]] if self.max_batch else list(tensor.shape)
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}

    def told_config(self) -> dict[str, Any]:
        """As Triton's ModelConfig has it, with what was filled in."""
        opened, queue = self.prepared.opened, self._queueing
        skip = 1 if self.max_batch else 0
        found: dict[str, Any] = {
            "name": self.name,
            "platform": opened.platform,
            "backend": opened.backend,
            "version_policy": self.config.policy.told(),
            "max_batch_size": self.max_batch,
            "input": [
                {"name": t.name, "data_type": config_type(t.datatype), "dims": list(t.shape[skip:])}
                for t in self.inputs
            ],
            "output": [
                {"name": t.name, "data_type": config_type(t.datatype), "dims": list(t.shape[skip:])}
                for t in self.outputs
            ],
            "instance_group": [
                {"name": self.name, "kind": "KIND_CPU", "count": len(self.prepared.runs)}
            ],
            "default_model_filename": "model.redline"
            if opened.platform == "redline"
            else "model.onnx",
        }
        if self.max_batch:
            found["dynamic_batching"] = {
                "preferred_batch_size": list(queue.preferred),
                "max_queue_delay_microseconds": round(queue.delay * 1e6),
                "priority_levels": queue.levels,
                "default_priority_level": queue.default_priority,
                "default_queue_policy": {
                    "timeout_action": queue.late,
                    "default_timeout_microseconds": round(queue.timeout * 1e6),
                    "allow_timeout_override": queue.override,
                    "max_queue_size": queue.size,
                },
            }
        parameters = self.config.given.get("parameters")
        if isinstance(parameters, dict):
            found["parameters"] = {
                key: value if isinstance(value, dict) else {"string_value": str(value)}
                for key, value in parameters.items()
            }
        return found
