"""Replicas on Ray Serve: Ray places, watches and scales them, and no request passes through it.

A replica is an actor that keeps one ordinary `redline serve` process. All replicas of a machine
listen on the same port (SO_REUSEPORT), as `--workers` do, so clients go straight to them and the
address of the service is that of its machines. Ray's own proxy is never started.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redline.errors import InputError, MissingError, RunError
from redline.serve import exposition
from redline.serve.operator import Options
from redline.serve.settings import Settings
from redline.serve.supervise import check_many
from redline.serve.workers import Supervisor, listeners

NAME = "redline"  # of the application and its deployment in Ray Serve
METRIC = "redline_load"
_LOOK = 1.0  # seconds between two looks at how many replicas there are
_BETWEEN = 5.0  # seconds between two checks of a replica's health
_MARGIN = 10.0  # seconds that Ray waits beyond the grace before it kills a replica
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How many replicas, and when there are more.

    Attributes:
        least, most: replicas; equal for a number that does not change.
        cpus: of one replica, by which Ray places it; it may be a fraction.
        load: requests in the server at once that a replica is meant for.
        up_seconds, down_seconds: more, or fewer, must have been wanted for so long.
        window_seconds: the load is the mean over this time.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    load: float = 8.0
    up_seconds: float = 5.0
    down_seconds: float = 60.0
    window_seconds: float = 15.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"replicas are {self.least}:{self.most}, expected 1 <= LEAST <= MOST")
        if self.cpus <= 0 or self.load <= 0:
            raise InputError("the cpus and the load of a replica are more than 0")

    @classmethod
    def of(cls, text: str, **more: float) -> Scale:
        """From what the command line says.

        Raises:
            InputError: it says no numbers.

        Example:
            >>> Scale.of("1:4"), Scale.of("2").most
            (Scale(least=1, most=4, cpus=1.0, load=8.0, ...), 2)
        """
        least, _, most = text.partition(":")
        try:
            return cls(int(least), int(most or least), **more)
        except ValueError:
            raise InputError(
                f"replicas are {text!r}", hint="give a number, or LEAST:MOST as in 1:4"
            ) from None


class Load:
    """Requests in a server at once, as the mean since the last look.

    By Little's law that is the time that the requests of a period were in the server, over the
    period. Requests that never end are in no sum, so those that wait now are the least it can be.

    Example:
        >>> load = Load()
        >>> load(texts_of_metrics)  # doctest: +SKIP
        2.5
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._spent = 0.0

    def __call__(self, metrics: str) -> float:
        now = self._clock()
        spent = exposition.total(metrics, "nv_inference_request_duration_us") * 1e-6
        # A worker that was started again counts from 0.
        inside = max(0.0, spent - self._spent) / max(1e-3, now - self._at)
        self._at, self._spent = now, spent
        return max(inside, exposition.total(metrics, "nv_inference_pending_request_count"))


class Replica:
    """What Ray Serve runs: keeps one server process, says how it is, and ends it in order.

    Args:
        arguments: the command line of `redline`, as it was given to the driver.
        host, port: where all replicas of a machine listen.
        cwd: the folder that paths in the arguments count from.
    """

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, arguments: Sequence[str], host: str, port: int, cwd: str, grace: float
    ) -> None:
        def command(listener: int, channel: int) -> list[str]:
            own = [sys.executable, "-m", "redline", *arguments]
            return [*own, "--worker", f"{listener},{channel}"]

        sockets = listeners(host, port, 1, bound=True)
        self._supervisor = Supervisor(command, sockets, grace=grace, cwd=cwd)
        self._load = Load()
        self._task = asyncio.create_task(self._supervisor.keep())
        while not self._supervisor.ready:
            await asyncio.wait([self._task], timeout=0.05)
            if self._task.done():
                await self._task

    async def check_health(self) -> None:
        """Called by Ray; an error that stays has the replica replaced."""
        if self._task.done() or not self._supervisor.ready:
            raise RunError("the server process of this replica is not ready")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray: the load of this replica."""
        return {METRIC: self._load(await self._supervisor.text())}

    async def __del__(self) -> None:
        """Called by Ray when the replica is taken away: what was accepted is answered."""
        self._supervisor.stop()
        with contextlib.suppress(RunError):
            await self._task


def wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray Serve's policy: as many replicas as the load of all of them is meant for.

    Ray keeps the result within the limits and applies the delays.
    """
    loads = context.aggregated_metrics.get(METRIC, {}).values()
    return max(1, math.ceil(sum(loads) / context.config.target_ongoing_requests)), {}


