"""The worker: a process that holds one engine with one variant, and runs the batches that it is sent.

It is started by the server (``worker_start``) and dies with it. The first message brings the bytes of the graph and of
the golden examples; before it says that it is ready it puts every golden input through encode and the graph, here, on
this machine, with this library, and compares (A3, D4). Two threads take turns, so that the next batch is encoded while
the last one runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import math
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from lightship.engine.difference import require_golden
from lightship.engine.machine import usable_cores
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.engine.values import are_proven, require_proven
from lightship.errors import BundleRefused, DeadlineExceeded, InvalidInput, InvalidTensor, LightshipError, OutOfMemory
from lightship.extensions import take_places
from lightship.serve.log_lines import log_to_stderr
from lightship.serve.slots import mapped_slots
from lightship.serve.tensors import PackedTensor, join_rows, pack, unpack
from lightship.serve.wire import (
    STOP_BYTES,
    Beat,
    Channel,
    Done,
    Failure,
    Load,
    LoadFailed,
    Measured,
    Ready,
    RunRaw,
    RunTensors,
    TensorHead,
    Tune,
    stopped_batch,
)
from lightship.tasks.registry import load_task
from lightship.tasks.task import Task, Tensors
from lightship.types import DTYPES, Dim, ValueRange

__all__ = ["work"]

log = logging.getLogger(__name__)

_WARM_UP_RUNS = 3
_SMALL_S = 0.001  # a graph that runs in less may do without a second thread
_HARDLY = 1.3  # times as long: so little it may bring, for it is worth less where requests wait for cores
_NICE = 10
BEAT_S = 0.5
_WORK = (RunTensors, RunRaw, Tune)
_MOST_TURNS = 15  # of all batches that are compared


class _Prepared(msgspec.Struct):
    """A batch that is ready for the engine."""

    batch: int
    rows: list[int]
    inputs: Tensors
    failed: dict[int, LightshipError] = {}  # requests that could not be encoded
    raw: bool = False
    encode_us: int = 0


class _Ran(msgspec.Struct, frozen=True):
    """What runs of the engine gave: ``packed`` for tensors; for raw inputs ``answers``, in JSON, one a row."""

    packed: list[PackedTensor]
    answers: list[bytes]
    run_us: int
    decode_us: int

    @classmethod
    def joined(cls, parts: Sequence[_Ran]) -> _Ran:
        """Return what the parts of a batch gave as what a whole one gives."""
        return cls(
            [join_rows(pieces) for pieces in zip(*(part.packed for part in parts), strict=True)],
            [answer for part in parts for answer in part.answers],
            sum([part.run_us for part in parts]),
            sum([part.decode_us for part in parts]),
        )


class Worker:
    """Runs batches; knows nothing of sockets."""

    def __init__(
        self,
        runner: Runner,
        task: Task,
        *,
        batched: bool = True,
        threads: int = 1,
        values: Mapping[str, ValueRange] | None = None,
    ) -> None:
        self.threads = threads
        self.row_s = math.inf
        """The least time that the smallest batch took in the warm-up."""
        self._runner = runner
        self._outputs = runner.interface.outputs
        self._task = task
        self._batched = batched
        self._values = values or {}
        self._sample: Callable[[int], Tensors] = self._zeros
        self._current = self._stopped = 0  # batches are numbered from 1
        self._turn = threading.Lock()
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="encode")

    def self_test(self, golden: Sequence[tuple[str, bytes]], expected: Tensors, *, tolerance: float) -> None:
        """Put every golden input through encode and the graph and compare with the expected outputs.

        Args:
            golden: (name, raw bytes) of each input.
            expected: by the name of the output; row i belongs to golden input i.

        Raises:
            BundleRefused: names the golden input, the output and the difference.
        """
        for index, (name, raw) in enumerate(golden):
            try:
                outputs = self._runner.run(self._encoded(raw, rows=1))
            except LightshipError as exc:
                raise BundleRefused(f"The golden input {name} cannot be run on this machine: {exc}") from exc
            for output, rows in expected.items():
                found = outputs.get(output, np.empty(0))
                found = found if self._batched else found[np.newaxis]
                require_golden(name, output, found, rows[index], tolerance=tolerance)

    def warm_up(self, golden: Sequence[tuple[str, bytes]], batch_rows: int) -> None:
        """Run the smallest and the largest batch, so that the first request does not pay for first times.

        Golden inputs are inside of everything that was proven; without any there are zeros, one in each free dimension.
        """
        if golden:
            self._sample = functools.partial(self._golden_rows, golden[0][1])
        for rows in sorted({1, batch_rows or 1}):
            try:
                inputs = self._encoded(golden[0][1], rows=rows) if golden else self._zeros(rows)
                took = [self._timed(inputs) for _ in range(_WARM_UP_RUNS)]
                self.row_s = min(self.row_s, *took)
            except LightshipError as exc:
                log.debug("the warm-up with %d rows was not possible: %s", rows, exc)

    def _timed(self, inputs: Tensors) -> float:
        started = time.perf_counter()
        self._runner.run(inputs)
        return time.perf_counter() - started

    def _encoded(self, raw: bytes, *, rows: int) -> Tensors:
        """Return the tensors of a raw input, as often as there are to be rows; whole ones have no rows."""
        encoded = self._task.encode(raw)
        if not self._batched:
            return encoded
        return {name: np.repeat(row[np.newaxis], rows, axis=0) for name, row in encoded.items()}

    def _golden_rows(self, raw: bytes, rows: int) -> Tensors:
        return self._encoded(raw, rows=rows)

    def _zeros(self, rows: int) -> Tensors:
        def shape(dims: Sequence[Dim]) -> tuple[int, ...]:
            first = (rows,) if self._batched else ()
            return (*first, *(dim if isinstance(dim, int) else 1 for dim in dims[len(first) :]))

        return {spec.name: np.zeros(shape(spec.shape), DTYPES[spec.dtype]) for spec in self._runner.interface.inputs}

    def measure(self, message: Tune, *, wanted: Callable[[], bool]) -> Measured:
        """Time batches of golden inputs in turns, until the time is over or the worker is wanted for something else."""
        # Of one thread the processor's time counts: other programs on its core do not make a batch a bad one.
        clock = time.process_time if self.threads == 1 else time.perf_counter
        until_s = time.perf_counter() + message.budget_ms / 1000
        took: dict[int, float] = {}
        whole, next_s = True, 0.0
        for turn in range(_MOST_TURNS):
            if not whole or time.perf_counter() + sum(took.values()) > until_s:
                break  # a part of a turn would look at small batches more often
            for rows in message.rows if turn == 0 else tuple(took):
                whole = whole and not wanted()
                if not whole or time.perf_counter() + took.get(rows, next_s) > until_s:
                    break
                inputs = self._sample(rows)
                started = clock()
                self._runner.run(inputs)
                seconds = clock() - started
                took[rows], next_s = min(seconds, took.get(rows, seconds)), 2 * seconds  # of twice as many rows
        return Measured(tuple(took), tuple(max(1, int(seconds * 1e6)) for seconds in took.values()), whole)

    def prepare(self, message: RunTensors | RunRaw, payload: memoryview) -> _Prepared:
        """Turn a message into inputs for the engine."""
        if isinstance(message, RunTensors):
            inputs, at = {}, 0
            for head in message.inputs:
                packed = PackedTensor(head.name, head.dtype, head.shape, payload[at : at + head.size])
                inputs[head.name] = unpack(packed)
                at += head.size
            prepared = _Prepared(message.batch, [*message.rows], inputs)
            if self._values and not are_proven(inputs, self._values):
                self._refuse_values(prepared)
            return prepared
        return self._encode(message, payload)

    def _refuse_values(self, prepared: _Prepared) -> None:
        """Take the requests out of a batch that have values outside of what was proven; the others run."""
        stops = [*accumulate(prepared.rows)]
        kept: list[Tensors] = []
        for index, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            mine = prepared.inputs
            if self._batched:
                mine = {name: array[start:stop] for name, array in mine.items()}
            try:
                require_proven(mine, self._values)
            except InvalidTensor as exc:
                prepared.failed[index] = exc.with_traceback(None)
                prepared.rows[index] = 0
            else:
                kept.append(mine)
        if kept and self._batched:
            prepared.inputs = {name: np.concatenate([one[name] for one in kept]) for name in kept[0]}

    def _encode(self, message: RunRaw, payload: memoryview) -> _Prepared:
        started = time.perf_counter_ns()
        raws, at = [], 0
        for size in message.sizes:
            raws.append(bytes(payload[at : at + size]))
            at += size
        # One input is encoded here: a hop to another thread would cost more than it brings.
        encoded = [self._encode_one(raws[0])] if len(raws) == 1 else list(self._pool.map(self._encode_one, raws))
        prepared = _Prepared(message.batch, [], {}, raw=True)
        good: list[Tensors] = []
        at = 0
        for index, rows in enumerate(message.rows):
            mine = encoded[at : at + rows]
            at += rows
            error = next((one for one in mine if isinstance(one, LightshipError)), None)
            if error is not None:
                prepared.failed[index] = error
                prepared.rows.append(0)
            else:
                good += [one for one in mine if not isinstance(one, LightshipError)]
                prepared.rows.append(rows)
        if good:
            prepared.inputs = {name: np.stack([one[name] for one in good]) for name in good[0]}
        prepared.encode_us = (time.perf_counter_ns() - started) // 1000
        return prepared

    def _encode_one(self, raw: bytes) -> Tensors | LightshipError:
        try:
            return self._task.encode(raw)
        except LightshipError as exc:
            exc.__cause__ = exc.__context__ = None  # its frames would hold half-decoded images until the batch is sent
            return exc.with_traceback(None)
        except MemoryError:
            return OutOfMemory("To decode the input needs more memory than the worker has. Send a smaller one.")
        except Exception as exc:
            log.exception("the task failed on an input")
            return LightshipError(f"The input could not be encoded ({type(exc).__name__}).")

    def stop(self, batch: int) -> None:
        """Give up on a batch, whether it runs or waits; batches are numbered in their order."""
        with self._turn:
            self._stopped = batch
            if self._current == batch:
                self._runner.stop()

    def run(self, prepared: _Prepared) -> tuple[Done, list[bytes | memoryview]]:
        """Run a prepared batch. A batch that raises is halved until the culprits stand alone."""
        with self._turn:
            self._current = prepared.batch
        failed = prepared.failed
        ran: list[_Ran] = []
        count = len(prepared.rows)
        if todo := [index for index in range(count) if index not in failed] if failed else range(count):
            self._run_requests(prepared, todo, failed, ran)
        whole = ran[0] if len(ran) == 1 else _Ran.joined(ran)
        packed, answers = whole.packed, whole.answers
        done = Done(
            batch=prepared.batch,
            outputs=tuple([TensorHead(one.name, one.dtype, one.shape, len(one.data)) for one in packed]),
            answers=tuple(map(len, answers)),
            failed=_failures(failed) if failed else (),
            encode_us=prepared.encode_us,
            run_us=whole.run_us,
            decode_us=whole.decode_us,
        )
        return done, [*[one.data for one in packed], *answers]

    def _run_requests(
        self, prepared: _Prepared, indices: Sequence[int], failed: dict[int, LightshipError], ran: list[_Ran]
    ) -> None:
        if prepared.batch == self._stopped:
            failed.update(dict.fromkeys(indices, DeadlineExceeded("Nobody waits for this batch any more.")))
            return
        inputs = prepared.inputs
        if len(indices) != len(prepared.rows):
            offset = sum(prepared.rows[: indices[0]])
            rows = sum(prepared.rows[index] for index in indices)
            inputs = {name: value[offset : offset + rows] for name, value in inputs.items()}
        try:
            ran.append(self._run_once(inputs, raw=prepared.raw))
        except LightshipError as exc:
            if len(indices) == 1 or prepared.batch == self._stopped:
                failed.update(dict.fromkeys(indices, exc))
                return
            half = len(indices) // 2
            self._run_requests(prepared, indices[:half], failed, ran)
            self._run_requests(prepared, indices[half:], failed, ran)

    def _run_once(self, inputs: Tensors, *, raw: bool) -> _Ran:
        started = time.perf_counter_ns()
        try:
            outputs = self._runner.run(inputs)
            ran = time.perf_counter_ns()
            answers = [msgspec.json.encode(answer) for answer in self._task.decode(outputs)] if raw else []
            packed = [] if raw else [pack(spec.name, spec.dtype, outputs[spec.name]) for spec in self._outputs]
        except LightshipError:
            raise
        except MemoryError as exc:
            raise OutOfMemory("The answer needs more memory than the worker has. Send fewer rows.") from exc
        except Exception as exc:
            log.exception("a batch failed in the worker")
            raise LightshipError(f"The model failed on this input ({type(exc).__name__}).") from exc
        return _Ran(packed, answers, (ran - started) // 1000, (time.perf_counter_ns() - ran) // 1000)


def _failures(failed: Mapping[int, LightshipError]) -> tuple[Failure, ...]:
    return tuple(Failure(index, type(error).__name__, str(error)) for index, error in sorted(failed.items()))


def _load(message: Load, payload: memoryview) -> Worker:
    pieces, at = [], 0
    golden_sizes, expected_sizes = (size for _, size in message.golden), (size for _, size in message.expected)
    for size in (message.graph_size, message.config_size, *golden_sizes, *expected_sizes):
        pieces.append(bytes(payload[at : at + size]))
        at += size
    graph, config, *rest = pieces
    take_places(message.places)
    raws, arrays = rest[: len(message.golden)], rest[len(message.golden) :]
    task = load_task(message.task, message.codec_version, msgspec.json.decode(config))
    golden = [(name, raw) for (name, _), raw in zip(message.golden, raws, strict=True)]
    expected = {
        name: np.load(io.BytesIO(data), allow_pickle=False)
        for (name, _), data in zip(message.expected, arrays, strict=True)
    }
    if any(len(rows) != len(golden) for rows in expected.values()):
        raise BundleRefused(f"The bundle must have {len(golden)} expected rows for its golden inputs; it does not.")

    def tested(threads: int) -> Worker:
        given = EngineOptions.from_json(message.options, threads=threads)
        options = replace(given, audited=True, batched=message.batch_rows > 0)
        runner = load_runner(graph, engine=message.engine, options=options)
        worker = Worker(runner, task, batched=options.batched, threads=threads, values=message.values)
        worker.self_test(golden, expected, tolerance=float(message.tolerance))
        worker.warm_up(golden, message.batch_rows)
        return worker

    worker = tested(message.threads)
    if message.threads > 1 and worker.row_s < _SMALL_S:
        # To wake a second thread takes longer than a small graph runs.
        alone = tested(1)
        worker = alone if alone.row_s <= _HARDLY * worker.row_s else worker
    return worker


def _gently(message: Load, payload: memoryview) -> Worker:
    """Load with a lower priority, and give the threads of the engine the usual one when that is done.

    Linux keeps a priority for each thread, and a new thread has that of its maker. Only who has the right to can raise
    one again; so without that right an engine with threads of its own is loaded like any other.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        if not loader.submit(_may_be_nice).result() and message.threads > 1:
            return _load(message, payload)
    with ThreadPoolExecutor(1, thread_name_prefix="load", initializer=_be_nice) as loader:
        worker = loader.submit(_load, message, payload).result()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or may not
            os.setpriority(os.PRIO_PROCESS, int(thread.name), os.getpriority(os.PRIO_PROCESS, 0))
    return worker


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _may_be_nice() -> bool:
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    _be_nice()
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual)
    except OSError:
        return False
    return True


