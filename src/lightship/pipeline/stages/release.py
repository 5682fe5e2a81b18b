"""Release: the bundle, its signed evidence, the signed record, and a version in the registry."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import REFERENCE, Golden, Variant
from lightship.bundle.release import Release, require_passed, sign_release
from lightship.bundle.signing import PrivateKey, Signer, TrustStore
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.errors import BundleRefused, NotFound
from lightship.optimize.candidate import ONNX_RUNTIME, Candidate
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.pipeline.golden_answers import golden_of, recorded
from lightship.pipeline.release_card import with_card
from lightship.pipeline.signed_release import sign_rows
from lightship.pipeline.stages.prepare import Prepared
from lightship.pipeline.stages.train import Trained
from lightship.pipeline.stages.validate import Validated
from lightship.registry.database import open_database
from lightship.registry.records import EvidenceRow
from lightship.registry.user import current_user
from lightship.types import Interface, Json, Verdict
from lightship.version import __version__

if TYPE_CHECKING:
    from lightship.registry.records import Registered

__all__ = ["Released", "release"]


@dataclass(frozen=True, slots=True)
class Released:
    """A version in the registry.

    Attributes:
        is_new: False when this very bundle had been released before.
        headlines: what it is, in a few lines for people.
    """

    finished: Finished
    name: str
    version: int
    is_new: bool
    bundle: str
    release: str
    signer: str
    evidence: tuple[EvidenceRow, ...]
    headlines: tuple[str, ...]


def release(bench: Bench, prepared: Prepared, trained: Trained, validated: Validated) -> Released:
    """Register what the gate let through; the same bundle again is the version that it already has."""
    store = BlobStore(bench.home.store)
    key = PrivateKey.load_or_create(bench.home.keys)
    trust = TrustStore(bench.home.trust)
    signer = trust.add_local(key)
    finished = bench.cache.run(
        "release",
        {
            "validated": validated.digest,
            "signer": key.key_id,
            "store": str(bench.home.store),
            "code": code_digest("bundle", "pipeline/stages/release.py", "pipeline/golden_answers.py"),
        },
        lambda folder, _: _work(bench, prepared, trained, validated, key, folder),
        still_good=lambda folder: _is_stored(store, folder),
    )
    built = _built(finished.path)

    def record(version: int) -> str:
        made = with_card(_record(bench, validated, built, version), store=store, trust=trust, signer=signer)
        return store.put(sign_release(made, key=key))

    with open_database(bench.home) as registry:
        registered = registry.add_version(
            bench.recipe.name,
            bundle=built["bundle"],
            release=record,
            who=current_user(),
            evidence=[EvidenceRow(**row) for row in built["evidence"]],
            why="the gate passed",
            note=f"variant {validated.chosen}",
        )
    return _released(finished, registered, built, signer, validated)


def _work(
    bench: Bench, prepared: Prepared, trained: Trained, validated: Validated, key: PrivateKey, folder: Path
) -> None:
    """Build the bundle and sign the evidence into the store."""
    bench.progress.start("Build and sign the bundle")
    store = BlobStore(bench.home.store)
    graphs = {REFERENCE: trained.reference}
    if validated.chosen != REFERENCE:
        graphs[validated.chosen] = validated.graph
    contents: dict[str, bytes] = {}
    variants = []
    for name, graph in graphs.items():
        path = f"variants/{name}/model.onnx"
        contents[path] = graph
        chosen = validated.variant
        # No thread count here: how many suit a machine is that machine's affair, and the tolerance covers them.
        if name == REFERENCE:
            variants.append(Variant(name, ONNX_RUNTIME, path, "fp32"))
        else:
            variants.append(Variant(name, chosen.engine, path, chosen.precision, chosen.options))
    manifest = build_bundle(
        store,
        task=validated.task,
        interface=Interface(
            prepared.task.inputs,
            prepared.task.outputs,
            proven={"batch": validated.proven_batch},
            values=validated.proven_values,
        ),
        variants=variants,
        default=validated.chosen,
        golden=_golden(prepared, trained, validated, graphs, contents),
        lineage=_lineage(bench, prepared),
        contents=contents,
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [asdict(row) for row in sign_rows(store, validated.evidence, key=key, created=created)]
    (folder / "built.json").write_text(json.dumps({"bundle": manifest.digest, "created": created, "evidence": rows}))
    bench.progress.done(f"{len(manifest.files)} files")


def _golden(
    prepared: Prepared, trained: Trained, validated: Validated, graphs: dict[str, bytes], contents: dict[str, bytes]
) -> Golden:
    """Add the golden inputs, and what each graph answers to them, to the bundle's contents."""
    inputs = []
    for name, data in zip(trained.golden.names, trained.golden.files, strict=True):
        inputs.append(f"golden/inputs/{name}")
        contents[inputs[-1]] = data
    rows = [prepared.task.encode(data) for data in trained.golden.files]
    expected = {}
    for name, graph in graphs.items():
        chosen = validated.variant
        engine, options = (ONNX_RUNTIME, {}) if name == REFERENCE else (chosen.engine, chosen.options)
        variant = Candidate(name, engine=engine, options=options, graph=graph)
        found = golden_of(variant, rows, batched=True)
        # What the export differs from training is no difference between machines, and none that is told as one.
        tolerance = max(found.tolerance(), validated.tolerance)
        expected[name] = recorded(name, found.answers, tolerance, contents=contents)
    return Golden(tuple(inputs), expected)


def _lineage(bench: Bench, prepared: Prepared) -> dict[str, Json]:
    """Return where the model comes from: no times and no paths, so that the same work gives the same bundle."""
    return {
        "recipe": settings_json(bench.recipe),
        "data": {
            "fingerprint": prepared.split.fingerprint,
            "parts": dict(prepared.split.fingerprints),
            "rows": len(prepared.dataset.rows),
        },
        "lightship": __version__,
        "libraries": library_versions("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow"),
    }


def _built(folder: Path) -> dict[str, Any]:
    built: dict[str, Any] = json.loads((folder / "built.json").read_bytes())
    return built


def _is_stored(store: BlobStore, folder: Path) -> bool:
    """Tell whether every blob of the bundle and its evidence is there, and whole."""
    built = _built(folder)
    try:
        bundle = StoredBundle(store, built["bundle"])
        for file in bundle.manifest.files:
            bundle.read(file.path)
        for row in built["evidence"]:
            store.get(row["digest"])
    except (NotFound, BundleRefused):
        return False
    return True


def _record(bench: Bench, validated: Validated, built: dict[str, Any], version: int) -> Release:
    record = Release(
        name=bench.recipe.name,
        version=version,
        bundle=built["bundle"],
        evidence=tuple((row["check"], row["digest"]) for row in built["evidence"]),
        policy=validated.policy,
        created=built["created"],
        status="passed",
    )
    require_passed(record, [(row["check"], Verdict(row["verdict"])) for row in built["evidence"]])
    return record


def _released(
    finished: Finished, registered: Registered, built: dict[str, Any], signer: Signer, validated: Validated
) -> Released:
    return Released(
        finished=finished,
        name=registered.name,
        version=registered.version,
        is_new=registered.is_new,
        bundle=registered.bundle,
        release=registered.release,
        signer=f"{signer.name}  {signer.key_id}" + ("  (a key of this home)" if signer.local else ""),
        evidence=tuple(EvidenceRow(**row) for row in built["evidence"]),
        headlines=validated.headlines,
    )
