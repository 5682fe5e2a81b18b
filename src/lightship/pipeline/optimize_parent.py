"""The released version that is optimized: verified as a server does it, its golden examples included."""

from __future__ import annotations

from dataclasses import dataclass

from lightship.bundle.arrays import array_from_npy
from lightship.bundle.manifest import REFERENCE, Manifest
from lightship.data.home import Home
from lightship.engine.difference import require_golden
from lightship.errors import BundleRefused
from lightship.pipeline.golden_answers import answers_to
from lightship.pipeline.variant_look import Subject
from lightship.registry.releases import VerifiedRelease, read_release
from lightship.tasks.registry import load_task
from lightship.tasks.task import Task

__all__ = ["Parent", "read_parent"]


@dataclass(frozen=True, slots=True)
class Parent:
    """A verified release, and its reference as what variants are held against."""

    release: VerifiedRelease
    manifest: Manifest
    task: Task
    subject: Subject

    @property
    def name(self) -> str:
        """The name in the registry."""
        return self.release.resolved.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.release.resolved.version


def read_parent(home: Home, reference: str) -> Parent:
    """Read and verify a release.

    Args:
        home: with the registry and the store.
        reference: ``m1``, ``m1@staging`` or ``m1:3``.

    Raises:
        NotFound: there is none.
        BundleRefused: bytes, digests, signatures or golden examples do not agree.
    """
    release = read_release(home, reference)
    manifest = release.bundle.manifest
    variant = manifest.variant(REFERENCE)
    task = load_task(manifest.task.name, manifest.task.codec_version, manifest.task.config)
    expected = manifest.golden.expected.get(REFERENCE)
    if variant is None or expected is None or not manifest.golden.inputs:
        raise BundleRefused(
            f"The bundle {release.bundle.digest} has no golden examples of its reference, so a variant of it could not "
            "be tested where it will run. Release the model again."
        )
    golden = tuple(task.encode(release.bundle.read(path)) for path in manifest.golden.inputs)
    subject = Subject(
        graph=release.bundle.read(variant.graph),
        interface=manifest.interface,
        task_digest=manifest.task.digest,
        golden=golden,
        tolerance=float(expected.tolerance),
    )
    runner = subject.runner(threads=1)
    try:
        answers = [answers_to(runner, row, batched=subject.batched) for row in golden]
    finally:
        runner.close()
    for output, path in expected.outputs.items():
        recorded = array_from_npy(release.bundle.read(path), what=path)
        for place, answer in zip(manifest.golden.inputs, enumerate(answers), strict=True):
            index, found = answer
            require_golden(place, output, found[output], recorded[index], tolerance=subject.tolerance)
    return Parent(release, manifest, task, subject)