def _serve(channel: Channel, stops: socket.socket) -> int:
    started = time.perf_counter()
    first = channel.receive()
    if first is None:
        return 0
    message, payload = first
    if not isinstance(message, Load):
        raise LightshipError(f"The first message to a worker must be Load. Got {type(message).__name__}.")
    _limit_memory(message.memory_bytes)
    limit = f"{message.memory_bytes >> 20} MiB (--worker-memory)" if message.memory_bytes else "without a limit"
    try:
        worker = _gently(message, payload) if message.background else _load(message, payload)
    except (MemoryError, OutOfMemory):
        channel.send(LoadFailed("Refused", f"{message.model} does not fit into the memory of its worker, {limit}."))
        return 1
    except InvalidInput as exc:  # it could be loaded when it was released
        channel.send(LoadFailed("Refused", f"{exc} Or it needs more memory than its worker may have, {limit}."))
        return 1
    except LightshipError as exc:
        channel.send(LoadFailed(type(exc).__name__, str(exc)))
        return 1
    del payload, first
    gc.freeze()  # what was loaded stays: the collector need not look at it in the middle of a batch
    gc.enable()
    load_ms = (time.perf_counter() - started) * 1000
    channel.send(Ready(golden=len(message.golden), load_ms=load_ms, threads=worker.threads))
    threading.Thread(target=_beat, args=(channel,), name="beat", daemon=True).start()
    threading.Thread(target=_listen, args=(stops, worker), name="stops", daemon=True).start()
    turns = _Turns(channel, worker)
    if usable_cores() > 1:
        threading.Thread(target=turns.take, name="turns", daemon=True).start()
    turns.take()
    return 0


