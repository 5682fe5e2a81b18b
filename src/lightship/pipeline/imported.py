"""Import: a model that was trained elsewhere becomes a bundle, signed evidence and a version in the registry.

The release is ``structural``: it runs, it is intact, its golden examples and sizes are proven; how good its answers are
is not. So it becomes production only when a person accepts that (``accept_unproven``), and the history says who did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import REFERENCE, Golden, Manifest, TaskRef, Variant
from lightship.bundle.statement import TASK_SUBJECT
from lightship.bundle.store import BlobStore
from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.engine.machine import fingerprint
from lightship.errors import InvalidInput
from lightship.imports.evidence import evidence_of
from lightship.imports.fixed_sizes import with_fixed_sizes
from lightship.imports.model_file import SourceGraph, read_bytes, read_graph
from lightship.imports.row_numbers import with_row_numbers
from lightship.imports.trial import Found
from lightship.imports.trial_process import try_apart
from lightship.imports.tried_graph import Bounds
from lightship.pipeline.cache import StageCache, code_digest, library_versions
from lightship.pipeline.golden_answers import recorded
from lightship.pipeline.signed_release import SignedRelease
from lightship.registry.names import check_name
from lightship.registry.records import EvidenceRow
from lightship.tasks.npz import MAX_NPZ_BYTES, read_npz, write_npz
from lightship.tasks.tensors import TensorRows
from lightship.types import Interface, Json, Progress, Silent, Verdict
from lightship.validate.gate import apply_policy, policy_named, require
from lightship.version import __version__

__all__ = ["Imported", "import_model"]

STRUCTURAL = "structural"


@dataclass(frozen=True, slots=True)
class Imported:
    """A version in the registry.

    Attributes:
        is_new: False when this very bundle was a version of the name already.
        alias: what this call made of it (``production``), or None.
        unproven: checks that nobody could make, and why.
        words: what people should know of the model, one line each.
    """

    name: str
    version: int
    is_new: bool
    alias: str | None
    bundle: str
    release: str
    signer: str
    interface: Interface
    evidence: tuple[EvidenceRow, ...]
    words: tuple[str, ...]

    @property
    def unproven(self) -> tuple[str, ...]:
        """The checks that were not made."""
        return tuple(row.check for row in self.evidence if row.verdict == Verdict.UNPROVEN)


def import_model(
    path: Path | str,
    *,
    name: str,
    golden: Path | str | Mapping[str, np.ndarray] | None = None,
    upto: Mapping[str, int] | None = None,
    fix: Mapping[str, int] | None = None,
    accept_unproven: bool = False,
    home: Home | Path | str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Read, audit and try a model file; release it as the next version of ``name``.

    The same file, rows and bounds give the same bundle: it is the version that it already has.

    Args:
        path: of the model, e.g. an ONNX file; its weights may lie beside it.
        name: what the model is called.
        golden: a ``.npz`` file, or arrays by the name of the input; the first axis are rows. None draws them.
        upto: the largest size to try of a free dimension, by its name; ``batch`` is the rows of a batch.
        fix: the one size that a free dimension has from now on, by its name.
        accept_unproven: let it become production if nothing is yet; the history says who accepted it.
        home: where registry and store are; by default what LIGHTSHIP_HOME names.
        progress: hears what is done.

    Raises:
        NotFound: there is no such file.
        InvalidInput: the file, the rows or the name cannot be used.
        Refused: the file could do what a model must not, or its answers cannot be relied on.
    """
    check_name(name)
    where = home if isinstance(home, Home) else Home(Path(home)) if home is not None else Home.from_environment()
    fixed = _checked(fix or {}, "one size")
    bounds = Bounds(upto=_checked(upto or {}, "largest size to try"), first=tuple(fixed.values()))
    progress = progress or Silent()
    progress.start("Read and audit the file")
    source = _fixed(read_graph(Path(path)), fixed)
    given = _given(golden)
    progress.done(source.audit)
    where.ensure()
    cache = StageCache(where.cache / "imports" / name)
    with cache.locked():
        found = with_row_numbers(_tried(cache, source, given, bounds, progress), source.graph)
    progress.start("Build and sign the bundle")
    imported = _release(where, name, source, found, accept_unproven=accept_unproven)
    progress.done(f"{imported.name}:{imported.version}")
    return imported


def _checked(sizes: Mapping[str, int], what: str) -> dict[str, int]:
    checked = {}
    for dim, size in sizes.items():
        if not isinstance(size, int | np.integer) or not 1 <= size <= 1_000_000:
            raise InvalidInput(f"The {what} of {dim!r} must be a whole number in [1, 1000000]. Got {size}.")
        checked[dim] = int(size)
    return checked


def _fixed(source: SourceGraph, sizes: Mapping[str, int]) -> SourceGraph:
    if not sizes:
        return source
    fixed: dict[str, Json] = {**sizes}
    return replace(source, graph=with_fixed_sizes(source.graph, sizes), facts={**source.facts, "fixed": fixed})


