"""Hold a live endpoint against the release that it should serve: send it the golden inputs and compare.

Each input goes the ways that callers go: as tensors by V2 and, where the task has raw inputs, raw (by the raw door;
over gRPC by ``NAME.raw``); one after the other, then many at once so that the server puts them into batches, then as
rows of one request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.apply.answers import Answer
from lightship.apply.calls import ModelMetadata
from lightship.apply.client import AsyncClient
from lightship.apply.grpc_client import GrpcClient
from lightship.bundle.arrays import array_from_npy
from lightship.bundle.manifest import Variant
from lightship.bundle.signing import TrustStore
from lightship.bundle.statement import TASK_SUBJECT, Evidence, read_evidence
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.engine.difference import as_recorded, largest_difference
from lightship.errors import Forbidden, InvalidInput, LightshipError, Unauthenticated, Unavailable
from lightship.registry.names import Reference
from lightship.registry.releases import VerifiedRelease, read_release
from lightship.tasks.registry import load_task
from lightship.tasks.task import Task, Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import Json
from lightship.validate.checks.endpoint import Asked, Off, Released, Told, check_endpoint

__all__ = ["TOGETHER", "validate_endpoint"]

TOGETHER = 32
"""Requests at once, and at least twice as many in all: more than a server takes into one batch by default."""

_NOT_OF_THE_ANSWER = (Unauthenticated, Forbidden, Unavailable)
_MOVES = 2.0  # times what was seen of a variant whose rows move each other: other rows may move it a little more
_SAID = 80  # characters of what an endpoint says of itself; a digest has 71
_ROUNDING = 1e-9  # of probabilities, which are computed in float64 on both sides
_GRPC_ROUNDING = 1e-7  # over gRPC they come as float32


def validate_endpoint(
    home: Home, reference: str, client: AsyncClient | GrpcClient, *, together: int = TOGETHER
) -> Evidence:
    """Return what was found: evidence ``endpoint``.

    Args:
        home: where the release is.
        reference: ``digits:2`` asks the endpoint for that version; ``digits`` and ``digits@staging`` ask it for what it
            gives without a version, which must be the one that the alias means here.
        client: of the endpoint; closed at the end.
        together: requests at once.

    Raises:
        NotFound: no such release here, or no such model there.
        InvalidInput: the bundle has no golden inputs.
        BundleRefused: the release does not verify.
        Unauthenticated, Forbidden, Unavailable: the endpoint does not let itself be asked.
    """
    release = read_release(home, reference)
    if not release.bundle.manifest.golden.inputs:
        raise InvalidInput(f"The bundle of {reference} has no golden inputs, which an endpoint is judged by.")
    pinned = Reference.parse(reference).version is not None
    return asyncio.run(_Endpoint(home, release, client, pinned=pinned, together=together).validated())


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The golden answers of one variant, by output, and how far an answer may be off."""

    outputs: Mapping[str, np.ndarray]
    tolerance: float


@dataclass(frozen=True, slots=True)
class _Came:
    """What came back for one golden input: one row of each output, or an answer; and the version that it names."""

    index: int
    found: Tensors | Answer | LightshipError
    version: str = ""


