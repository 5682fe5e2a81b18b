"""OpenVINO and NNCF, loaded when they are needed, and silent: the only door to both.

Imported as they come, both report to their maker: ``import openvino`` writes an identity of the user to ``~/intel`` and
sends it, with the version, to an analytics service; NNCF does so for every model that it quantizes. There is no
variable that turns it off. Both do without the package ``openvino_telemetry`` where there is none, so for as long as
they are being loaded there is none. What else a process does with that package is not touched.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any

from lightship.errors import MissingExtra

__all__ = ["load_nncf", "load_openvino", "signal_stack_kept"]

_REPORTER = "openvino_telemetry"
_EXTRA = "openvino"
_loading = Lock()


def load_openvino(*, needed_for: str = "The engine 'openvino'") -> Any:
    """Return the module ``openvino``.

    Raises:
        MissingExtra: it is not installed.
    """
    return _loaded("openvino", needed_for)


def load_nncf(*, needed_for: str = "Quantization for OpenVINO") -> Any:
    """Return the module ``nncf``; of what it logs only errors are let through.

    Raises:
        MissingExtra: it is not installed.
    """
    known = "nncf" in sys.modules
    load_openvino(needed_for=needed_for)  # it imports that itself, later, when nobody holds the door
    nncf = _loaded("nncf", needed_for)
    if not known:
        nncf.set_log_level(logging.ERROR)
    return nncf


def _loaded(name: str, needed_for: str) -> Any:
    try:
        with _nothing_reports():
            return import_module(name)
    except ImportError as exc:  # not there, or there and broken: the line that installs it repairs it too
        raise MissingExtra(extra=_EXTRA, needed_for=needed_for) from exc


@contextmanager
def _nothing_reports() -> Iterator[None]:
    with _loading:
        hidden = {name: sys.modules.pop(name) for name in tuple(sys.modules) if _is_reporter(name)}
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # as the import system reads it: not to be found
        try:
            yield
        finally:
            del sys.modules[_REPORTER]
            sys.modules.update(hidden)


def _is_reporter(name: str) -> bool:
    return name == _REPORTER or name.startswith(f"{_REPORTER}.")


class _SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put this thread's alternate signal stack back as it was.

    OpenVINO gives the thread that compiles a graph a stack of its own for signals, and takes its memory back later
    without saying so. Python runs its handlers on such a stack, so the next Ctrl-C would end the process with SIGSEGV.
    """
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
