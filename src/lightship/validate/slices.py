"""Slices: groups of rows that do worse than the others, found without anybody naming them.

A small regression tree of our own looks for conditions under which a target (an error, a loss) is high. It sees the
*selection* rows alone; the slices are then told, and tested, on the gate rows, which did not choose them. So a slice
that the search made up out of noise has no more chance there than one that was named beforehand.

The tree is grown again on the rows outside of the worst node until nothing stands out, which finds several slices.
Conditions that add nothing are dropped, and thresholds have three digits, so that the words say exactly what is meant.
Source of the tree: Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Json

__all__ = ["Condition", "Features", "Slice", "find_slices", "least_rows", "p_worse"]

MOST_SLICES = 5
DEPTH = 3
_BINS = 32
_LEAST_ROWS = 15
_LEAST_SHARE = 0.02
_LEAST_EXCESS = 1.5  # standard errors above the mean; a lesser slice would only cost the tests of the others power
_CONDITION_COST = 0.75
"""Standard errors by which another condition must make a slice stand out more: each has many cuts to choose from."""


@dataclass(frozen=True)
class Features:
    """What is known of each row without its label.

    Attributes:
        numbers: name for people -> float64 (rows,); what is not finite is counted as 0.
        classes: name for people -> texts (rows,), e.g. the label that the model gives.
    """

    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clean = {
            name: np.nan_to_num(np.asarray(column, np.float64), posinf=0, neginf=0)
            for name, column in self.numbers.items()
        }
        object.__setattr__(self, "numbers", clean)
        lengths = {len(column) for column in (*self.numbers.values(), *self.classes.values())}
        twice = set(self.numbers) & set(self.classes)
        if len(lengths) != 1 or twice:
            raise InvalidInput(
                "Features need columns of one length and different names. "
                f"Got lengths {sorted(lengths)}, names used twice: {sorted(twice)}."
            )

    def __len__(self) -> int:
        return len(next(iter((*self.numbers.values(), *self.classes.values()))))

    def __or__(self, other: Features) -> Features:
        """Return the features of both, about the same rows."""
        return Features({**self.numbers, **other.numbers}, {**self.classes, **other.classes})


@dataclass(frozen=True, slots=True)
class Condition:
    """``feature < value``, ``feature >= value``, ``feature is value`` or ``feature is not value``."""

    feature: str
    op: str
    value: float | str

    def holds(self, features: Features) -> np.ndarray:
        """Return for each row whether it is so: bool (rows,)."""
        if self.op in ("<", ">="):
            column = features.numbers[self.feature]
            return np.asarray(column < self.value if self.op == "<" else column >= self.value)
        same = np.asarray(features.classes[self.feature] == self.value, dtype=bool)
        return same if self.op == "is" else ~same

    @property
    def words(self) -> str:
        """E.g. ``mean brightness < 0.21`` or ``answer is '3'``."""
        return f"{self.feature} {self.op} " + (f"{self.value!r}" if isinstance(self.value, str) else f"{self.value:g}")

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"feature": self.feature, "op": self.op, "value": self.value}


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows that meet all conditions."""

    conditions: tuple[Condition, ...]

    def holds(self, features: Features) -> np.ndarray:
        """Return for each row whether it belongs: bool (rows,)."""
        inside = np.ones(len(features), dtype=bool)
        for condition in self.conditions:
            inside &= condition.holds(features)
        return inside

    @property
    def words(self) -> str:
        """All conditions in one line."""
        return " and ".join(condition.words for condition in self.conditions)

    def to_json(self) -> list[Json]:
        """Return the JSON form."""
        return [condition.to_json() for condition in self.conditions]


def least_rows(rows: int) -> int:
    """Return how many of ``rows`` selection rows a slice must have: 2 %, and 15."""
    return max(_LEAST_ROWS, math.ceil(_LEAST_SHARE * rows))


