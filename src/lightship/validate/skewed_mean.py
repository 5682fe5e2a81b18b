"""Whether the mean of ``z = d - (factor - 1) a`` lies below 0, from sums of powers of the pairs (a, d).

Two p-values, the larger one counts: Student's t, and Hall's transformation of it, which takes the skewness of z into
account, ``Phi(sqrt(n) (u + g u^2/3 + g^2 u^3/27 + g/6n))``, u being mean over deviation and g the skewness (Hall,
JRSS B 54:221-228, 1992). Neither sees values that might have occurred and did not: see ``bounded_mean`` for those.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

__all__ = ["POWERS", "central", "p_values", "student_tail", "sums_of"]

POWERS = [(i, j) for i in range(4) for j in range(4) if 1 <= i + j <= 3]
"""Of a and d: which products are summed."""

_NORMAL = NormalDist()


def sums_of(a: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return ``sum a^i d^j`` for each pair of ``POWERS``; shape (9,)."""
    return np.array([float((a**i * d**j).sum()) for i, j in POWERS])


def central(sums: dict[tuple[int, int], float], n: int, factor: float) -> tuple[float, float, float]:
    """Return mean, standard deviation and skewness of ``z = d - (factor - 1) a``, from the sums of n pairs (a, d)."""
    if n < 2:
        return 0.0, 0.0, 0.0
    k = factor - 1
    first = (sums[0, 1] - k * sums[1, 0]) / n
    second = (sums[0, 2] - 2 * k * sums[1, 1] + k * k * sums[2, 0]) / n
    third = (sums[0, 3] - 3 * k * sums[1, 2] + 3 * k * k * sums[2, 1] - k**3 * sums[3, 0]) / n
    variance = max(second - first * first, 0.0)
    terms = (sums[0, 2] + 2 * abs(k * sums[1, 1]) + k * k * sums[2, 0]) / n
    if variance <= 1e-13 * terms:  # no more than rounding
        return first, 0.0, 0.0
    skew = (third - 3 * first * second + 2 * first**3) / variance**1.5
    return first, math.sqrt(variance * n / (n - 1)), skew


def p_values(sums: dict[tuple[int, int], float], n: int, factor: float) -> tuple[float, float]:
    """Return the p-values against a mean of z of 0 and more, and of 0 and less; see ``central``."""
    mean, deviation, skew = central(sums, n, factor)
    if n < 3:
        return 1.0, 1.0
    if deviation == 0:
        return (0.0, 1.0) if mean < 0 else (1.0, 0.0) if mean > 0 else (1.0, 1.0)
    u = mean / deviation
    hall = u + skew * u * u / 3 + skew * skew * u**3 / 27 + skew / (6 * n)
    student, transformed = student_tail(u * math.sqrt(n), n - 1), _NORMAL.cdf(math.sqrt(n) * hall)
    return max(student, transformed), max(1 - student, 1 - transformed)


def student_tail(t: float, degrees: int) -> float:
    """Return ``P(T <= t)``, by the incomplete beta function's continued fraction (Numerical Recipes, 6.4)."""
    x = degrees / (degrees + t * t)
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, x)
    return tail if t < 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1 - front / b * _beta_fraction(b, a, 1 - x)
    return front / a * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 500):
        step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / (1 + step * d), 1 + step / c
        result *= d * c
        step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + step * d), 1 + step / c
        result *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return result
