"""Doctor: every backend, extra and tool is there; each mismatch is found, and only where it is."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch  # here: under a planted platform or path its first import would break it

from redline import backends, doctor, machine
from redline.doctor import Finding, Package

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:openvino")

FITTING = {
    "torch": Package("2.13.0"),
    "torchvision": Package("0.28.0", ("numpy", "torch (==2.13.0)")),
    "onnx": Package("1.23.2"),
    "onnxruntime": Package("1.32.0"),
    "tensorrt": Package("11.0.1"),
}
TWO_FLAVOURS = (
    "onnxruntime and onnxruntime-gpu install into the same folder, so which one runs is left to "
    "chance"
)
UNSAFE = (
    "torch 2.9.1 has known holes in weights_only loading (CVE-2026-24747), so a weights file can "
    "run code"
)
# One installation for each mismatch, in the order of docs/doctor.md.
WRONG = (
    {"torch": Package("2.13.0+cpu"), "torchvision": Package("0.28.0+cu130")},
    FITTING | {"torch": Package("2.12.1")},
    {"onnxruntime": Package("1.32.0"), "onnxruntime-gpu": Package("1.32.0")},
    {"torch": Package("2.9.1")},
    FITTING | {"onnxruntime": Package("1.26.0")},
)


def reasons(packages):
    """What every check of mismatches says of these packages."""
    return {finding.name: finding for check in doctor._MISMATCHES for finding in check(packages)}


@pytest.fixture(scope="module")
def findings():
    return doctor.examine()


@pytest.fixture
def linux_x86(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")


@pytest.fixture
def blocked(monkeypatch):
    """Makes the import of a library fail as a broken one does."""

    def block(name, error):
        def load(module):
            if module == name:
                raise error
            return importlib.import_module(module)

        # Only the doctor's: torch itself imports by the same function when it is asked.
        monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=load))

    return block


def test_every_backend_and_extra_is_listed(findings):
    named = {(finding.kind, finding.name) for finding in findings}
    assert {("backend", name) for name in backends.names()} <= named
    extras = metadata.metadata("redline").get_all("Provides-Extra")
    assert {("extra", name) for name in extras} <= named
    assert {("tool", "C++ compiler"), ("tool", "pnnx")} <= named
    assert len(named) == len(findings)


def test_what_cannot_be_used_has_a_reason_and_a_command(findings):
    for finding in findings:
        assert finding.usable == (not finding.reason), finding
        if finding.usable:
            assert not finding.command, finding
        else:
            assert finding.command or "GPU" in finding.reason, finding


def test_this_environment_is_healthy(findings):
    assert doctor.healthy(findings)


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxruntime"])
@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, TypeError])
def test_a_library_that_cannot_be_imported_is_a_reason(blocked, name, error):
    blocked(name, error("no libc10.so\nand a page of advice"))
    found = {finding.name: finding for finding in doctor._core({name: Package("1.0")})}
    assert found[name].reason == f"{name} cannot be imported: no libc10.so"
    assert found[name].command == f"pip install --force-reinstall --no-deps {name}"
    assert not doctor.healthy(found.values())
    found = {finding.name: finding for finding in doctor._core({name: Package("1.0+cpu")})}
    assert found[name].command.endswith("--index-url https://download.pytorch.org/whl/cpu")


def test_a_backend_whose_library_is_broken_is_a_reason(blocked):
    blocked("openvino", ImportError("no libtbb.so"))
    if backends.get("openvino").missing():
        pytest.skip("openvino is not installed")
    found = {finding.name: finding for finding in doctor._backends({})}
    assert found["openvino"].reason == "openvino cannot be imported: no libtbb.so"


def test_a_backend_that_fails_in_its_own_way_is_a_reason(monkeypatch):
    def refuse(_):
        raise RuntimeError("operator x does not exist")

    monkeypatch.setattr(backends, "get", refuse)
    found = {finding.name: finding.reason for finding in doctor._backends({})}
    assert found == dict.fromkeys(backends.names(), "it fails to load: operator x does not exist")


# Each is a library that is found and does not load, as in a child of a user's own shell.
@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("torch", "raise ImportError('it is broken')", 1),
        ("torch", "raise RuntimeError('it is broken')", 1),
        ("onnx", "raise TypeError('it is broken')", 1),
        ("openvino", "raise OSError('it is broken')", 0),
    ],
)
def test_the_doctor_survives_a_library_that_is_broken(tmp_path, name, code, status):
    (tmp_path / f"{name}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "redline", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == status, done.stderr
    reasons = [finding["reason"] for finding in json.loads(done.stdout)["findings"]]
    assert f"{name} cannot be imported: it is broken" in reasons


def test_a_folder_that_is_not_installed_is_a_reason():
    found = {finding.name: finding for finding in doctor._core({"torch": Package("2.13.0")})}
    assert "not installed" in found["redline"].reason
    assert found["redline"].command == "pip install ."
    assert list(doctor._extras({})) == []


OURS = Package(
    "1.0",
    (
        "numpy>=2",
        "never>=1; sys_platform == 'nowhere'",
        "uvicorn>=0.38; extra == 'serve'",
        "Prometheus_Client>=0.23; extra == 'serve'",
        "absent; extra == 'serve' and sys_platform == 'nowhere'",
        "redline[serve]; extra == 'dev'",
        "ruff>=0.17; extra == 'dev'",
    ),
    ("serve", "dev"),
)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"uvicorn": "0.40", "prometheus-client": "0.23"}, ""),
        ({"uvicorn": "0.40"}, "Prometheus_Client is not installed"),
        ({"uvicorn": "0.9", "prometheus-client": "0.23"}, "uvicorn is 0.9, expected >=0.38"),
        ({"uvicorn": "odd!", "prometheus-client": "1"}, "uvicorn is odd!, expected >=0.38"),
        ({"uvicorn": "1.0rc1+local", "prometheus-client": "1"}, ""),
    ],
)
def test_the_requirements_of_an_extra(there, said):
    packages = {"redline": OURS, **{name: Package(version) for name, version in there.items()}}
    serve = next(finding for finding in doctor._extras(packages) if finding.name == "serve")
    assert serve.reason == said
    assert serve.usable == (not said)
    assert serve.command == ("pip install 'redline[serve]'" if said else "")


def test_an_extra_within_an_extra_is_looked_into():
    packages = {"redline": OURS, "ruff": Package("1")}
    dev = next(finding for finding in doctor._extras(packages) if finding.name == "dev")
    assert dev.reason == "uvicorn is not installed; Prometheus_Client is not installed"


def test_core_requirements_are_looked_at():
    core = {finding.name: finding for finding in doctor._core({"redline": OURS})}
    assert core["redline"].reason == "numpy is not installed"
    core = {f.name: f for f in doctor._core({"redline": OURS, "numpy": Package("1.26")})}
    assert core["redline"].reason == "numpy is 1.26, expected >=2"


def test_no_compiler_is_a_reason(monkeypatch):
    monkeypatch.setattr(machine, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(sys, "platform", "linux")
    found = next(doctor._tools({}))
    assert found.reason == ("there is no C++ compiler, which Inductor and the native compiler need")
    assert found.command == "apt-get install g++"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert next(doctor._tools({})).command == "xcode-select --install"


@pytest.mark.parametrize("script", ["echo g++ 1; exit 3", "echo 'no <vector>' >&2; exit 1"])
def test_a_compiler_that_cannot_compile_is_a_reason(monkeypatch, tmp_path, script):
    program = tmp_path / "g++"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "COMPILERS", (str(program),))
    found = next(doctor._tools({}))
    assert not found.usable
    assert re.search(r"cannot compile \((status 3|no <vector>)\)", found.reason)


def test_a_compiler_that_cannot_be_run_is_a_reason(monkeypatch, tmp_path):
    program = tmp_path / "g++"
    program.write_text("of no format\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "COMPILERS", (str(program),))
    assert "cannot be run" in next(doctor._tools({})).reason


@pytest.mark.usefixtures("linux_x86")
def test_packages_that_fit_are_no_mismatch():
    assert reasons(FITTING) == {}
    assert reasons({}) == {}


@pytest.mark.usefixtures("linux_x86")
@pytest.mark.parametrize(
    ("torch", "torchvision", "wrong"),
    [
        ("2.13.0+cpu", "0.28.0+cu130", True),
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0", "0.28.0+cpu", True),
        ("2.13.0+cu130", "0.28.0+cpu", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0+cu130", "0.28.0", False),
    ],
)
def test_torchvision_for_another_device(torch, torchvision, wrong):
    found = reasons(FITTING | {"torch": Package(torch), "torchvision": Package(torchvision)})
    assert set(found) == ({"torch and torchvision"} if wrong else set())
    if wrong and "+" in torch:
        tag = torch.partition("+")[2]
        assert found["torch and torchvision"].command.endswith(
            f"torchvision --index-url https://download.pytorch.org/whl/{tag}"
        )


def test_wheels_without_a_tag_are_for_the_cpu_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    fitting = {"torch": Package("2.13.0+cpu"), "torchvision": Package("0.28.0")}
    assert reasons(fitting) == {}


@pytest.mark.usefixtures("linux_x86")
@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (
            {"torch": Package("2.12.1")},
            "torchvision and torch",
            "torchvision 0.28.0 is built for torch ==2.13.0, but torch 2.12.1 is installed",
        ),
        (
            {"onnxruntime-gpu": Package("1.32.0")},
            "two onnxruntimes",
            TWO_FLAVOURS,
        ),
        (
            {"torch": Package("2.9.1"), "torchvision": Package("0.24")},
            "torch before 2.10",
            UNSAFE,
        ),
        (
            {"onnxruntime": Package("1.26.0")},
            "onnxruntime and TensorRT",
            "onnxruntime 1.26.0 is older than TensorRT 11.0.1, which it can use from 1.27 on",
        ),
    ],
)
def test_each_mismatch_is_one_sentence_with_a_command(change, name, said):
    found = reasons(FITTING | change)
    assert set(found) == {name}
    assert found[name].reason == said
    assert found[name].command.startswith("pip ")
    assert found[name].kind == "mismatch"
    assert not found[name].usable


def test_numpy_that_torch_was_not_built_for(monkeypatch):
    def refuse(_):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    found = reasons({})
    assert "cannot exchange arrays (Numpy is not available)" in found["torch and numpy"].reason
    assert found["torch and numpy"].command == "pip install --upgrade torch numpy"


def test_the_metadata_of_others_may_be_broken(tmp_path, monkeypatch):
    for folder, text in {"a-1": "", "b-1": "Name: B_b\nVersion: 1\nRequires-Dist: ??\n"}.items():
        (tmp_path / f"{folder}.dist-info").mkdir()
        (tmp_path / f"{folder}.dist-info" / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    packages = doctor.installed()
    assert packages == {"b-b": Package("1", ("??",))}
    assert reasons({"torch": Package("2.13"), "torchvision": Package("1", ("??",))}) == {}


def test_every_mismatch_is_in_the_docs(root, monkeypatch):
    page = (root / "docs" / "doctor.md").read_text(encoding="utf-8")
    for packages in WRONG:
        ((name, finding),) = reasons(packages).items()
        assert f"**{name}**" in page
        assert f"> {finding.reason}\n" in page
        assert f"`{finding.command}`" in page

    def refuse(_):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    monkeypatch.setattr(torch, "__version__", "2.2.0")
    monkeypatch.setattr(doctor.np, "__version__", "2.3.0")
    ((name, finding),) = reasons({}).items()
    assert f"**{name}**" in page
    assert f"> {finding.reason}\n" in page
    assert len(WRONG) + 1 == len(doctor._MISMATCHES)


def test_every_backend_extra_and_field_is_in_the_docs(root):
    page = (root / "docs" / "doctor.md").read_text(encoding="utf-8")
    extras = metadata.metadata("redline").get_all("Provides-Extra")
    fields = [field.name for field in dataclasses.fields(Finding)]
    for name in (*backends.names(), *extras, *fields):
        assert f"`{name}`" in page, name
