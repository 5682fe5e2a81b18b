"""Intervals and tests that a release rests on. numpy only; each formula with its source.

No bootstrap and no normal approximation of a proportion: with no errors among n rows both have zero width and would
prove anything. docs/statistics.md shows the error rates of the whole gate by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Interval, Verdict
from lightship.validate.exact_paired import critical_region, drop_bound, p_inferior, p_noninferior

__all__ = [
    "ClassHarm",
    "Noninferiority",
    "f1_interval",
    "gap_interval",
    "harm",
    "holm",
    "mcnemar_one_sided",
    "mean_radius",
    "mean_rows_needed",
    "noninferiority",
    "release_probability",
    "rows_needed",
    "wilson",
]

_NORMAL = NormalDist()
_LARGEST_EXACT_ROWS = 200_000


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a binomial proportion.

    ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p = k/n`` (Wilson, JASA 22:209-212, 1927;
    recommended by Brown, Cai, DasGupta, Statistical Science 16:101-133, 2001). Of no rows nothing is known: [0, 1].

    Raises:
        InvalidInput: not ``0 <= k <= n``, or a confidence outside of (0, 1).
    """
    _check_count("k", k, n)
    z = _two_sided_z(confidence)
    if n == 0:
        return Interval(estimate=0.0, low=0.0, high=1.0, confidence=confidence, n=0)
    p = k / n
    center = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if k == 0 else (center - reach) / scale  # on paper exactly 0 and 1; rounding would miss by 1e-17
    high = 1.0 if k == n else (center + reach) / scale
    return Interval(estimate=p, low=low, high=high, confidence=confidence, n=n)


def f1_interval(tp: int, fp: int, fn: int, confidence: float = 0.95) -> Interval:
    """Return an interval of the F1 score of one class.

    ``F* = TP / (TP + FP + FN)`` is a binomial proportion given its denominator, and ``F1 = 2 F* / (1 + F*)`` grows with
    it, so Wilson's limits of F* carry over (the transform: Hand, Christen, Kirielle, Machine Learning 110:451-456,
    2021). ``n`` is the denominator: rows that are of the class or were
    given to it. Of no such rows nothing is known: [0, 1].
    """
    star = wilson(tp, tp + fp + fn, confidence)

    def f1(value: float) -> float:
        return 2 * value / (1 + value)

    return Interval(f1(star.estimate), f1(star.low), f1(star.high), confidence=confidence, n=star.n)


def gap_interval(
    k_train: int, n_train: int, k_validation: int, n_validation: int, confidence: float = 0.95
) -> Interval:
    """Return Newcombe's interval of ``k_train/n_train - k_validation/n_validation``: how far training is ahead.

    With Wilson's limits (l1, u1) and (l2, u2): ``d - sqrt((p1-l1)^2 + (u2-p2)^2)`` to
    ``d + sqrt((u1-p1)^2 + (p2-l2)^2)`` (method 10 of Newcombe, Statistics in Medicine 17:873-890, 1998). The two parts
    hold different rows, so the proportions are independent. ``n`` is the smaller of the two.
    """
    one, two = wilson(k_train, n_train, confidence), wilson(k_validation, n_validation, confidence)
    gap = one.estimate - two.estimate
    return Interval(
        estimate=gap,
        low=gap - math.hypot(one.estimate - one.low, two.high - two.estimate),
        high=gap + math.hypot(one.high - one.estimate, two.estimate - two.low),
        confidence=confidence,
        n=min(n_train, n_validation),
    )


def mean_radius(values: np.ndarray, *, alpha: float) -> float:
    """Return by how much the true mean of values in [0, 1] may lie above their average, and as much below.

    The smaller of two bounds, each at alpha/2, so that both hold together (union bound): Hoeffding's
    ``sqrt(ln(2/alpha) / 2n)`` (JASA 58:13-30, 1963) and the empirical Bernstein bound
    ``sqrt(2 V ln(4/alpha) / n) + 7 ln(4/alpha) / 3(n-1)``, V the sample variance (Maurer, Pontil, COLT 2009, theorem
    4), which is the tighter one for many values that are nearly alike. Either side errs with probability at most alpha.

    Args:
        values: independent, in [0, 1], shape (n,), n >= 1.
        alpha: in (0, 1), of one side.

    Raises:
        InvalidInput: no values, or one outside of [0, 1]; alpha out of its range.
    """
    _check_share("alpha", alpha)
    n = values.size
    if not n or not (values.min() >= 0 and values.max() <= 1):
        raise InvalidInput(f"The bound of a mean needs values in [0, 1], at least one. Got {n} values.")
    hoeffding = math.sqrt(math.log(2 / alpha) / (2 * n))
    if n == 1:
        return hoeffding
    log = math.log(4 / alpha)
    return min(hoeffding, math.sqrt(2 * float(values.var(ddof=1)) * log / n) + 7 * log / (3 * (n - 1)))


