"""Which version each served reference means, and how a running server comes to serve another one.

A reference is what was asked for: ``digits``, ``digits@staging``, ``digits:3``. When its alias moves, the new version
is read and verified off the loop, loaded in a worker beside the old one, tested and warmed; then the switch is one
assignment in the catalog. Whatever fails before that changes nothing. The old version answers what it has admitted;
then its worker is kept, parked, for a rollback (one a name, and only while memory is plenty), or ended.
While the registry cannot be read, a person may have the parked version back by the control plane (``go_back``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore
from lightship.bundle.verify import verify_statements
from lightship.data.home import Home
from lightship.engine.machine import memory_left_bytes, memory_limit_bytes
from lightship.errors import BundleRefused, Conflict, LightshipError, NotFound, Unavailable
from lightship.memory import give_back
from lightship.registry.resolve import Resolved
from lightship.serve.catalog import Catalog
from lightship.serve.model import ServedModel
from lightship.serve.registry_watch import RegistryWatch, Seen
from lightship.serve.source import ModelSource, read_source

__all__ = ["Failure", "Slot", "Versions"]

log = logging.getLogger(__name__)

_RETRY_S = (60.0, 300.0, 1800.0)
_DRAIN_LOOK_S = 0.05
_MEMORY_LOOK_S = 1.0
_SHORT_SHARE = 0.05
_PARK_SHARE = 0.25  # of the memory that is left: a parked worker may not have more

Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version was not taken over."""

    version: int
    reason: str
    at: float


@dataclass(slots=True, eq=False)
class Slot:
    """One reference that the server serves.

    Attributes:
        model: what answers now.
        loading: the version that is being loaded, if one is.
        failure: why the last change was not made; None after one that was.
        before: what it served before, if an alias that moved led to what it serves.
        held_off: what it does not follow its alias to, for a person took it back from there.
    """

    reference: str
    model: ServedModel
    loading: int | None = None
    failure: Failure | None = None
    task: asyncio.Task[None] | None = None
    target: Key | None = None
    before: Key | None = None
    held_off: Key | None = None
    tries: int = 0
    retry: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Leaving:
    model: ServedModel
    task: asyncio.Task[None] = field(init=False)


