"""Whether the variant is faster than the reference on this machine. From interleaved pairs, see ``engine.measure``."""

from __future__ import annotations

from collections.abc import Mapping

from lightship.bundle.statement import Evidence
from lightship.engine.measure import PairedTiming
from lightship.types import Json, Verdict

__all__ = ["check_latency"]


def check_latency(
    timing: PairedTiming,
    *,
    variant: str,
    speed_asked: bool,
    subjects: Mapping[str, str],
    setup: Mapping[str, Json] | None = None,
) -> Evidence:
    """Judge one variant's time against the reference's.

    When speed was asked for: ``PASSED`` - shown to be faster, ``FAILED`` - shown to be slower, ``UNDECIDED`` - no
    difference is shown. When it was not, the figures are only told: ``MEASURED``.

    Args:
        timing: side a is the reference, side b the variant.
        variant: its name.
        speed_asked: whether the recipe wants a faster model.
        subjects: reference and variant, with their SHA-256.
        setup: what the figures hold for, e.g. batch size, threads, engine.
    """
    verdict = Verdict.MEASURED
    if speed_asked:
        verdict = Verdict.FAILED if timing.b_is_slower else Verdict.UNDECIDED
        verdict = Verdict.PASSED if timing.b_is_faster else verdict
    return Evidence(
        check="latency",
        verdict=verdict,
        subjects=subjects,
        summary=(
            f"{variant}: {timing.words} against the reference; median {timing.b_ms.p50:.3g} ms, "
            f"reference {timing.a_ms.p50:.3g} ms"
        ),
        measured={
            "variant": variant,
            "time_ratio": timing.ratio.to_json(),
            "reference_ms": timing.a_ms.to_json(),
            "variant_ms": timing.b_ms.to_json(),
        },
        method={
            "pairs": timing.pairs,
            "warmup": timing.warmup,
            "order": "alternating inside neighboring pairs",
            "interval": "order statistics of the per-pair ratios",
            "speed_asked": speed_asked,
            **(setup or {}),
        },
    )
