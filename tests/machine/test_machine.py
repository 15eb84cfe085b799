"""The machine card: what is read from the system, and what is measured and kept."""

import dataclasses
import json
import os
import shutil

import pytest

from redline import machine
from redline.errors import InputError

X86 = "processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu avx2 fma\n\nflags\t: other\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\n"


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.delenv("REDLINE_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(monkeypatch):
    """Rates that count how often they were measured, in place of a second of measuring."""
    rounds = []

    def measure():
        rounds.append(1)
        return machine._Rates(2.0 * len(rounds), 4.0, 1.0, 2.0, 1e-5, "planted", "now")

    monkeypatch.setattr(machine, "_measure", measure)
    return rounds


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_a_cgroup_caps_the_cores(tmp_path, files, cores):
    assert machine.usable_cores(tree(tmp_path, files)) == cores


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("threads", "cores"), [("3", 3), ("0", 8), ("100", 8), ("-2", 8)])
def test_redline_threads_caps_the_cores(tmp_path, monkeypatch, threads, cores):
    monkeypatch.setenv("REDLINE_THREADS", threads)
    assert machine.usable_cores(tmp_path) == cores


def test_redline_threads_must_be_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_THREADS", "many")
    with pytest.raises(InputError, match="REDLINE_THREADS is 'many'"):
        machine.usable_cores(tmp_path)


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
    ids=["v2", "v1"],
)
def test_a_cgroup_caps_the_memory(tmp_path, limit, used):
    folder = "sys/fs/cgroup/"
    root = tree(tmp_path, {folder + limit: "1000000\n", folder + used: "400000\n"})
    assert machine.memory_total(root) == 1_000_000
    assert machine.memory_available(root) == 600_000


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_a_cgroup_without_a_limit_caps_nothing(tmp_path, limit):
    root = tree(tmp_path, {"sys/fs/cgroup/memory.max": limit})
    assert machine.memory_total(root) == machine.memory_total(tmp_path / "none")


def test_a_cgroup_that_is_over_its_limit_has_nothing_left(tmp_path):
    folder = "sys/fs/cgroup/"
    root = tree(tmp_path, {folder + "memory.max": "1000", folder + "memory.current": "1200"})
    assert machine.memory_available(root) == 0


@pytest.mark.parametrize(
    ("text", "flags"),
    [(X86, {"fpu", "avx2", "fma"}), (ARM, {"fp", "asimd", "bf16"}), ("", set()), ("flags", set())],
)
def test_flags_are_those_of_the_first_core(text, flags):
    assert machine.flags_of(text) == flags


def test_caches_are_read_in_bytes_without_that_of_instructions(tmp_path):
    folder = "sys/devices/system/cpu/cpu0/cache/index"
    entries = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K")]
    files = {}
    for index, (level, kind, size) in enumerate([*entries, ("3", "Unified", "32M")]):
        files |= {
            f"{folder}{index}/{name}": f"{text}\n"
            for name, text in (("level", level), ("type", kind), ("size", size))
        }
    assert machine.caches(tree(tmp_path, files)) == (48 << 10, 1 << 20, 32 << 20)
    assert machine.caches(tmp_path / "none") == (0, 0, 0)


@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "numpy"])
def test_a_measured_card_is_sane(cache, monkeypatch, compiler):
    if compiler and not machine.cpp_compiler():
        pytest.skip("there is no C++ compiler")
    if not compiler:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    card = machine.card(refresh=True)
    assert card.peak_flops_one > 1e8
    assert card.peak_flops >= 0.5 * card.peak_flops_one
    assert card.bandwidth_one > 1e7
    assert card.bandwidth > 1e7
    assert 0 < card.wake_seconds < 1
    assert 1 <= card.cores <= card.cores_total
    assert 0 < card.memory_available <= card.memory
    assert card.method.startswith("C++ loops" if compiler else "NumPy")
    json.dumps(dataclasses.asdict(card), allow_nan=False)
    assert list(cache.iterdir()) == [cache / f"machine-{machine.fingerprint()}.json"]


def test_a_compiler_that_fails_leaves_the_measuring_to_numpy(cache, monkeypatch, tmp_path, caplog):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(machine, "cpp_compiler", lambda: str(broken))
    assert machine.card().method.startswith("NumPy")
    assert "probe failed" in caplog.text


def test_a_card_is_measured_once(cache, quick):
    assert machine.card().peak_flops_one == machine.card().peak_flops_one == 2.0
    assert quick == [1]
    assert len(list(cache.iterdir())) == 1
    assert machine.card(refresh=True).peak_flops_one == 4.0
    assert machine.card().peak_flops_one == 4.0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"peak_flops": 1}', "null"])
def test_a_broken_card_is_measured_again(cache, quick, text):
    machine.card()
    (file,) = cache.iterdir()
    file.write_text(text)
    assert machine.card().peak_flops_one == 4.0
    assert json.loads(file.read_text())["peak_flops_one"] == 4.0


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"peak_flops_one": "fast"}'])
def test_a_card_of_other_bytes_is_measured_again(cache, quick, content):
    machine.card()
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert machine.card().peak_flops_one == 4.0


def test_the_probe_reads_more_than_the_caches_and_less_than_the_memory(monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 64 << 30)
    monkeypatch.setattr(machine, "caches", lambda: (32 << 10, 1 << 20, 0))
    assert machine._probe_bytes() == 256 << 20
    monkeypatch.setattr(machine, "caches", lambda: (32 << 10, 1 << 20, 512 << 20))
    assert machine._probe_bytes() == 2 << 30
    monkeypatch.setattr(machine, "memory_available", lambda: 400 << 20)
    assert machine._probe_bytes() == 100 << 20


def test_a_card_with_rates_that_are_no_numbers_is_measured_again(cache, quick):
    machine.card()
    (file,) = cache.iterdir()
    rates = json.loads(file.read_text())
    file.write_text(json.dumps(rates | {"peak_flops": "fast"}))
    assert machine.card().peak_flops == 4.0
    assert len(quick) == 2


def test_a_cache_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path, quick, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert machine.card().peak_flops_one == 2.0
    assert "could not be kept" in caplog.text


def test_the_fingerprint_names_the_machine():
    name = machine.fingerprint()
    assert len(name) == 16
    assert int(name, 16) >= 0
    assert machine.fingerprint() == name
