"""Work that threads claim: everything is done once, and whom the machine slows down does less."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_models import needs_compiler

from redline.native import toolchain

pytestmark = needs_compiler

CALLS = """
#define RL_SPIN_NS 100000
#include <stdio.h>
#include "runtime.hpp"
static long size, slow;
static int count[1000], owner[1000];
static void program(rl::Context& c, int t) {
    for (int part = 0; part < 2; ++part) {  // dealt anew within a call
        rl::barrier(c, size);
        for (rl::Span taken; rl::claim(c, t, taken);)
            for (long i = taken.first; i < taken.last; ++i) {
                ++count[i];
                owner[i] = t;
                if (t == slow) usleep(3000);
            }
    }
}
int main(int, char** arguments) {
    const int threads = atoi(arguments[1]), calls = atoi(arguments[3]);
    size = atol(arguments[2]);
    slow = atol(arguments[4]);
    rl::Context* c = rl::open(nullptr, 0, 1, threads, program);
    for (int i = 0; i < calls; ++i) rl::run(*c, nullptr, nullptr);
    for (long i = 0; i < size; ++i) printf("%d %d\\n", count[i], owner[i]);
    rl::close(c);
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    def make(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("claims")
        (folder / "main.cpp").write_text(CALLS)
        subprocess.run(
            [toolchain.compiler(), "-std=c++17", "-O2", "-DRL_VECTOR_BYTES=16", "-Wno-psabi",
             *flags, f"-I{toolchain.KERNELS}", "main.cpp", "-o", "main", "-lpthread"],
            cwd=folder, check=True,
        )  # fmt: skip
        return folder / "main"

    return make


@pytest.fixture(scope="module")
def program(build):
    return build()


def claims(program: Path, threads: int, size: int, calls: int, slow: int = -1) -> list[list[int]]:
    """[how often it was done, by whom] of every unit."""
    command = [program, *map(str, (threads, size, calls, slow))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [[int(word) for word in line.split()] for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_everything_is_done_once(program, threads, size):
    found = claims(program, threads, size, 50)
    assert [count for count, _ in found] == [2 * 50] * size


def test_another_thread_does_what_a_slow_one_has_not_begun(program):
    found = claims(program, 2, 64, 1, slow=1)
    assert [count for count, _ in found] == [2] * 64
    slow = sum(owner == 1 for _, owner in found)
    assert slow < 32  # its share


@pytest.mark.slow
def test_claims_do_not_race(build):
    program = build("-fsanitize=thread", "-g1")
    ran = subprocess.run([program, "4", "200", "20", "-1"], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert ran.returncode == 0, ran.stderr[:2000]