def mean_rows_needed(gap: float, *, alpha: float) -> int | None:
    """Return a number of values with which ``mean_radius`` is at most ``gap``, by Hoeffding's bound alone.

    Returns:
        ``None`` if no number suffices (``gap <= 0``).
    """
    return math.ceil(math.log(2 / alpha) / (2 * gap * gap)) if gap > 0 else None


def mcnemar_one_sided(losses: int, gains: int) -> float:
    """Return the exact one-sided McNemar p-value: ``P(Bin(losses + gains, 1/2) >= losses)``.

    Small shows that losses are more frequent than gains (McNemar, Psychometrika 12:153-157, 1947; exact form). With no
    discordant row it is 1.
    """
    m = losses + gains
    if losses == 0:
        return 1.0
    counts = np.arange(losses, m + 1)
    log_pmf = [math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) for k in counts]
    return float(min(1.0, np.exp(np.array(log_pmf) - m * math.log(2)).sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p-values, in the order given.

    The i-th smallest of m is multiplied by ``m - i + 1`` and made monotone (Holm, Scandinavian Journal of Statistics
    6:65-70, 1979): calling those at most alpha significant errs anywhere with probability at most alpha.
    """
    m = len(p_values)
    adjusted = [1.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


@dataclass(frozen=True, slots=True)
class ClassHarm:
    """Whether the variant harms one true class.

    Attributes:
        label: the class.
        n: rows of it.
        losses: rows that only the reference got right.
        gains: rows that only the variant got right.
        p: exact one-sided McNemar.
        p_adjusted: after Holm over all classes.
        harmed: ``p_adjusted <= alpha``.
        undecided: not harmed, but a drop of more than the margin is not ruled out either (Wilson's one-sided upper
            limit of the loss rate, less the gains seen, is above it).
    """

    label: str
    n: int
    losses: int
    gains: int
    p: float
    p_adjusted: float
    harmed: bool
    undecided: bool

    @property
    def drop(self) -> float:
        """Accuracy on this class that the variant lost, in [-1, 1]."""
        return (self.losses - self.gains) / self.n if self.n else 0.0


def harm(
    labels: Sequence[str],
    rows: Sequence[int],
    losses: Sequence[int],
    gains: Sequence[int],
    *,
    alpha: float = 0.05,
    margin: float = 0.05,
) -> tuple[ClassHarm, ...]:
    """Test every class for harm: exact one-sided McNemar, Holm over the classes.

    Args:
        labels: the classes.
        rows: rows of each true class.
        losses: of these, the rows that only the reference got right.
        gains: the rows that only the variant got right.
        alpha: probability of a false alarm anywhere.
        margin: a drop of more than this, if not ruled out, leaves a class undecided.
    """
    _check_share("alpha", alpha)
    for label, n, b, c in zip(labels, rows, losses, gains, strict=True):
        _check_count(f"losses + gains of class {label!r}", b + c, n)
    p_values = [mcnemar_one_sided(b, c) for b, c in zip(losses, gains, strict=True)]
    adjusted = holm(p_values)
    return tuple(
        ClassHarm(
            label=label,
            n=n,
            losses=b,
            gains=c,
            p=p,
            p_adjusted=p_adj,
            harmed=p_adj <= alpha,
            undecided=p_adj > alpha and (n == 0 or wilson(b, n, 1 - 2 * alpha).high - c / n > margin),
        )
        for label, n, b, c, p, p_adj in zip(labels, rows, losses, gains, p_values, adjusted, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Noninferiority:
    """The answer of the paired test.

    Attributes:
        verdict: ``PASSED`` - a drop of the margin or more is ruled out; ``FAILED`` - a drop of more than the margin is
            shown; ``UNDECIDED`` - neither.
        difference: accuracy of the variant minus that of the reference; ``low`` is its one-sided lower bound with
            confidence 1 - alpha (at most 0: the test asks no more), ``high`` is 1.
        p_noninferior: p-value against a drop of the margin or more.
        p_inferior: p-value against a drop of the margin or less.
        rows_needed: if undecided, how many gate rows would release a variant with no true drop and as many
            disagreements as were seen, with a probability of at least 0.8; else ``None``.
    """

    verdict: Verdict
    losses: int
    gains: int
    n: int
    margin: float
    alpha: float
    difference: Interval
    p_noninferior: float
    p_inferior: float
    rows_needed: int | None


def noninferiority(losses: int, gains: int, n: int, *, margin: float, alpha: float = 0.05) -> Noninferiority:
    """Test whether a variant loses less than ``margin`` of accuracy against the reference, on the same rows.

    Exact unconditional test on Tango's score, see ``exact_paired``: a variant whose true drop is the margin is released
    with probability at most ``alpha``, for every n and every amount of disagreement.

    Args:
        losses: rows where the reference is right and the variant wrong.
        gains: rows where the variant is right and the reference wrong.
        n: all rows, those on which both agree included.
        margin: in (0, 1), e.g. 0.01 for one point of accuracy.
        alpha: in (0, 0.5); candidates that are judged on the same rows share it.

    Raises:
        InvalidInput: a number out of its range.
    """
    _check_share("margin", margin)
    _check_share("alpha", alpha, below=0.5)
    _check_count("losses + gains", losses + gains, n)
    if n == 0 or losses < 0 or gains < 0:
        raise InvalidInput(
            f"The paired test needs at least one row and no negative counts. Got {losses}, {gains}, {n}."
        )
    better, worse = p_noninferior(losses, gains, n, margin), p_inferior(losses, gains, n, margin)
    verdict = Verdict.UNDECIDED
    if better <= alpha:
        verdict = Verdict.PASSED
    elif worse <= alpha:
        verdict = Verdict.FAILED
    bound = drop_bound(losses, gains, n, alpha, margin=margin)
    estimate = (gains - losses) / n
    return Noninferiority(
        verdict=verdict,
        losses=losses,
        gains=gains,
        n=n,
        margin=margin,
        alpha=alpha,
        difference=Interval(estimate=estimate, low=min(-bound, estimate), high=1.0, confidence=1 - alpha, n=n),
        p_noninferior=better,
        p_inferior=worse,
        rows_needed=(
            rows_needed((losses + gains + 0.5) / (n + 1), margin=margin, alpha=alpha)
            if verdict is Verdict.UNDECIDED
            else None
        ),
    )


def release_probability(n: int, *, p_loss: float, p_gain: float, margin: float, alpha: float) -> float:
    """Return how probably the test releases a variant with these true rates, exactly, or a little too low."""
    region = critical_region(n, margin, alpha)
    return 0.0 if region is None else region.probability(p_loss, p_gain)


def rows_needed(
    discordance: float, *, margin: float, alpha: float = 0.05, power: float = 0.8, drop: float = 0.0
) -> int | None:
    """Return a number of rows with which the test releases a variant with probability at least ``power``.

    Starts from ``n = (z_alpha + z_power)^2 (discordance - drop^2) / (margin - drop)^2`` and corrects it by the exact
    power until that suffices; beyond 200,000 rows the formula alone, plus 5 %, is the answer. A little above the least
    such number, which is not of use: power is a saw-tooth of n.

    Args:
        discordance: true share of rows on which exactly one of the two is right, in [|drop|, 1].
        margin: as in ``noninferiority``.
        alpha: as in ``noninferiority``.
        power: wanted probability of release.
        drop: true drop of the variant, below ``margin``.

    Returns:
        ``None`` if no number of rows suffices (``drop >= margin``).
    """
    if drop >= margin:
        return None
    p_loss, p_gain = (discordance + drop) / 2, max((discordance - drop) / 2, 0.0)
    z_alpha, z_power = -_NORMAL.inv_cdf(alpha), _NORMAL.inv_cdf(power)
    spread = max(discordance - drop * drop, 1e-12)
    # With no disagreement at all, (1 - margin)^n must still fall to alpha.
    least = math.log(alpha) / math.log1p(-margin)
    n = max((z_alpha + z_power) ** 2 * spread / (margin - drop) ** 2, least)
    enough, too_few = None, 0
    for _ in range(16):
        rows = math.ceil(n)
        if rows > _LARGEST_EXACT_ROWS:
            return math.ceil(n * 1.05)
        reached = release_probability(rows, p_loss=p_loss, p_gain=p_gain, margin=margin, alpha=alpha)
        if reached >= power:
            enough = rows
        else:
            too_few = rows
        if enough is not None and enough <= max(1.03 * too_few, least) + 1:
            break
        if enough is not None and too_few:
            n = math.sqrt(enough * too_few)
            continue
        z_reached = _NORMAL.inv_cdf(min(max(reached, 1e-6), 1 - 1e-6))
        step = ((z_alpha + z_power) / max(z_alpha + z_reached, 0.5 * z_alpha)) ** 2
        n = rows * max(step, 1.02) if enough is None else max(rows * min(max(step, 0.5), 0.97), least)
    return enough


def _two_sided_z(confidence: float) -> float:
    _check_share("confidence", confidence)
    return _NORMAL.inv_cdf(0.5 + confidence / 2)


def _check_share(name: str, value: float, *, below: float = 1.0) -> None:
    if not 0 < value < below:
        raise InvalidInput(f"`{name}` must be between 0 and {below:g}, both excluded. Got {value}.")


def _check_count(name: str, k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise InvalidInput(f"{name} must be a count from 0 to the number of rows, {n}. Got {k}.")