def _listen(stops: socket.socket, worker: Worker) -> None:
    """Hear which batches nobody waits for, until the server closes the socket. Nobody else is woken for it."""
    try:
        while data := stops.recv(STOP_BYTES + 1):
            worker.stop(stopped_batch(data))
    except OSError:
        return  # the server has gone
    except Exception:
        log.exception("the worker cannot read what stops a batch")
        os._exit(1)


class _Turns:
    """One thread, or two in turns: one waits for what the server sends, the other encodes and runs what has come.

    Whoever receives a batch runs it, and leaves the waiting to the other: a batch for an idle worker is handed over to
    nobody, and while it runs the next is received and encoded. On one core that would bring nothing, so one thread
    does all of it and wakes no other.
    """

    def __init__(self, channel: Channel, worker: Worker) -> None:
        self._channel = channel
        self._worker = worker
        self._waiting = threading.Lock()
        self._running = threading.Lock()
        self._received = 0

    def take(self) -> None:
        """Take turns until the server closes the channel."""
        try:
            while (received := self._receive()) is not None:
                self._do(*received)
        except Exception:
            log.exception("the worker cannot read what it is sent")
            os._exit(1)  # the other thread may be deep in a run; the server sees the closed socket and starts another

    def _receive(self) -> tuple[RunTensors | RunRaw | Tune, memoryview] | None:
        with self._waiting:
            if (received := self._channel.receive()) is not None:
                message, payload = received
                if isinstance(message, _WORK):
                    self._received += 1
                    return message, payload
                raise LightshipError(f"A worker runs batches. Got the message {type(message).__name__}.")
            return None

    def _wanted(self, before: int) -> bool:
        """Return whether something has come since, or waits to be received."""
        return self._received != before or bool(select.select([self._channel.socket], [], [], 0)[0])

    def _do(self, message: RunTensors | RunRaw | Tune, payload: memoryview) -> None:
        if isinstance(message, Tune):
            with self._running:
                before = self._received
                self._channel.send(self._worker.measure(message, wanted=lambda: self._wanted(before)))
            return
        prepared = self._worker.prepare(message, payload)
        with self._running:
            done, outputs = self._worker.run(prepared)
            self._channel.send(done, outputs)


def _beat(channel: Channel) -> None:
    """Tell the server that this process goes on: a thread that gets its turn only while no other holds it up."""
    try:
        while True:
            time.sleep(BEAT_S)
            channel.send(Beat())
    except OSError:
        return  # the server has gone


def _limit_memory(more_bytes: int) -> None:
    """Let an allocation beyond the limit fail, which fails one request; and let the kernel take this process first."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if more_bytes:
        now = sum(int(line.split()[1]) * 1024 for line in _status_lines() if line.startswith("VmData"))
        with contextlib.suppress(ValueError, OSError):  # a lower one was set from outside
            resource.setrlimit(resource.RLIMIT_DATA, (now + more_bytes, now + more_bytes))


def _status_lines() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def work(fd: int, *, stop_fd: int, slots_fd: int) -> NoReturn:
    """Be a worker on the sockets and the memory with these descriptors. The process ends with the first."""
    log_to_stderr()
    channel = Channel(socket.socket(fileno=fd), shared=mapped_slots(slots_fd))
    try:
        code = _serve(channel, socket.socket(fileno=stop_fd))
    except OSError:
        code = 0  # the server has gone
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # skips the clean-up of the engine's threads, which may still be at work
