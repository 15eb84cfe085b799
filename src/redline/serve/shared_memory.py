"""Tensors in POSIX shared memory of this machine; the extension of both protocols, off by default.

A region is read and written with pread and pwrite, never mapped. A client may cut its region short
at any time: a mapped page that is gone ends the process by SIGBUS, a read that is short is an
error of one request. The one copy also keeps a client from changing what was already checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline.serve.messages import ServeError, Status

# glibc's named semaphores, Triton's own regions, and ours if we ever make any.
RESERVED = ("sem.", "triton_python_backend_shm_region_", "redline")
_NAME_BYTES = 255
_OFF = "system shared memory is off; the operator turns it on when the server starts"
_NO_CUDA = "CUDA shared memory is not supported by this server"


@dataclass(slots=True)
class Region:
    """One region: a file descriptor, and how many requests use it right now."""

    name: str
    key: str
    offset: int
    byte_size: int
    fd: int
    users: int = 0
    leaving: bool = False  # unregistered while in use: goes with the last user

    def told(self) -> dict[str, Any]:
        return {
            "name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size,
        }  # fmt: skip


class SharedMemory:
    """The regions that clients have registered. Used from one thread, the event loop's.

    Args:
        enabled: without it every call is refused.
        max_regions: how many may be registered at a time; each holds a file descriptor.
        folder: where the system keeps POSIX shared memory objects.

    Example:
        >>> shared = SharedMemory(enabled=True)
        >>> shared.register("input", "/my_input", 0, 64)  # the object has 64 bytes or more
        >>> with shared.lease() as lease:
        ...     data = lease.read("input", 0, 64)
    """

    def __init__(
        self,
        *,
        enabled: bool = False,
        max_regions: int = 256,
        folder: Path = Path("/dev/shm"),
    ) -> None:
        self.enabled = enabled
        self.max_regions = max_regions
        self.folder = folder
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a client's region.

        Args:
            name: what requests call it.
            key: name of the POSIX object; a leading slash may be there or not.
            offset, byte_size: bytes of the object that make the region.

        Raises:
            ServeError: INVALID for a name in use, a reserved or impossible key, or a region that is
                not within the object; UNSUPPORTED when shared memory is off; UNAVAILABLE when
                there are too many.
        """
        self._check_on()
        _check_name(name)
        if name in self._regions:
            raise ServeError(
                Status.INVALID,
                f"shared memory region {name!r} already in manager: unregister it first",
            )
        if len(self._regions) >= self.max_regions:
            raise ServeError(
                Status.UNAVAILABLE, f"{self.max_regions} shared memory regions are the limit"
            )
        for what, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
            if type(value) is not int or not least <= value < 1 << 63:
                raise ServeError(
                    Status.INVALID,
                    f"region {name!r}: {what} is {value!r}, expected {least} or more",
                )
        fd = self._open(_object_name(key), name)
        size = os.fstat(fd).st_size
        if offset + byte_size > size:
            os.close(fd)
            raise ServeError(
                Status.INVALID,
                f"failed to register shared memory region {name!r}: it ends at byte "
                f"{offset + byte_size}, its object has {size}",
            )
        self._regions[name] = Region(name, key, offset, byte_size, fd)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all for ""; one that requests use goes when the last is answered.

        An unknown name is no error: clients unregister before they begin.

        Raises:
            ServeError: UNSUPPORTED when shared memory is off.
        """
        self._check_on()
        for region in [self._regions[name]] if name in self._regions else self._all(name):
            region.leaving = True
            self._drop_unused(region)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """What is registered: name, key, offset and byte_size of one region, or of all for "".

        Raises:
            ServeError: NOT_FOUND; UNSUPPORTED when shared memory is off.
        """
        self._check_on()
        if name and name not in self._regions:
            raise ServeError(
                Status.NOT_FOUND, f"Unable to find system shared memory region: {name!r}"
            )
        return [self._regions[name].told()] if name else [r.told() for r in self._all("")]

    def lease(self) -> Lease:
        """The regions that one request uses; they stay until it is closed."""
        return Lease(self)

    def close(self) -> None:
        """Forget all regions at once; for the end of the server."""
        for region in self._regions.values():
            os.close(region.fd)
        self._regions.clear()

    def find(self, name: str) -> Region:
        """A region that a new request may use.

        Raises:
            ServeError: INVALID for an unknown one; UNSUPPORTED when shared memory is off.
        """
        self._check_on()
        region = self._regions.get(name)
        if region is None or region.leaving:
            raise ServeError(Status.INVALID, f"Unable to find shared memory region: {name!r}")
        return region

    def release(self, region: Region) -> None:
        """One user less."""
        region.users -= 1
        self._drop_unused(region)

    def _drop_unused(self, region: Region) -> None:
        if region.leaving and not region.users and self._regions.get(region.name) is region:
            del self._regions[region.name]
            os.close(region.fd)

    def _all(self, name: str) -> list[Region]:
        return [] if name else list(self._regions.values())

    def _check_on(self) -> None:
        if not self.enabled:
            raise ServeError(Status.UNSUPPORTED, _OFF)

    def _open(self, file: str, name: str) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.folder / file, flags)
        except OSError as error:
            raise ServeError(
                Status.INVALID,
                f"Unable to open shared memory region: {name!r}: {os.strerror(error.errno or 0)}",
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ServeError(
                Status.INVALID, f"shared memory region {name!r}: the key is no shared memory"
            )
        return fd


class Lease:
    """What one request may read and write; a context manager."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._held: dict[str, Region] = {}

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the regions."""
        for region in self._held.values():
            self._shared.release(region)
        self._held.clear()

    def hold(self, name: str, offset: int, byte_size: int) -> Region:
        """Keep a region for this request, and check that the bytes are within it.

        Raises:
            ServeError: INVALID for an unknown region or bytes outside of it.
        """
        region = self._held.get(name) or self._shared.find(name)
        # Python's integers do not wrap: 2**64 - 32 + 64 is larger than any region.
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise ServeError(
                Status.INVALID,
                f"Invalid offset + byte size for shared memory region: {name!r}: "
                f"{offset} + {byte_size}, it has {region.byte_size}",
            )
        if name not in self._held:
            region.users += 1
            self._held[name] = region
        return region

    def read(self, name: str, offset: int, byte_size: int) -> bytearray:
        """A copy of bytes of a region.

        Raises:
            ServeError: INVALID for an unknown region, bytes outside of it, or an object that its
                client has cut short since.
        """
        region = self.hold(name, offset, byte_size)
        data = bytearray(byte_size)
        at, view = 0, memoryview(data)
        while at < byte_size:
            got = os.preadv(region.fd, [view[at:]], region.offset + offset + at)
            if not got:
                raise _cut_short(name)
            at += got
        return data

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Put bytes into a region.

        Raises:
            ServeError: as `read`.
        """
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        region = self.hold(name, offset, len(view))
        start = region.offset + offset
        # pwrite would make an object grow that was cut short.
        if os.fstat(region.fd).st_size < start + len(view):
            raise _cut_short(name)
        at = 0
        while at < len(view):
            at += os.pwrite(region.fd, view[at:], start + at)

    def write_output(
        self, name: str, where: tuple[str, int, int], data: bytes | memoryview
    ) -> None:
        """Put an output where its request wanted it.

        Raises:
            ServeError: INVALID, it is larger than its place; as `read`.
        """
        region, offset, size = where
        if len(data) > size:
            raise ServeError(
                Status.INVALID,
                f"shared memory size specified with the request for output {name[:100]!r} "
                f"({size} bytes) should be at least {len(data)} bytes to hold the results",
            )
        self.write(region, offset, data)


