"""Somebody else's quantizer, run so that nobody notices: no noise, no files, no state of the process changed.

The quantizers draw from the global random generators, set logging levels and classes, print progress to stdout, raise
warnings and work on files. What they draw is fixed here, so that the same graph gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np

__all__ = ["undisturbed"]

_LOUD = ("", "nncf", "onnx_ir", "onnxscript", "onnxruntime")  # "" is the root: ONNX Runtime's quantizers advise there
_SEED = 0


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep random states, logging, warnings, stdout and the temporary folder of the process as they are.

    Not for two threads at once: all of these belong to the process.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_random_numbers())
        stack.enter_context(_quiet_loggers())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(_own_temporary_folder())
        yield


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    # The module may be loaded later, inside; a generator that was not there has no state that anybody relies on.
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
    random.seed(_SEED)
    np.random.seed(_SEED)
    if torch is not None:
        torch.manual_seed(_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    logger_class = logging.getLoggerClass()
    loggers = {name: logging.getLogger(name) for name in _LOUD}
    kept = {name: (logger.level, logger.propagate, list(logger.handlers)) for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.setLoggerClass(logger_class)
        for name, (level, propagate, handlers) in kept.items():
            loggers[name].setLevel(level)
            loggers[name].propagate = propagate
            loggers[name].handlers[:] = handlers


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Let what is written to the temporary folder go with it, also when its writer failed and forgot it."""
    kept = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="lightship-pass-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = kept
