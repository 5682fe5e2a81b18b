"""What a task is: the one definition of encode, decode and metrics for training, validation, server and batch (A3).

A task travels in the bundle as configuration, never as code. Its codec has a version: a change that gives another
tensor for the same raw input is a new version, and the old one stays readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from lightship.types import Json, TensorSpec

__all__ = ["Raw", "Task", "Tensors"]

Raw: TypeAlias = "bytes | np.ndarray"
"""A raw input as a person has it: the bytes of a file, or an array."""

Tensors: TypeAlias = "dict[str, np.ndarray]"
"""Tensors by name. ``encode`` gives them for one row, without a batch axis; graphs take and give them with one."""


class Task(Protocol):
    """The contract between raw inputs, a graph's tensors and answers."""

    name: ClassVar[str]
    """E.g. ``image-classification``; the entry point in ``lightship.tasks`` has the same name."""
    codec_version: ClassVar[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""

    @property
    def media_types(self) -> tuple[str, ...]:
        """Media types of raw inputs that come as bytes, e.g. ``image/png``."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that ``encode`` makes, with ``"batch"`` as their first dimension."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that ``decode`` takes, with ``"batch"`` as their first dimension."""

    def config(self) -> dict[str, Json]:
        """Return the configuration for the bundle: JSON without floats (decimals are strings)."""

    def identity(self, raw: Raw) -> bytes:
        """Return bytes that are equal for equal decoded inputs, however they were stored. Splits hash them.

        Raises:
            InvalidMedia: the bytes cannot be decoded.
        """

    def encode(self, raw: Raw) -> Tensors:
        """Turn one raw input into the tensors of one row (no batch axis).

        Raises:
            InvalidMedia, UnsupportedMedia, TooLarge: the raw input cannot be used.
        """

    def decode(self, outputs: Mapping[str, np.ndarray]) -> Sequence[dict[str, Any]]:
        """Turn a graph's outputs (with batch axis) into one JSON-able answer a row."""

    def answer_tolerance(self, tolerance: float) -> float:
        """Return how far a number in an answer may be off where the graph's outputs are off by ``tolerance``."""

    def golden(self, raw: Raw) -> tuple[str, bytes]:
        """Return (file suffix, bytes) of a lossless file of ``raw``, for the golden examples of a bundle."""