def _given(golden: Path | str | Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray] | None:
    if golden is None or isinstance(golden, Mapping):
        return golden
    data = read_bytes(Path(golden), what="The file of golden rows", max_bytes=MAX_NPZ_BYTES)
    return read_npz(data, what=f"The file of golden rows {str(golden)!r}")


def _tried(
    cache: StageCache,
    source: SourceGraph,
    given: Mapping[str, np.ndarray] | None,
    bounds: Bounds,
    progress: Progress,
) -> Found:
    """Return what the trial finds; it is not repeated for the same bytes, code, libraries and machine."""
    rows = None if given is None else write_npz(given)

    def work(folder: Path, scratch: Path) -> None:  # noqa: ARG001 - nothing to find again
        _save(folder, try_apart(source.graph, given=given, bounds=bounds, progress=progress))

    finished = cache.run(
        "trial",
        {
            "graph": sha256_hex(source.graph),
            "golden": None if rows is None else sha256_hex(rows),
            "bounds": {"batch": bounds.batch, "size": bounds.size, "upto": dict(bounds.upto), "first": [*bounds.first]},
            "code": code_digest("imports", "engine", "tasks/tensors.py", "tasks/npz.py"),
            "libraries": library_versions("onnx", "onnxruntime", "numpy"),
            "machine": fingerprint()["digest"],
        },
        work,
    )
    return _load(finished.path)


def _save(folder: Path, found: Found) -> None:
    task = TensorRows(found.interface.inputs, found.interface.outputs)
    facts = {
        "task": task.config(),
        "proven": {name: list(bounds) for name, bounds in found.interface.proven.items()},
        "tolerance": found.tolerance,
        "golden": dict(found.golden),
        "shapes": dict(found.shapes),
        "words": list(found.words),
        "rows": len(found.rows),
    }
    (folder / "found.json").write_text(json.dumps(facts))
    (folder / "expected.npz").write_bytes(write_npz(found.expected))
    for index, row in enumerate(found.rows):
        (folder / f"row-{index}.npz").write_bytes(write_npz(row))


def _load(folder: Path) -> Found:
    facts: dict[str, Any] = json.loads((folder / "found.json").read_bytes())
    task = TensorRows.from_config(facts["task"])
    proven = {dim: (low, high) for dim, (low, high) in facts["proven"].items()}
    return Found(
        interface=Interface(task.inputs, task.outputs, proven=proven),
        rows=tuple(read_npz((folder / f"row-{index}.npz").read_bytes()) for index in range(facts["rows"])),
        expected=read_npz((folder / "expected.npz").read_bytes()),
        tolerance=facts["tolerance"],
        golden=facts["golden"],
        shapes=facts["shapes"],
        words=tuple(facts["words"]),
    )  # fmt: skip


def _release(home: Home, name: str, source: SourceGraph, found: Found, *, accept_unproven: bool) -> Imported:
    task = TensorRows(found.interface.inputs, found.interface.outputs)
    reference = TaskRef.of(task)
    subjects = {REFERENCE: sha256_hex(source.graph), TASK_SUBJECT: reference.digest}
    evidence = evidence_of(found, audit=source.audit, facts=source.facts, subjects=subjects)
    policy = policy_named(STRUCTURAL)
    require(apply_policy(policy, evidence), what=name)
    release = SignedRelease(home, name)
    manifest = _bundle(release.store, source, found, reference)
    registered, listed = release.register(
        manifest,
        release.sign(evidence),
        policy,
        status=STRUCTURAL,
        why=f"imported from {source.format}",
        note="structural: quality was not judged",
        accept_unproven=accept_unproven,
    )
    return Imported(
        name=registered.name,
        version=registered.version,
        is_new=registered.is_new,
        alias=registered.alias,
        bundle=registered.bundle,
        release=registered.release,
        signer=release.signer,
        interface=found.interface,
        evidence=listed,
        words=found.words,
    )


def _bundle(store: BlobStore, source: SourceGraph, found: Found, task: TaskRef) -> Manifest:
    graph_path = f"variants/{REFERENCE}/model.onnx"
    contents: dict[str, bytes] = {graph_path: source.graph}
    inputs = []
    for index, row in enumerate(found.rows):
        inputs.append(f"golden/inputs/{index:03}.npz")
        contents[inputs[-1]] = write_npz(row)
    expected = recorded(REFERENCE, found.expected, found.tolerance, contents=contents)
    return build_bundle(
        store,
        task=task,
        interface=found.interface,
        variants=[Variant(REFERENCE, "onnxruntime", graph_path, "as-imported")],
        default=REFERENCE,
        golden=Golden(tuple(inputs), {REFERENCE: expected}),
        lineage=_lineage(source),
        contents=contents,
    )


def _lineage(source: SourceGraph) -> dict[str, Json]:
    """Return where the model comes from: no times and no paths, so that the same file gives the same bundle."""
    return {
        "source": {"format": source.format, "sha256": source.digest, "facts": dict(source.facts)},
        "lightship": __version__,
        "libraries": library_versions("onnx", "onnxruntime", "numpy"),
    }
