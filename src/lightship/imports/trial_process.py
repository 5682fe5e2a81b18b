"""Trials in a process of their own: memory and CPU time are bounded, and they may write no file.

A graph is data, but what it makes an engine do is not bounded by its size: an operator may ask for all memory, loop
without end, or find a fault in a kernel. Here that ends this process and not the one that asked. Messages go through
pipes, length before MessagePack, of a fixed schema; nothing is unpickled and nothing has a name in the file system.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn, TypeVar

import msgspec
import numpy as np

import lightship.errors
from lightship.engine.machine import memory_limit_bytes, usable_cores
from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.imports.sizes import Sizes, try_sizes
from lightship.imports.trial import Found, try_graph
from lightship.imports.tried_graph import MAX_RUN_S, Bounds
from lightship.tasks.npz import read_npz, write_npz
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import Interface, Json, Progress, TensorSpec

__all__ = ["try_apart", "try_sizes_apart"]

LIMIT_S = 600.0
"""Wall clock of a whole trial."""
_LEAST_BYTES = 3 << 30  # the engine alone maps more than a gigabyte of address space
_GRAPH_TIMES = 12  # a graph is held by several sessions, packed and unpacked
_TELL_S = 0.05
_SHARE = 0.8  # of what this machine may use
_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")
_MAX_ANSWER_BYTES = 4 << 30


_Specs = tuple[tuple[str, str, tuple[int | str, ...]], ...]


class _Task(msgspec.Struct, frozen=True, tag="trial", forbid_unknown_fields=True):
    graph: bytes
    given: bytes | None
    batch: int
    size: int
    upto: dict[str, int]
    batch_cpu_s: float
    first: tuple[int, ...]
    threads: int


class _SizesTask(msgspec.Struct, frozen=True, tag="sizes", forbid_unknown_fields=True):
    graph: bytes
    reference: bytes
    engine: str
    options: dict[str, Any]
    inputs: _Specs
    outputs: _Specs
    proven: dict[str, tuple[int, int]]
    rows: tuple[bytes, ...]
    given: dict[str, tuple[int, int]]
    tolerance: float
    threads: int


class _Step(msgspec.Struct, frozen=True, tag="step", forbid_unknown_fields=True):
    what: str
    runs: int


class _Failed(msgspec.Struct, frozen=True, tag="failed", forbid_unknown_fields=True):
    error: str
    message: str


class _Answer(msgspec.Struct, frozen=True, tag="found", forbid_unknown_fields=True):
    inputs: _Specs
    outputs: _Specs
    proven: dict[str, tuple[int, int]]
    rows: tuple[bytes, ...]
    expected: bytes
    tolerance: float
    golden: dict[str, Any]
    shapes: dict[str, Any]
    words: tuple[str, ...]


class _SizesAnswer(msgspec.Struct, frozen=True, tag="sizes", forbid_unknown_fields=True):
    problem: str
    batch: int
    mixed: float
    tried: tuple[Any, ...]
    words: tuple[str, ...]
    proven: dict[str, tuple[int, int]]


_Message = _Step | _Failed | _Answer | _SizesAnswer
_AnyTask = _Task | _SizesTask
_A = TypeVar("_A", _Answer, _SizesAnswer)


def try_apart(
    graph: bytes,
    *,
    given: Mapping[str, np.ndarray] | None,
    bounds: Bounds,
    progress: Progress,
    limit_s: float = LIMIT_S,
) -> Found:
    """Run ``try_graph`` in a process of its own and return what it found.

    Raises:
        Refused: it took too long or too much memory, or killed its process; or as ``try_graph``.
        InvalidInput: as ``try_graph``.
    """
    task = _Task(
        graph=graph,
        given=None if given is None else write_npz(given),
        batch=bounds.batch,
        size=bounds.size,
        upto=dict(bounds.upto),
        batch_cpu_s=bounds.batch_cpu_s,
        first=bounds.first,
        threads=usable_cores(),
    )
    steps = _Steps(progress)
    answer = _apart(task, _Answer, steps.show, limit_s=limit_s)
    steps.done(answer)
    return _found(answer)


def try_sizes_apart(
    graph: bytes,
    *,
    engine: str,
    options: Mapping[str, Json],
    reference: bytes,
    interface: Interface,
    rows: Sequence[Tensors],
    tolerance: float,
    given: Mapping[str, tuple[int, int]] | None = None,
    limit_s: float = LIMIT_S,
) -> Sizes:
    """Run ``try_sizes`` in a process of its own and return what it found.

    Args:
        graph: of the variant.
        engine: that runs it.
        options: for the engine, as a bundle records them.
        reference: the graph that the sizes of ``interface`` were proven for.
        rows, tolerance, given: as for ``try_sizes``.

    Raises:
        Refused: it took too long or too much memory, or killed its process.
        InvalidInput: the engine cannot load the graph.
    """
    task = _SizesTask(
        graph=graph,
        reference=reference,
        engine=engine,
        options=dict(options),
        inputs=_plain_specs(interface.inputs),
        outputs=_plain_specs(interface.outputs),
        proven=dict(interface.proven),
        rows=tuple(write_npz(row) for row in rows),
        given=dict(given or {}),
        tolerance=tolerance,
        threads=usable_cores(),
    )
    answer = _apart(task, _SizesAnswer, lambda _: None, limit_s=limit_s)
    return Sizes(answer.problem, answer.batch, answer.mixed, answer.tried, answer.words, answer.proven)


def _apart(task: _AnyTask, kind: type[_A], show: Callable[[_Step], None], *, limit_s: float) -> _A:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
        (sys.executable, "-P", "-m", "lightship.imports.trial_process", "--parent", str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environment, "ORT_DISABLE_TELEMETRY": "1"},
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        return _converse(process, task, kind, show)
    except (OSError, EOFError, msgspec.DecodeError) as exc:
        process.kill()
        code = process.wait()
        raise _ended(code, limit_s if late.is_set() else None) from exc
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _converse(process: subprocess.Popen[bytes], task: _AnyTask, kind: type[_A], show: Callable[[_Step], None]) -> _A:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    _write(process.stdin, msgspec.msgpack.encode(task))
    decoder: msgspec.msgpack.Decoder[_Message] = msgspec.msgpack.Decoder(_Message)
    while True:
        message = decoder.decode(_read(process.stdout))
        if isinstance(message, _Step):
            show(message)
        elif isinstance(message, _Failed):
            raise _error(message)
        elif isinstance(message, kind):
            return message
        else:
            raise EOFError


class _Steps:
    """Turns the steps of a trial into progress for people."""

    _WORDS = {  # noqa: RUF012 - never changed
        "load": "Load the graph",
        "draw": "Run golden examples",
        "spread": "Compare the engine's settings",
        "sizes": "Try batch sizes and shapes",
    }

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._what = ""
        self._runs = 0

    def show(self, step: _Step) -> None:
        what, _, note = step.what.partition(": ")
        if what != self._what:
            if self._what:
                self._progress.done()
            self._what = what
            self._progress.start(self._WORDS.get(what, what[:80]))
        elif step.runs > self._runs:
            self._progress.advance(step.runs - self._runs, note[:80])
        self._runs = step.runs

    def done(self, answer: _Answer) -> None:
        ranges = ", ".join(f"{name} {low} to {high}" for name, (low, high) in sorted(answer.proven.items()))
        self._progress.done(ranges[:200])


def _ended(code: int, limit_s: float | None) -> LightshipError:
    if limit_s is not None:
        return Refused(
            f"The graph was not done with its trial in {limit_s:g} s and was stopped. Look for a loop in it without "
            "an end, or give smaller bounds (--upto)."
        )
    why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Refused(
        f"The graph ended the process that tried it ({why}): it took more memory than is allowed, or found a fault in "
        "the engine. It is not taken. Try it with smaller bounds (--upto), or export it again."
    )


def _error(message: _Failed) -> LightshipError:
    cls = getattr(lightship.errors, message.error, None)
    known = message.error in lightship.errors.__all__ and isinstance(cls, type) and issubclass(cls, LightshipError)
    text = message.message[:4000]
    return cls(text) if known and cls is not lightship.errors.MissingExtra else LightshipError(text)  # type: ignore[misc]


def _specs(items: _Specs) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, shape) for name, dtype, shape in items)


def _plain_specs(specs: tuple[TensorSpec, ...]) -> _Specs:
    return tuple((spec.name, spec.dtype, spec.shape) for spec in specs)


def _found(answer: _Answer) -> Found:
    return Found(
        interface=Interface(_specs(answer.inputs), _specs(answer.outputs), proven=answer.proven),
        rows=tuple(read_npz(row) for row in answer.rows),
        expected=read_npz(answer.expected),
        tolerance=answer.tolerance,
        golden=answer.golden,
        shapes=answer.shapes,
        words=answer.words,
    )


def _write(stream: BinaryIO | Any, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: BinaryIO | Any) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) != _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    if size > _MAX_ANSWER_BYTES:
        raise EOFError
    data: bytes = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


# -- in the process of the trial --------------------------------------------------------------------------------------


def _bound(graph_bytes: int) -> None:
    """Bound memory, CPU time and files of this process; from here on it cannot raise them again."""
    memory = max(_LEAST_BYTES + _GRAPH_TIMES * graph_bytes, int(_SHARE * memory_limit_bytes()) // 2)
    if total := memory_limit_bytes():
        memory = min(memory, max(_LEAST_BYTES, int(_SHARE * total)))
    cpu = int(LIMIT_S * usable_cores())
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (bound, bound))


def _run(task: _Task, out: BinaryIO) -> _Answer:
    last_s, step = 0.0, ""

    def tell(what: str, runs: int) -> None:
        nonlocal last_s, step
        now = time.monotonic()
        if what != step or now - last_s > _TELL_S:
            last_s, step = now, what
            _write(out, msgspec.msgpack.encode(_Step(what, runs)))

    found = try_graph(
        task.graph,
        given=None if task.given is None else read_npz(task.given, what="The golden rows"),
        bounds=Bounds(task.batch, task.size, task.upto, task.batch_cpu_s, task.first),
        threads=task.threads,
        tell=tell,
    )
    return _Answer(
        inputs=_plain_specs(found.interface.inputs),
        outputs=_plain_specs(found.interface.outputs),
        proven=dict(found.interface.proven),
        rows=tuple(write_npz(row) for row in found.rows),
        expected=write_npz(found.expected),
        tolerance=found.tolerance,
        golden=_plain(found.golden),
        shapes=_plain(found.shapes),
        words=found.words,
    )


def _run_sizes(task: _SizesTask) -> _SizesAnswer:
    interface = Interface(_specs(task.inputs), _specs(task.outputs), proven=task.proven)
    batched = is_batched(interface.inputs, interface.outputs)
    own = EngineOptions(threads=task.threads, batched=batched, limit_s=MAX_RUN_S)
    theirs = replace(EngineOptions.from_json(task.options, threads=task.threads), batched=batched, limit_s=MAX_RUN_S)
    with ExitStack() as stack:
        reference = load_runner(task.reference, options=own)
        stack.callback(reference.close)
        variant = load_runner(task.graph, engine=task.engine, options=theirs)
        stack.callback(variant.close)
        rows = [read_npz(row) for row in task.rows]
        found = try_sizes(reference, variant, interface, rows, tolerance=task.tolerance, given=task.given)
    return _SizesAnswer(found.problem, found.batch, found.mixed, found.tried, found.words, dict(found.proven))


def _plain(facts: Mapping[str, Json]) -> dict[str, Any]:
    return dict(facts)


def _main() -> NoReturn:
    parent = int(sys.argv[sys.argv.index("--parent") + 1])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the call above
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand among the messages
    task: _AnyTask = msgspec.msgpack.decode(_read(sys.stdin.buffer), type=_AnyTask)
    answer: _Answer | _SizesAnswer | _Failed
    try:
        _bound(len(task.graph))
        answer = _run(task, out) if isinstance(task, _Task) else _run_sizes(task)
    except LightshipError as exc:
        answer = _Failed(type(exc).__name__, str(exc))
    except MemoryError:
        answer = _Failed(
            Refused.__name__, "The graph needs more memory than a trial may have. Try it with --upto, smaller."
        )
    except Exception as exc:  # noqa: BLE001 - the edge of this process
        answer = _Failed(
            InvalidInput.__name__, f"The trial of the graph failed ({type(exc).__name__}: {str(exc)[:500]})."
        )
    _write(out, msgspec.msgpack.encode(answer))
    os._exit(0)  # skips the clean-up of the engine's threads, which may still be at work


if __name__ == "__main__":
    _main()
