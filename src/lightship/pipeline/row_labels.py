"""Labels of given rows, told beside the model's outputs: classes, tags, or numbers.

What they are follows from their dtype and shape and those of an output (``validate.meters.kind_of``). Nobody's labels
are guessed at: a text is a class that the model names, or a whole number; else it is no label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightship.errors import InvalidData, InvalidInput
from lightship.tasks.row_files import GivenLabels, few_of
from lightship.types import Dim, TensorSpec
from lightship.validate.meters import Kind, kind_of

__all__ = ["RowLabels", "classes_given", "output_of", "row_labels"]

_SCORES = ("logits", "scores", "probabilities", "output_probability", "probs")
"""Names of outputs with class scores, as exporters give them; the first that is there."""

_MOST_DIGITS = 10
_NO_CLASS = "the label must be the number of a class, from 0 on: its place among the scores of the model"
_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class RowLabels:
    """Labels of one kind.

    Attributes:
        kind: what they are.
        output: the output that they are about.
        values: int64 classes (rows,); 0 and 1 as uint8, (rows, tags); or float64 numbers, (rows, ...). Of a row whose
            label cannot be used it means nothing.
        bad: rows whose labels cannot be used, and why.
        names: of the classes that the output has scores of, their numbers if nobody named them; else empty.
        scored: whether the output holds scores of the classes, not the classes themselves.
    """

    kind: Kind
    output: str
    values: np.ndarray
    bad: Mapping[int, str]
    names: tuple[str, ...] = ()
    scored: bool = False

    @property
    def words(self) -> str:
        """What they are, in one line."""
        several = f"{self.values[0].size} a row" if self.values.ndim > 1 else "one a row"
        what = {
            "classes": "classes",
            "tags": f"tags (0 or 1, {several})",
            "numbers": f"numbers ({several})",
        }[self.kind]
        return f"labels are {what}, judged by the output {self.output!r}"

    def identity(self, index: int) -> bytes:
        """Return bytes that are equal for equal labels."""
        value = self.values[index]
        return int(value).to_bytes(8, "big", signed=True) if self.kind == "classes" else value.tobytes()


def row_labels(
    given: Sequence[object] | np.ndarray,
    answers: Mapping[str, np.ndarray],
    specs: Sequence[TensorSpec],
    *,
    names: Sequence[str] = (),
    wanted: str | None = None,
    kind: Kind | None = None,
) -> RowLabels:
    """Tell what labels are.

    Args:
        given: as they stand in the source, one for each row.
        answers: of the reference to some row, by output; first axis rows.
        specs: all outputs.
        names: of the classes, if the task has some.
        wanted: the output, if a person said so.
        kind: of the labels, likewise.

    Raises:
        InvalidInput: they go with no output, or with several.
        InvalidData: hardly any of them could be one.
    """
    _require_output(answers, wanted)
    values, bad = _numbers_of(given, {name: place for place, name in enumerate(names)})
    good = np.ones(len(values), dtype=bool)
    good[list(bad)] = False
    if not good.any():
        raise InvalidData(f"No label can be used. The first: {next(iter(bad.values()))}.")
    seen = [TensorSpec(spec.name, spec.dtype, ("rows", *answers[spec.name].shape[1:])) for spec in specs]
    asked = [spec for spec in seen if wanted in (None, spec.name)]
    fitting = _fitting(values[good], asked, kind)
    if not fitting and (odd := _few_that_are_no_class(values, good)):
        bad |= dict.fromkeys(odd, _NO_CLASS)
        good[odd] = False
        fitting = _fitting(values[good], asked, kind)
    spec, found = _chosen(fitting, seen, values[good], wanted=wanted, kind=kind)
    scored = found == "classes" and spec.dtype.startswith("FP")
    width = max([2, *(size for size in spec.shape[1:] if isinstance(size, int))])
    named = tuple(names) or tuple(map(str, range(width)))
    labels = RowLabels(found, spec.name, values, bad, named if scored else (), scored)
    if found == "classes":
        return _as_classes(labels, good)
    return replace(labels, values=values.astype(np.uint8 if found == "tags" else np.float64))


def classes_given(given: GivenLabels, names: Sequence[str]) -> tuple[np.ndarray | None, dict[int, str]]:
    """Return labels as int64 classes, -1 where there is none, and the rows whose labels are no classes.

    Raises:
        InvalidInput: several values a row.
    """
    if given is None:
        return None, {}
    values, bad = _numbers_of(given, {name: place for place, name in enumerate(names)})
    if values.ndim > 1:
        raise InvalidInput(f"Labels must be one class a row here. Got {_shown(('rows', *values.shape[1:]))}.")
    bad = dict.fromkeys(np.flatnonzero(_is_odd(values)).tolist(), _NO_CLASS) | bad
    classes = np.where(_is_odd(values), -1, values).astype(np.int64)
    classes[list(bad)] = -1
    return classes, bad


def output_of(answers: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], *, wanted: str | None = None) -> str:
    """Return the output that answers rows without labels: an embedding, or whatever it is.

    Raises:
        InvalidInput: there is no output ``wanted``.
    """
    _require_output(answers, wanted)
    floats = [spec.name for spec in specs if answers[spec.name].dtype.kind == "f"]
    flat = [name for name in floats if answers[name].ndim == 2]
    return wanted or next(iter([*flat, *floats, *(spec.name for spec in specs)]))


def _require_output(answers: Mapping[str, np.ndarray], wanted: str | None) -> None:
    if wanted is not None and wanted not in answers:
        raise InvalidInput(f"The model has no output {wanted!r}. Its outputs: {', '.join(map(repr, answers))}.")


# -- which output, and so which kind ----------------------------------------------------------------------------------


def _fitting(values: np.ndarray, asked: Sequence[TensorSpec], kind: Kind | None) -> list[tuple[TensorSpec, Kind]]:
    found = [(spec, kind_of(values, spec, wanted=kind)) for spec in asked]
    return [(spec, each) for spec, each in found if each is not None and _reaches(values, spec, each)]


def _is_odd(values: np.ndarray) -> np.ndarray:
    return np.asarray((values < 0) | (values != np.floor(values)))


def _few_that_are_no_class(values: np.ndarray, good: np.ndarray) -> list[int]:
    """Return the rows whose labels alone keep the others from being classes; none if that is more than a slip."""
    if values.ndim > 1:
        return []
    odd = good & _is_odd(values)
    most = min(few_of(int(good.sum())), int(good.sum()) // 2)
    return np.flatnonzero(odd).tolist() if odd.sum() <= most else []


def _reaches(values: np.ndarray, spec: TensorSpec, kind: Kind) -> bool:
    """Whether the output has a score for every class that there is."""
    sizes = spec.shape[1:]
    if kind != "classes" or values.ndim > 1 or not spec.dtype.startswith("FP") or all(size == 1 for size in sizes):
        return True
    return isinstance(sizes[0], int) and int(values.max()) < sizes[0]


def _chosen(
    fitting: Sequence[tuple[TensorSpec, Kind]],
    seen: Sequence[TensorSpec],
    values: np.ndarray,
    *,
    wanted: str | None,
    kind: Kind | None,
) -> tuple[TensorSpec, Kind]:
    """Return the one output that fits: scores before single values, these before classes without scores."""
    ranks = [_rank(spec, found) for spec, found in fitting]
    best = [each for each, rank in zip(fitting, ranks, strict=True) if rank == min(ranks)]
    named = [each for name in _SCORES for each in best if each[0].name == name]
    if len(best) == 1 or named:
        return (named or best)[0]
    said = ", ".join(f"{each.name!r} {each.dtype} {_shown(each.shape)}" for each in seen)
    asked = f"the output {wanted!r}" if wanted else "an output"
    raise InvalidInput(
        f"The labels are {_form(values)}, so {asked} of the model must hold {_needed(values, kind)}. Its outputs: "
        f"{said}. "
        + ("Say which one: `--output NAME`." if len(best) > 1 else "Leave the labels out, to compare answers only.")
    )


def _rank(spec: TensorSpec, kind: Kind) -> int:
    if kind != "classes":
        return 1
    if not spec.dtype.startswith("FP"):
        return 2
    return 0 if len(spec.shape) == 2 and spec.shape[1] != 1 else 1


def _shown(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _form(values: np.ndarray) -> str:
    whole = bool((values == np.floor(values)).all())
    if values.ndim == 1 and whole and values.min() >= 0:
        return f"whole numbers up to {int(values.max())}"
    return f"{'whole' if whole else 'decimal'} numbers, {_shown(('rows', *values.shape[1:]))}"


def _needed(values: np.ndarray, kind: Kind | None) -> str:
    alike = f"a float for each of them, {_shown(('rows', *values.shape[1:]))}"
    if kind in ("tags", "numbers") or values.ndim > 1:
        return alike
    classes = max(2, int(values.max()) + 1)
    scores = f"float scores of at least {classes} classes, [rows, classes]"
    if bool((values == np.floor(values)).all()) and values.min() >= 0:
        return scores if kind == "classes" else f"{scores}, or {alike}"
    return alike


# -- from what stands in a source to numbers --------------------------------------------------------------------------


def _as_classes(labels: RowLabels, good: np.ndarray) -> RowLabels:
    values = labels.values
    if values.ndim == 2:
        return replace(labels, values=values.argmax(axis=1).astype(np.int64))
    classes = np.full(len(values), -1, dtype=np.int64)
    classes[good] = values[good]
    return replace(labels, values=classes)


def _numbers_of(given: Sequence[object] | np.ndarray, places: Mapping[str, int]) -> tuple[np.ndarray, dict[int, str]]:
    """Return one array of all labels, and the rows that have none that could be used."""
    whole = None if places else _at_once(given)
    if whole is not None:
        return _narrow(whole), _not_finite(whole)
    found: dict[int, np.ndarray] = {}
    bad: dict[int, str] = {}
    for index, label in enumerate(given):
        try:
            found[index] = _class_named(label, places) if places else _number(label)
        except InvalidData as exc:
            bad[index] = str(exc)
    shapes = Counter(array.shape for array in found.values())
    shape = shapes.most_common(1)[0][0] if shapes else ()
    kinds = {array.dtype.kind for array in found.values()}
    values = np.zeros((len(given), *shape), np.float64 if "f" in kinds else np.int64)
    for index, array in found.items():
        if array.shape == shape:
            values[index] = array
        else:
            bad[index] = f"the label has the shape {_shown(array.shape)}, that of most rows {_shown(shape)}"
    return _narrow(values), bad | _not_finite(values)


def _at_once(given: Sequence[object] | np.ndarray) -> np.ndarray | None:
    """Return labels that are numbers of one shape without looking at each."""
    try:
        array = np.asarray(given)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" else None


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return one value a row as one axis, truth values as numbers."""
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _not_finite(values: np.ndarray) -> dict[int, str]:
    if values.dtype.kind != "f":
        return {}
    rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    return {int(row): "the label is no finite number" for row in rows}