def run(
    settings: Settings, options: Options, scale: Scale, arguments: Sequence[str], say: Say
) -> None:
    """Serve with replicas on Ray until a signal; blocks. A second signal ends at once.

    Joins the Ray cluster of RAY_ADDRESS or of this machine; without one it starts one that
    listens on loopback and ends with this process.

    Args:
        arguments: the command line that the settings came from; replicas start with it.

    Raises:
        MissingError: Ray is not installed.
        InputError: options that cannot be shared by replicas, or the port is taken.
        RunError: the replicas do not start.
    """
    check_many(settings, options)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingError(
            f"replicas need a library that is not installed: {error.name}",
            hint="pip install 'redline[ray]'",
        ) from error
    with contextlib.ExitStack() as held:
        ports = [_reserve(settings.host, p) for p in (settings.http_port, settings.grpc_port)]
        http, grpc = (held.enter_context(one).getsockname()[1] for one in ports)
        ours = _join(ray)
        try:
            own = [*arguments, "--http-port", str(http), "--grpc-port", str(grpc)]
            # No proxy: it would copy every tensor through Python.
            serve.start(proxy_location="Disabled")
            deployment = _deployment(serve, settings, scale)
            bound = deployment.bind(own, settings.host, http, os.getcwd(), settings.grace)
            _start(serve, bound)
            say(f"replicas on {settings.host}:{http}, gRPC on {settings.host}:{grpc}")
            _watch(serve, say)
            serve.delete(NAME)
        finally:
            if ours:
                serve.shutdown()
                ray.shutdown()


def _reserve(host: str, port: int) -> socket.socket:
    """Hold a port without listening, so that replicas can share it and nobody else gets it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return held


def _join(ray: Any) -> bool:
    """Whether a cluster of our own had to be started."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        # Its control plane asks nobody for a key, so it stays on loopback.
        ray.init(
            address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet
        )  # fmt: skip
        return True
    return False


def _deployment(serve: Any, settings: Settings, scale: Scale) -> Any:
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    told: dict[str, Any] = {"num_replicas": scale.least}
    if scale.most > scale.least:
        auto = AutoscalingConfig(
            min_replicas=scale.least, max_replicas=scale.most, target_ongoing_requests=scale.load,
            upscale_delay_s=scale.up_seconds, downscale_delay_s=scale.down_seconds,
            look_back_period_s=scale.window_seconds,
            policy=AutoscalingPolicy(policy_function=wanted),
        )  # fmt: skip
        told = {"autoscaling_config": auto}
    return serve.deployment(Replica).options(
        name=NAME, ray_actor_options={"num_cpus": scale.cpus}, health_check_period_s=_BETWEEN,
        health_check_timeout_s=_BETWEEN, graceful_shutdown_timeout_s=settings.grace + _MARGIN,
        **told,
    )  # fmt: skip


def _start(serve: Any, bound: Any) -> None:
    try:
        serve.run(bound, name=NAME, route_prefix=None)
    except RuntimeError as error:
        serve.delete(NAME)
        raise RunError(
            f"the replicas do not start: {str(error)[:300]}",
            hint="serve without --ray on one of the machines to see why",
        ) from error


def _watch(serve: Any, say: Say) -> None:
    """Until SIGTERM or SIGINT; tells each change of the number of replicas that run."""
    ending = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if ending.is_set():
            os._exit(128 + number)
        ending.set()

    before = {name: signal.signal(name, on_signal) for name in (signal.SIGTERM, signal.SIGINT)}
    told = 0
    try:
        while not ending.wait(_LOOK):
            found = _running(serve)
            if found != told:
                say(f"{found} replicas serve")
                told = found
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _running(serve: Any) -> int:
    """Replicas that serve now."""
    application = serve.status().applications.get(NAME)
    deployment = application.deployments.get(NAME) if application else None
    states = deployment.replica_states if deployment else {}
    return int(states.get("RUNNING", 0))