def find_slices(
    features: Features, target: np.ndarray, *, most: int = MOST_SLICES, depth: int = DEPTH
) -> tuple[Slice, ...]:
    """Return the slices in which ``target`` is high, the one that stands out most first.

    Args:
        features: of the selection rows.
        target: what is bad about each row, e.g. 1 for an error: float (rows,), finite.
        most: return at most so many.
        depth: most conditions of a slice, before those that say the same are joined.

    Returns:
        Slices of at least ``least_rows`` rows and mean targets 1.5 standard errors above the mean of all rows or more.
    """
    target = np.asarray(target, dtype=np.float64)
    if target.shape != (len(features),) or not np.isfinite(target).all():
        raise InvalidInput(f"A target needs one finite number for each of {len(features)} rows. Got {target.shape}.")
    least = least_rows(len(target))
    spread = float(target.std())
    if len(target) < 2 * least or not spread:
        return ()
    splits = _splits(features)
    codes = _codes(features, splits)
    scale = _Scale(float(target.mean()), spread, least)
    rest = np.ones(len(target), dtype=bool)
    found: list[Slice] = []
    while len(found) < most and rest.sum() >= 2 * least:
        best, score = None, _LEAST_EXCESS
        for conditions, inside in _nodes(codes, splits, target, rest, least, depth):
            excess = scale.excess(target, inside) - _CONDITION_COST * (len(conditions) - 1)
            if excess > score:
                best, score = conditions, excess
        if best is None:
            break
        worst = _simplest(Slice(_joined(best)), features, target, rest, scale)
        inside = worst.holds(features) & rest
        if not inside.any():
            break
        if worst not in found:
            found.append(worst)
        rest &= ~inside
    return tuple(found)


def p_worse(errors: int, rows: int, other_errors: int, other_rows: int) -> float:
    """Return Fisher's exact one-sided p-value that a slice errs more often than the other rows.

    ``P(X >= errors)`` for the hypergeometric X of ``rows`` rows drawn from all, given all errors (Fisher, The Design of
    Experiments, 1935). Small shows that the slice is worse. 1 when there are no other rows.
    """
    total, bad = rows + other_rows, errors + other_errors
    if not 0 <= errors <= rows or not 0 <= other_errors <= other_rows:
        raise InvalidInput(
            f"Errors must be counts among the rows. Got {errors} of {rows}, {other_errors} of {other_rows}."
        )
    counts = range(errors, min(rows, bad) + 1)
    base = _log_choose(total, bad)
    return min(
        1.0,
        math.fsum(
            math.exp(_log_choose(rows, k) + _log_choose(other_rows, bad - k) - base)
            for k in counts
            if bad - k <= other_rows
        ),
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True, slots=True)
class _Scale:
    mean: float
    spread: float
    least: int

    def excess(self, target: np.ndarray, inside: np.ndarray) -> float:
        """Return how many standard errors the rows inside are above the mean of all; few rows are none."""
        count = int(inside.sum())
        if count < self.least:
            return -math.inf
        return (float(target[inside].mean()) - self.mean) / (self.spread / math.sqrt(count))


_Splits = dict[str, "np.ndarray | list[str]"]


def _splits(features: Features) -> _Splits:
    """Return where each feature may be cut: thresholds of three digits, or the values that are frequent."""
    found: _Splits = {}
    for name, column in features.numbers.items():
        cuts = np.unique([_rounded(value) for value in np.quantile(column, np.arange(1, _BINS) / _BINS)])
        cuts = cuts[(cuts > column.min()) & (cuts <= column.max())]
        if cuts.size:
            found[name] = cuts
    for name, texts in features.classes.items():
        values, counts = np.unique(texts, return_counts=True)
        frequent = [str(value) for value, count in zip(values, counts, strict=True) if count >= _LEAST_ROWS]
        if len(values) > 1 and frequent:
            found[name] = frequent
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _codes(features: Features, splits: _Splits) -> dict[str, np.ndarray]:
    """Return feature -> for each row the number of cuts at or below it, or the position of its value (last: others)."""
    codes: dict[str, np.ndarray] = {}
    for name, cuts in splits.items():
        if isinstance(cuts, list):
            position = {value: index for index, value in enumerate(cuts)}
            codes[name] = np.array([position.get(str(text), len(cuts)) for text in features.classes[name]])
        else:
            codes[name] = np.searchsorted(cuts, features.numbers[name], side="right")
    return codes


