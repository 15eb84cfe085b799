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


V2 = {
    "proc/self/cgroup": "0::/job\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
}
V1 = {
    "proc/self/cgroup": "4:cpu,cpuacct:/job\n5:memory:/job\n",
    "proc/self/mountinfo": (
        "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    ),
}
INNER, OUTER = "sys/fs/cgroup/job/", "sys/fs/cgroup/"
CPU1, MEMORY1 = "sys/fs/cgroup/cpu/job/cpu.cfs_", "sys/fs/cgroup/memory/job/memory."


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.delenv("REDLINE_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def forget():
    """As a new process does: only the file is left."""
    machine._known.cache_clear()


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
        (V2, 8),
        (V2 | {INNER + "cpu.max": "max 100000\n"}, 8),
        (V2 | {INNER + "cpu.max": "200000 100000\n"}, 2),
        (V2 | {INNER + "cpu.max": "250000 100000\n"}, 3),
        (V2 | {INNER + "cpu.max": "10000 100000\n"}, 1),
        (V2 | {INNER + "cpu.max": "9900000 100000\n"}, 8),
        (V2 | {INNER + "cpu.max": "max 100000\n", OUTER + "cpu.max": "400000 100000\n"}, 4),
        (V1 | {CPU1 + "quota_us": "300000\n", CPU1 + "period_us": "100000\n"}, 3),
        (V1 | {CPU1 + "quota_us": "-1\n", CPU1 + "period_us": "100000\n"}, 8),
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
    "files",
    [
        V2 | {INNER + "memory.max": "1000000\n", INNER + "memory.current": "400000\n"},
        V2 | {OUTER + "memory.max": "1000000\n", OUTER + "memory.current": "400000\n"},
        V1 | {MEMORY1 + "limit_in_bytes": "1000000\n", MEMORY1 + "usage_in_bytes": "400000\n"},
    ],
    ids=["v2", "v2, the group around it", "v1"],
)
def test_a_cgroup_caps_the_memory(tmp_path, files):
    root = tree(tmp_path, files)
    assert machine.memory_total(root) == 1_000_000
    assert machine.memory_available(root) == 600_000


@pytest.mark.parametrize(
    "files",
    [
        V2 | {INNER + "memory.max": "max\n"},
        V1 | {MEMORY1 + "limit_in_bytes": "9223372036854771712\n"},
    ],
    ids=["v2", "v1"],
)
def test_a_cgroup_without_a_limit_caps_nothing(tmp_path, files):
    root = tree(tmp_path, files)
    assert machine.memory_total(root) == machine.memory_total(tmp_path / "none")


def test_a_cgroup_that_is_over_its_limit_has_nothing_left(tmp_path):
    limits = {INNER + "memory.max": "1000", INNER + "memory.current": "1200"}
    assert machine.memory_available(tree(tmp_path, V2 | limits)) == 0


@pytest.mark.parametrize(
    ("text", "flags"),
    [(X86, {"fpu", "avx2", "fma"}), (ARM, {"fp", "asimd", "bf16"}), ("", set()), ("flags", set())],
)
def test_flags_are_those_of_the_first_core(tmp_path, text, flags):
    assert machine.isa_flags(tree(tmp_path, {"proc/cpuinfo": text})) == flags


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
    if compiler and not any(map(shutil.which, machine.COMPILERS)):
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
    assert card.method.startswith("C++ loops" if compiler else "NumPy"), card.method
    json.dumps(dataclasses.asdict(card), allow_nan=False)
    assert list(cache.iterdir()) == [cache / f"machine-{machine.fingerprint()}.json"]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("script", ["echo no headers >&2; exit 1", "exit 0"])
def test_a_compiler_that_fails_leaves_the_measuring_to_numpy(monkeypatch, tmp_path, script):
    broken = tmp_path / "g++"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(machine, "COMPILERS", (str(broken),))
    method = machine.card(refresh=True).method
    assert method.startswith("NumPy")
    assert "the C++ probe failed: " in method


def test_a_card_is_measured_once(cache, quick):
    assert machine.card().peak_flops_one == machine.card().peak_flops_one == 2.0
    assert quick == [1]
    assert len(list(cache.iterdir())) == 1
    forget()
    assert machine.card().peak_flops_one == 2.0
    assert machine.card(refresh=True).peak_flops_one == 4.0
    assert machine.card().peak_flops_one == 4.0
    assert len(quick) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"{",
        lambda _: b"[]",
        lambda _: b"null",
        lambda _: b"\xff\xfe",
        lambda rates: json.dumps({"peak_flops": 1.0}).encode(),
        lambda rates: json.dumps(rates | {"peak_flops": "fast"}).encode(),
        lambda rates: json.dumps(rates | {"bandwidth": 0.0}).encode(),
    ],
    ids=["empty", "cut", "list", "null", "not text", "partial", "words", "zero"],
)
def test_a_broken_card_is_measured_again(cache, quick, change):
    machine.card()
    (file,) = cache.iterdir()
    file.write_bytes(change(json.loads(file.read_bytes())))
    forget()
    assert machine.card().peak_flops_one == 4.0
    assert json.loads(file.read_bytes())["peak_flops_one"] == 4.0


@pytest.mark.usefixtures("quick")
def test_a_cache_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert machine.card().peak_flops_one == machine.card().peak_flops_one == 2.0


def test_the_probe_reads_past_the_last_caches_within_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda _: 64 << 30)
    assert machine._buffer_bytes(tmp_path) == 256 << 20
    folder = "sys/devices/system/cpu/cpu{}/cache/index3/"
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):  # two caches of 96 MiB
        files = {"size": "98304K\n", "shared_cpu_list": f"{shared}\n"}
        tree(tmp_path, {folder.format(core) + name: text for name, text in files.items()})
    assert machine._buffer_bytes(tmp_path) == 4 * 2 * 96 << 20
    monkeypatch.setattr(machine, "memory_available", lambda _: 400 << 20)
    assert machine._buffer_bytes(tmp_path) == 100 << 20


def test_the_fingerprint_names_the_machine():
    name = machine.fingerprint()
    assert len(name) == 16
    assert int(name, 16) >= 0
    assert machine.fingerprint() == name
