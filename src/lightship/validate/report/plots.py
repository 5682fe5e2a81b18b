"""The drawings of a report: intervals in tables, confusion matrix, reliability diagram, learning curves.

Each takes facts and returns inline SVG, or ``None`` when there is nothing to draw. Widths are those of a phone (about
360), so that text is readable there without zooming; on a wide screen the whole drawing grows a little.
Marks differ by shape or dash as well as by color, and each drawing tells those who do not see it what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from lightship.types import Interval
from lightship.validate.report.facts import BinFacts, CalibrationFacts, ConfusionFacts, CurveFacts, LossFacts
from lightship.validate.report.numerals import percent, plain
from lightship.validate.report.svg import Box, Scale, element, nice_ticks, picture, shorten, text_width

__all__ = ["LARGEST_MATRIX", "StripPlot", "calibration_plot", "confusion_plot", "curve_plots", "residual_plot"]

LARGEST_MATRIX = 60
"""With more classes a drawn matrix is dust; the list of the commonest confusions says it better."""

_FONT = 11.0
_RESIDUALS = ("low", "high", "p05", "p25", "p50", "p75", "p95")
_LINE = 13.0


def _grid(
    x: Scale,
    y: Scale,
    across: Sequence[float],
    up: Sequence[float],
    frame: Box,
    *,
    y_text: Callable[[float], str],
    x_text: Callable[[float], str] = "{:g}".format,
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
        parts.append(element("text", x_text(tick), x=at, y=frame.bottom + 15, class_="tick middle"))
    return element("g", *parts, aria_hidden="true")


def _percent_tick(share: float) -> str:
    return f"{share * 100:g}"


class StripPlot:
    """One scale for the intervals of a table: ``axis`` for its head, ``row`` for each line.

    The drawings stand in table cells, so that texts of any length and script are laid out by the browser; positions
    are in percent, so that they are as wide as their column.

    Args:
        intervals: of all rows, shares in [0, 1].
        line: a value to draw through all rows, such as that of all of them together.
        losses: the less the better: drawn from 0 on.
        shares: told in percent.
    """

    def __init__(
        self, intervals: Sequence[Interval], *, line: float | None = None, losses: bool = False, shares: bool = True
    ) -> None:
        lows = [one.low for one in intervals if math.isfinite(one.low)]
        highs = [one.high for one in intervals if math.isfinite(one.high)]
        self._line = line
        self._text: Callable[[float], str] = _percent_tick if shares else "{:g}".format
        if losses:
            self._ticks = nice_ticks(0.0, max(highs, default=1.0) or 1.0, about=3)
        else:
            self._ticks = tuple(tick for tick in nice_ticks(min(lows, default=0.0), 1.0, about=4) if tick <= 1)
        self._scale = Scale(self._ticks[0], self._ticks[-1], 9, 91)

    def axis(self) -> Markup:
        """Draw the numbers of the ticks, of shares in percent."""
        ticks = [element("text", self._text(tick), x=self._x(tick), y=11, class_="tick middle") for tick in self._ticks]
        return self._strip(*ticks, height=14)

    def row(self, one: Interval, *, state: str = "kept") -> Markup:
        """Draw the dot of one row on its interval; the cells beside it say the same in numbers."""
        lines = [self._rule(tick, 0, 24, "grid") for tick in self._ticks]
        if self._line is not None and math.isfinite(self._line):
            lines.append(self._rule(self._line, 0, 24, "all"))
        if not all(math.isfinite(value) for value in (one.estimate, one.low, one.high)):
            return self._strip(*lines, height=24)
        low, high = self._x(one.low), self._x(one.high)
        mark = element(
            "g",
            element("line", x1=low, x2=high, y1=12, y2=12, class_="whisker"),
            self._rule(one.low, 8.5, 15.5, "whisker"),
            self._rule(one.high, 8.5, 15.5, "whisker"),
            element("circle", cx=self._x(one.estimate), cy=12, r=4.5, class_="mark"),
            class_=state,
        )
        return self._strip(*lines, mark, height=24)

    def _x(self, value: float) -> str:
        inside = min(max(value, self._ticks[0]), self._ticks[-1])
        return f"{self._scale(inside):.2f}%"

    def _rule(self, value: float, top: float, bottom: float, kind: str) -> Markup:
        return element("line", x1=self._x(value), x2=self._x(value), y1=top, y2=bottom, class_=kind)

    def _strip(self, *children: Markup, height: float) -> Markup:
        return element("svg", *children, class_="plot strip", width="100%", height=height, aria_hidden="true")


def residual_plot(losses: LossFacts) -> Markup | None:
    """Draw answer less label over the answer: the median, and where half and nine tenths of the rows lie."""
    bins = losses.bins
    if not bins or not all(math.isfinite(getattr(one, key)) for one in bins for key in _RESIDUALS):
        return None
    width, height = 340.0, 260.0
    ends = [*(one.p05 for one in bins), *(one.p95 for one in bins), 0.0]
    up, across = nice_ticks(min(ends), max(ends)), nice_ticks(bins[0].low, bins[-1].high, about=4)
    if len(up) < 2 or len(across) < 2:
        return None
    left = 14 + max(text_width(f"{tick:g}", _FONT) for tick in up)
    frame = Box(left, 26, width - 12, height - 40)
    x, y = Scale(across[0], across[-1], frame.left, frame.right), Scale(up[0], up[-1], frame.bottom, frame.top)
    parts = [_grid(x, y, across, up, frame, y_text="{:g}".format)]
    parts.append(element("path", d=f"M{frame.left:.2f} {y(0.0):.2f}H{frame.right:.2f}", class_="diagonal"))
    for one in bins:
        start, end = x(one.low), x(one.high)
        end = max(end, start + 2)
        for low, high, kind in ((one.p05, one.p95, "most"), (one.p25, one.p75, "half")):
            top, size = y(high), max(y(low) - y(high), 0.5)
            parts.append(element("rect", x=start, y=top, width=end - start, height=size, class_=f"residual {kind}"))
        title = element("title", f"answers {one.low:.4g} to {one.high:.4g}, {one.rows} rows: median {one.p50:+.4g}")
        parts.append(element("path", title, d=f"M{start:.2f} {y(one.p50):.2f}H{end:.2f}", class_="median"))
    parts.append(element("text", "Answer less label", x=0, y=11, class_="axis-name"))
    parts.append(element("text", "Answer", x=frame.right, y=height - 5, class_="axis-name end"))
    medians = [one.p50 for one in bins]
    return picture(
        *parts,
        name="residual-plot",
        title="Residuals",
        description=f"Answer less label of {len(bins)} groups of rows with like answers: the medians go from "
        f"{min(medians):+.3g} to {max(medians):+.3g}.",
        width=width,
        height=height,
    )


def calibration_plot(calibration: CalibrationFacts) -> Markup | None:
    """Draw how often answers are right over how sure they are: the reliability diagram.

    On the diagonal a model that says 80 % is right in 80 of 100 answers; below it the model is too sure of itself.
    """
    bins = [one for one in calibration.bins if one.rows and _drawable(one)]
    if not bins:
        return None
    after = [one for one in calibration.after_bins if one.rows and _drawable(one)]
    width, height = 340.0, 320.0
    frame = Box(46, 26, width - 16, height - 40)
    lowest = min([one.accuracy.low for one in bins] + [one.confidence for one in (*bins, *after)])
    ticks = [tick for tick in nice_ticks(max(0.0, lowest - 0.01), 1.0, about=6) if tick <= 1]
    x = Scale(ticks[0], ticks[-1], frame.left, frame.right)
    y = Scale(ticks[0], ticks[-1], frame.bottom, frame.top)
    diagonal = f"M{x(ticks[0]):.2f} {y(ticks[0]):.2f}L{x(ticks[-1]):.2f} {y(ticks[-1]):.2f}"
    return picture(
        _grid(x, y, ticks, ticks, frame, y_text=_percent_tick, x_text=_percent_tick),
        element("path", d=diagonal, class_="diagonal"),
        element("text", "Right, %", x=0, y=11, class_="axis-name"),
        element("text", "Probability that it gave, %", x=frame.right, y=height - 5, class_="axis-name end"),
        *(_bin(one, x, y, "after") for one in after),
        *(_bin(one, x, y, "kept") for one in bins),
        name="calibration-plot",
        title="Reliability diagram",
        description=". ".join(
            f"Of {one.rows} rows with about {percent(one.confidence)}, {percent(one.accuracy.estimate)} are right"
            for one in bins
        ),
        width=width,
        height=height,
    )


def _drawable(one: BinFacts) -> bool:
    return all(math.isfinite(v) for v in (one.confidence, one.accuracy.estimate, one.accuracy.low, one.accuracy.high))


def _bin(one: BinFacts, x: Scale, y: Scale, state: str) -> Markup:
    at, middle = x(one.confidence), y(one.accuracy.estimate)
    top, bottom = y(one.accuracy.high), y(max(one.accuracy.low, y.low))
    if state == "after":
        shape = element("path", d=f"M{at - 4:.2f} {middle + 3.5:.2f}h8l-4 -7.5z", class_="mark")
        return element("g", shape, class_=state)
    return element(
        "g",
        element("title", f"{one.rows} rows: {percent(one.accuracy.estimate)} right at {percent(one.confidence)}"),
        element("path", d=f"M{at:.2f} {top:.2f}V{bottom:.2f}", class_="whisker"),
        element("circle", cx=at, cy=middle, r=4.5, class_="mark"),
        class_=state,
    )


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
