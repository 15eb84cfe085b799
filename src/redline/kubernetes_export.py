"""Manifests that run `redline serve` on Kubernetes: for KServe, or as a plain Deployment."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from redline.errors import InputError, MissingError

HTTP, GRPC = 8080, 9000
MODELS = "/mnt/models"  # where KServe's storage initializer puts what storageUri names
_PAUSE = 5  # seconds in which a pod that ends is taken out of the endpoints, before SIGTERM
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CLAIM = re.compile(r"pvc://([a-z0-9][-a-z0-9.]*)((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)/?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
Form = Literal["kserve", "plain"]
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """What the manifests are made from.

    Attributes:
        name: of the service; a DNS label.
        image: a container image with `redline[serve]` in it.
        storage: where the folder of models is: pvc://CLAIM/PATH, and for KServe any storageUri.
        least, most: replicas.
        cpus: of one replica; engines get as many threads.
        memory: of one replica, as Kubernetes writes it: 2Gi.
        grace: seconds in which accepted requests are answered when a pod ends.
        key_secret: a Secret whose entry api-key clients must send; "" for none.

    Example:
        >>> made = Deployment("digits", "example.org/redline:1", "pvc://models")
        >>> [one["kind"] for one in manifests(made, "plain")]
        ['Deployment', 'Service']
    """

    name: str
    image: str
    storage: str
    namespace: str = "default"
    least: int = 1
    most: int = 1
    cpus: float = 1.0
    memory: str = "2Gi"
    grace: int = 30
    key_secret: str = ""

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("namespace", self.namespace)):
            if not _LABEL.fullmatch(text):
                raise InputError(
                    f"the {what} {text!r} is no DNS label",
                    hint="use lower-case letters, digits and -, at most 63",
                )
        if not self.image or not self.image.isprintable() or " " in self.image:
            raise InputError(f"the image {self.image!r} is no name of an image")
        if not 1 <= self.least <= self.most:
            raise InputError(f"replicas are {self.least}:{self.most}, expected 1 <= LEAST <= MOST")
        if self.cpus <= 0 or not _QUANTITY.fullmatch(self.memory) or self.grace < 1:
            raise InputError(
                f"cpus {self.cpus}, memory {self.memory!r}, grace {self.grace}",
                hint="give more than 0, as in --cpus 2 --memory 2Gi --grace 30",
            )


def manifests(wanted: Deployment, form: Form) -> list[Manifest]:
    """The objects, in the order in which they are applied.

    Raises:
        InputError: the storage is nothing that a plain Deployment can mount.
    """
    if form == "kserve":
        return [_runtime(wanted), _inference_service(wanted)]
    return [_deployment(wanted), _service(wanted), *_autoscaler(wanted)]


def to_json(objects: list[Manifest]) -> str:
    """One object of kind List, which kubectl takes as it takes the YAML documents."""
    whole = {"apiVersion": "v1", "kind": "List", "items": objects}
    return json.dumps(whole, indent=2) + "\n"


def to_yaml(objects: list[Manifest]) -> str:
    """One stream of YAML documents.

    Raises:
        MissingError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingError("manifests need PyYAML", hint="pip install 'redline[serve]'") from error
    return str(yaml.safe_dump_all(objects, sort_keys=False))


def _container(wanted: Deployment, name: str) -> Manifest:
    threads = str(math.ceil(wanted.cpus))
    amount = {"cpu": f"{wanted.cpus:g}", "memory": wanted.memory}
    return {
        "name": name,
        "image": wanted.image,
        "command": ["redline", "serve", MODELS],
        "args": [
            *("--host", "0.0.0.0", "--allow-remote"),  # a pod's network is what its cluster allows
            *("--http-port", str(HTTP), "--grpc-port", str(GRPC)),
            *("--threads", threads, "--grace", str(wanted.grace), "--log-format", "json"),
        ],
        "env": [{"name": "REDLINE_CACHE_DIR", "value": "/tmp/redline"}, *_key(wanted)],
        "ports": [
            {"name": "http1", "containerPort": HTTP, "protocol": "TCP"},
            {"name": "h2c", "containerPort": GRPC, "protocol": "TCP"},
        ],
        # Models load and pass their self-tests before the first; a reload never takes readiness.
        "startupProbe": _probe("ready", period=2, failures=300),
        "readinessProbe": _probe("ready", period=5, failures=1),
        "livenessProbe": _probe("live", period=10, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PAUSE)]}}},
        "resources": {"requests": amount, "limits": amount},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }


def _key(wanted: Deployment) -> list[Manifest]:
    if not wanted.key_secret:
        return []
    source = {"secretKeyRef": {"name": wanted.key_secret, "key": "api-key"}}
    return [{"name": "REDLINE_API_KEY", "valueFrom": source}]


def _probe(what: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": HTTP},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _meta(wanted: Deployment, name: str = "") -> Manifest:
    labels = {"app.kubernetes.io/name": wanted.name, "app.kubernetes.io/managed-by": "redline"}
    return {"name": name or wanted.name, "namespace": wanted.namespace, "labels": labels}


_SCRATCH = {"name": "scratch", "emptyDir": {"sizeLimit": "4Gi"}}


def _runtime(wanted: Deployment) -> Manifest:
    scraped = {"prometheus.kserve.io/port": str(HTTP), "prometheus.kserve.io/path": "/metrics"}
    formats = [
        {"name": name, "version": "1", "autoSelect": True, "priority": 1}
        for name in ("redline", "onnx")
    ]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": _meta(wanted, f"{wanted.name}-redline"[:63].rstrip("-")),
        "spec": {
            "annotations": scraped,
            "supportedModelFormats": formats,
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [_container(wanted, "kserve-container")],
            "volumes": [_SCRATCH],
        },
    }


def _inference_service(wanted: Deployment) -> Manifest:
    if "://" not in wanted.storage:
        raise InputError(
            f"the storage {wanted.storage!r} is no URI", hint="give pvc://CLAIM/PATH or s3://..."
        )
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": _meta(wanted),
        "spec": {
            "predictor": {
                "minReplicas": wanted.least,
                "maxReplicas": wanted.most,
                "terminationGracePeriodSeconds": _PAUSE + wanted.grace + 5,
                "model": {
                    "modelFormat": {"name": "redline"},
                    "protocolVersion": "v2",
                    "runtime": f"{wanted.name}-redline"[:63].rstrip("-"),
                    "storageUri": wanted.storage,
                },
            }
        },
    }


def _deployment(wanted: Deployment) -> Manifest:
    found = _CLAIM.fullmatch(wanted.storage)
    if found is None:
        raise InputError(
            f"a plain Deployment cannot mount {wanted.storage!r}",
            hint="give pvc://CLAIM/PATH, or --form kserve, which fetches other storage",
        )
    container = _container(wanted, "redline")
    mount = {"name": "models", "mountPath": MODELS, "readOnly": True}
    if found[2]:
        mount["subPath"] = found[2].strip("/")
    container["volumeMounts"].append(mount)
    claim = {"claimName": found[1], "readOnly": True}
    scraped = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(HTTP),
        "prometheus.io/path": "/metrics",
    }
    chosen = {"app.kubernetes.io/name": wanted.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(wanted),
        "spec": {
            **({"replicas": wanted.least} if wanted.least == wanted.most else {}),
            "selector": {"matchLabels": chosen},
            # A new version is ready before an old pod goes.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {
                "metadata": {"labels": chosen, "annotations": scraped},
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": _PAUSE + wanted.grace + 5,
                    "containers": [container],
                    "volumes": [
                        _SCRATCH,
                        {"name": "models", "persistentVolumeClaim": claim},
                    ],
                },
            },
        },
    }


def _service(wanted: Deployment) -> Manifest:
    ports = [
        {"name": "http", "port": 80, "targetPort": "http1", "protocol": "TCP"},
        {"name": "grpc", "port": GRPC, "targetPort": "h2c", "protocol": "TCP"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(wanted),
        "spec": {"selector": {"app.kubernetes.io/name": wanted.name}, "ports": ports},
    }


def _autoscaler(wanted: Deployment) -> list[Manifest]:
    if wanted.least == wanted.most:
        return []
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": wanted.name}
    busy = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": _meta(wanted),
            "spec": {
                "scaleTargetRef": target,
                "minReplicas": wanted.least,
                "maxReplicas": wanted.most,
                "metrics": [{"type": "Resource", "resource": busy}],
            },
        }
    ]
