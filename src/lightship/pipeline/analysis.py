"""What a classifier gets wrong, and where: slices, calibration, errors, odd values, leaks, the layer to blame.

Whatever is chosen or fitted here (slices, temperature, directions of answers) is chosen on selection rows; gate rows
only tell. The checks are in ``validate``; this brings them the rows, those of a recipe and those that a person gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lightship.bundle.statement import Evidence, summary_of
from lightship.data.split import PARTS
from lightship.engine.runner import EngineOptions
from lightship.errors import LightshipError
from lightship.optimize.answers import scores_of
from lightship.optimize.candidate import Candidate, Rows
from lightship.pipeline.bench import Bench
from lightship.pipeline.cache import code_digest, library_versions
from lightship.pipeline.stages.prepare import Prepared
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.image_header import read_header
from lightship.tasks.task import Task, Tensors
from lightship.types import Json, Verdict
from lightship.validate.checks.calibration import check_calibration, temperature_in
from lightship.validate.checks.errors import check_errors
from lightship.validate.checks.slices import Judged, check_slice_harm, check_slices
from lightship.validate.checks.values import check_values
from lightship.validate.duplicates import image_twins, small_image, twins_json
from lightship.validate.logits import nonfinite_rows
from lightship.validate.slice_features import AnswerSpace, image_features, tensor_features
from lightship.validate.slices import Features

__all__ = ["Analysis", "AnalyzedRows", "PreparedRows", "divergence", "explained", "features_of", "near_duplicates"]

_MOST_COMPARED = 50_000  # rows that are looked through for near-duplicates; the gate's come first
_ABOUT_ANSWERS = ("noninferiority", "probabilities", "class_harm", "slice_harm", "fidelity", "equivalence")


class AnalyzedRows(Protocol):
    """Labeled rows of the parts ``selection`` and ``gate``, always in one order."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes."""

    def truth(self, part: str) -> np.ndarray:
        """Return the classes of the rows, int64."""

    def ids(self, part: str) -> Sequence[str]:
        """Return what people call the rows."""

    def features(self, part: str) -> Features:
        """Return what is known of the rows without their labels; of both parts the same columns."""

    def scores(self, part: str, variant: Candidate) -> np.ndarray:
        """Return what a variant answers: logits, (rows, classes)."""

    def few(self) -> Tensors:
        """Return some selection rows of one shape, first axis rows."""


