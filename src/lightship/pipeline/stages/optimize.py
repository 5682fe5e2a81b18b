"""Optimize: make variants of the reference, measure each on this machine, and propose at most three to the gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightship.bundle.document import NAME_PATTERN
from lightship.bundle.manifest import REFERENCE
from lightship.data.files import sha256_hex
from lightship.engine.machine import fingerprint
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Candidate, Rows, Speed
from lightship.optimize.objective import Objective
from lightship.optimize.plan import Plan, default_plans, known_plans
from lightship.optimize.search import measure_file, search
from lightship.optimize.settings import SearchSettings
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.pipeline.stages.prepare import Prepared
from lightship.pipeline.stages.train import Trained
from lightship.types import Json

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Optimized", "optimize"]

_CALIBRATION_BATCH = 32
_LARGEST_GRAPH_BYTES = 2**31 - 1  # what one protobuf message can hold


@dataclass(frozen=True, slots=True)
class Optimized:
    """What was tried.

    Attributes:
        reference: the reference's own figures.
        candidates: all variants, proposed ones first, best first.
        found: the whole search for evidence and programs.
        must_pass: the recipe or the command line named the variant, so the reference may not stand in for it.
    """

    finished: Finished
    reference: Candidate
    candidates: tuple[Candidate, ...]
    found: Mapping[str, Json]
    must_pass: bool

    @property
    def reference_correct(self) -> int:
        """Right answers of the reference on the selection rows."""
        quality = self.reference.quality
        return quality.correct or 0 if quality else 0

    @property
    def objective(self) -> Objective:
        """What was preferred."""
        return Objective(self.found["objective"])  # type: ignore[arg-type]  # as to_json of a result wrote it

    def speed(self, candidate: Candidate) -> Speed | None:
        """Return the speed that the objective asks for; the latency when it asks for none."""
        return candidate.throughput if self.objective.timed == ("throughput",) else candidate.latency

    @property
    def digest(self) -> str:
        """SHA-256 of what was tried and measured, whichever run of the stage did it; graphs go by their digests."""
        return sha256_hex((self.finished.path / "search.json").read_bytes())

    @property
    def proposed(self) -> tuple[Candidate, ...]:
        """The candidates that the gate shall look at, best first."""
        return tuple(candidate for candidate in self.candidates if not candidate.dropped)


def optimize(bench: Bench, prepared: Prepared, trained: Trained, *, variant: Path | None = None) -> Optimized:
    """Make and measure the variants that the recipe asks for, or take the finished result.

    Args:
        variant: a graph file to measure and propose instead of making variants.

    Raises:
        InvalidInput: the variant file is no graph of the model's interface; the recipe names a pass that is not there.
    """
    settings = bench.recipe.optimize
    given = _read_graph(variant) if variant else None
    plans = _plans(settings.variant, settings.passes) if given is None else ()
    decided_by: dict[str, Json] = {
        "reference": sha256_hex(trained.reference),
        "rows": [prepared.split.fingerprints["train"], prepared.split.fingerprints["selection"]],
        "task": prepared.task.config(),
        "optimize": settings_json(settings),
        "plans": [plan.name for plan in plans],
        "variant": [_variant_name(variant), sha256_hex(given)] if variant and given is not None else None,
        "code": code_digest("optimize", "engine", "tasks", "validate/fidelity.py", "pipeline/stages/optimize.py"),
        "libraries": library_versions("onnx", "onnxruntime", "openvino", "nncf", "numpy"),
        "machine": fingerprint()["digest"],
    }
    finished = bench.cache.run(
        "optimize",
        decided_by,
        lambda folder, scratch: _work(bench, prepared, trained, (variant, given), plans, folder, scratch),
    )
    found = json.loads((finished.path / "search.json").read_bytes())
    return Optimized(
        finished,
        Candidate.from_json(found["reference"], trained.reference),
        tuple(Candidate.from_json(each, _graph(finished.path, each["name"])) for each in found["result"]["candidates"]),
        found["result"],
        must_pass=given is not None or settings.variant not in ("auto", REFERENCE),
    )


def _variant_name(path: Path) -> str:
    return path.stem if NAME_PATTERN.fullmatch(path.stem) and path.stem != REFERENCE else "given"


def _read_graph(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST_GRAPH_BYTES:
            raise InvalidInput(f"{path} has {size} bytes; a graph may have {_LARGEST_GRAPH_BYTES}.")
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInput(
            f"The variant {path} cannot be read: {exc.strerror}. Give the path of an ONNX file."
        ) from exc


def _plans(variant: str, passes: tuple[str, ...] | None) -> tuple[Plan, ...]:
    if variant == REFERENCE:
        return ()
    if variant != "auto":
        return (known_plans()[variant],)
    if passes is None:
        return default_plans()
    return tuple(plan for plan in known_plans().values() if plan.is_of(passes))


def _work(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    given: tuple[Path | None, bytes | None],
    plans: tuple[Plan, ...],
    folder: Path,
    scratch: Path,
) -> None:
    recipe = bench.recipe.optimize
    settings = SearchSettings(
        objective=Objective.parse(recipe.objective),
        minutes=recipe.minutes,
        pairs=recipe.pairs,
        batch=recipe.batch,
        named=recipe.variant != "auto",
    )
    selection = Rows({"image": prepared.images("selection")}, prepared.labels("selection"), "logits")
    path, graph = given
    if path is not None and graph is not None:
        result = measure_file(
            _variant_name(path),
            graph,
            reference=trained.reference,
            selection=selection,
            settings=settings,
            folder=scratch,
        )
    else:
        result = search(
            trained.reference,
            plans,
            calibration=_calibration(prepared.images("train")[: recipe.calibration_rows]),
            selection=selection,
            settings=settings,
            folder=scratch,
            progress=bench.progress,
        )
    for candidate in result.candidates:
        if candidate.graph:
            (folder / f"{candidate.name}.onnx").write_bytes(candidate.graph)
    found = {"reference": result.reference.to_json(), "result": result.to_json()}
    (folder / "search.json").write_text(json.dumps(found, indent=1))


def _calibration(images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [
        {"image": images[start : start + _CALIBRATION_BATCH]} for start in range(0, len(images), _CALIBRATION_BATCH)
    ]


def _graph(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.onnx"
    return path.read_bytes() if path.exists() else b""
