"""The C++ compiler's errors, and the objects that are kept."""

from __future__ import annotations

import os

import pytest
from native_models import needs_compiler

from redline.errors import BuildError, MissingError
from redline.native import isa, toolchain

TEXT = 'extern "C" int answer() {{ return {}; }}'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def build(folder, number):
    toolchain.build({"a.cpp": TEXT.format(number)}, isa.get("portable"), folder / "a.so")


@needs_compiler
def test_the_same_source_is_compiled_once(folder, monkeypatch):
    build(folder, 1)
    asked = []
    run = toolchain._run
    monkeypatch.setattr(toolchain, "_run", lambda command: asked.append(command) or run(command))
    build(folder, 1)
    assert [("-shared" in command) for command in asked] == [True]
    build(folder, 2)
    assert len(asked) == 3


@needs_compiler
def test_what_was_not_used_for_longest_goes_first(folder, monkeypatch):
    for number in range(3):
        build(folder, number)
    objects = sorted(
        (folder / "cache" / "objects").glob("*.o"), key=lambda path: path.stat().st_mtime
    )
    for age, path in enumerate(objects):
        os.utime(path, (1000 + age, 1000 + age))
    monkeypatch.setattr(toolchain, "OBJECTS_LIMIT", 2 * objects[0].stat().st_size)
    build(folder, 9)
    assert [path.exists() for path in objects] == [False, True, True]


@needs_compiler
def test_the_compilers_own_words_are_told(folder):
    with pytest.raises(BuildError, match=r"error: .*nonsense"):
        toolchain.build({"a.cpp": "nonsense;"}, isa.get("portable"), folder / "a.so")
    assert not (folder / "a.so").exists()


def test_without_a_compiler_the_command_that_helps_is_told(folder, monkeypatch):
    monkeypatch.setattr(toolchain, "compiler", lambda: None)
    with pytest.raises(MissingError) as caught:
        build(folder, 1)
    assert "apt-get install g++" in caught.value.hint
