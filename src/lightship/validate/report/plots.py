"""The drawings of a report: variants, F1 of each class, confusion matrix, learning curves.

Each takes facts and returns inline SVG, or ``None`` when there is nothing to draw. Widths are those of a phone (about
360), so that text is readable there without zooming; on a wide screen the whole drawing grows a little.
Marks differ by shape or dash as well as by color, and each drawing tells those who do not see it what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from lightship.types import Verdict
from lightship.validate.report.facts import ClassFacts, ConfusionFacts, CurveFacts, VariantFacts
from lightship.validate.report.numerals import milliseconds, percent, percent_range, plain
from lightship.validate.report.svg import (
    Box,
    Mark,
    Scale,
    element,
    nice_ticks,
    picture,
    place_labels,
    shorten,
    text_width,
)

__all__ = ["LARGEST_MATRIX", "F1Plot", "confusion_plot", "curve_plots", "plotted", "state_of", "variant_plot"]

LARGEST_MATRIX = 60
"""With more classes a drawn matrix is dust; the list of the commonest confusions says it better."""

_FONT = 11.0
_LINE = 13.0


def plotted(variant: VariantFacts) -> bool:
    """Tell whether the variant has both an accuracy and a latency to draw."""
    latency, accuracy = variant.latency_p50_ms, variant.accuracy
    if latency is None or accuracy is None:
        return False
    return all(math.isfinite(value) for value in (latency, accuracy.estimate, accuracy.low, accuracy.high))


def variant_plot(variants: Sequence[VariantFacts], *, chosen_word: str) -> Markup | None:
    """Draw accuracy (with its interval) over latency, the chosen variant marked, the dropped ones pale.

    ``chosen_word`` is what the chosen one is called: ``chosen`` in a release, ``candidate`` in a refusal.
    """
    drawn = sorted((variant for variant in variants if plotted(variant)), key=lambda one: not one.chosen)
    if not drawn:
        return None
    width, height = 380.0, 310.0
    frame = Box(46, 24, width - 16, height - 40)
    across = nice_ticks(0, max(one.latency_p50_ms or 0 for one in drawn) * 1.05, about=6)
    lows, highs = (
        [one.accuracy.low for one in drawn if one.accuracy],
        [one.accuracy.high for one in drawn if one.accuracy],
    )
    up = [tick for tick in nice_ticks(max(0, min(lows) - 0.002), min(1, max(highs) + 0.002)) if tick <= 1]
    x = Scale(across[0], across[-1], frame.left, frame.right)
    y = Scale(up[0], max(up[-1], *highs), frame.bottom, frame.top)
    marks = [_variant_mark(one, x, y) for one in drawn]
    return picture(
        _grid(x, y, across, up, frame, y_text=_percent_tick),
        element("text", "Accuracy, %", x=0, y=11, class_="axis-name"),
        element("text", "Latency p50, ms (less is better)", x=frame.right, y=height - 5, class_="axis-name end"),
        *reversed(marks),  # the chosen one last, on top
        *_variant_labels(drawn, x, y, frame, chosen_word),
        name="variants-plot",
        title="Accuracy and latency of the variants",
        description=". ".join(
            f"{one.name}{f' ({chosen_word})' if one.chosen else ''}: accuracy {percent(one.accuracy.estimate)}, "
            f"interval {percent_range(one.accuracy)}, {milliseconds(one.latency_p50_ms)}"
            for one in drawn
            if one.accuracy
        ),
        width=width,
        height=height,
    )


def state_of(variant: VariantFacts) -> str:
    """Return how a variant is drawn: ``chosen``, ``kept`` (it passed, another was chosen) or ``dropped``."""
    return "chosen" if variant.chosen else "kept" if variant.verdict is Verdict.PASSED else "dropped"


def _variant_mark(variant: VariantFacts, x: Scale, y: Scale) -> Markup:
    """A diamond for the chosen one, a disc for one that passed, a ring for one that was dropped; over its interval."""
    interval = variant.accuracy
    if interval is None or variant.latency_p50_ms is None:
        return Markup()
    at, middle, top, bottom = x(variant.latency_p50_ms), y(interval.estimate), y(interval.high), y(interval.low)
    if variant.chosen:
        shape = element("path", d=f"M{at:.2f} {middle - 7:.2f}l7 7l-7 7l-7 -7z", class_="mark")
    else:
        shape = element("circle", cx=at, cy=middle, r=4.5, class_="mark")
    return element(
        "g",
        element("title", f"{variant.name}: {variant.reason}"),
        element(
            "path",
            d=f"M{at:.2f} {top:.2f}V{bottom:.2f}M{at - 3.5:.2f} {top:.2f}h7M{at - 3.5:.2f} {bottom:.2f}h7",
            class_="whisker",
        ),
        shape,
        class_=state_of(variant),
    )


def _variant_labels(drawn: Sequence[VariantFacts], x: Scale, y: Scale, frame: Box, chosen_word: str) -> list[Markup]:
    texts = [shorten(one.name, 118, _FONT) + (f" ({chosen_word})" if one.chosen else "") for one in drawn]
    marks = [
        Mark(x(one.latency_p50_ms or 0), y(one.accuracy.estimate), y(one.accuracy.high), y(one.accuracy.low))
        for one in drawn
        if one.accuracy
    ]
    sizes = [(text_width(text, _FONT, bold=one.chosen), _LINE) for one, text in zip(drawn, texts, strict=True)]
    boxes = place_labels(marks, sizes, frame=frame)
    return [
        element("g", _leader(mark, box), _label(text, mark, box), class_=state_of(one))
        for one, text, mark, box in zip(drawn, texts, marks, boxes, strict=True)
    ]


def _label(text: str, mark: Mark, box: Box) -> Markup:
    """The text in its box, anchored on the side of the mark: there it is exact, whatever the font's true width."""
    if box.left >= mark.x:
        return element("text", text, x=box.left, y=box.bottom - 3, class_="label")
    if box.right <= mark.x:
        return element("text", text, x=box.right, y=box.bottom - 3, class_="label end")
    return element("text", text, x=(box.left + box.right) / 2, y=box.bottom - 3, class_="label middle")