class PreparedRows:
    """The rows of a recipe."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self.labels: Sequence[str] = prepared.task.labels

    def truth(self, part: str) -> np.ndarray:
        """Return the classes of the rows."""
        return self._prepared.labels(part)

    def ids(self, part: str) -> Sequence[str]:
        """Return what people call the rows."""
        return [self._prepared.dataset.ids[index] for index in self._prepared.split.part(part)]

    def features(self, part: str) -> Features:
        """Return what is to be seen of the rows, and their size before they were encoded."""
        found = features_of(self._prepared.task, {"image": self._prepared.images(part)})
        return found | _sizes(self._prepared, part)

    def scores(self, part: str, variant: Candidate) -> np.ndarray:
        """Return what a variant answers."""
        runner = variant.runner(limited=True)
        try:
            rows = Rows({"image": self._prepared.images(part)}, self._prepared.labels(part), "logits")
            return scores_of(runner, rows)
        finally:
            runner.close()

    def few(self) -> Tensors:
        """Return the first selection rows."""
        return {"image": self._prepared.images("selection")[:8]}


class Analysis:
    """The analysis of one look: features and answers of selection and gate rows, each computed once.

    Args:
        rows: what is looked at.
        reference: the reference as a variant.
        alpha: of each check.
        margin: of the gate; a smaller drop of a slice is no harm.
        temperature: that the model has.
    """

    def __init__(
        self, rows: AnalyzedRows, reference: Candidate, *, alpha: float, margin: float, temperature: float = 1.0
    ) -> None:
        self._rows, self._reference, self._alpha, self._margin = rows, reference, alpha, margin
        self._temperature = temperature
        self._logits: dict[tuple[str, str], np.ndarray] = {}
        self._known: dict[str, Features] = {}

    def note(self, part: str, variant: Candidate, logits: np.ndarray) -> None:
        """Take a variant's answers to the rows of a part, so that they are not asked for again."""
        self._logits[part, variant.name] = logits

    def look(
        self, variant: Candidate, look: Callable[[float], Sequence[Evidence]], *, subjects: Mapping[str, str]
    ) -> Callable[[float], Sequence[Evidence]]:
        """Return the look with harm to slices added, and the layer to blame where something failed."""

        def extended(alpha: float) -> Sequence[Evidence]:
            evidence = [*look(alpha)]
            if any(each.check == "class_harm" for each in evidence):  # not so where a row has no finite answer
                evidence.append(self.slice_harm(variant, subjects=subjects))
            return explained(evidence, lambda: self.divergence(variant))

        return extended

    def slices(self, variant: Candidate, *, subjects: Mapping[str, str]) -> Evidence:
        """The slices that the model is worst at."""
        space = self._space(variant)
        return check_slices(
            self._judged("selection", variant, space),
            self._judged("gate", variant, space),
            subjects=subjects,
            alpha=self._alpha,
        )

    def slice_harm(self, variant: Candidate, *, subjects: Mapping[str, str]) -> Evidence:
        """The slices that a variant harms."""
        space = self._space(self._reference)
        return check_slice_harm(
            self._judged("selection", variant, space, self._reference),
            self._judged("gate", variant, space, self._reference),
            subjects=subjects,
            alpha=self._alpha,
            margin=self._margin,
        )

    def calibration(self, variant: Candidate, *, subjects: Mapping[str, str]) -> Evidence:
        """Whether probabilities are those of what happens."""
        return check_calibration(
            self._answers("gate", variant),
            self._rows.truth("gate"),
            selection=(self._answers("selection", variant), self._rows.truth("selection")),
            subjects=subjects,
            confidence=1 - self._alpha,
            current=self._temperature,
        )

    def errors(self, variant: Candidate, *, subjects: Mapping[str, str], temperature: float) -> Evidence:
        """The most frequent mistakes, and the worst rows, as sure as a temperature makes the answers."""
        return check_errors(
            self._answers("gate", variant) / temperature,
            self._rows.truth("gate"),
            labels=self._rows.labels,
            rows=self._rows.ids("gate"),
            subjects=subjects,
        )

    def of(self, variant: Candidate, *, subjects: Mapping[str, str], calm: bool = False) -> Sequence[Evidence]:
        """What the variant gets wrong: its worst slices, its calibration, its errors.

        Args:
            variant: that is analyzed.
            subjects: it and the reference, with their SHA-256.
            calm: the temperature that is fitted here will be applied.
        """
        calibration = self.calibration(variant, subjects=subjects)
        temperature = float(temperature_in([calibration])) if calm else self._temperature
        errors = self.errors(variant, subjects=subjects, temperature=temperature)
        return (self.slices(variant, subjects=subjects), calibration, errors)

    def values(self, variant: Candidate, *, tolerance: float, batch: int, subjects: Mapping[str, str]) -> Evidence:
        """What odd values do, in batches as large as are proven."""
        runners = [each.runner(limited=True) for each in (self._reference, variant)]
        alone = variant.name == self._reference.name
        try:
            return check_values(
                runners[0].run,
                None if alone else runners[1].run,
                self._rows.few(),
                tolerance=tolerance,
                subjects=subjects,
                batch=batch,
            )
        finally:
            for runner in runners:
                runner.close()

    def divergence(
        self, variant: Candidate, *, threshold: float = 0.1, optimization: str | None = None
    ) -> dict[str, Json] | None:
        """Name the first layer of a variant that is not the reference's, on selection rows; see ``divergence``."""
        return divergence(self._reference, variant, self._rows.few(), threshold=threshold, optimization=optimization)

    def _answers(self, part: str, variant: Candidate) -> np.ndarray:
        known = self._logits.get((part, variant.name))
        if known is None:
            known = self._logits[part, variant.name] = self._rows.scores(part, variant)
        return known

    def _space(self, variant: Candidate) -> AnswerSpace:
        answers = self._answers("selection", variant)
        finite = np.delete(answers, nonfinite_rows(answers), axis=0)
        return AnswerSpace.fit(finite if len(finite) else np.zeros_like(answers), labels=self._rows.labels)

    def _judged(self, part: str, variant: Candidate, space: AnswerSpace, reference: Candidate | None = None) -> Judged:
        said = self._answers(part, reference or variant)
        return Judged(
            features=self._features(part) | space.features(np.nan_to_num(said)),
            truth=self._rows.truth(part),
            logits=self._answers(part, variant),
            reference=self._answers(part, reference) if reference else None,
        )

    def _features(self, part: str) -> Features:
        known = self._known.get(part)
        if known is None:
            known = self._known[part] = self._rows.features(part)
        return known


