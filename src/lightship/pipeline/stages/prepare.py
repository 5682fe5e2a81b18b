"""Prepare: read the source, find the image that the model will see, split the rows, note what is odd about them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightship.data.rows import BadRow, Dataset, Row
from lightship.data.sources import read_source
from lightship.data.split import PARTS, Split, split_rows
from lightship.errors import InvalidData, InvalidInput
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.tasks.image_classification import ImageClassification

__all__ = ["Prepared", "prepare"]

_LARGEST_FOUND_SIDE = 64  # pixels; a recipe may ask for more, but more is never the silent default
_ROWS_LOOKED_AT = 500
_ROWS_FOR_MEAN = 2000


@dataclass(frozen=True)
class Prepared:
    """Rows that are ready to be used.

    Attributes:
        finished: the stage behind it.
        task: encode and decode, with the classes, the size and the normalization found here.
        split: row indices of the four parts and what was noticed while splitting.
        bad: rows that cannot be used, each with its reason.
    """

    bench: Bench
    finished: Finished
    task: ImageClassification
    split: Split
    bad: tuple[BadRow, ...]
    dataset: Dataset

    def rows(self, part: str) -> list[Row]:
        """Return the rows of a part, in the order of the source."""
        return [self.dataset.rows[index] for index in self.split.part(part)]

    def labels(self, part: str) -> np.ndarray:
        """Return the classes of a part: int64 (rows,), indices into ``task.labels``."""
        index = {label: position for position, label in enumerate(self.task.labels)}
        return np.array([index[self.dataset.row_labels[i]] for i in self.split.part(part)], dtype=np.int64)

    def images(self, part: str) -> np.ndarray:
        """Return the encoded images of a part: float32 (rows, channels, height, width)."""
        kept = self._encoded.get(part)
        if kept is None:
            indices = self.split.part(part)
            self.bench.progress.start(f"Encode {part} rows", len(indices))
            batch = []
            for index in indices:
                batch.append(self.task.encode(self.dataset.rows[index].raw)["image"])
                self.bench.progress.advance()
            self.bench.progress.done(f"{len(indices)} rows")
            kept = self._encoded[part] = np.stack(batch)
        return kept

    @cached_property
    def _encoded(self) -> dict[str, np.ndarray]:
        return {}


def prepare(bench: Bench) -> Prepared:
    """Split the rows of the recipe's source, or take the finished split of an unchanged source.

    The source is read each time: only its bytes can tell that they are unchanged.

    Raises:
        InvalidData: the source cannot be read, or a class is missing from a part.
    """
    recipe = bench.recipe
    dataset = read_source(
        recipe.data.source,
        base=bench.base,
        image_column=recipe.data.image_column,
        label_column=recipe.data.label_column,
    )
    finished = bench.cache.run(
        "prepare",
        {
            "source": _content_digest(dataset),
            "data": settings_json(recipe.data),
            "image": settings_json(recipe.image),
            "code": code_digest("data", "tasks", "pipeline/stages/prepare.py"),
            "libraries": library_versions("numpy", "pillow"),
        },
        lambda folder, _: _work(bench, dataset, folder),
    )
    found = json.loads((finished.path / "prepared.json").read_bytes())
    return Prepared(
        bench=bench,
        finished=finished,
        task=ImageClassification.from_config(found["task"]),
        split=_split_from_json(found["split"]),
        bad=tuple(BadRow(**row) for row in found["bad"]),
        dataset=dataset,
    )


def _content_digest(dataset: Dataset) -> str:
    """Return a digest of every id, label and raw input, in order, and of the rows that cannot be used."""
    digest = hashlib.sha256()
    for row in dataset.rows:
        raw = (
            row.raw if isinstance(row.raw, bytes) else row.raw.tobytes() + repr((row.raw.dtype, row.raw.shape)).encode()
        )
        digest.update(hashlib.sha256(raw).digest() + repr((row.id, row.label)).encode())
    digest.update(repr(dataset.bad).encode())
    return digest.hexdigest()


def _work(bench: Bench, dataset: Dataset, folder: Path) -> None:
    bench.progress.start("Split the rows")
    recipe = bench.recipe
    plain = _plain_task(bench, dataset)
    fractions = {part: getattr(recipe.data.split, part) for part in PARTS}
    split, undecodable = split_rows(dataset, identity=plain.identity, seed=recipe.data.seed, fractions=fractions)
    task = _normalized(plain, dataset, split)
    bad = (*dataset.bad, *undecodable)
    found = {
        "task": task.config(),
        "split": _split_to_json(split),
        "bad": [{"id": row.id, "reason": row.reason} for row in bad],
    }
    (folder / "prepared.json").write_text(json.dumps(found))
    sizes = " / ".join(str(len(split.part(part))) for part in PARTS)
    bench.progress.done(f"{len(dataset.rows)} rows -> {sizes}" + (f", {len(bad)} unusable" if bad else ""))


def _plain_task(bench: Bench, dataset: Dataset) -> ImageClassification:
    """Return the task without normalization: size and channels from the recipe, else from the first rows."""
    labels = dataset.labels
    if len(labels) < 2:
        raise InvalidData(f"{dataset.source} has {len(labels)} class(es); a classifier needs 2 or more.")
    image = bench.recipe.image
    colors, heights, widths = [], [], []
    probe = ImageClassification(labels=labels, channels=3, height=8, width=8, mean=("0",) * 3, std=("1",) * 3)
    good, why_not = _first_decodable(probe, dataset)
    for row in good:
        pixels = probe.decode_pixels(row.raw)
        heights.append(pixels.shape[0])
        widths.append(pixels.shape[1])
        colors.append(bool((pixels != pixels[..., :1]).any()))
    if not heights:
        raise InvalidData(
            f"None of the first {min(_ROWS_LOOKED_AT, len(dataset.rows))} rows of {dataset.source} can be decoded as "
            f"an image. The first, {dataset.ids[0]}: {why_not}"
        )
    channels = image.channels or (3 if any(colors) else 1)
    return ImageClassification(
        labels=labels,
        channels=channels,
        height=image.height or _side(heights),
        width=image.width or _side(widths),
        mean=("0",) * channels,
        std=("1",) * channels,
    )


def _first_decodable(probe: ImageClassification, dataset: Dataset) -> tuple[list[Row], str]:
    """Return the first rows that are images, and why the first other one is none; ``split_rows`` names them all."""
    good, why_not = [], ""
    for row in dataset.rows[:_ROWS_LOOKED_AT]:
        try:
            probe.decode_pixels(row.raw)
        except InvalidInput as exc:
            why_not = why_not or str(exc)
            continue
        good.append(row)
    return good, why_not


def _side(sizes: list[int]) -> int:
    """Return the rows' own size when it is small, else the largest size that is taken without being asked for."""
    return max(8, min(_LARGEST_FOUND_SIDE, int(np.median(sizes))))


