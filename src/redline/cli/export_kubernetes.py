"""`redline export-kubernetes`: manifests that run the server on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from redline.cli import options


def export_kubernetes(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the service.")],
    image: Annotated[str, typer.Option(help="A container image with redline[serve] in it.")],
    storage: Annotated[
        str, typer.Option(metavar="URI", help="The folder of models: pvc://CLAIM/PATH; s3:// ...")
    ],
    form: Annotated[
        Literal["kserve", "plain"],
        typer.Option(help="ServingRuntime and InferenceService, or Deployment and Service."),
    ] = "kserve",
    namespace: Annotated[str, typer.Option(help="Of the objects.")] = "default",
    replicas: Annotated[
        str, typer.Option(metavar="N or LEAST:MOST", help="Pods, scaled by their load.")
    ] = "1",
    cpus: Annotated[float, typer.Option(help="Cores of a pod.")] = 1.0,
    memory: Annotated[str, typer.Option(help="Of a pod.")] = "2Gi",
    grace: Annotated[int, typer.Option(help="Seconds to end accepted requests in.")] = 30,
    key_secret: Annotated[
        str, typer.Option(metavar="SECRET", help="Clients must send its entry api-key.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of stdout.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, a List.")] = False,
) -> None:
    """Write Kubernetes manifests for `redline serve`: for KServe, or a plain Deployment.

    Example: redline export-kubernetes digits --image example.org/redline:1 --storage pvc://models
    """
    from redline.errors import InputError, SaveError
    from redline.kubernetes_export import Deployment, manifests, to_json, to_yaml

    least, _, most = replicas.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise InputError(f"replicas are {replicas!r}", hint="give a number, or 1:4")
    wanted = Deployment(
        name, image, storage, namespace, int(least), int(most or least), cpus, memory, grace,
        key_secret,
    )  # fmt: skip
    text = (to_json if json else to_yaml)(manifests(wanted, form))
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        part = output.with_name(output.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise SaveError(f"the manifests cannot be written: {error}", where=str(output)) from None
    options.note(f"manifests: {output}")