class Versions:
    """The served references of one server. ``start`` once the models are ready, ``close`` before they are closed.

    Args:
        home: whose registry is watched; None watches nothing.
        make: makes a model from a source, not yet started.
        admitted: whether a request that was let in for a model is still coming in.
        keep_previous: keep the worker of the version before, for a rollback.
        on_loaded: called with a model that is ready, before it serves.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, ServedModel]],
        catalog: Catalog,
        *,
        home: Home | None,
        make: Callable[[ModelSource], ServedModel],
        admitted: Callable[[ServedModel], bool],
        keep_previous: bool = True,
        longest_drain_s: float = 600.0,
        on_loaded: Callable[[ServedModel], None] = lambda _: None,
    ) -> None:
        self.slots = tuple(Slot(reference, model) for reference, model in models)
        self.trouble = ""
        self.reloads = 0
        self.failures = 0
        self.parked: Mapping[str, ServedModel] = {}
        self._catalog = catalog
        self._home = home
        self._make = make
        self._admitted = admitted
        self._keep_previous = keep_previous
        self._longest_drain_s = longest_drain_s
        self._on_loaded = on_loaded
        self._leaving: dict[Key, _Leaving] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._watch: RegistryWatch | None = None
        self._mind: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self) -> None:
        """Watch the registry, if a reference can move at all."""
        self._loop = asyncio.get_running_loop()
        references = [slot.reference for slot in self.slots if ":" not in slot.reference]
        if self._home is not None and references:
            self._watch = RegistryWatch(self._home, references, tell=self._tell)
            self._watch.start()
            self._mind = self._loop.create_task(self._mind_memory())

    async def close(self) -> None:
        """Stop what is being changed, and end the workers that serve nobody."""
        self._closed = True
        if self._watch is not None:
            self._watch.stop()
        tasks = [slot.task for slot in self.slots if slot.task is not None]
        leaving = list(self._leaving.values())
        for slot in self.slots:
            if slot.retry is not None:
                slot.retry.cancel()
        if self._mind is not None:
            self._mind.cancel()
        for task in (*tasks, *(one.task for one in leaving)):
            task.cancel()
        await asyncio.gather(*tasks, *(one.task for one in leaving), return_exceptions=True)
        for model in (*(one.model for one in leaving), *self.parked.values()):
            self._end(model)
        await asyncio.gather(*self._ending)

    @property
    def degraded(self) -> str:
        """Why the server cannot follow the registry; empty if it can."""
        return self.trouble

    async def go_back(self, name: str) -> ServedModel:
        """Serve again what a name served before, if that is still held: for when the registry cannot be read.

        The server does not follow the alias to the version that it left until the alias has pointed somewhere else.

        Raises:
            NotFound: nothing of that name follows an alias.
            Conflict: the registry can be read: it says what is served.
            Unavailable: the version before is not held any more.
            BundleRefused: its signer is not trusted any more, or what was signed was changed.
        """
        slots = [slot for slot in self.slots if slot.model.name == name and ":" not in slot.reference]
        if self._home is None or not slots:
            raise NotFound("No model of that name is served here by an alias.")
        if not self.trouble:
            raise Conflict(f"The registry can be read, and says what is served. Use `lightship rollback {name}`.")
        model = self.parked.get(name)
        moving = [slot for slot in slots if model is not None and slot.before == _key_of(model)]
        if model is None or not moving:
            raise Unavailable(f"The version of {name} before {slots[0].model.version} is not held in memory.")
        # Its worker is warm and its bytes were verified, but who is trusted may have changed.
        store, trust = BlobStore(self._home.store), TrustStore(self._home.trust)
        await asyncio.to_thread(verify_statements, store, model.source.release, trust=trust)
        await _ended(slot.task for slot in moving)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if self.parked.get(name) is not model or not model.ready:
                raise Unavailable(f"Version {model.version} of {name} is not held in memory any more.")
            self.parked = {other: one for other, one in self.parked.items() if one is not model}
            for slot in moving:
                if slot.retry is not None:
                    slot.retry.cancel()
                    slot.retry = None
                left, slot.target, slot.failure = _key_of(slot.model), _key_of(model), None
                log.warning("%s was taken back from %s to %s by hand", slot.reference, left[1], model.version)
                self._switch(slot, model)
                slot.held_off, slot.before = left, None  # done twice it must not go forth again
            self.reloads += 1
        return model

    def _tell(self, seen: Seen) -> None:
        try:
            self._loop.call_soon_threadsafe(self._seen, seen)
        except RuntimeError:
            return  # the loop is closed: the server has ended

    def _seen(self, seen: Seen) -> None:
        if self._closed:
            return
        if seen.trouble != self.trouble:
            self.trouble = seen.trouble
            if seen.trouble:
                log.error("degraded: the registry cannot be followed, what is served stays: %s", seen.trouble)
            else:
                log.info("the registry can be followed again")
        for slot in self.slots:
            if (resolved := seen.versions.get(slot.reference)) is not None:
                self._aim(slot, resolved)

    def _aim(self, slot: Slot, resolved: Resolved) -> None:
        """Let a slot go where its alias points now. The latest target wins."""
        key = _key(resolved)
        if key == slot.held_off:
            return  # until the alias has pointed somewhere else
        slot.held_off = None
        if key == slot.target:
            return  # on the way there, there already, or it has failed and waits for its time
        if slot.target is None and key == _key_of(slot.model):
            slot.target = key
            return
        slot.target, slot.tries = key, 0
        self._go(slot, resolved)

    def _go(self, slot: Slot, resolved: Resolved) -> None:
        before = slot.task
        if before is not None:
            before.cancel()
        if slot.retry is not None:
            slot.retry.cancel()
            slot.retry = None
        slot.task = self._loop.create_task(self._change(slot, resolved, before))

    async def _change(self, slot: Slot, resolved: Resolved, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        title = f"{resolved.name}:{resolved.version}"
        started_s = self._loop.time()
        try:
            async with self._locks.setdefault(resolved.name, asyncio.Lock()):
                if _key(resolved) != _key_of(slot.model):
                    slot.loading = resolved.version
                    log.info("%s moves from %s to %s", slot.reference, slot.model.version, title)
                    self._switch(slot, await self._obtain(resolved))
                    self.reloads += 1
                    log.info("%s is served by %s after %.2f s", slot.reference, title, self._loop.time() - started_s)
                slot.failure = None
        except (LightshipError, OSError, MemoryError) as exc:
            self._failed(slot, resolved, exc)
        except Exception as exc:
            log.exception("%s could not be taken over", title)
            self._failed(slot, resolved, exc)
        finally:
            slot.loading = None

    def _failed(self, slot: Slot, resolved: Resolved, error: BaseException) -> None:
        self.failures += 1
        reason = str(error) if isinstance(error, LightshipError) else f"{type(error).__name__}: {error}"
        slot.failure = Failure(resolved.version, " ".join(reason.split()), time.time())
        after_s = _RETRY_S[min(slot.tries, len(_RETRY_S) - 1)]
        slot.tries += 1
        slot.retry = self._loop.call_later(after_s, self._go, slot, resolved)
        log.error(
            "%s:%s is not taken over, %s goes on with version %s (next try in %g s or when the alias moves): %s",
            resolved.name,
            resolved.version,
            slot.reference,
            slot.model.version,
            after_s,
            slot.failure.reason,
        )

    async def _obtain(self, resolved: Resolved) -> ServedModel:
        """Return a ready model of that version: one that is served, or still warm, or a new one."""
        key = _key(resolved)
        for slot in self.slots:
            if _key_of(slot.model) == key:
                return slot.model
        if (leaving := self._leaving.pop(key, None)) is not None:
            leaving.task.cancel()
            return leaving.model
        parked = self.parked.get(resolved.name)
        if parked is not None and _key_of(parked) == key and parked.ready:
            await self._source(resolved)  # its worker is warm, but who is trusted may have changed
            self.parked = {name: model for name, model in self.parked.items() if name != resolved.name}
            return parked
        return await self._load(resolved)

    async def _load(self, resolved: Resolved) -> ServedModel:
        model = self._make(await self._source(resolved))
        try:
            await model.start(background=True)
        except BaseException:
            await model.close()
            raise
        self._on_loaded(model)
        return model

    async def _source(self, resolved: Resolved) -> ModelSource:
        """Read a version and verify it anew."""
        if self._home is None:
            raise LightshipError("Without a home no other version can be read.")
        source = await asyncio.to_thread(read_source, self._home, f"{resolved.name}:{resolved.version}")
        if source.bundle != resolved.bundle:
            raise BundleRefused(f"The registry changed while {resolved.name}:{resolved.version} was read.")
        return source

    def _switch(self, slot: Slot, model: ServedModel) -> None:
        old, slot.model = slot.model, model
        slot.before = _key_of(old)
        self._catalog.replace([slot.model for slot in self.slots])
        if all(slot.model is not old for slot in self.slots):
            leaving = _Leaving(old)
            self._leaving[_key_of(old)] = leaving
            leaving.task = self._loop.create_task(self._leave(old))

    async def _leave(self, model: ServedModel) -> None:
        """Wait until a model has answered all it let in; then park it or end it."""
        until_s = self._loop.time() + self._longest_drain_s
        while (model.waiting or model.running or self._admitted(model)) and self._loop.time() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_LOOK_S)
        self._leaving.pop(_key_of(model), None)
        parked = dict(self.parked)
        ending = [parked.pop(model.name, None)]
        if self._may_park(model):
            parked[model.name] = model
        else:
            ending.append(model)
        self.parked = parked
        for one in ending:
            if one is not None:
                self._end(one)

    def _end(self, model: ServedModel) -> None:
        self._ending.add(task := self._loop.create_task(_end_whole(model)))
        task.add_done_callback(self._ending.discard)

    def _may_park(self, model: ServedModel) -> bool:
        return self._keep_previous and model.ready and model.memory_bytes <= _PARK_SHARE * memory_left_bytes()

    async def _mind_memory(self) -> None:
        """End the parked workers when memory is short: what serves goes first."""
        while True:
            await asyncio.sleep(_MEMORY_LOOK_S)
            if self.parked and memory_left_bytes() < _SHORT_SHARE * memory_limit_bytes():
                self._drop_parked()

    def _drop_parked(self) -> None:
        parked, self.parked = self.parked, {}
        for model in parked.values():
            log.warning("memory is short: %s:%s is kept for a rollback no longer", model.name, model.version)
            self._end(model)


async def _ended(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    """Cancel tasks and wait for their end."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


def _key(resolved: Resolved) -> Key:
    return (resolved.name, str(resolved.version), resolved.bundle, resolved.release)


def _key_of(model: ServedModel) -> Key:
    return (model.name, model.version, model.source.bundle, model.source.release)


async def _end_whole(model: ServedModel) -> None:
    """End a model that has left. What it held, and what reading its successor took, goes back to the machine."""
    await model.close()
    await asyncio.to_thread(give_back)
