"""A home in a temporary folder, its registry, digests and a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import Expected, Golden, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.statement import Evidence, sign_evidence
from lightship.bundle.store import BlobStore
from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.registry.database import Registry, open_database
from lightship.registry.records import EvidenceRow
from lightship.tasks.image_classification import ImageClassification
from lightship.types import Interface, Verdict

CREATED = "2026-01-01T00:00:00+00:00"


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time

    def move(self, **delta: float) -> None:
        """Move the clock by a timedelta."""
        self.time += timedelta(**delta)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty registry's file, made once: Alembic takes half a second."""
    home = Home(tmp_path_factory.mktemp("template"))
    open_database(home).close()
    return home.registry


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that does not exist yet, with a name that URIs and Alembic must quote."""
    return Home(tmp_path / "a home, 100% ünusual?#")


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands at noon of 2026-03-01, UTC."""
    return Clock()


@pytest.fixture
def registry(home: Home, clock: Clock, empty_registry: Path) -> Iterator[Registry]:
    """Return the open, empty registry of ``home``."""
    home.root.mkdir()
    shutil.copy(empty_registry, home.registry)
    with open_database(home, clock=clock) as opened:
        yield opened


@pytest.fixture
def digest() -> Callable[[object], str]:
    """Return a function that gives a digest of whatever text."""
    return lambda text: f"sha256:{sha256_hex(str(text).encode())}"


GRAPH = b"a graph"
TASK = ImageClassification(labels=("a", "b"), channels=1, height=4, width=4, mean=("0",), std=("1",))


def put_bundle(store: BlobStore, seed: str) -> str:
    """Put a bundle into a store that differs from others by its seed, and return its digest."""
    contents = {"variants/reference/model.onnx": GRAPH, "golden/0.png": b"a picture", "golden/logits.npy": b"logits"}
    return build_bundle(
        store,
        task=TaskRef(TASK.name, TASK.codec_version, TASK.config()),
        interface=Interface(TASK.inputs, TASK.outputs, proven={"batch": (1, 2)}),
        variants=[Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32", {}, ())],
        default="reference",
        golden=Golden(("golden/0.png",), {"reference": Expected({"logits": "golden/logits.npy"}, "0.0001")}),
        lineage={"seed": seed},
        contents=contents,
    ).digest


@pytest.fixture
def sign(home: Home) -> Callable[..., tuple[str, Callable[[int], str], EvidenceRow]]:
    """Return a function that puts a bundle and evidence into the store.

    It returns the bundle's digest, what makes the signed release of a version, and the row of the evidence.
    """

    def sign_one(
        name: str = "digits", *, seed: str = "", status: str = "passed", bare: bool = False, signer: Path | None = None
    ) -> tuple[str, Callable[[int], str], EvidenceRow]:
        store, key = BlobStore(home.store), PrivateKey.load_or_create(signer or home.keys)
        if signer is None:
            TrustStore(home.trust).add_local(key)
        bundle = put_bundle(store, seed)
        evidence = Evidence("accuracy", Verdict.PASSED, {"reference": sha256_hex(GRAPH)}, "good", {}, {})
        proof = store.put(sign_evidence(evidence, key=key, created=CREATED, machine={}))
        listed = () if bare else (("accuracy", proof),)

        def record(version: int) -> str:
            return store.put(sign_release(Release(name, version, bundle, listed, {}, CREATED, status), key=key))

        return bundle, record, EvidenceRow("accuracy", "passed", "good", proof)

    return sign_one


@pytest.fixture
def add(registry: Registry, sign: Callable[..., tuple[str, Callable[[int], str], EvidenceRow]]) -> Callable[..., int]:
    """Return a function that releases the next version of a name and gives its number.

    ``bare``: the release lists no evidence.
    """

    def add_one(name: str = "digits", *, unproven: bool = False, bare: bool = False, **options: object) -> int:
        seed = f"{name} {registry.history().entries[-1:]}"
        bundle, record, _ = sign(name, seed=seed, status="structural" if unproven else "passed", bare=bare)
        return registry.add_version(name, bundle=bundle, release=record, who="ada", **options).version

    return add_one
