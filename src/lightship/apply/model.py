"""Use a released model in this process: verified, self-tested, then a function from image to answer.

What a server does before it answers is done here too: signatures and digests are recomputed, only the bytes that were
checked are loaded, and the golden examples must give on this machine what they gave when the model was released.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Self, overload

import numpy as np

from lightship.apply.answers import Answer
from lightship.apply.graph_rows import run_rows
from lightship.apply.images import Image, raw_of
from lightship.bundle.arrays import array_from_npy
from lightship.bundle.manifest import REFERENCE, Expected, Variant
from lightship.bundle.store import BundleReader
from lightship.data.home import Home
from lightship.engine.difference import require_golden
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.errors import BundleRefused, InvalidInput, LightshipError, NotFound, UnsupportedMedia
from lightship.registry.releases import VerifiedRelease, read_release
from lightship.tasks.registry import load_task
from lightship.tasks.task import Raw, Task
from lightship.tasks.tensors import is_batched
from lightship.types import Verdict
from lightship.validate.checks.golden import check_golden

__all__ = ["Model", "load"]

log = logging.getLogger(__name__)

BATCH_ROWS = 32


def load(reference: str, *, home: Home | Path | str | None = None, strict_variant: bool = False) -> Model:
    """Load a released model into this process.

    Args:
        reference: ``digits`` (its production), ``digits@staging`` or ``digits:3``.
        home: where the registry and the store are; by default what LIGHTSHIP_HOME names, else the user's data folder.
        strict_variant: raise when the variant that the release proposes does not work on this machine; else the
            bundle's reference is loaded in its place, with a warning in the log.

    Raises:
        NotFound: no such registry, name, alias or version.
        BundleRefused: bytes, digests, signatures or golden examples do not agree.
    """
    where = home if isinstance(home, Home) else Home(Path(home)) if home is not None else Home.from_environment()
    release = read_release(where, reference)
    proposed = release.bundle.manifest.default
    try:
        return _loaded(release, proposed)
    except LightshipError as exc:
        if strict_variant or proposed == REFERENCE:
            raise
        log.warning(
            "%s:%s falls back to its reference, for the variant %s does not work on this machine: %s",
            *(release.resolved.name, release.resolved.version, proposed, exc),
        )
        return _loaded(release, REFERENCE)


def _loaded(release: VerifiedRelease, name: str) -> Model:
    bundle, manifest = release.bundle, release.bundle.manifest
    variant = manifest.variant(name)
    if variant is None:
        raise BundleRefused(f"The bundle {bundle.digest} has no variant {name!r}.")
    task = load_task(manifest.task.name, manifest.task.codec_version, manifest.task.config)
    batched = is_batched(manifest.interface.inputs, manifest.interface.outputs)
    options = replace(EngineOptions.from_json(variant.options), batched=batched)
    runner = load_runner(bundle.read(variant.graph), engine=variant.engine, options=options)
    try:
        _self_test(bundle, variant, task, runner)
    except BaseException:
        runner.close()
        raise
    return Model(release, name, task, runner)


class Model:
    """A loaded model; made by ``load``. A context manager; safe to share between threads.

    Attributes:
        name: in the registry.
        version: likewise.
        bundle: digest of the bundle, ``sha256:<hex>``.
        variant: what answers: the one that the release proposes, or its reference.
        task: encodes images and decodes answers.
        interface: what the graph takes and gives, and the sizes that were proven.
        unproven: nobody measured how good its answers are; it is what was released, and that is all.
    """

    def __init__(self, release: VerifiedRelease, variant: str, task: Task, runner: Runner) -> None:
        resolved, interface = release.resolved, release.bundle.manifest.interface
        self.name = resolved.name
        self.version = resolved.version
        self.bundle = resolved.bundle
        self.variant = variant
        self.task = task
        self.interface = interface
        self.unproven = release.verification.unproven
        self._runner: Runner | None = runner
        self._least_rows, self._most_rows = interface.proven.get("batch", (1, 1))
        self._closing = threading.Lock()

    def __repr__(self) -> str:
        return f"Model({self.name}:{self.version}, {self.task.name}, variant {self.variant!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.task.labels

    def close(self) -> None:
        """Free the graph."""
        with self._closing:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    @overload
    def predict(self, image: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @overload
    def predict(self, image: Image) -> Answer: ...

    def predict(self, image: Image | Mapping[str, np.ndarray]) -> Answer | dict[str, np.ndarray]:
        """Return the answer to one image; or, for arrays, what the graph gives for them.

        Args:
            image: bytes of a PNG, JPEG or WebP file, the path of one, or uint8 (height, width[, 1 or 3]). Or arrays by
                the name of the graph's input, with the batch axis: any model takes them, and one that was imported
                takes nothing else.

        Returns:
            An ``Answer``; for arrays, the outputs by name, with the batch axis.

        Raises:
            InvalidInput: the image or an array cannot be used; its subclasses say why.
            NotFound: there is no file at the path.
        """
        if isinstance(image, Mapping):
            return run_rows(self._loaded(), self.interface, image)
        return self._run([self._encode(None, image)])[0]

    def predict_many(self, images: Iterable[Image], *, batch_rows: int = BATCH_ROWS) -> list[Answer]:
        """Return one answer an image, in their order.

        Args:
            images: as for ``predict``; read in batches, so a generator of many paths takes little memory.
            batch_rows: rows for the engine at once, at least 1; never more than what the release was tested with.

        Raises:
            InvalidInput: an image cannot be used; the message says which. Nothing is answered then.
        """
        return list(self.answers(images, batch_rows=batch_rows))

    def answers(self, images: Iterable[Image], *, batch_rows: int = BATCH_ROWS) -> Iterator[Answer]:
        """Yield what ``predict_many`` returns, as batches are done."""
        if batch_rows < 1:
            raise InvalidInput(f"`batch_rows` of `predict_many` must be at least 1. Got {batch_rows}.")
        numbered = enumerate(images)
        while batch := [self._encode(number, image) for number, image in islice(numbered, self._rows(batch_rows))]:
            yield from self._run(batch)

    def _rows(self, wanted: int) -> int:
        return max(1, min(wanted, self._most_rows))

    def _encode(self, number: int | None, image: Image) -> dict[str, np.ndarray]:
        if not self.labels:
            raise UnsupportedMedia(
                f"The model {self.name!r} was imported and takes tensors, no images: "
                f"predict({{{', '.join(f'{spec.name!r}: array' for spec in self.interface.inputs)}}})."
            )
        try:
            return self.task.encode(raw_of(image))
        except (InvalidInput, NotFound) as exc:
            if number is None:
                raise
            raise type(exc)(f"Image {number} (counted from 0): {exc}") from exc

    def _loaded(self) -> Runner:
        runner = self._runner
        if runner is None:
            raise LightshipError(f"The model {self.name}:{self.version} was closed. Load it again.")
        return runner

    def _run(self, rows: list[dict[str, np.ndarray]]) -> list[Answer]:
        runner = self._loaded()
        # A graph that was proven from some number of rows up gets the last row again until there are as many.
        padded = rows + [rows[-1]] * (self._least_rows - len(rows))
        outputs = runner.run({name: np.stack([row[name] for row in padded]) for name in rows[0]})
        decoded = self.task.decode(outputs)[: len(rows)]
        if len(decoded) != len(rows):
            raise LightshipError(f"{self!r} gave {len(decoded)} answers to {len(rows)} images. It cannot be used.")
        return [Answer.from_json(value, model=self.name, version=self.version) for value in decoded]


def _self_test(bundle: BundleReader, variant: Variant, task: Task, runner: Runner) -> None:
    """Refuse a model that does not answer its golden examples here as it did when it was released."""
    golden = bundle.manifest.golden
    if not golden.inputs:
        return
    if not task.labels:
        _tensors_self_test(bundle, golden.expected[variant.name], task, runner)
        return
    raws: list[Raw] = [bundle.read(path) for path in golden.inputs]
    expected: Expected = golden.expected[variant.name]
    least = bundle.manifest.interface.proven.get("batch", (1, 1))[0]

    for output, path in expected.outputs.items():

        def run(rows: np.ndarray, output: str = output) -> np.ndarray:
            # Row by row, as single requests come; a graph may give other last bits in another batch.
            one_by_one = [runner.run({task.inputs[0].name: np.repeat(row[None], least, axis=0)}) for row in rows]
            return np.concatenate([outputs[output][:1] for outputs in one_by_one])

        found = check_golden(
            task,
            raws,
            array_from_npy(bundle.read(path), what=path),
            run,
            tolerance=float(expected.tolerance),
            names=golden.inputs,
            subjects={},
        )
        if found.verdict is not Verdict.PASSED:
            raise BundleRefused(
                f"The self-test of variant {variant.name!r} failed on this machine. {found.summary}. "
                "See what differs with `lightship verify`; the model is not used."
            )


def _tensors_self_test(bundle: BundleReader, expected: Expected, task: Task, runner: Runner) -> None:
    """Run each golden input alone, as it is: nothing is known of it but its tensors."""
    batched = is_batched(task.inputs, task.outputs)
    recorded = {name: array_from_npy(bundle.read(path), what=path) for name, path in expected.outputs.items()}
    for index, path in enumerate(bundle.manifest.golden.inputs):
        row = task.encode(bundle.read(path))
        outputs = runner.run({name: array[np.newaxis] if batched else array for name, array in row.items()})
        for name, rows in recorded.items():
            found = outputs[name] if batched else outputs[name][np.newaxis]
            require_golden(path, name, found, rows[index], tolerance=float(expected.tolerance))