class _Endpoint:
    """One endpoint, and the release that it should serve."""

    def __init__(
        self, home: Home, release: VerifiedRelease, client: AsyncClient | GrpcClient, *, pinned: bool, together: int
    ) -> None:
        self._home, self._release, self._client = home, release, client
        self._together = together
        manifest, resolved = release.bundle.manifest, release.resolved
        self._manifest = manifest
        self._name = f"{resolved.name}:{resolved.version}" if pinned else resolved.name
        self._version = str(resolved.version)
        self._released = Released(resolved.name, resolved.version, resolved.bundle, manifest.default)
        self._task: Task = load_task(manifest.task.name, manifest.task.codec_version, manifest.task.config)
        self._batched = is_batched(manifest.interface.inputs, manifest.interface.outputs)
        self._raws = [release.bundle.read(path) for path in manifest.golden.inputs]
        self._rows = [self._task.encode(raw) for raw in self._raws]

    async def validated(self) -> Evidence:
        """Ask and judge."""
        async with self._client as client:
            told = _told(await client.metadata(self._released.name), {})
            if self._version not in (told.versions or (self._version,)):
                return self._judged(told, self._manifest.default)
            before = await client.metadata(self._name)
            told = _told(before, before.parameters)
            known = {variant.name for variant in self._manifest.variants}
            variant = told.variant if told.variant in known else self._manifest.default
            recorded = self._recorded(variant)
            alone = [await self._tensors(client, index) for index in range(len(self._rows))]
            asked = [self._compared("tensors, alone", alone, recorded)]
            if self._task.labels:
                came = [await self._raw(client, index) for index in range(len(self._raws))]
                asked.append(self._compared("raw, alone", came, recorded))
            asked += await self._in_batches(client, recorded, variant)
            after = await client.metadata(self._name)
        changed = told != _told(after, after.parameters)
        resembles = self._resembles(alone, variant) if asked[0].wrong else ""
        return self._judged(told, variant, asked, resembles=resembles, changed=changed)

    # -- asking -------------------------------------------------------------------------------------------------

    async def _in_batches(self, client: AsyncClient | GrpcClient, recorded: _Recorded, variant: str) -> list[Asked]:
        moved = self._moved(variant) if self._batched else 0.0
        beside = _Recorded(recorded.outputs, recorded.tolerance + _MOVES * moved)
        count = max(2 * self._together, len(self._rows))
        came = await self._at_once(lambda index: self._tensors(client, index), count)
        asked = [self._compared(f"tensors, {self._together} at once", came, beside)]
        if self._task.labels:
            came = await self._at_once(lambda index: self._raw(client, index), count)
            asked.append(self._compared(f"raw, {self._together} at once", came, beside))
        if self._batched and len(alike := self._alike()) > 1:
            came = await self._one_request(client, alike)
            asked.append(self._compared(f"tensors, {len(alike)} rows in a request", came, beside))
        return asked

    async def _at_once(self, ask: Callable[[int], Awaitable[_Came]], count: int) -> list[_Came]:
        """Send the golden inputs in turn, ``count`` in all, as many at once as may be."""
        free = asyncio.Semaphore(self._together)

        async def one(number: int) -> _Came:
            async with free:
                return await ask(number % len(self._rows))

        return list(await asyncio.gather(*(one(number) for number in range(count))))

    async def _tensors(self, client: AsyncClient | GrpcClient, index: int) -> _Came:
        inputs = {name: array[np.newaxis] if self._batched else array for name, array in self._rows[index].items()}
        try:
            found = await client.inference(self._name, inputs)
        except _NOT_OF_THE_ANSWER:
            raise
        except LightshipError as exc:
            return _Came(index, exc)
        outputs = {name: array if self._batched else array[np.newaxis] for name, array in found.outputs.items()}
        return _Came(index, outputs, found.version)

    async def _raw(self, client: AsyncClient | GrpcClient, index: int) -> _Came:
        try:
            if isinstance(client, GrpcClient):
                answer = await client.predict(self._name, self._raws[index], self._task.labels)
            else:
                answer = await client.predict(self._name, self._raws[index])
        except _NOT_OF_THE_ANSWER:
            raise
        except LightshipError as exc:
            return _Came(index, exc)
        return _Came(index, answer, "" if answer.version is None else str(answer.version))

    async def _one_request(self, client: AsyncClient | GrpcClient, indices: Sequence[int]) -> list[_Came]:
        inputs = {name: np.stack([self._rows[index][name] for index in indices]) for name in self._rows[0]}
        try:
            found = await client.inference(self._name, inputs)
        except _NOT_OF_THE_ANSWER:
            raise
        except LightshipError as exc:
            return [_Came(indices[0], exc)]
        return [
            _Came(index, {name: array[row : row + 1] for name, array in found.outputs.items()}, found.version)
            for row, index in enumerate(indices)
        ]

    def _alike(self) -> list[int]:
        """Return the golden inputs whose tensors have the shapes of the first one's, as rows of one request must."""
        first = self._rows[0]
        alike = (all(row[name].shape == first[name].shape for name in first) for row in self._rows)
        return [index for index, same in enumerate(alike) if same][:TOGETHER]

    # -- comparing ----------------------------------------------------------------------------------------------

    def _compared(self, way: str, came: Sequence[_Came], recorded: _Recorded) -> Asked:
        raw = way.startswith("raw")
        rounding = _GRPC_ROUNDING if isinstance(self._client, GrpcClient) else _ROUNDING
        allowed = self._task.answer_tolerance(recorded.tolerance) + rounding if raw else recorded.tolerance
        worst, offs = 0.0, []
        for each in came:
            off, words = self._compare(each, recorded, allowed)
            worst = max(worst, off)
            if words is not None:
                offs.append(words)
        return Asked(
            way, raw, len(came), worst if math.isfinite(worst) else None, allowed, len(offs), next(iter(offs), None)
        )

    def _compare(self, came: _Came, recorded: _Recorded, allowed: float) -> tuple[float, Off | None]:
        name = self._manifest.golden.inputs[came.index]
        if isinstance(came.found, LightshipError):
            return 0.0, Off(name, "", f"is not answered: {came.found}")
        if came.version and came.version != self._version:
            return 0.0, Off(name, "", f"is answered by version {came.version}, not {self._version}")
        if isinstance(came.found, Answer):
            return self._compare_answer(name, came.found, recorded, came.index, allowed)
        return _compare_outputs(name, came.found, recorded, came.index, allowed)

    def _compare_answer(
        self, name: str, answer: Answer, recorded: _Recorded, index: int, allowed: float
    ) -> tuple[float, Off | None]:
        """Compare probabilities; of two classes that are as near as that, either may be the label."""
        rows = {output: rows[index : index + 1] for output, rows in recorded.outputs.items()}
        expected = self._task.decode(rows)[0]
        shares: Mapping[str, float] = expected["probabilities"]
        if set(shares) != set(answer.probabilities):
            return math.inf, Off(name, "probabilities", "has other classes than the release")
        off = {label: abs(answer.probabilities[label] - share) for label, share in shares.items()}
        first = next((label for label, each in off.items() if not each <= allowed), None)
        worst = max(off.values())
        if first is not None:
            return worst, Off(
                name, "probabilities", f"differs by {off[first]:.3g} for {first!r}, allowed {allowed:.2g}"
            )
        if answer.label != expected["label"] and shares[expected["label"]] - shares[answer.label] > 2 * allowed:
            return worst, Off(name, "label", f"is {answer.label!r}, not {expected['label']!r}")
        return worst, None

    def _resembles(self, came: Sequence[_Came], compared: str) -> str:
        """Return the other variant whose recorded answers fit all that came."""
        for variant in self._manifest.variants:
            recorded = self._recorded(variant.name)
            fits = (
                _compare_outputs("", each.found, recorded, each.index, recorded.tolerance)[1] is None
                for each in came
                if isinstance(each.found, dict)
            )
            if variant.name != compared and any(isinstance(each.found, dict) for each in came) and all(fits):
                return variant.name
        return ""

    # -- the release --------------------------------------------------------------------------------------------

    def _recorded(self, variant: str) -> _Recorded:
        expected = self._manifest.golden.expected[variant]
        read = self._release.bundle.read
        outputs = {name: array_from_npy(read(path), what=path) for name, path in expected.outputs.items()}
        return _Recorded(outputs, float(expected.tolerance))

    def _moved(self, variant: str) -> float:
        """Return how far the release says that a row's answer moves with the rows beside it (dynamic quantization)."""
        store, trust = BlobStore(self._home.store), TrustStore(self._home.trust)
        moved = 0.0
        for each in self._release.verification.evidence:
            if each.check == "shapes":
                signed = read_evidence(store.get(each.digest), trust=trust).evidence
                mixed = signed.measured.get("mixed")
                if variant in signed.subjects and isinstance(mixed, int | float):
                    moved = max(moved, float(mixed))
        return moved

    def _judged(
        self, told: Told, variant: str, asked: Sequence[Asked] = (), *, resembles: str = "", changed: bool = False
    ) -> Evidence:
        compared = self._manifest.variant(variant)
        assert compared is not None  # noqa: S101 - it is one of the manifest's
        method: dict[str, Json] = {
            "asked_for": self._name,
            "golden_inputs": len(self._rows),
            "compared_with": variant,
            "at_once": self._together,
            "tensors": "V2 over gRPC, raw contents" if isinstance(self._client, GrpcClient) else "V2, binary",
        }
        return check_endpoint(
            self._released,
            told,
            asked,
            changed=changed,
            resembles=resembles,
            subjects=self._subjects(compared),
            method=method,
        )

    def _subjects(self, variant: Variant) -> dict[str, str]:
        graphs = {each.name: each.graph for each in self._manifest.variants if each.name in ("reference", variant.name)}
        files = {file.path: file.sha256 for file in self._manifest.files}
        return {TASK_SUBJECT: self._manifest.task.digest, **{name: files[path] for name, path in graphs.items()}}


