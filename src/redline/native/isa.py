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
        whole: it differs from the one after it in products of whole numbers alone; floats are not
            compiled for it, so that they run on more machines.
    """

    name: str
    vector_bytes: int
    registers: int
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    machine: str = ""
    whole: bool = False

    @property
    def lanes(self) -> int:
        """float32 values in a vector."""
        return self.vector_bytes // 4

    @property
    def accumulators(self) -> int:
        """Vectors of sums that a tile may hold; the rest of the registers carry its operands."""
        return self.registers - 4


_AVX2 = ("avx2", "fma", "f16c", "bmi2")  # as Linux and, with -m before them, compilers spell them
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_WIDE = "-mprefer-vector-width=512"


def _told(needs: Sequence[str], *more: str) -> tuple[str, ...]:
    return (*(f"-m{flag.replace('_', '')}" for flag in needs), *more)


_VNNI = (*_AVX512, "avx512_vnni")
ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512_vnni", 64, 32, _told(_VNNI, _WIDE), _VNNI, "x86_64", whole=True),
        Isa("avx512", 64, 32, _told(_AVX512, _WIDE), _AVX512, "x86_64"),
        Isa("avx2", 32, 16, _told(_AVX2), _AVX2, "x86_64"),
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


def usable(cpu_flags: Sequence[str], machine: str = "", *, whole: bool = False) -> tuple[Isa, ...]:
    """What a CPU with these flags can run, the widest first; `whole` for a model in whole numbers.

    Example:
        >>> [isa.name for isa in usable(["avx2", "fma", "f16c", "bmi2"], "x86_64")]
        ['avx2', 'portable']
    """
    here = machine or platform.machine()
    return tuple(
        isa
        for isa in ISAS.values()
        if isa.machine in ("", here) and set(isa.needs) <= set(cpu_flags) and whole >= isa.whole
    )
