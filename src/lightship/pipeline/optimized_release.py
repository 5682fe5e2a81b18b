"""The bundle of a variant that passed, beside its reference; its signed evidence, and a version in the registry.

The parent's golden inputs stay, so both versions can be asked the same; so does what the parent's evidence says of the
reference alone: where it was audited, and whether it is the model that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import REFERENCE, Golden, Manifest, TaskRef, Variant
from lightship.bundle.statement import TASK_SUBJECT, Evidence, read_evidence
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.optimize.candidate import Candidate
from lightship.pipeline.golden_answers import VariantGolden, recorded
from lightship.pipeline.signed_release import SignedRelease
from lightship.pipeline.temperature import about_task
from lightship.registry.records import EvidenceRow, Registered
from lightship.registry.releases import VerifiedRelease
from lightship.types import Json, ValueRange
from lightship.validate.gate import Policy

__all__ = ["Passed", "release_variant"]

_STAYS_TRUE = ("audit", "parity", "overfitting")
"""Checks of the parent that speak of the reference alone."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gate let through.

    Attributes:
        candidate: with its graph.
        golden: its answers to the parent's golden inputs.
        tolerance: what these may be off on another machine.
        proven: least and greatest size of each free dimension that it was proven for.
        values: by input, the values that it was proven for.
        evidence: that the decision rests on.
        policy: that was applied.
        status: of the release.
        lineage: where the variant comes from.
        task: as the parent has it, or with another temperature.
    """

    candidate: Candidate
    golden: VariantGolden
    tolerance: float
    proven: Mapping[str, tuple[int, int]]
    values: Mapping[str, ValueRange]
    evidence: tuple[Evidence, ...]
    policy: Policy
    status: str
    lineage: Mapping[str, Json]
    task: TaskRef


def release_variant(
    home: Home, parent: VerifiedRelease, passed: Passed, *, accept_unproven: bool
) -> tuple[Registered, tuple[EvidenceRow, ...], str]:
    """Release it as the next version of the parent's name; the same bundle again is the version that it has.

    Returns:
        What was registered, the evidence that the release lists, and who signed it.
    """
    name, candidate = parent.resolved.name, passed.candidate
    release = SignedRelease(home, name)
    manifest = _bundle(release.store, parent, passed)
    rows = release.sign(passed.evidence)
    rows += _carried(release, parent, manifest, had={row.check for row in rows})
    unjudged = "" if passed.status == "passed" else "; structural: quality was not judged"
    registered, listed = release.register(
        manifest,
        rows,
        passed.policy,
        status=passed.status,
        why=f"optimized from {name}:{parent.resolved.version}",
        note=f"variant {candidate.name}{unjudged}",
        accept_unproven=accept_unproven,
    )
    return registered, listed, release.signer


def _bundle(store: BlobStore, parent: VerifiedRelease, passed: Passed) -> Manifest:
    theirs, candidate = parent.bundle.manifest, passed.candidate
    reference = theirs.variant(REFERENCE)
    assert reference is not None  # noqa: S101 - every manifest has it
    expected = theirs.golden.expected[REFERENCE]
    kept = {reference.graph, *reference.files, *theirs.golden.inputs, *expected.outputs.values()}
    kept |= {entry.path for entry in theirs.files if entry.path.startswith("assets/")}
    contents = {path: parent.bundle.read(path) for path in sorted(kept)}
    variants, answers = [reference], {REFERENCE: expected}
    if candidate.name != REFERENCE:
        graph = reference.graph
        if candidate.graph != contents[reference.graph]:
            graph = f"variants/{candidate.name}/model.onnx"
            contents[graph] = candidate.graph
        variants.append(
            Variant(candidate.name, candidate.engine, graph, candidate.precision, options=candidate.options)
        )
        answers[candidate.name] = recorded(candidate.name, passed.golden.answers, passed.tolerance, contents=contents)
    return build_bundle(
        store,
        task=passed.task,
        interface=replace(theirs.interface, proven=passed.proven, values=passed.values),
        variants=variants,
        default=candidate.name,
        golden=Golden(theirs.golden.inputs, answers),
        lineage=passed.lineage,
        contents=contents,
    )


def _carried(
    release: SignedRelease, parent: VerifiedRelease, manifest: Manifest, *, had: set[str]
) -> list[EvidenceRow]:
    """Return the parent's evidence that is as true of the new bundle: all that it speaks of is in there.

    What speaks of the parent's task is said again of one with another temperature, which changes nothing of it.
    """
    files, theirs = {entry.sha256 for entry in manifest.files}, parent.bundle.manifest.task.digest
    rows = []
    for found in parent.verification.evidence:
        if found.check not in _STAYS_TRUE or found.check in had or not found.listed:
            continue
        evidence = read_evidence(release.store.get(found.digest), trust=release.trust).evidence
        if not all(
            digest == theirs if name == TASK_SUBJECT else digest in files for name, digest in evidence.subjects.items()
        ):
            continue
        if evidence.subjects.get(TASK_SUBJECT, manifest.task.digest) == manifest.task.digest:
            rows.append(EvidenceRow(found.check, found.verdict, found.summary, found.digest))
            continue
        again = about_task(evidence, manifest.task)
        rows += release.sign([replace(again, method={**again.method, "said_before": found.digest})])
    return rows
