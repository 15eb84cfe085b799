"""The data plane: finds the model, checks the request, queues it, tells the hooks. No protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redline.serve.messages import Request, Response, ServeError

if TYPE_CHECKING:
    from redline.serve.repository import Repository
    from redline.serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Times:
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


class Plane:
    """What every front calls. All async methods run on one event loop.

    Attributes:
        hooks: called after each request with it, its answer or error, and its times.
    """

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository = repository
        self.settings = settings
        self.hooks: list[Hook] = []

    async def start(self) -> None:
        """Load what the repository's mode says; ready() is true afterwards."""
        raise NotImplementedError

    async def drain(self, grace: float) -> None:
        """ready() is false at once, accepted requests are answered, then the engines are closed.

        grace: seconds that running requests have; what is left then fails with UNAVAILABLE.
        """
        raise NotImplementedError

    async def infer(self, request: Request) -> Response:
        """Answer one request. Cancelling the task frees queued work.

        Raises:
            ServeError: why it is not answered.
        """
        raise NotImplementedError

    def live(self) -> bool:
        """Whether the process can answer at all."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it is started and not draining, and every model that should serve does."""
        raise NotImplementedError

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model, or one version of it, answers. Raises ServeError for a bad name."""
        raise NotImplementedError

    def server_metadata(self) -> dict[str, Any]:
        """{"name", "version", "extensions"}."""
        raise NotImplementedError

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """{"name", "versions", "platform", "inputs", "outputs"}, tensors as the protocol has them.

        Raises:
            ServeError: NOT_FOUND for a model or version that is not there.
        """
        raise NotImplementedError

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration; its field names are those of ModelConfig."""
        raise NotImplementedError

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """{"model_stats": [...]}: for one model, or for all when name is ""."""
        raise NotImplementedError

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """[{"name", "version", "state", "reason"}]: everything in the repository."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Take a model out of service; requests that it accepted are answered."""
        raise NotImplementedError
