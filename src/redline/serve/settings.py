"""What a server is told: where it listens, what it lets in, how it queues."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redline.errors import InputError

Mode = Literal["none", "poll", "explicit"]
Isolation = Literal["thread", "process"]


@dataclass(frozen=True)
class Limits:
    """What one request may be; checked before memory is taken for it.

    Attributes:
        body: bytes of a request's body, before and after it is decompressed.
        chunks: pieces that a body may come in.
        json_depth: brackets within brackets.
        json_elements: numbers or texts of a tensor that is written as JSON.
        tensors: inputs, and outputs, of one request.
        elements: numbers of one tensor.
        rank: axes of one tensor.
        read_seconds: a body must be there within.
    """

    body: int = 64 << 20
    chunks: int = 65_536
    json_depth: int = 100
    json_elements: int = 4 << 20
    tensors: int = 1024
    elements: int = 1 << 28
    rank: int = 32
    read_seconds: float = 60.0


@dataclass(frozen=True)
class Settings:
    """One server. Times are seconds; a port of 0 takes any that is free.

    Attributes:
        models: the folder of models; None serves nothing until something is loaded.
        name: what the server calls itself; some clients expect "triton".
        host: where it listens; anything but loopback needs allow_remote.
        mode: "none" loads all at the start; "poll" looks for changes every poll_seconds;
            "explicit" loads `load` at the start ("*" for all) and then what load() is told.
        exit_on_error: a model that fails at the start is an error of start().
        queue_size: requests that may wait for one model where its configuration says nothing.
        delay: seconds that a batch may wait for more where the model's configuration says nothing.
        queue_timeout: seconds that a request may wait, 0 without end.
        instances: threads that run one model, where its configuration says nothing.
        threads: threads of an ONNX file's engine; 0 takes every core.
        max_batch: rows of a batch where neither configuration nor signature says it.
        max_running: batches that run at once over all models, which take turns; 0 without limit.
        isolation: "process" runs engines in child processes, which may crash and hang.
        run_timeout: seconds after which a batch counts as hung, 0 never.
        inline: seconds; batches that are known to take less run on the event loop, 0 for never.
        grace: seconds that accepted requests have when the server ends.
        trust: run machine code in engine files that no trusted key signed.
    """

    models: Path | None = None
    name: str = "redline"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    allow_remote: bool = False
    mode: Mode = "none"
    poll_seconds: float = 5.0
    load: tuple[str, ...] = ()
    exit_on_error: bool = True
    queue_size: int = 1024
    delay: float = 0.0
    queue_timeout: float = 0.0
    instances: int = 1
    threads: int = 0
    max_batch: int = 32
    max_running: int = 0
    isolation: Isolation = "thread"
    run_timeout: float = 60.0
    inline: float = 1e-4
    grace: float = 30.0
    trust: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.allow_remote and not is_loopback(self.host):
            raise InputError(
                f"{self.host} can be reached from other machines",
                hint="listen on 127.0.0.1, or say --allow-remote and set keys",
            )
        for name in ("queue_size", "instances", "max_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in (
            *("delay", "queue_timeout", "run_timeout", "grace", "inline"),
            *("threads", "max_running"),
        ):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.poll_seconds <= 0:
            raise InputError(f"poll_seconds is {self.poll_seconds}, expected more than 0")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