def _leader(mark: Mark, box: Box) -> Markup:
    """A thin line from a mark to a label that had to move away from it."""
    near_x = min(max(mark.x, box.left), box.right)
    near_y = min(max(mark.y, box.top), box.bottom)
    distance = math.hypot(near_x - mark.x, near_y - mark.y)
    if distance < 14 or mark.distance(box) < 5:  # beside the point, or at an end of its interval
        return Markup()
    start = 6 / distance
    from_x, from_y = mark.x + (near_x - mark.x) * start, mark.y + (near_y - mark.y) * start
    return element("path", d=f"M{from_x:.2f} {from_y:.2f}L{near_x:.2f} {near_y:.2f}", class_="leader")


def _grid(
    x: Scale,
    y: Scale,
    across: Sequence[float],
    up: Sequence[float],
    frame: Box,
    *,
    y_text: Callable[[float], str],
    x_grid: bool = True,
) -> Markup:
    """Ticks with their numbers, and faint lines across the frame."""
    parts = []
    for tick in up:
        at = y(tick)
        parts.append(element("path", d=f"M{frame.left:.2f} {at:.2f}H{frame.right:.2f}", class_="grid"))
        parts.append(element("text", y_text(tick), x=frame.left - 6, y=at + 4, class_="tick end"))
    for tick in across:
        at = x(tick)
        if x_grid:
            parts.append(element("path", d=f"M{at:.2f} {frame.top:.2f}V{frame.bottom:.2f}", class_="grid"))
        parts.append(element("text", f"{tick:g}", x=at, y=frame.bottom + 15, class_="tick middle"))
    return element("g", *parts, aria_hidden="true")


