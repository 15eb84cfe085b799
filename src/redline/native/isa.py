"""Instruction sets as data: what a kernel template and the C++ compiler must know of each."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from redline.errors import UnknownNameError


@dataclass(frozen=True)
class Isa:
    """One target.

    Attributes:
        vector_bytes: bytes of a vector; its floats are also the channel block of NCHWc.
        registers: vector registers; a tile of accumulators leaves room for operands in them.
        flags: what the C++ compiler is told; never -march=native, which nobody could ship.
        needs: CPU flags as Linux spells them.
        machine: platform.machine() it is for; "" for any.
    """

    name: str
    vector_bytes: int
    registers: int
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    machine: str = ""

    @property
    def lanes(self) -> int:
        """float32 values in a vector."""
        return self.vector_bytes // 4

    @property
    def accumulators(self) -> int:
        """Vectors of sums that a tile may hold; the rest of the registers carry its operands."""
        return self.registers - 4


_X86 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512",
            64,
            32,
            (*_X86, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
            + ("-mprefer-vector-width=512",),
            ("avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq"),
            "x86_64",
        ),
        Isa("avx2", 32, 16, _X86, ("avx2", "fma", "f16c", "bmi2"), "x86_64"),
        Isa("neon", 16, 32, (), ("asimd",), "aarch64"),
        Isa("portable", 16, 16, (), ()),
    )
}


def get(name: str) -> Isa:
    """An instruction set by its name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in ISAS:
        raise UnknownNameError("instruction set", name, ISAS)
    return ISAS[name]


def usable(cpu_flags: Sequence[str], machine: str = "") -> tuple[Isa, ...]:
    """What a CPU with these flags can run, the widest first.

    Example:
        >>> [isa.name for isa in usable(["avx2", "fma", "f16c", "bmi2"], "x86_64")]
        ['avx2', 'portable']
    """
    here = machine or platform.machine()
    return tuple(
        isa
        for isa in ISAS.values()
        if isa.machine in ("", here) and set(isa.needs) <= set(cpu_flags)
    )
