"""Which models serve: loads, reloads and unloads them; what serves stays until the new is ready."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from redline.errors import RedlineError
from redline.serve import folder
from redline.serve.config import parse_text
from redline.serve.messages import ServeError, Status
from redline.serve.names import check_name, check_version, is_version, scrub
from redline.serve.opening import FILES
from redline.serve.served import Prepared, Served, prepare
from redline.serve.settings import Settings
from redline.serve.turns import Turns

_log = logging.getLogger("redline.serve")
_LOADERS = 2


class Model:
    """One name: the versions that serve, and why others do not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.serving: dict[str, Served] = {}
        self.reason = ""
        self.failed: tuple[str, ...] = ()
        self.seen: object = None  # what the last attempt to load found, good or bad
        self.override: tempfile.TemporaryDirectory[str] | None = None

    @property
    def newest(self) -> Served | None:
        """The version that answers when none is asked for."""
        return self.serving[max(self.serving, key=int)] if self.serving else None


class Repository:
    """Models by name. All methods run on the event loop; files are read in threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models: dict[str, Model] = {}
        self.turns = Turns(settings.max_running)
        self._pool = ThreadPoolExecutor(_LOADERS, "redline-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None

    # Looking up

    def find(self, name: str, version: str = "") -> Served:
        """The version that answers.

        Raises:
            ServeError: NOT_FOUND, or INVALID for a name that can be none.
        """
        model = self.models.get(name)
        if model is None or not model.serving:
            check_name(name)
            raise ServeError(
                Status.NOT_FOUND,
                f"Request for unknown model: '{name}' "
                + ("has no available versions" if model else "is not found"),
            )
        if not version:
            return model.newest  # type: ignore[return-value] # it serves something
        found = model.serving.get(version)
        if found is None:
            check_version(version)
            raise ServeError(
                Status.NOT_FOUND,
                f"Request for unknown model: '{name}' version {version} is not found",
            )
        return found

    def served(self) -> list[Served]:
        """Everything that serves, by name and version."""
        return [
            model.serving[version]
            for _, model in sorted(self.models.items())
            for version in sorted(model.serving, key=int)
        ]

    def known(self) -> list[str]:
        """Names that are loaded or lie in the folder."""
        found = set(self.models)
        if self.settings.models is not None:
            with contextlib.suppress(RedlineError):
                found |= set(folder.names(self.settings.models))
        return sorted(found)

    # Loading

    async def start(self) -> None:
        """Load what the mode says.

        Raises:
            ServeError: a model cannot be loaded, and settings.exit_on_error.
        """
        root, mode = self.settings.models, self.settings.mode
        if root is None:
            return
        wanted = await self._in_thread(folder.names, root)
        if mode == "explicit" and "*" not in self.settings.load:
            wanted = list(self.settings.load)
        results = await asyncio.gather(*map(self.load, wanted), return_exceptions=True)
        failures = [error for error in results if isinstance(error, BaseException)]
        for error in failures:
            if self.settings.exit_on_error or not isinstance(error, ServeError):
                raise error
        if mode == "poll":
            self._poller = asyncio.create_task(self._poll())

    async def load(
        self,
        name: str,
        config: Mapping[str, Any] | str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load, or reload what changed.

        Raises:
            ServeError: INVALID or NOT_FOUND with "failed to load"; what served before still does.
        """
        check_name(name)
        model = self.models.get(name) or Model(name)
        async with model.lock:
            self.models.setdefault(name, model)
            try:
                await self._load(model, config, files)
            except (RedlineError, OSError) as error:
                what = error.what if isinstance(error, RedlineError) else str(error.strerror)
                model.reason = scrub(what)
                _log.warning("failed to load %s: %s", name, model.reason)
                status = error.status if isinstance(error, ServeError) else Status.INVALID
                if status is Status.NOT_FOUND and not model.serving:
                    self.models.pop(name, None)
                raise ServeError(status, f"failed to load '{name}': {model.reason}") from error

    async def _load(
        self, model: Model, config: Mapping[str, Any] | str | None, files: Any
    ) -> None:
        given = parse_text(config.encode()) if isinstance(config, str) else config
        root = self.settings.models
        override = None
        if files:
            if given is None:
                raise ServeError(Status.INVALID, "files need a config beside them")
            override = await self._in_thread(_write_files, model.name, files)
            root = Path(override.name)
        try:
            found = await self._in_thread(folder.find, root, model.name, given) if root else None
            if found is None:
                raise ServeError(Status.NOT_FOUND, "there is no model of that name")
            model.seen = {version: row.fingerprint for version, row in found.versions.items()}
            await self._swap(model, found)
        except BaseException:
            if override:
                override.cleanup()
            raise
        before, model.override = model.override, override
        if before:
            self._later(_clean(before))

    async def _swap(self, model: Model, found: folder.Found) -> None:
        """Prepare all that is new; only then does it take the place of the old, in one step."""
        settings = self.settings
        fresh: dict[str, Prepared] = {}
        kept = {
            version: served
            for version, served in model.serving.items()
            if version in found.versions
            and served.fingerprint == found.versions[version].fingerprint
            and served.ready
        }
        try:
            for version, row in found.versions.items():
                if version not in kept:
                    fresh[version] = await self._in_thread(prepare, row.path, found.config, settings)
        except BaseException as error:
            model.failed = (version,)
            for prepared in fresh.values():
                prepared.close()
            if isinstance(error, Exception) and not isinstance(error, RedlineError):
                _log.exception("loading %s", model.name)
                raise ServeError(Status.INTERNAL, f"{type(error).__name__}") from error
            raise
        retired = [served for version, served in model.serving.items() if version not in kept]
        made = {
            version: Served(
                model.name, version, prepared, settings, self.turns,
                found.versions[version].fingerprint,
            )
            for version, prepared in fresh.items()
        }  # fmt: skip
        model.serving = kept | made
        model.reason, model.failed = "", ()
        for served in made.values():
            for notice in served.prepared.notices:
                _log.warning("%s version %s: %s", model.name, served.version, notice)
        for served in retired:
            self._later(served.retire(settings.grace))

    async def unload(self, name: str) -> None:
        """Take all versions out of service; what they accepted is answered.

        Raises:
            ServeError: NOT_FOUND, or INVALID for a name that can be none.
        """
        check_name(name)
        model = self.models.get(name)
        if model is None:
            raise ServeError(Status.NOT_FOUND, f"failed to unload '{name}': it is not loaded")
        async with model.lock:
            retired, model.serving = list(model.serving.values()), {}
            model.reason, model.seen = "unloaded", None
            override, model.override = model.override, None
            for served in retired:
                self._later(served.retire(self.settings.grace))
            if override:
                self._later(_clean(override))

    async def close(self, grace: float) -> None:
        """Answer what was accepted, then close every engine."""
        if self._poller:
            self._poller.cancel()
        served = self.served()
        for model in self.models.values():
            model.serving = {}
            model.reason = "the server is ending"
        await asyncio.gather(*[one.retire(grace) for one in served])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for model in self.models.values():
            if model.override:
                model.override.cleanup()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            try:
                await self._look()
            except RedlineError as error:
                _log.warning("looking for changed models: %s", scrub(error.what))
            except Exception:
                _log.exception("looking for changed models")

    async def _look(self) -> None:
        root = self.settings.models
        assert root is not None  # start() polls only a folder
        there = await self._in_thread(folder.names, root)
        for name in there:
            model = self.models.get(name)
            try:
                found = await self._in_thread(folder.find, root, name)
                seen: object = found and {v: row.fingerprint for v, row in found.versions.items()}
            except RedlineError as error:
                seen = error.what
            if model is None or model.seen != seen:
                with contextlib.suppress(ServeError):  # load() has logged it and keeps the reason
                    await self.load(name)
                self.models[name].seen = seen
        for name, model in list(self.models.items()):
            if name not in there and model.serving:
                await self.unload(name)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


def _write_files(name: str, files: Mapping[str, bytes]) -> tempfile.TemporaryDirectory[str]:
    """Files that came with a request, in a folder of their own; names are checked one by one."""
    home = tempfile.TemporaryDirectory(prefix="redline-model-")
    try:
        for given, data in files.items():
            version, _, file = given.removeprefix("file:").partition("/")
            if not is_version(version) or file not in FILES:
                raise ServeError(
                    Status.INVALID,
                    f"the file {given[:60]!r} is not of the form file:VERSION/{FILES[1]}",
                )
            place = Path(home.name) / name / version
            place.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(data)
    except BaseException:
        home.cleanup()
        raise
    return home


async def _clean(home: tempfile.TemporaryDirectory[str]) -> None:
    await asyncio.to_thread(shutil.rmtree, home.name, ignore_errors=True)
    home.cleanup()
