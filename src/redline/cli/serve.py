"""`redline serve`: a folder of engines as an inference server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from redline.cli import options
from redline.errors import InputError, MissingError

_Models = Annotated[
    Path,
    typer.Argument(metavar="MODELS", help="A folder: NAME/VERSION/model.redline or model.onnx."),
]
_Mode = Annotated[
    Literal["none", "poll", "explicit"],
    typer.Option(help="Load all once, look for changes, or load what clients ask for."),
]
_Load = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="With --mode explicit: load this at the start, * for all."),
]
_Keys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="API keys, one a line: clients must send one of them."),
]
_AdminKeys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys of the control plane, which is off without them."),
]
_Control = Annotated[
    bool,
    typer.Option("--allow-control", help="The control plane without a key; loopback only."),
]
_Port = Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)]
_AdminPort = Annotated[
    int, typer.Option(help="The control plane on this port of 127.0.0.1 alone.", min=0, max=65535)
]
_Cert = Annotated[Path | None, typer.Option(metavar="PEM", help="Certificate: TLS for all.")]
_Key = Annotated[Path | None, typer.Option(metavar="PEM", help="The certificate's key.")]
_Ca = Annotated[
    Path | None, typer.Option(metavar="PEM", help="Clients need a certificate of this CA (mTLS).")
]
_Trace = Annotated[
    str, typer.Option(metavar="URL", help="Send traces there (OTLP over HTTP; extra otel).")
]
_Ray = Annotated[
    bool, typer.Option("--ray", help="Replicas that Ray Serve places and scales (extra ray).")
]
_Replicas = Annotated[
    str, typer.Option(metavar="N or LEAST:MOST", help="With --ray: replicas, scaled by load.")
]
_Worker = Annotated[str, typer.Option(hidden=True)]
_Tune = Annotated[
    str,
    typer.Option(metavar="MODEL", help="Serve nothing: find this model's batch, delay, instances."),
]
_Arrivals = Annotated[
    str,
    typer.Option(metavar="WHAT", help="poisson:RATE, bursty:RATE, or a file of arrivals or log."),
]
_Isolation = Annotated[
    Literal["thread", "process"],
    typer.Option(help="Run engines in threads, or in processes that may crash and hang."),
]


def serve(
    models: _Models,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    http_port: _Port = 8000,
    grpc_port: _Port = 8001,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Let clients register shared memory.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines reach it.")
    ] = False,
    mode: _Mode = "none",
    poll_seconds: Annotated[float, typer.Option(help="With --mode poll.")] = 5.0,
    load: _Load = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Serve although a model cannot be loaded.")
    ] = False,
    name: Annotated[str, typer.Option(help="What the server calls itself.")] = "redline",
    queue_size: Annotated[int, typer.Option(help="Requests that may wait for a model.")] = 1024,
    delay_us: Annotated[
        int, typer.Option(help="Microseconds that a batch may wait for more requests.")
    ] = 0,
    timeout_ms: Annotated[
        int, typer.Option(help="Milliseconds that a request may wait, 0 without end.")
    ] = 0,
    instances: Annotated[int, typer.Option(help="Batches of one model at once.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of an ONNX file, 0 for all cores.")] = 0,
    max_batch: Annotated[int, typer.Option(help="Rows of a batch where no model says.")] = 32,
    isolation: _Isolation = "thread",
    run_timeout: Annotated[float, typer.Option(help="Seconds until a run counts as hung.")] = 60.0,
    grace: Annotated[float, typer.Option(help="Seconds to end accepted requests in.")] = 30.0,
    max_body: Annotated[int, typer.Option(help="Bytes that a request may have.")] = 64 << 20,
    api_key_file: _Keys = None,
    admin_key_file: _AdminKeys = None,
    allow_control: _Control = False,
    admin_port: _AdminPort = 0,
    tls_cert: _Cert = None,
    tls_key: _Key = None,
    tls_ca: _Ca = None,
    trace_endpoint: _Trace = "",
    trace_rate: Annotated[int, typer.Option(help="Trace one of so many requests.")] = 1000,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Of stderr.")] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
    cache_bytes: Annotated[int, typer.Option(help="Keep so many bytes of answers.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    ray: _Ray = False,
    replicas: _Replicas = "1",
    replica_cpus: Annotated[float, typer.Option(help="With --ray: cores of a replica.")] = 1.0,
    replica_load: Annotated[
        float, typer.Option(help="With --ray: requests at once that a replica is meant for.")
    ] = 8.0,
    worker: _Worker = "",
    tune: _Tune = "",
    tune_arrivals: _Arrivals = "poisson:100",
    tune_p99_ms: Annotated[
        float, typer.Option(min=0.01, help="Of 100 requests 99 are answered within.")
    ] = 50.0,
    tune_write: Annotated[
        bool, typer.Option("--tune-write", help="Write the best into the model's configuration.")
    ] = False,
    json: options.Json = False,
    trust: options.Trust = False,
) -> None:
    """Serve engines and ONNX files by the Open Inference Protocol.

    SIGTERM answers what was accepted and ends; a second one ends at once.

    Example: redline serve models/ --http-port 8000
    """
    if not models.is_dir():
        raise InputError(f"{models} is not a folder", hint="give the folder that holds the models")
    try:
        from redline.serve import server
        from redline.serve.extension import Grpc
    except ImportError as error:
        raise MissingError(
            f"serving needs a library that is not installed: {error.name}",
            hint="pip install 'redline[serve]'",
        ) from error
    from redline.serve.operator import Options
    from redline.serve.settings import Limits, Settings
    from redline.serve.shared_memory import SharedMemory
    from redline.serve.supervise import descriptors, supervise

    settings = Settings(
        models=models, name=name, host=host, http_port=http_port, grpc_port=grpc_port,
        allow_remote=allow_remote,
        mode=mode, poll_seconds=poll_seconds, load=tuple(load or ()),
        exit_on_error=not keep_going, queue_size=queue_size, delay=delay_us * 1e-6,
        queue_timeout=timeout_ms * 1e-3, instances=instances, threads=threads,
        max_batch=max_batch, isolation=isolation, run_timeout=run_timeout, grace=grace,
        trust=trust, limits=Limits(body=max_body),
    )  # fmt: skip

    if tune:
        from redline.cli.serve_tune import tune as find_setting

        find_setting(settings, tune, tune_arrivals, tune_p99_ms, tune_write, json)
        return
    operating = Options(
        api_key_file=api_key_file, admin_key_file=admin_key_file, allow_control=allow_control,
        admin_port=admin_port, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca,
        trace_endpoint=trace_endpoint, trace_rate=trace_rate, log_format=log_format,
        verbose=verbose, cache_bytes=cache_bytes,
    )  # fmt: skip
    if ray and not worker:
        from redline.serve import scale

        wanted = scale.Scale.of(replicas, cpus=replica_cpus, load=replica_load)
        scale.run(settings, operating, wanted, sys.argv[1:], options.note)
        return
    if workers > 1 and not worker:
        supervise(settings, operating, workers, options.note)
        return
    grpc = Grpc(shared=SharedMemory(enabled=shared_memory), reuse_port=bool(worker))

    def started(running: server.Server) -> None:
        count = len(running.plane.repository.served())
        scheme = "https" if tls_cert else "http"
        options.note(f"serving {count} models on {scheme}://{host}:{running.http_port}")
        options.note(f"gRPC on {host}:{grpc.front.port if grpc.front else 0}")

    server.run(settings, started, [grpc], operating, descriptors(worker))