def _compare_outputs(
    name: str, found: Tensors, recorded: _Recorded, index: int, allowed: float
) -> tuple[float, Off | None]:
    worst = 0.0
    for output, rows in recorded.outputs.items():
        if output not in found:
            return math.inf, Off(name, output, "is missing")
        row, expected = as_recorded(found[output][:1], rows[index]), rows[index]
        if row.shape != (1, *expected.shape):
            return math.inf, Off(name, output, f"has the shape {list(row.shape[1:])}, recorded {list(expected.shape)}")
        worst = max(worst, off := largest_difference(row[0], expected))
        if not off <= allowed:
            place = _first_place(row[0], expected, allowed)
            return worst, Off(name, output, f"differs by {off:.3g}, allowed {allowed:.2g}{place}")
    return worst, None


def _first_place(found: np.ndarray, expected: np.ndarray, allowed: float) -> str:
    """Return where the first value stands that is off, and both values."""
    for place in np.ndindex(expected.shape):
        if not largest_difference(np.asarray(found[place]), np.asarray(expected[place])) <= allowed:
            return f"; first at {list(place)}: {found[place]:.6g}, recorded {expected[place]:.6g}"
    return ""


def _told(metadata: ModelMetadata, said: Mapping[str, str]) -> Told:
    return Told(
        tuple(map(_plain, metadata.versions)),
        *(_plain(said.get(key, "")) for key in ("version", "bundle", "variant", "instead_of")),
    )


def _plain(text: str) -> str:
    """Return what a server says of itself as text that fits into one line and cannot steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:_SAID])