def divergence(
    reference: Candidate,
    variant: Candidate,
    inputs: Tensors,
    *,
    threshold: float = 0.1,
    optimization: str | None = None,
) -> dict[str, Json] | None:
    """Name the first layer of a variant that is not the reference's; None if there is none, or it cannot be told.

    ``optimization`` runs the variant's graph at another level, to tell an engine's rewriting from the graph.
    """
    from lightship.validate.bisection import first_divergence

    options = EngineOptions.from_json(variant.options, threads=1)
    try:
        found = first_divergence(
            reference.graph,
            variant.graph,
            inputs,
            engine=reference.engine,
            options=EngineOptions.from_json(reference.options, threads=1),
            variant_engine=variant.engine,
            variant_options=replace(options, optimization=optimization) if optimization else options,
            threshold=threshold,
        )
    except LightshipError:  # it explains a refusal; that it cannot is no other one
        return None
    return found.to_json() if found else None


def explained(evidence: Sequence[Evidence], find: Callable[[], dict[str, Json] | None]) -> Sequence[Evidence]:
    """Add the layer to blame to what failed about a variant's answers; it is looked for only then."""
    failed = [each for each in evidence if each.verdict is Verdict.FAILED and each.check in _ABOUT_ANSWERS]
    found = find() if failed else None
    if found is None:
        return evidence
    words = str(found["words"])
    return [
        replace(
            each,
            summary=summary_of(f"{summary_of(each.summary, most=900 - len(words))}; {words}"),
            measured={**each.measured, "divergence": found},
        )
        if each in failed
        else each
        for each in evidence
    ]


def features_of(task: Task, inputs: Tensors) -> Features:
    """Return what is known of encoded rows; of images, as they look to people."""
    if not isinstance(task, ImageClassification):
        return tensor_features(inputs)
    mean, std = (np.array([float(text) for text in each], np.float32) for each in (task.mean, task.std))
    return image_features(inputs["image"] * std[:, None, None] + mean[:, None, None])


def _sizes(prepared: Prepared, part: str) -> Features:
    """Return the size of each image as it came, before it was made as large as the model takes it."""
    sizes = np.array([_size(row.raw) for row in prepared.rows(part)], np.float64)
    height, width = sizes.T
    return Features(
        {
            "original height (pixels)": height,
            "original width (pixels)": width,
            "original aspect (width/height)": width / np.maximum(height, 1),
        }
    )


def _size(raw: bytes | np.ndarray) -> tuple[int, int]:
    if isinstance(raw, np.ndarray):
        return raw.shape[0], raw.shape[1]
    header = read_header(raw)
    return header.height, header.width


def near_duplicates(bench: Bench, prepared: Prepared) -> dict[str, Json]:
    """Return the near-duplicates across parts as evidence has them; found once for the same rows and split."""

    def work(folder: Path, _: Path) -> None:
        bench.progress.start("Look for near-duplicates across parts")
        found = _near_duplicates(prepared)
        (folder / "duplicates.json").write_text(json.dumps(found))
        bench.progress.done(f"{found['pairs']} pairs, {found['gate_rows']} gate rows")

    finished = bench.cache.run(
        "duplicates",
        {
            "rows": dict(prepared.split.fingerprints),
            "order": prepared.finished.key,
            "code": code_digest("validate/duplicates.py", "pipeline/analysis.py"),
            "libraries": library_versions("numpy"),
        },
        work,
    )
    found: dict[str, Json] = json.loads((finished.path / "duplicates.json").read_bytes())
    return found


def _near_duplicates(prepared: Prepared) -> dict[str, Json]:
    places: list[tuple[str, int]] = []
    for part in reversed(PARTS):  # the gate's rows first: they are the ones that must not be known
        places += [(part, index) for index in prepared.split.part(part)]
    places = places[:_MOST_COMPARED]
    kept = [prepared.images(part) if part in ("gate", "selection") else None for part in PARTS]
    encoded = dict(zip(PARTS, kept, strict=True))
    position = {(part, index): at for part in PARTS for at, index in enumerate(prepared.split.part(part))}
    small = []
    for part, index in places:
        known = encoded[part]
        if known is not None:
            small.append(small_image(known[position[part, index]]))
        else:
            small.append(small_image(prepared.task.encode(prepared.dataset.rows[index].raw)["image"]))
    parts = np.array([part for part, _ in places])
    rows = [prepared.dataset.ids[index] for _, index in places]
    labels = [prepared.dataset.row_labels[index] for _, index in places]
    found = image_twins(np.stack(small), parts)
    return {**twins_json(found, parts, rows=rows, labels=labels), "rows": len(places)}
