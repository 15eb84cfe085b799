"""Manifests: what they must say, and every field held against the published models.

The models are those of the packages `kserve` and `kubernetes`, which are made from KServe's and
Kubernetes's OpenAPI descriptions; without them those tests are skipped:

    pip install --no-deps kserve kubernetes python-dateutil six
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from redline.cli.main import app
from redline.errors import InputError
from redline.kubernetes_export import Deployment, manifests, to_yaml

PLAIN = Deployment("digits", "example.org/redline:1", "pvc://models/all", least=1, most=4, cpus=1.5)
KEYED = Deployment("digits", "example.org/redline:1", "s3://bucket/models", key_secret="keys")
MODELS = {
    "ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService",
    "Deployment": "V1Deployment", "Service": "V1Service",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
}  # fmt: skip


def packages() -> list[types.ModuleType]:
    """Their models alone: the packages themselves load a server, and a client of clusters."""
    for name in ("kserve", "kubernetes", "kubernetes.client"):
        if name not in sys.modules:
            found = importlib.util.find_spec(name)
            if found is None:
                pytest.skip("needs the packages kserve and kubernetes")
            bare = types.ModuleType(name)
            bare.__path__ = list(found.submodule_search_locations or [])
            sys.modules[name] = bare
    return [importlib.import_module(f"{name}.models") for name in ("kserve", "kubernetes.client")]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def model(kind: str) -> Any:
    for package in packages():
        if hasattr(package, kind):
            return getattr(package, kind)
        name = f"{package.__name__}.{snake(kind)}"
        if importlib.util.find_spec(name):
            return getattr(importlib.import_module(name), kind)
    raise AssertionError(f"no model {kind}")


PYTHON = {"str": str, "int": int, "bool": bool, "float": (int, float), "date": str}


def problems(value: Any, kind: str, at: str) -> list[str]:
    """Where a value is not what the description says of its type."""
    if listed := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{at}: expected a list"]
        return [p for n, v in enumerate(value) for p in problems(v, listed[1], f"{at}[{n}]")]
    if named := re.fullmatch(r"[Dd]ict[(\[]str, (.+)[)\]]", kind):
        return [p for k, v in value.items() for p in problems(v, named[1], f"{at}.{k}")]
    if kind in ("ResourceQuantity", "V1ResourceQuantity"):
        kind = "str"
    if kind in ("object", "IntOrString", "K8sIoApimachineryPkgUtilIntstrIntOrString"):
        return [] if isinstance(value, int | str) else [f"{at}: expected a number or a name"]
    if kind in PYTHON:
        right = isinstance(value, PYTHON[kind]) and (kind == "bool") == isinstance(value, bool)
        return [] if right else [f"{at}: {value!r} is no {kind}"]
    made = model(kind)
    fields = {wire: name for name, wire in made.attribute_map.items()}
    said = [f"{at}.{key} is not known" for key in value if key not in fields]
    given = {fields[key]: inner for key, inner in value.items() if key in fields}
    for name, inner in given.items():
        said += problems(inner, made.openapi_types[name], f"{at}.{made.attribute_map[name]}")
    try:
        made(**given)  # says which fields must be there, and which values may be
    except ValueError as error:
        said.append(f"{at}: {error}")
    return said


@pytest.mark.parametrize(
    ("wanted", "form"), [(PLAIN, "plain"), (PLAIN, "kserve"), (KEYED, "kserve")]
)
def test_every_field_is_of_the_published_description(wanted: Deployment, form: Any) -> None:
    for one in yaml.safe_load_all(to_yaml(manifests(wanted, form))):
        assert problems(one, MODELS[one["kind"]], one["kind"]) == []


def test_the_check_finds_what_is_wrong() -> None:
    one = manifests(PLAIN, "plain")[0]
    pod = one["spec"]["template"]["spec"]
    pod["containers"][0]["readynessProbe"] = {}
    pod["terminationGracePeriodSeconds"] = "40"
    del one["spec"]["selector"]
    said = " ".join(problems(one, "V1Deployment", "d"))
    assert "readynessProbe is not known" in said
    assert "'40' is no int" in said
    assert "selector" in said


def container(one: dict[str, Any]) -> dict[str, Any]:
    spec = one["spec"]
    return (spec["template"]["spec"] if "template" in spec else spec)["containers"][0]


@pytest.mark.parametrize("form", ["kserve", "plain"])
def test_what_a_pod_is_told(form: Any) -> None:
    first = manifests(PLAIN, form)[0]
    pod = container(first)
    assert pod["command"] == ["redline", "serve", "/mnt/models"]
    assert pod["args"][pod["args"].index("--threads") + 1] == "2"
    assert pod["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert pod["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert [port["containerPort"] for port in pod["ports"]] == [8080, 9000]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["env"][0]["name"] == "REDLINE_CACHE_DIR"
    kinds = [one["kind"] for one in manifests(PLAIN, form)]
    assert kinds == (
        ["ServingRuntime", "InferenceService"] if form == "kserve"
        else ["Deployment", "Service", "HorizontalPodAutoscaler"]
    )  # fmt: skip


def test_a_pod_has_time_for_what_it_accepted() -> None:
    deployment, _, scaler = manifests(PLAIN, "plain")
    pod = deployment["spec"]["template"]["spec"]
    pause = int(container(deployment)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + PLAIN.grace
    assert "replicas" not in deployment["spec"]  # they are the autoscaler's
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 4)
    claim = pod["volumes"][1]["persistentVolumeClaim"]
    mount = container(deployment)["volumeMounts"][1]
    assert (claim["claimName"], mount["subPath"], mount["mountPath"]) == (
        "models", "all", "/mnt/models",
    )  # fmt: skip


def test_the_arguments_are_ones_that_the_command_has() -> None:
    """Every option of a pod is an option of `redline serve`, so that it cannot go stale."""
    help_ = CliRunner().invoke(app, ["serve", "--help"]).output
    pod = container(manifests(KEYED, "kserve")[0])
    options = [word for word in pod["args"] if word.startswith("--")]
    assert options
    assert [word for word in options if word not in help_] == []
    (key,) = [one for one in pod["env"] if one["name"] == "REDLINE_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api-key"}


def test_the_command_writes_a_file_or_stdout(tmp_path: Path) -> None:
    told = ["export-kubernetes", "digits", "--image", "i:1", "--storage", "pvc://m"]
    run = CliRunner()
    shown = run.invoke(app, told)
    assert shown.exit_code == 0
    made = run.invoke(app, [*told, "-o", str(tmp_path / "all.yaml")])
    assert made.exit_code == 0
    assert (tmp_path / "all.yaml").read_text() == shown.output
    assert [one["kind"] for one in yaml.safe_load_all(shown.output)] == [
        "ServingRuntime", "InferenceService",
    ]  # fmt: skip
    listed = json.loads(run.invoke(app, [*told, "--json"]).output)
    assert listed["items"] == list(yaml.safe_load_all(shown.output))


@pytest.mark.parametrize(
    ("change", "form"),
    [
        ({"name": "Digits"}, "kserve"), ({"name": "a" * 64}, "kserve"), ({"name": ""}, "kserve"),
        ({"namespace": "a b"}, "kserve"), ({"image": "a b"}, "kserve"), ({"least": 0}, "kserve"),
        ({"least": 9}, "kserve"), ({"cpus": 0}, "kserve"), ({"memory": "lots"}, "kserve"),
        ({"storage": "s3://bucket"}, "plain"), ({"storage": "models"}, "kserve"),
        ({"storage": "pvc://m/../x"}, "plain"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_error(change: dict[str, Any], form: Any) -> None:
    given = {"name": "digits", "image": "i:1", "storage": "pvc://m", "most": 4} | change
    with pytest.raises(InputError):
        manifests(Deployment(**given), form)
