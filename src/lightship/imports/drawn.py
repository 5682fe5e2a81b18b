"""Inputs for a graph about which only its interface is known: seeded, so that the same file gets the same ones.

What values a graph takes stands nowhere in it. The first style suits most; a graph that fails on it (an index out of
range, the logarithm of a negative number, a mask of zeros) gets narrower values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightship.tasks.task import Tensors
from lightship.types import DTYPES, TensorSpec

__all__ = ["STYLES", "draw"]

STYLES = ("wide", "plain", "unit", "ones", "zeros")
"""The most telling first: floats normal, integers below 100; integers below 2; floats below 1; constants."""

_BYTES, _WIDE = 256, 100  # pixels; and what is below any vocabulary
_SEED = 20_260_101


def draw(specs: Sequence[TensorSpec], sizes: Mapping[str, int], *, number: int, style: str) -> Tensors:
    """Return one set of inputs.

    Args:
        specs: the inputs; every free dimension must be in ``sizes``.
        sizes: of the free dimensions.
        number: which one; each has other values.
        style: one of ``STYLES``.
    """
    drawn = {}
    for index, spec in enumerate(specs):
        shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)
        rng = np.random.default_rng([_SEED, number, index])
        drawn[spec.name] = _values(rng, spec, shape, style)
    return drawn


def _values(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], style: str) -> np.ndarray:
    dtype = np.dtype(DTYPES[spec.dtype])
    if style in ("ones", "zeros"):
        return _constant(spec, shape, int(style == "ones"))
    if spec.dtype == "BYTES":
        letters = ("0", "1") if style == "unit" else ("a", "b", "yes", "no")
        texts = np.empty(shape, dtype=object)
        texts.ravel()[:] = [letters[i].encode() for i in rng.integers(0, len(letters), texts.size)]
        return texts
    if dtype.kind == "f":
        values = rng.random(shape) if style == "unit" else rng.normal(size=shape)
        return np.asarray(values).astype(dtype)
    name = spec.name.lower()
    if "mask" in name:  # all tokens count: a mask of zeros has no softmax
        return np.ones(shape, dtype)
    if "type_id" in name or "segment" in name:  # 0 is the only one that every model has
        return np.zeros(shape, dtype)
    wide = _BYTES if spec.dtype == "UINT8" else _WIDE
    top = wide if style == "wide" and spec.dtype != "BOOL" else 2
    return np.asarray(rng.integers(0, top, size=shape)).astype(dtype)


def _constant(spec: TensorSpec, shape: tuple[int, ...], value: int) -> np.ndarray:
    if spec.dtype != "BYTES":
        return np.full(shape, value, DTYPES[spec.dtype])
    texts = np.empty(shape, dtype=object)
    texts.ravel()[:] = [str(value).encode()] * texts.size
    return texts