def _percent_tick(share: float) -> str:
    return f"{share * 100:g}"


class F1Plot:
    """One scale for the F1 of all classes: ``axis`` for the table's head, ``row`` for each class.

    The drawings stand in table cells, so that labels of any length and script are laid out by the browser; positions
    are in percent, so that they are as wide as their column.
    """

    def __init__(self, classes: Sequence[ClassFacts]) -> None:
        lows = [one.f1.low for one in classes if math.isfinite(one.f1.low)]
        self._ticks = tuple(tick for tick in nice_ticks(min(lows, default=0.0), 1.0, about=4) if tick <= 1)
        self._scale = Scale(self._ticks[0], self._ticks[-1], 9, 91)

    def axis(self) -> Markup:
        """Draw the numbers of the ticks, in percent."""
        ticks = [
            element("text", _percent_tick(tick), x=self._x(tick), y=11, class_="tick middle") for tick in self._ticks
        ]
        return self._strip(*ticks, height=14)

    def row(self, one: ClassFacts) -> Markup:
        """Draw the dot of one class on its interval; the cells beside it say the same in numbers."""
        lines = [self._rule(tick, 0, 24, "grid") for tick in self._ticks]
        f1 = one.f1
        if not all(math.isfinite(value) for value in (f1.estimate, f1.low, f1.high)):
            return self._strip(*lines, height=24)
        low, high = self._x(f1.low), self._x(f1.high)
        mark = element(
            "g",
            element("line", x1=low, x2=high, y1=12, y2=12, class_="whisker"),
            self._rule(f1.low, 8.5, 15.5, "whisker"),
            self._rule(f1.high, 8.5, 15.5, "whisker"),
            element("circle", cx=self._x(f1.estimate), cy=12, r=4.5, class_="mark"),
            class_="kept",
        )
        return self._strip(*lines, mark, height=24)

    def _x(self, value: float) -> str:
        inside = min(max(value, self._ticks[0]), self._ticks[-1])
        return f"{self._scale(inside):.2f}%"

    def _rule(self, value: float, top: float, bottom: float, kind: str) -> Markup:
        return element("line", x1=self._x(value), x2=self._x(value), y1=top, y2=bottom, class_=kind)

    def _strip(self, *children: Markup, height: float) -> Markup:
        return element("svg", *children, class_="plot strip", width="100%", height=height, aria_hidden="true")


def confusion_plot(confusion: ConfusionFacts) -> Markup | None:
    """Draw the confusion matrix: rows are the true class, columns the predicted one; mistakes stand out.

    The shade of a right answer grows with its share of the row, that of a mistake with its share of the commonest one.
    """
    labels, counts = confusion.labels, confusion.counts
    if not labels or len(labels) > LARGEST_MATRIX:
        return None
    many = len(labels)
    font = _FONT if many <= 14 else 8.5
    cell = max(80.0 - 9 * many, 29.0) if many <= 12 else 24.0 if many <= 30 else 18.0
    names = [shorten(label, 92 if many > 2 else 120, font) for label in labels]
    widest = max(text_width(name, font) for name in names)
    upright = widest <= cell - 4
    left, top = 22 + widest + 6, 20 + (font + 6 if upright else widest + 8)
    side = cell * many
    worst = max((counts[i][j] for i in range(many) for j in range(many) if i != j), default=0)
    cells = [
        _cell(
            count,
            left + j * cell,
            top + i * cell,
            side=cell,
            font=font,
            shade=_shade(i, j, count, sum(counts[i]), worst),
        )
        for i in range(many)
        for j in range(many)
        if (count := counts[i][j])
    ]
    rules = "".join(
        f"M{left + k * cell:.2f} {top:.2f}v{side:.2f}M{left:.2f} {top + k * cell:.2f}h{side:.2f}"
        for k in range(many + 1)
    )
    width, height = left + side + 2, top + side + 2
    grow = 1.25 if many <= 14 else 1.0
    # A small matrix shrinks with the screen; a large one keeps its size and scrolls in its box.
    least = f"min-width:{width:.0f}px;" if width > 400 else ""
    return picture(
        element("text", "Predicted", x=left + side / 2, y=11, class_="axis-name middle"),
        element(
            "text",
            "True",
            x=11,
            y=top + side / 2,
            class_="axis-name middle",
            transform=f"rotate(-90 11 {top + side / 2:.2f})",
        ),
        *_matrix_names(names, labels, left=left, top=top, cell=cell, font=font, upright=upright),
        *cells,
        element("path", d=rules, class_="cell-rule"),
        name="confusion-plot",
        title="Confusion matrix",
        description=_confusion_words(confusion),
        width=width,
        height=height,
        style=f"{least}width:{width * grow:.0f}px;max-width:{'none' if least else '100%'}",
    )


