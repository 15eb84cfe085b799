"""The data plane: finds the model, checks the request, queues it, tells the hooks. No protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from redline import __version__
from redline.serve.batcher import Item
from redline.serve.cache import ResponseCache
from redline.serve.messages import Request, Response, ServeError, Status
from redline.serve.names import check_name, check_version
from redline.serve.repository import Repository
from redline.serve.served import Served
from redline.serve.settings import Settings

_log = logging.getLogger("redline.serve")
EXTENSIONS = (
    "classification", "model_repository", "model_configuration", "schedule_policy",
    "binary_tensor_data", "parameters", "statistics",
)  # fmt: skip


class Times(NamedTuple):
    """Marks of time.perf_counter() in seconds on the way of one request; 0.0 where it never came.

    Attributes:
        arrived: its first byte was there.
        queued: it was checked and went into the queue.
        started: an engine began with its batch.
        finished: the engine was done.
        answered: its response was ready for the front.
        batch_size: rows that ran together with it, its own counted; 0 where it never ran.
    """

    arrived: float
    queued: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    answered: float = 0.0
    batch_size: int = 0


Hook = Callable[[Request, Response | ServeError, Times], None]
Tell = Callable[[Response | Exception], None]


@dataclass(slots=True, eq=False)
class Pending:
    """A request on its way through the plane.

    Attributes:
        tell: gets its response, or the error that it has instead.
        over: `tell` has been called.
    """

    request: Request
    tell: Tell
    arrived: float
    served: Served | None = None
    item: Item | None = None
    key: Any = None
    over: bool = False


class Plane:
    """What every front calls. All async methods run on one event loop.

    Attributes:
        hooks: called after each request with it, its answer or error, and its times.
        cache: answers that are kept, or None.
        extensions: names that server_metadata() tells; a front adds what it brings.

    Example:
        >>> plane = Plane(Repository(settings), settings)  # doctest: +SKIP
        >>> await plane.start()  # doctest: +SKIP
    """

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository = repository
        self.settings = settings
        self.hooks: list[Hook] = []
        self.extensions = list(EXTENSIONS)
        self.cache: ResponseCache | None = None
        self._started = self._draining = self._closed = False
        self._active = 0
        self._idle: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Load what the repository's mode says; ready() is true afterwards.

        Raises:
            ServeError: a model cannot be loaded, and settings.exit_on_error.
        """
        await self.repository.start()
        self._started = True

    def begin_drain(self) -> None:
        """ready() is false from now on; requests are still answered until drain()."""
        self._draining = True

    async def drain(self, grace: float) -> None:
        """ready() is false at once, accepted requests are answered, then the engines are closed.

        grace: seconds that running requests have; what is left then fails with UNAVAILABLE.
        """
        self.begin_drain()
        end = time.monotonic() + grace
        if self._active:
            self._idle = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._idle), grace)
        self._closed = True
        await self.repository.close(max(0.1, end - time.monotonic()))

    async def infer(self, request: Request) -> Response:
        """Answer one request. Cancelling the task frees queued work.

        Raises:
            ServeError: why it is not answered.
        """
        answered: asyncio.Future[Response | Exception] = asyncio.get_running_loop().create_future()

        def tell(outcome: Response | Exception) -> None:
            if not answered.done():
                answered.set_result(outcome)

        pending = self.begin(request, tell)
        try:
            outcome = await answered
        except asyncio.CancelledError:
            self.cancel(pending)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def begin(self, request: Request, tell: Tell) -> Pending:
        """The same without a task: `tell` is called once, perhaps before this returns."""
        pending = Pending(request, tell, request.arrived or time.perf_counter())
        self._active += 1
        try:
            if self._closed:
                raise ServeError(Status.UNAVAILABLE, "the server is ending")
            served = pending.served = self.repository.find(request.model, request.version)
            if self.cache is not None:
                pending.key, kept = self.cache.find(served, request)
                if kept is not None:
                    self._kept(pending, served, kept)
                    return pending
            pending.item = served.submit(request)
        except ServeError as error:
            self._fail(pending, error)
        else:
            pending.item.done = partial(self._finished, pending)
        return pending

    def cancel(self, pending: Pending) -> None:
        """Nobody waits for it any more: what is queued of it is freed, and `tell` hears of that."""
        if pending.over:
            return
        if pending.served is not None and pending.item is not None:
            pending.served.batcher.cancel(pending.item)
        self._fail(pending, ServeError(Status.CANCELLED, "the client has cancelled the request"))

    def _finished(self, pending: Pending, item: Item) -> None:
        served, request, error = pending.served, pending.request, item.future.exception()
        if pending.over or served is None:
            return
        if error is not None:
            self._fail(pending, error)
            return
        try:
            outputs = served.answer(request, item.future.result())
        except ServeError as wrong:
            self._fail(pending, wrong)
            return
        response = Response(served.name, served.version, outputs, request.id)
        now = time.perf_counter()
        served.statistics.answered(item, pending.arrived, now)
        self._tell_hooks(pending, response, now)
        if self.cache is not None:
            self.cache.put(served, pending.key, response)
        self._end(pending, response)

    def _fail(self, pending: Pending, error: BaseException) -> None:
        now = time.perf_counter()
        told = error if isinstance(error, Exception) else RuntimeError(repr(error))
        if isinstance(told, ServeError):
            if pending.served is not None:
                pending.served.statistics.failed(pending.arrived, now)
            self._tell_hooks(pending, told, now)
        self._end(pending, told)

    def _end(self, pending: Pending, outcome: Response | Exception) -> None:
        pending.over = True
        self._active -= 1
        if not self._active and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        pending.tell(outcome)

    def _kept(self, pending: Pending, served: Served, kept: Response) -> None:
        now = time.perf_counter()
        for name in ("success", "cache_hit"):
            served.statistics.totals[name].add(now - pending.arrived)
        self._tell_hooks(pending, kept, now)
        self._end(pending, kept)

    def waiting(self) -> dict[tuple[str, str], int]:
        """Requests in the queue, by name and version."""
        return {(one.name, one.version): one.batcher.waiting for one in self.repository.served()}

    def _tell_hooks(self, pending: Pending, answer: Response | ServeError, now: float) -> None:
        item = pending.item
        if item is None:
            times = Times(pending.arrived, answered=now)
        else:
            times = Times(
                pending.arrived, item.queued, item.started, item.finished, now, item.batch_rows
            )
        for hook in self.hooks:
            try:
                hook(pending.request, answer, times)
            except Exception:  # a metric that fails must not fail the request
                _log.exception("a hook failed")

    def live(self) -> bool:
        """Whether the process can answer at all."""
        return not self._closed

    def ready(self) -> bool:
        """Whether it is started and not draining, and every model that should serve does."""
        if not self._started or self._draining:
            return False
        models = self.repository.models.values()
        return all(
            all(served.ready for served in model.serving.values())
            and (bool(model.serving) or model.reason == "unloaded")
            for model in models
        )

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model, or one version of it, answers. Raises ServeError for a bad name."""
        check_name(name)
        check_version(version)
        if self._closed:
            return False
        try:
            return self.repository.find(name, version).ready
        except ServeError:
            return False

    def server_metadata(self) -> dict[str, Any]:
        """{"name", "version", "extensions"}."""
        return {
            "name": self.settings.name,
            "version": __version__,
            "extensions": list(self.extensions),
        }

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """{"name", "versions", "platform", "inputs", "outputs"}, tensors as the protocol has them.

        Raises:
            ServeError: NOT_FOUND for a model or version that is not there.
        """
        served = self.repository.find(name, version)
        return served.metadata(sorted(self.repository.models[name].serving, key=int))

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration; its field names are those of ModelConfig."""
        return self.repository.find(name, version).told_config()

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """{"model_stats": [...]}: for one model, or for all when name is ""."""
        if not name:
            rows = self.repository.served()
        elif version:
            rows = [self.repository.find(name, version)]
        else:
            self.repository.find(name)
            rows = [served for served in self.repository.served() if served.name == name]
        return {"model_stats": [one.statistics.told(one.name, one.version) for one in rows]}

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """[{"name", "version", "state", "reason"}]: everything in the repository."""
        rows: list[dict[str, str]] = []
        for name in self.repository.known():
            model = self.repository.models.get(name)
            serving = sorted(model.serving, key=int) if model else []
            rows += [
                {"name": name, "version": version, "state": "READY", "reason": ""}
                for version in serving
            ]
            if not ready_only and not serving:
                row = {"name": name, "version": "", "state": "UNAVAILABLE", "reason": ""}
                if model:
                    row["reason"] = model.reason
                    row["version"] = model.failed[0] if model.failed else ""
                rows.append(row)
        return rows

    async def load(
        self,
        name: str,
        config: Mapping[str, Any] | str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load or reload; the old version serves until the new one is ready.

        config: instead of the folder's, a mapping or JSON text.
        files: "version/file" (or "file:version/file") -> bytes, which replace the folder.

        Raises:
            ServeError: the message begins "failed to load"; what served before still does.
        """
        self._require_explicit("load")
        await self.repository.load(name, config, files)

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Take a model out of service; requests that it accepted are answered.

        dependents: there are no ensembles, so nothing else depends on a model.
        """
        self._require_explicit("unload")
        await self.repository.unload(name)

    def _require_explicit(self, what: str) -> None:
        if self.settings.mode != "explicit":
            raise ServeError(
                Status.UNAVAILABLE,
                f"explicit model {what} is not allowed: the server was started with "
                f"--mode {self.settings.mode}, not --mode explicit",
            )
