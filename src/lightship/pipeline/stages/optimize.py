"""Optimize: make variants of the reference, measure each on this machine, and propose at most three to the gate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightship.bundle.document import NAME_PATTERN
from lightship.bundle.manifest import REFERENCE
from lightship.data.files import sha256_hex
from lightship.engine.machine import fingerprint
from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import InvalidInput
from lightship.extensions import extension_names
from lightship.optimize.search import Candidate, Rows, SearchSettings, count_correct, measure_file, search
from lightship.optimize.variant_pass import load_pass
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
        candidates: all variants, proposed ones first, best first.
        reference_correct: right answers of the reference on the selection rows.
        must_pass: the recipe or the command line named the variant, so the reference may not stand in for it.
    """

    finished: Finished
    candidates: tuple[Candidate, ...]
    reference_correct: int
    must_pass: bool

    @property
    def digest(self) -> str:
        """SHA-256 of what was tried and measured, whichever run of the stage did it; graphs go by their digests."""
        tried = [f"{each.to_json()!r} {sha256_hex(each.graph)}" for each in self.candidates]
        return sha256_hex("\n".join([str(self.reference_correct), *tried]).encode())

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
    names = _pass_names(settings.variant, settings.passes) if given is None else ()
    decided_by: dict[str, Json] = {
        "reference": sha256_hex(trained.reference),
        "rows": [prepared.split.fingerprints["train"], prepared.split.fingerprints["selection"]],
        "task": prepared.task.config(),
        "optimize": settings_json(settings),
        "passes": list(names),
        "variant": [_variant_name(variant), sha256_hex(given)] if variant and given is not None else None,
        "code": code_digest("optimize", "engine", "tasks", "pipeline/stages/optimize.py"),
        "libraries": library_versions("onnx", "onnxruntime", "numpy"),
        "machine": fingerprint()["digest"],
    }
    finished = bench.cache.run(
        "optimize", decided_by, lambda folder, _: _work(bench, prepared, trained, (variant, given), names, folder)
    )
    found = json.loads((finished.path / "candidates.json").read_bytes())
    candidates = tuple(Candidate.from_json(each, _graph(finished.path, each["name"])) for each in found)
    correct = json.loads((finished.path / "reference.json").read_bytes())["correct"]
    return Optimized(
        finished, candidates, correct, must_pass=given is not None or settings.variant not in ("auto", "reference")
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


def _pass_names(variant: str, passes: tuple[str, ...] | None) -> tuple[str, ...]:
    if variant == "reference":
        return ()
    names = (extension_names("passes") if passes is None else passes) if variant == "auto" else (variant,)
    for name in names:
        load_pass(name)  # an unknown name is refused before anything is measured
    return names


def _work(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    given: tuple[Path | None, bytes | None],
    names: tuple[str, ...],
    folder: Path,
) -> None:
    recipe = bench.recipe.optimize
    settings = SearchSettings(objective=recipe.objective, pairs=recipe.pairs, batch=recipe.batch)
    selection = Rows(prepared.images("selection"), prepared.labels("selection"))
    path, graph = given
    candidates: tuple[Candidate, ...] = ()
    if path is not None and graph is not None:
        candidates = (
            measure_file(
                _variant_name(path), graph, reference=trained.reference, selection=selection, settings=settings
            ),
        )
    elif names:
        candidates = search(
            trained.reference,
            [load_pass(name) for name in names],
            calibration=_calibration(prepared.images("train")[: recipe.calibration_rows]),
            selection=selection,
            settings=settings,
            named=recipe.variant != "auto",
            progress=bench.progress,
        )
    correct = count_correct(load_runner(trained.reference, options=EngineOptions(threads=settings.threads)), selection)
    (folder / "reference.json").write_text(json.dumps({"correct": correct}))
    for candidate in candidates:
        if candidate.graph:
            (folder / f"{candidate.name}.onnx").write_bytes(candidate.graph)
    (folder / "candidates.json").write_text(json.dumps([candidate.to_json() for candidate in candidates], indent=1))


def _calibration(images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [
        {"image": images[start : start + _CALIBRATION_BATCH]} for start in range(0, len(images), _CALIBRATION_BATCH)
    ]


def _graph(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.onnx"
    return path.read_bytes() if path.exists() else b""