def _shade(row: int, column: int, count: int, row_sum: int, worst: int) -> str:
    if row == column:
        return f"right-{math.ceil(4 * count / row_sum)}"
    return f"wrong-{math.ceil(4 * count / worst)}"


def _cell(count: int, x: float, y: float, *, side: float, font: float, shade: str) -> Markup:
    text = str(count) if count < 10_000 or side > 40 else f"{count / 1000:.0f}k"
    fitting = min(font, font * (side - 3) / text_width(text, font))
    return element(
        "g",
        element("rect", x=x, y=y, width=side, height=side),
        element("text", text, x=x + side / 2, y=y + side / 2 + fitting * 0.36, class_="middle", font_size=fitting),
        class_=shade,
    )


def _matrix_names(
    names: Sequence[str], labels: Sequence[str], *, left: float, top: float, cell: float, font: float, upright: bool
) -> list[Markup]:
    drawn = []
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        middle = (index + 0.5) * cell
        whole = element("title", label)
        row = top + middle + font * 0.36
        drawn.append(element("text", whole, name, x=left - 6, y=row, class_="name end", font_size=font))
        x, y = left + middle, top - 6
        if upright:
            drawn.append(element("text", whole, name, x=x, y=y, class_="name middle", font_size=font))
        else:
            turn = f"rotate(-90 {x + font * 0.36:.2f} {y:.2f})"
            drawn.append(
                element("text", whole, name, x=x + font * 0.36, y=y, class_="name", font_size=font, transform=turn)
            )
    return drawn


def _confusion_words(confusion: ConfusionFacts) -> str:
    right = sum(confusion.counts[i][i] for i in range(len(confusion.labels)))
    total = sum(sum(row) for row in confusion.counts)
    return f"{right} of {total} rows are on the diagonal, so predicted right. The table beside it lists the mistakes."


def curve_plots(curves: CurveFacts) -> tuple[Markup, ...]:
    """Draw loss and accuracy over the epochs, train against validation, the kept epoch marked; none without epochs."""
    if not curves.epochs:
        return ()
    loss = _curve_plot(
        curves,
        curves.train_loss,
        curves.validation_loss,
        name="loss-plot",
        title="Loss",
        axis_name="Loss",
        percent_axis=False,
    )
    accuracy = _curve_plot(
        curves,
        curves.train_accuracy,
        curves.validation_accuracy,
        name="accuracy-plot",
        title="Accuracy",
        axis_name="Accuracy, %",
        percent_axis=True,
    )
    return tuple(plot for plot in (loss, accuracy) if plot is not None)


