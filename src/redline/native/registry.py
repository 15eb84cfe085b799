"""Which ONNX operators become nodes of ours, from which element types, and by which function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redline.native.dtypes import HALVES

if TYPE_CHECKING:
    from redline.native.ir import Value
    from redline.native.read import Op, Reader

Lowering = Callable[["Reader", "Op"], "list[Value]"]


@dataclass(frozen=True)
class Operator:
    """How one ONNX operator is read.

    Attributes:
        types: the element types that the input at `typed` may have. One that takes float32 takes
            float16 and bfloat16, too: computed in float32 and rounded.
        note: what it does not do, in a few words, for docs/operators.md.
    """

    lower: Lowering
    types: tuple[str, ...]
    typed: int = 0
    note: str = ""

    @property
    def widens(self) -> bool:
        """float16 and bfloat16 go through float32."""
        return "float32" in self.types and not set(HALVES) <= set(self.types)


OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str, types: tuple[str, ...] = ("float32",), typed: int = 0, note: str = ""
) -> Callable[[Lowering], Lowering]:
    """Registers how ONNX operators become nodes.

    Example:
        >>> @operator("Floor", types=FLOATS)
        ... def _floor(r, op): ...
    """

    def register(lowering: Lowering) -> Lowering:
        entry = Operator(lowering, types, typed, note)
        OPERATORS.update(dict.fromkeys(names, entry))
        return lowering

    return register


# What no compiler of fixed shapes can take, by reason; the rest of what is missing says just that.
NEVER = {
    name: reason
    for reason, names in {
        "its output's shape depends on values": (
            "NonZero", "Unique", "NonMaxSuppression", "Compress", "StringSplit",
        ),
        "it draws random numbers": (
            "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
            "Multinomial", "Bernoulli",
        ),
        "it works on sequences": (
            "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
            "SequenceLength", "SequenceMap", "SplitToSequence", "ConcatFromSequence",
        ),
        "it works on optional values": ("Optional", "OptionalGetElement", "OptionalHasElement"),
        "it works on strings": (
            "StringConcat", "StringNormalizer", "RegexFullMatch", "TfIdfVectorizer",
        ),
        "it decodes files": ("ImageDecoder",),
    }.items()
    for name in names
}  # fmt: skip
