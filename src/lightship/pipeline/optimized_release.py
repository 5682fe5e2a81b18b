"""The bundle of a variant that passed, beside its reference; its signed evidence, and a version in the registry.

The parent's golden inputs stay, so both versions can be asked the same; so does what the parent's evidence says of the
reference alone: where it was audited, and whether it is the model that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import REFERENCE, Expected, Golden, Manifest, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.statement import TASK_SUBJECT, Evidence, read_evidence, sign_evidence
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.engine.machine import fingerprint
from lightship.optimize.candidate import Candidate
from lightship.pipeline.imported import decimal_text
from lightship.pipeline.variant_golden import VariantGolden
from lightship.registry.database import open_database
from lightship.registry.records import EvidenceRow, Registered
from lightship.registry.releases import VerifiedRelease
from lightship.registry.user import current_user
from lightship.tasks.golden_texts import packed_texts
from lightship.tasks.tensors import BATCH
from lightship.types import Interface, Json
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
        batch: the largest batch that it was proven for.
        evidence: that the decision rests on.
        policy: that was applied.
        status: of the release.
        lineage: where the variant comes from.
    """

    candidate: Candidate
    golden: VariantGolden
    tolerance: float
    batch: int
    evidence: tuple[Evidence, ...]
    policy: Policy
    status: str
    lineage: Mapping[str, Json]


def release_variant(
    home: Home, parent: VerifiedRelease, passed: Passed, *, accept_unproven: bool
) -> tuple[Registered, tuple[EvidenceRow, ...], str]:
    """Release it as the next version of the parent's name; the same bundle again is the version that it has.

    Returns:
        What was registered, the evidence that the release lists, and who signed it.
    """
    store, key = BlobStore(home.store), PrivateKey.load_or_create(home.keys)
    trust = TrustStore(home.trust)
    signer = trust.add_local(key)
    manifest = _bundle(store, parent, passed)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [_signed(store, item, key=key, created=created) for item in passed.evidence]
    rows += _carried(store, trust, parent, manifest, had={row.check for row in rows})
    name, candidate = parent.resolved.name, passed.candidate
    structural = passed.status != "passed"

    def record(version: int) -> str:
        made = Release(
            name=name,
            version=version,
            bundle=manifest.digest,
            evidence=tuple((row.check, row.digest) for row in rows),
            policy=passed.policy.to_json(),
            created=created,
            status=passed.status,
        )
        return store.put(sign_release(made, key=key))

    with open_database(home) as registry:
        registered = registry.add_version(
            name,
            bundle=manifest.digest,
            release=record,
            who=current_user(),
            evidence=rows,
            why=f"optimized from {name}:{parent.resolved.version}",
            note=f"variant {candidate.name}" + ("; structural: quality was not judged" if structural else ""),
            unproven=structural,
            accept_unproven=accept_unproven,
        )
        listed = registry.find(f"{name}:{registered.version}").evidence
    return registered, listed, f"{signer.name}  {signer.key_id}" + ("  (a key of this home)" if signer.local else "")


def _bundle(store: BlobStore, parent: VerifiedRelease, passed: Passed) -> Manifest:
    theirs, candidate = parent.bundle.manifest, passed.candidate
    reference = theirs.variant(REFERENCE)
    assert reference is not None  # noqa: S101 - every manifest has it
    expected = theirs.golden.expected[REFERENCE]
    kept = {reference.graph, *reference.files, *theirs.golden.inputs, *expected.outputs.values()}
    kept |= {entry.path for entry in theirs.files if entry.path.startswith("assets/")}
    contents = {path: parent.bundle.read(path) for path in sorted(kept)}
    graph = reference.graph
    if candidate.graph != contents[reference.graph]:
        graph = f"variants/{candidate.name}/model.onnx"
        contents[graph] = candidate.graph
    variant = Variant(candidate.name, candidate.engine, graph, candidate.precision, options=candidate.options)
    outputs = {}
    for index, (name, answers) in enumerate(sorted(passed.golden.answers.items())):
        # By number: an output may have any name, a path may not.
        outputs[name] = f"golden/{candidate.name}/{index:03}.npy"
        contents[outputs[name]] = npy_from_array(packed_texts(answers) if answers.dtype == object else answers)
    answered = Expected(outputs, decimal_text(passed.tolerance))
    return build_bundle(
        store,
        task=theirs.task,
        interface=_interface(theirs.interface, passed.batch),
        variants=[reference, variant],
        default=candidate.name,
        golden=Golden(theirs.golden.inputs, {REFERENCE: expected, candidate.name: answered}),
        lineage=passed.lineage,
        contents=contents,
    )


def _interface(theirs: Interface, batch: int) -> Interface:
    """Return the parent's interface; the new variant may do smaller batches, never other sizes."""
    if BATCH not in theirs.proven:
        return theirs
    low, high = theirs.proven[BATCH]
    return replace(theirs, proven={**theirs.proven, BATCH: (low, max(low, min(high, batch)))})


def _signed(store: BlobStore, evidence: Evidence, *, key: PrivateKey, created: str) -> EvidenceRow:
    digest = store.put(sign_evidence(evidence, key=key, created=created, machine=fingerprint()))
    return EvidenceRow(evidence.check, evidence.verdict, evidence.summary, digest)


def _carried(
    store: BlobStore, trust: TrustStore, parent: VerifiedRelease, manifest: Manifest, *, had: set[str]
) -> list[EvidenceRow]:
    """Return the parent's evidence that is as true of the new bundle: all that it speaks of is in there."""
    files = {entry.sha256 for entry in manifest.files}
    rows = []
    for found in parent.verification.evidence:
        if found.check not in _STAYS_TRUE or found.check in had or not found.listed:
            continue
        subjects = read_evidence(store.get(found.digest), trust=trust).evidence.subjects
        if all(
            digest == manifest.task.digest if name == TASK_SUBJECT else digest in files
            for name, digest in subjects.items()
        ):
            rows.append(EvidenceRow(found.check, found.verdict, found.summary, found.digest))
    return rows
