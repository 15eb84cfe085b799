"""Numbers as people read them: three significant digits, a unit, a dash for the unknown."""

from __future__ import annotations

import math

from redline.measure.record import Timing

UNKNOWN = "–"

_TIME = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_SCALE = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))


def seconds(value: float | None) -> str:
    """A duration.

    Example:
        >>> seconds(41.26e-6), seconds(0.0358), seconds(0.9999e-3), seconds(125)
        ('41.3 µs', '35.8 ms', '1.00 ms', '2 min 5 s')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value >= 59.95:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    value = _rounded(value)
    size, name = _unit(value, _TIME)
    return f"{significant(value / size)} {name}"


def interval(timing: Timing | None) -> str:
    """Low to high in the unit of the median, without repeating the unit.

    Example:
        >>> interval(Timing(0.0358, 0.0354, 0.0361, 0.04, ()))
        '35.4–36.1'
    """
    if timing is None or timing.median >= 59.95:
        return "" if timing is None else f"{seconds(timing.low)}–{seconds(timing.high)}"
    size, _ = _unit(timing.median, _TIME)
    digits = decimals(timing.median / size)
    return f"{timing.low / size:.{digits}f}–{timing.high / size:.{digits}f}"


def size(value: float | None) -> str:
    """Bytes, in powers of ten as goals are given.

    Example:
        >>> size(44_712_345), size(812)
        ('44.7 MB', '812 B')
    """
    if value is None:
        return UNKNOWN
    return f"{value:.0f} B" if value < 1000 else _scaled(value, "B")


def binary(value: float | None) -> str:
    """Bytes in powers of two, as caches are built.

    Example:
        >>> binary(49152), binary(33_554_432)
        ('48 KiB', '32 MiB')
    """
    if value is None:
        return UNKNOWN
    step, name = (2**20, "MiB") if value >= 2**20 else (2**10, "KiB")
    return f"{value / step:.4g} {name}"


def flops(value: float | None, per_second: bool = False) -> str:
    """Floating-point operations, or the rate of them.

    Example:
        >>> flops(3.64e9), flops(4.1e11, per_second=True)
        ('3.64 GFLOP', '410 GFLOP/s')
    """
    return _scaled(value, "FLOP/s" if per_second else "FLOP")


def bandwidth(value: float | None) -> str:
    """Bytes a second.

    Example:
        >>> bandwidth(31.2e9)
        '31.2 GB/s'
    """
    return _scaled(value, "B/s")


def rate(value: float | None) -> str:
    """Items a second.

    Example:
        >>> rate(45.87), rate(23_900)
        ('45.9 /s', '23.9 k/s')
    """
    return _scaled(value, "/s")


def count(value: int | float | None) -> str:
    """A plain count, shortened from ten thousand on.

    Example:
        >>> count(62), count(11_689_512)
        ('62', '11.7 M')
    """
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value < 10_000 else _scaled(value, "").strip()


def ratio(value: float | None) -> str:
    """How many times.

    Example:
        >>> ratio(1.6412), ratio(12.34), ratio(142.4), ratio(0.7972)
        ('1.64×', '12.3×', '142×', '0.80×')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.{min(2, decimals(value))}f}×"


def percent(value: float | None) -> str:
    """A fraction in percent.

    Example:
        >>> percent(0.4217), percent(0.0042)
        ('42 %', '0.42 %')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    digits = 0 if value >= 0.0995 else 1 if value >= 0.00995 else 2
    return f"{100 * value:.{digits}f} %"


def error(value: float | None) -> str:
    """A relative error, two digits.

    Example:
        >>> error(1.24e-6), error(0.0), error(float("inf")), error(0.25)
        ('1.2e-6', '0', '∞', '0.25')
    """
    if value is None:
        return UNKNOWN
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def significant(value: float) -> str:
    """Three significant digits, never in scientific notation above one thousandth.

    Example:
        >>> significant(9.999), significant(0.5), significant(312.6)
        ('10.0', '0.500', '313')
    """
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Decimals that leave three significant digits."""
    rounded = abs(_rounded(value))
    return 0 if rounded >= 100 else 1 if rounded >= 10 else 2 if rounded >= 1 or rounded == 0 else 3


def _unit(value: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """The largest unit that is not above the value once it is rounded: 999.9 µs is 1.00 ms."""
    rounded = _rounded(value)
    return next((unit for unit in reversed(units) if rounded >= unit[0] * (1 - 1e-9)), units[0])


def _scaled(value: float | None, name: str) -> str:
    if value is None or not math.isfinite(value):
        return UNKNOWN
    value = _rounded(value)
    step, prefix = _unit(value, _SCALE)
    return f"{significant(value / step)} {prefix}{name}"


def _rounded(value: float) -> float:
    """To three significant digits; once, so that unit and digits agree on what 999.5 is."""
    return float(f"{value:.3g}")