def _class_named(label: object, places: Mapping[str, int]) -> np.ndarray:
    label = _plain(label)
    text = str(label) if isinstance(label, str | int) and not isinstance(label, bool) else ""
    if text not in places:
        known = ", ".join(list(places)[:10]) + (", …" if len(places) > 10 else "")
        raise InvalidData(f"the label {str(label)[:_SHOWN_CHARS]!r} is no class of the model: {known}")
    return np.asarray(places[text])


def _number(label: object) -> np.ndarray:
    label = _plain(label)
    if isinstance(label, str):
        if len(label) > _MOST_DIGITS or not label.strip().isdecimal():
            raise InvalidData(
                f"the label {label[:_SHOWN_CHARS]!r} is a text. The model does not say the names of its classes: give "
                "the place of each among its scores, from 0 on"
            )
        return np.asarray(int(label))
    try:
        array = np.asarray(label)
    except ValueError as exc:
        raise InvalidData("the label holds lists of unequal lengths") from exc
    if array.dtype.kind not in "biuf":
        raise InvalidData(f"the label must be a number or a list of them. Got {str(label)[:_SHOWN_CHARS]!r}")
    return array


def _plain(label: object) -> object:
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bytes):
        label = label.decode(errors="replace")
    if label is None:
        raise InvalidData("the label is empty")
    return label