def _cut_short(name: str) -> ServeError:
    return ServeError(
        Status.INVALID, f"shared memory region {name!r} was made smaller after it was registered"
    )


def _check_name(name: str) -> None:
    if not name or len(name.encode("utf-8", "replace")) > _NAME_BYTES:
        raise ServeError(
            Status.INVALID, f"a shared memory region needs a name of 1 to {_NAME_BYTES} bytes"
        )


def _object_name(key: str) -> str:
    """The file of a key: no folder, nothing hidden, nothing reserved."""
    bare = key.lstrip("/")
    if bare.startswith(RESERVED):
        raise ServeError(Status.INVALID, "the key of a shared memory region has a reserved prefix")
    if (
        not bare
        or len(key) - len(bare) > 1
        or "/" in bare
        or "\0" in bare
        or bare.startswith(".")
        or len(bare.encode("utf-8", "replace")) > _NAME_BYTES
    ):
        raise ServeError(
            Status.INVALID, "the key of a shared memory region is one name after one slash: '/name'"
        )
    return bare


def place(parameters: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Where a tensor's parameters put it: region, offset and byte size; None for nowhere.

    Raises:
        ServeError: INVALID, a parameter that cannot be.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    if not isinstance(region, str) or not region:
        raise ServeError(Status.INVALID, "shared_memory_region must be the name of a region")
    if "shared_memory_byte_size" not in parameters:
        raise ServeError(Status.INVALID, "shared_memory_region needs shared_memory_byte_size")
    size = whole(parameters["shared_memory_byte_size"], "shared_memory_byte_size")
    return region, whole(parameters.get("shared_memory_offset", 0), "shared_memory_offset"), size


def whole(value: Any, what: str) -> int:
    """A parameter that must be a whole number of 0 or more.

    Raises:
        ServeError: INVALID, it is none.
    """
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ServeError(Status.INVALID, f"{what} must be a whole number, 0 or more")
    return value


Call = Callable[[str, Mapping[str, Any]], Any]


def routes(shared: SharedMemory) -> dict[tuple[str, str], Call]:
    """The REST side, for any HTTP front: (method, path) -> function(name, JSON body) -> JSON.

    `{name}` in a path is the region's name, "" where a path has none.

    Example:
        >>> table = routes(SharedMemory(enabled=True))
        >>> table["GET", "/v2/systemsharedmemory/status"]("", {})
        []
    """

    def register(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        key = body.get("key")
        if not isinstance(key, str):
            raise ServeError(Status.INVALID, "registering shared memory needs a 'key', a string")
        if "byte_size" not in body:
            raise ServeError(Status.INVALID, "registering shared memory needs a 'byte_size'")
        shared.register(name, key, body.get("offset", 0), body["byte_size"])
        return {}

    def unregister(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        shared.unregister(name)
        return {}

    def status(name: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        return shared.status(name)

    def no_cuda(name: str, body: Mapping[str, Any]) -> None:
        raise ServeError(Status.UNSUPPORTED, _NO_CUDA)

    def no_cuda_regions(name: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        return []

    def nothing_to_unregister(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    table: dict[tuple[str, str], Call] = {}
    for kind, calls in (
        ("system", (status, register, unregister)),
        ("cuda", (no_cuda_regions, no_cuda, nothing_to_unregister)),
    ):
        base = f"/v2/{kind}sharedmemory"
        table["GET", f"{base}/status"] = table["GET", f"{base}/region/{{name}}/status"] = calls[0]
        table["POST", f"{base}/region/{{name}}/register"] = calls[1]
        table["POST", f"{base}/unregister"] = calls[2]
        table["POST", f"{base}/region/{{name}}/unregister"] = calls[2]
    return table