def _curve_plot(
    curves: CurveFacts,
    train: Sequence[float],
    validation: Sequence[float],
    *,
    name: str,
    title: str,
    axis_name: str,
    percent_axis: bool,
) -> Markup | None:
    values = [value for value in (*train, *validation) if math.isfinite(value)]
    if not values:
        return None
    width, height = 380.0, 240.0
    frame = Box(46, 32, width - 70, height - 36)
    low, high = (min(values), min(1.0, max(values))) if percent_axis else (min(0.0, *values), max(values))
    up = [tick for tick in nice_ticks(low, high) if not percent_axis or tick <= 1]
    y = Scale(up[0], up[-1] if len(up) > 1 else up[0] + 1, frame.bottom, frame.top)
    across = _epoch_ticks(curves.epochs)
    first, last = curves.epochs[0], curves.epochs[-1]
    x = (
        Scale(first, last, frame.left, frame.right)
        if last > first
        else Scale(first - 1, first + 1, frame.left, frame.right)
    )
    say = _percent_tick if percent_axis else "{:g}".format
    return picture(
        _grid(x, y, across, up, frame, y_text=say, x_grid=False),
        element("text", axis_name, x=0, y=11, class_="axis-name"),
        element("text", "Epoch", x=frame.right, y=height - 4, class_="axis-name end"),
        *(_best_epoch(curves.best_epoch, x, frame) if curves.best_epoch in curves.epochs else ()),
        _line(curves.epochs, train, x, y, "train"),
        _line(curves.epochs, validation, x, y, "validation"),
        *_line_names(train, validation, y, frame),
        name=name,
        title=f"{title} over the epochs",
        description=f"{title} after the last epoch: train {plain(_last(train))}, "
        f"validation {plain(_last(validation))}. "
        f"The weights of epoch {curves.best_epoch} were kept. The table below has every number.",
        width=width,
        height=height,
    )


def _epoch_ticks(epochs: Sequence[int]) -> list[float]:
    if len(epochs) <= 6:
        return [float(epoch) for epoch in epochs]
    return [tick for tick in nice_ticks(epochs[0], epochs[-1]) if epochs[0] <= tick <= epochs[-1]]


def _last(values: Sequence[float]) -> float:
    """The last finite value; infinity when there is none."""
    return next((value for value in reversed(values) if math.isfinite(value)), math.inf)


def _best_epoch(best: int, x: Scale, frame: Box) -> list[Markup]:
    at = x(best)
    text = f"kept: epoch {best}"
    half = text_width(text, _FONT) / 2
    middle = min(max(at, frame.left + half), frame.right + 66 - half)
    return [
        element("path", d=f"M{at:.2f} {frame.top - 4:.2f}V{frame.bottom:.2f}", class_="best"),
        element("text", text, x=middle, y=frame.top - 8, class_="label middle"),
    ]


def _line(epochs: Sequence[int], values: Sequence[float], x: Scale, y: Scale, kind: str) -> Markup:
    """One curve; a value that is not finite leaves a gap, and a lone value is a dot."""
    runs: list[list[str]] = [[]]
    for epoch, value in zip(epochs, values, strict=True):
        if math.isfinite(value):
            runs[-1].append(f"{x(epoch):.2f} {y(value):.2f}")
        else:
            runs.append([])
    path = "".join("M" + "L".join(run) for run in runs if len(run) > 1)
    dots = [
        element("circle", cx=float(run[0].split()[0]), cy=float(run[0].split()[1]), r=4)
        for run in runs
        if len(run) == 1
    ]
    return element("g", element("path", d=path) if path else Markup(), *dots, class_=f"curve {kind}")


def _line_names(train: Sequence[float], validation: Sequence[float], y: Scale, frame: Box) -> list[Markup]:
    """Names at the ends of the curves, pushed apart where the curves end together."""
    ends = sorted(
        (y(_last(values)), kind)
        for values, kind in ((train, "train"), (validation, "validation"))
        if math.isfinite(_last(values))
    )
    places = [at for at, _ in ends]
    if len(places) == 2 and places[1] - places[0] < _LINE:
        middle = sum(places) / 2
        places = [middle - _LINE / 2, middle + _LINE / 2]
    return [
        element("text", kind, x=frame.right + 8, y=at + 4, class_=f"curve-name {kind}")
        for at, (_, kind) in zip(places, ends, strict=True)
    ]
