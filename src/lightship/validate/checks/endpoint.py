"""Whether a live endpoint answers as the release that it should serve.

What was proven, was proven of a bundle. What people get comes from a server that may run another version, another
variant or another preprocessing, and through proxies. So the bundle's golden inputs are sent to it, raw and as tensors,
alone and many at once, and every answer is held against the recorded one of the variant that should answer (D4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightship.bundle.statement import Evidence
from lightship.types import Json, Verdict

__all__ = ["Asked", "Off", "Released", "Told", "check_endpoint"]

_WORDS = 1_000


@dataclass(frozen=True, slots=True)
class Released:
    """What should answer.

    Attributes:
        name: of the model; ``version`` and ``bundle`` (its digest) are those of the release.
        variant: that the release proposes.
    """

    name: str
    version: int
    bundle: str
    variant: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the endpoint says of itself; empty text: it does not say.

    Attributes:
        versions: all that it serves under the name.
        instead_of: the variant that it cannot run, so that ``variant`` answers.
    """

    versions: tuple[str, ...] = ()
    version: str = ""
    bundle: str = ""
    variant: str = ""
    instead_of: str = ""


@dataclass(frozen=True, slots=True)
class Off:
    """The first answer of one way of asking that is not the recorded one.

    Attributes:
        input: name of the golden input.
        output: the output that differs; empty when there was no answer, or one of another version.
        words: what is wrong, e.g. ``differs by 0.3, allowed 0.0001, first at [4]``.
    """

    input: str
    output: str
    words: str

    def __str__(self) -> str:
        return f"{self.input}: {repr(self.output) + ' ' if self.output else ''}{self.words}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One way of asking, e.g. raw inputs, one after the other.

    Attributes:
        raw: raw inputs, so that the endpoint's own preprocessing is part of it.
        worst: largest difference of an answer that could be compared; None without any.
        allowed: the largest difference that passes.
        wrong: how many answers are off.
    """

    way: str
    raw: bool
    answers: int
    worst: float | None
    allowed: float
    wrong: int = 0
    first: Off | None = None


def check_endpoint(
    released: Released,
    told: Told,
    asked: Sequence[Asked],
    *,
    changed: bool,
    resembles: str,
    subjects: Mapping[str, str],
    method: Mapping[str, Json],
) -> Evidence:
    """Judge what an endpoint says of itself, and what it answered.

    ``FAILED`` when it serves another version, bundle or variant than was released, changes while it is asked, or gives
    an answer that is not the recorded one.

    Args:
        released: what should answer.
        told: what the endpoint says answers.
        asked: every way of asking; none when the version is not served.
        changed: it says something else after the answers than before.
        resembles: a variant of the bundle whose recorded answers fit all that came as tensors, if they are not those
            of the variant that should answer; else empty.
        subjects: what was judged, with its SHA-256.
        method: how it was asked.
    """
    problems = [*_identity(released, told), *_answers(asked, resembles)]
    if changed:
        problems.append("What the endpoint serves changed while it was asked; ask again.")
    first = next((each.first for each in asked if each.first is not None), None)
    answers = sum(each.answers for each in asked)
    who = f"{released.name}:{released.version}, variant {told.variant or released.variant}"
    return Evidence(
        check="endpoint",
        verdict=Verdict.FAILED if problems else Verdict.PASSED,
        subjects=subjects,
        summary=(" ".join(problems) or f"{who}: {answers} answers are the recorded ones ({_ways(asked)})")[:_WORDS],
        measured={
            "released": {
                "name": released.name,
                "version": released.version,
                "bundle": released.bundle,
                "variant": released.variant,
            },
            "endpoint": {
                "versions": [*told.versions],
                "version": told.version or None,
                "bundle": told.bundle or None,
                "variant": told.variant or None,
                "instead_of": told.instead_of or None,
            },
            "asked": [_asked_json(each) for each in asked],
            "first_difference": None if first is None else {"input": first.input, "output": first.output or None},
            "resembles": resembles or None,
            "changed": changed,
            "problems": [*problems],
        },
        method=method,
    )


def _identity(released: Released, told: Told) -> list[str]:
    """Return what the endpoint says of itself that is not what was released."""
    if told.versions and str(released.version) not in told.versions:
        served = ", ".join(told.versions)
        return [f"The endpoint serves {released.name} in version {served}, not {released.version}."]
    if told.version and told.version != str(released.version):
        return [f"The endpoint means version {told.version} by {released.name}, not {released.version}."]
    problems = []
    if told.bundle and told.bundle != released.bundle:
        problems.append(
            f"The endpoint's {released.name}:{released.version} is another bundle: {told.bundle[:19]}, "
            f"not {released.bundle[:19]}."
        )
    if told.variant and told.variant != released.variant:
        why = f", for {told.instead_of!r} does not work on its machine" if told.instead_of else ""
        problems.append(f"The variant {told.variant!r} answers in place of {released.variant!r}{why}.")
    return problems


def _answers(asked: Sequence[Asked], resembles: str) -> list[str]:
    wrong = [each for each in asked if each.first is not None]
    if not wrong:
        return []
    first = wrong[0]
    problems = [f"Golden input {first.first} ({first.way}; {first.wrong} of {first.answers} answers are off)."]
    if all(each.raw for each in wrong) and len(wrong) < len(asked):
        problems.append("Tensors are answered as recorded, so its preprocessing is not what was released.")
    elif resembles:
        problems.append(f"The answers are those of the variant {resembles!r}.")
    return problems


def _ways(asked: Sequence[Asked]) -> str:
    return "; ".join(f"{each.way}: within {each.worst or 0:.2g}, allowed {each.allowed:.2g}" for each in asked)


def _asked_json(asked: Asked) -> dict[str, Json]:
    first = asked.first
    return {
        "way": asked.way,
        "answers": asked.answers,
        "largest_difference": asked.worst,
        "allowed": asked.allowed,
        "wrong": asked.wrong,
        "first": None if first is None else {"input": first.input, "output": first.output or None, "what": first.words},
    }
