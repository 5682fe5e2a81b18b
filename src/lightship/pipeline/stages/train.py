"""Train: weights, learning curves, the reference graph, and golden examples as the trained model answered them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.bundle.arrays import array_from_npy, npy_from_array
from lightship.errors import MissingExtra
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.pipeline.stages.prepare import Prepared

if TYPE_CHECKING:
    from lightship.train.trained import TrainedModel

__all__ = ["GoldenExamples", "Trained", "require_torch", "train"]

_GOLDEN_PER_CLASS = 2
_FEWEST_GOLDEN = 16  # with few classes, more of each
_MOST_GOLDEN = 64


@dataclass(frozen=True, slots=True)
class GoldenExamples:
    """Raw inputs and the trained model's answers, recorded when it was trained.

    Attributes:
        names: file names; ``files`` holds their bytes.
        logits: float32 (examples, classes), by PyTorch.
    """

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    logits: np.ndarray


@dataclass(frozen=True)
class Trained:
    """The trained model.

    Attributes:
        scores: right answers and rows: ``train_correct``, ``train_rows``, ``validation_correct``, ``validation_rows``.
    """

    finished: Finished
    scores: dict[str, int]

    @property
    def reference_path(self) -> Path:
        """The reference graph, ONNX."""
        return self.finished.path / "reference.onnx"

    @cached_property
    def reference(self) -> bytes:
        """The bytes of the reference graph."""
        return self.reference_path.read_bytes()

    @cached_property
    def model(self) -> TrainedModel:
        """Weights and learning curves. Loading them needs no torch."""
        from lightship.train.trained import TrainedModel

        return TrainedModel.load(self.finished.path / "model")

    @cached_property
    def golden(self) -> GoldenExamples:
        """The golden examples."""
        folder = self.finished.path / "golden"
        names = tuple(json.loads((folder / "names.json").read_bytes()))
        logits = array_from_npy((folder / "logits.npy").read_bytes(), what="golden/logits.npy")
        return GoldenExamples(names, tuple((folder / name).read_bytes() for name in names), logits)

    @property
    def headline(self) -> str:
        """One line for people."""
        validation = self.scores["validation_correct"] / self.scores["validation_rows"]
        return f"best of {len(self.model.curves)} epochs: {self.model.best_epoch}, validation accuracy {validation:.1%}"


def train(bench: Bench, prepared: Prepared) -> Trained:
    """Train the model, or take the finished one.

    Raises:
        MissingExtra: torch is not installed.
    """
    finished = bench.cache.run(
        "train",
        {
            "rows": [prepared.split.fingerprints["train"], prepared.split.fingerprints["validation"]],
            "order": prepared.finished.key,  # training visits rows in the source's order, shuffled by the seed
            "task": prepared.task.config(),
            "train": settings_json(bench.recipe.train),
            "code": code_digest("train", "tasks", "pipeline/stages/train.py"),
            "libraries": library_versions("torch", "accelerate", "onnx", "onnxscript", "numpy"),
        },
        lambda folder, scratch: _work(bench, prepared, folder, scratch),
    )
    return Trained(finished, json.loads((finished.path / "scores.json").read_bytes()))


def require_torch(*, needed_for: str) -> None:
    """Refuse with the line that installs torch when it is not there.

    Raises:
        MissingExtra: the extra ``train`` is not installed.
    """
    if find_spec("torch") is None:
        raise MissingExtra(extra="train", needed_for=needed_for)


def _work(bench: Bench, prepared: Prepared, folder: Path, scratch: Path) -> None:
    require_torch(needed_for="Training")
    from lightship.train.export import export_onnx, torch_outputs
    from lightship.train.loop import EncodedRows
    from lightship.train.loop import train as run
    from lightship.train.settings import TrainSettings

    rows = {part: EncodedRows(prepared.images(part), prepared.labels(part)) for part in ("train", "validation")}
    model = run(
        TrainSettings(**bench.recipe.train.model_dump()),
        rows=rows["train"],
        validation=rows["validation"],
        classes=len(prepared.task.labels),
        checkpoint_dir=scratch,
        progress=bench.progress,
    )
    model.save(folder / "model")

    bench.progress.start("Export the reference graph")
    graph = export_onnx(model, rows=rows["validation"].images)
    (folder / "reference.onnx").write_bytes(graph)
    bench.progress.done(f"{len(graph):,} bytes")

    network = model.module()
    scores: dict[str, int] = {}
    for part, encoded in rows.items():
        logits, _ = torch_outputs(network, encoded.images)
        scores[f"{part}_correct"] = int((logits.argmax(axis=1) == encoded.targets).sum())
        scores[f"{part}_rows"] = len(logits)
    (folder / "scores.json").write_text(json.dumps(scores))
    _record_golden(prepared, folder / "golden", lambda images: torch_outputs(network, images)[0])


def _record_golden(prepared: Prepared, folder: Path, run: Any) -> None:
    """Keep a few validation rows of each class as files, with what the trained model answers to them."""
    folder.mkdir()
    names: list[str] = []
    images: list[np.ndarray] = []
    taken = dict.fromkeys(prepared.task.labels, 0)
    per_class = max(_GOLDEN_PER_CLASS, _FEWEST_GOLDEN // len(taken))
    for row in prepared.rows("validation"):
        if taken[row.label] < per_class and len(names) < _MOST_GOLDEN:
            taken[row.label] += 1
            suffix, data = prepared.task.golden(row.raw)
            names.append(f"{len(names):04d}{suffix}")
            (folder / names[-1]).write_bytes(data)
            images.append(prepared.task.encode(data)["image"])  # from the file, as a server will see it
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "logits.npy").write_bytes(npy_from_array(run(np.stack(images))))