def _nodes(
    codes: Mapping[str, np.ndarray],
    splits: _Splits,
    target: np.ndarray,
    rest: np.ndarray,
    least: int,
    depth: int,
) -> list[tuple[tuple[Condition, ...], np.ndarray]]:
    """Grow a tree on the rows of ``rest``; return the conditions and rows of every node but the root."""
    nodes: list[tuple[tuple[Condition, ...], np.ndarray]] = []
    open_: list[tuple[tuple[Condition, ...], np.ndarray]] = [((), rest)]
    while open_:
        conditions, inside = open_.pop()
        if conditions:
            nodes.append((conditions, inside))
        if len(conditions) >= depth:
            continue
        cut = _best_split(codes, splits, target, np.flatnonzero(inside), least)
        if cut is None:
            continue
        name, index = cut
        cuts = splits[name]
        if isinstance(cuts, list):
            below, low, high = codes[name] == index, "is", "is not"
        else:
            below, low, high = codes[name] <= index, "<", ">="
        value = cuts[index] if isinstance(cuts, list) else float(cuts[index])
        open_.append(((*conditions, Condition(name, low, value)), inside & below))
        open_.append(((*conditions, Condition(name, high, value)), inside & ~below))
    return nodes


def _best_split(
    codes: Mapping[str, np.ndarray], splits: _Splits, target: np.ndarray, rows: np.ndarray, least: int
) -> tuple[str, int] | None:
    """Return the cut that lowers the squared error most: ``n_l n_r / n (mean_l - mean_r)^2``."""
    best, cut = 1e-12, None
    total, values = len(rows), target[rows]
    for name, cuts in splits.items():
        here = codes[name][rows]
        counts = np.bincount(here, minlength=len(cuts) + 1)[: len(cuts)].astype(np.float64)
        sums = np.bincount(here, weights=values, minlength=len(cuts) + 1)[: len(cuts)]
        if not isinstance(cuts, list):
            counts, sums = counts.cumsum(), sums.cumsum()
        allowed = (counts >= least) & (total - counts >= least)
        if not allowed.any():
            continue
        left, right = np.maximum(counts, 1), np.maximum(total - counts, 1)
        gain = np.where(allowed, left * right / total * (sums / left - (values.sum() - sums) / right) ** 2, 0)
        if gain.max() > best:
            best, cut = float(gain.max()), (name, int(gain.argmax()))
    return cut


def _joined(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """Join conditions of one feature: of two bounds on one side the tighter one says both."""
    tightest: dict[tuple[str, str], Condition] = {}
    others: list[Condition] = []
    for condition in conditions:
        if not isinstance(condition.value, float):
            others.append(condition)
            continue
        key = (condition.feature, condition.op)
        known = tightest.get(key)
        tighter = known is None or (condition.value < float(known.value)) == (condition.op == "<")
        if tighter:
            tightest[key] = condition
    whole = {condition.feature for condition in others if condition.op == "is"}
    return (*tightest.values(), *(c for c in others if c.op == "is" or c.feature not in whole))


def _simplest(found: Slice, features: Features, target: np.ndarray, rest: np.ndarray, scale: _Scale) -> Slice:
    """Drop conditions while the slice stands out nearly as much."""
    while len(found.conditions) > 1:
        score = scale.excess(target, found.holds(features) & rest)
        shorter = [Slice(tuple(c for c in found.conditions if c is not dropped)) for dropped in found.conditions]
        best = max(shorter, key=lambda each: scale.excess(target, each.holds(features) & rest))
        if scale.excess(target, best.holds(features) & rest) < score - _CONDITION_COST:
            break
        found = best
    return found
