"""The coefficients in native/kernels/math.hpp: prints each, with its largest error.

Least squares on Chebyshev nodes in float64, weights raised where the error is largest until it is
level (Lawson's algorithm), so that the fits are minimax within a percent.

    python tools/fit_polynomials.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special

Function = Callable[[np.ndarray], np.ndarray]


def nodes(low: float, high: float, count: int = 2000) -> np.ndarray:
    """Chebyshev nodes of [low, high]."""
    angles = (np.arange(count) + 0.5) * np.pi / count
    return (low + high) / 2 + (high - low) / 2 * np.cos(angles)


def fit(
    target: np.ndarray, columns: np.ndarray, scale: np.ndarray, rounds: int = 300
) -> tuple[np.ndarray, float]:
    """Coefficients that level `scale * (columns @ c - target)`, and its largest value."""
    weights = np.ones(len(target))
    best: tuple[np.ndarray, float] = (np.zeros(columns.shape[1]), np.inf)
    for _ in range(rounds):
        root = np.sqrt(weights) * scale
        found = np.linalg.lstsq(columns * root[:, None], target * root, rcond=None)[0]
        error = np.abs(scale * (columns @ found - target))
        if error.max() < best[1]:
            best = (found, float(error.max()))
        weights = weights * (error / error.max() + 1e-3)
        weights /= weights.sum()
    return best


def polynomial(f: Function, low: float, high: float, degree: int, scale: Function) -> None:
    """Print the polynomial of `degree` nearest to f, errors multiplied by scale(x)."""
    x = nodes(low, high)
    found, worst = fit(f(x), np.vander(x, degree + 1, increasing=True), scale(x))
    show(found, worst)


def rational(f: Function, high: float, top: int, bottom: int, scale: Function) -> None:
    """Print P and Q of f(x) = P(u) / Q(u) with u = x * x, Q(0) = 1, on [0, high]."""
    x = nodes(0, high)
    u = (x / high) ** 2
    target, q = f(x), np.ones_like(x)
    numerator = np.vander(u, top + 1, increasing=True)
    denominator = np.vander(u, bottom + 1, increasing=True)[:, 1:]
    for _ in range(12):
        columns = np.hstack([numerator, -target[:, None] * denominator])
        found, worst = fit(target, columns, scale(x) / q, 60)
        q = 1 + denominator @ found[top + 1 :]
    powers = high ** -(2.0 * np.arange(max(top, bottom) + 1))
    show(found[: top + 1] * powers[: top + 1], worst)
    show(np.concatenate([[1.0], found[top + 1 :] * powers[1 : bottom + 1]]), worst)


def show(coefficients: np.ndarray, worst: float) -> None:
    """One line: the arguments of horner(), lowest power first."""
    words = ", ".join(f"{float(np.float32(c)):.9e}f" for c in coefficients)
    print(f"    {words}  // error {worst:.1e}")


def main() -> None:
    """Print every fit."""
    print("exp: (exp(r) - 1 - r) / r^2, |r| <= ln(2) / 2")
    half = np.log(2) / 2
    polynomial(lambda r: (np.expm1(r) - r) / r**2, -half, half, 4, lambda r: r**2)
    print("exp, one degree less, for sums with 1")
    polynomial(lambda r: (np.expm1(r) - r) / r**2, -half, half, 3, lambda r: r**2)
    print("log: (log(1 + r) - r) / r^2")
    low, high = np.sqrt(0.5) - 1, np.sqrt(2) - 1
    polynomial(lambda r: (np.log1p(r) - r) / r**2, low, high, 8, lambda r: np.abs(r))
    print("tanh(x) / x as P / Q, |x| <= 9")
    rational(lambda x: np.tanh(x) / x, 9.0, 6, 3, lambda x: x / np.tanh(x))
    print("erf(x) / x as P / Q, |x| <= 3.9")
    rational(lambda x: special.erf(x) / x, 3.9, 6, 5, lambda x: x)


if __name__ == "__main__":
    main()