def _normalized(plain: ImageClassification, dataset: Dataset, split: Split) -> ImageClassification:
    """Return the task with mean and standard deviation of the training rows' channels, to four decimals."""
    rows = [dataset.rows[index].raw for index in split.train[:_ROWS_FOR_MEAN]]
    images = np.stack([plain.encode(raw)["image"] for raw in rows]).astype(np.float64)
    mean, std = images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))
    return ImageClassification(
        labels=plain.labels,
        channels=plain.channels,
        height=plain.height,
        width=plain.width,
        mean=tuple(f"{value:.4f}" for value in mean),
        std=tuple(f"{max(value, 0.01):.4f}" for value in std),  # a constant channel must not divide by zero
    )


def _split_to_json(split: Split) -> dict[str, Any]:
    parts = {part: list(split.part(part)) for part in PARTS}
    return {
        **parts,
        "duplicates": split.duplicates,
        "conflicts": [list(ids) for ids in split.conflicts],
        "class_counts": split.class_counts,
        "fingerprints": split.fingerprints,
        "fingerprint": split.fingerprint,
    }


def _split_from_json(found: dict[str, Any]) -> Split:
    return Split(
        **{part: tuple(found[part]) for part in PARTS},
        duplicates=found["duplicates"],
        conflicts=tuple(tuple(ids) for ids in found["conflicts"]),
        class_counts=found["class_counts"],
        fingerprints=found["fingerprints"],
        fingerprint=found["fingerprint"],
    )
