"""A graph as it is: its own tensors in, its own tensors out (task ``tensors``, codec version 1).

For a model that was trained elsewhere: nobody said what its tensors mean, so there is nothing to encode and nothing to
decode. It has no labels and takes no media, so a server gives it no raw door. A raw input, as golden examples are, is a
``.npz`` file with one row of every input; of a graph without a batch dimension, with the whole inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor, UnsupportedMedia
from lightship.tasks.npz import read_npz, write_npz
from lightship.tasks.task import Raw, Tensors
from lightship.types import DTYPES, Dim, Json, TensorSpec

__all__ = ["BATCH", "TensorRows", "is_batched", "listed"]

BATCH = "batch"
"""The name of the first dimension of everything that goes in and comes out row by row."""


def is_batched(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bool:
    """Return whether every tensor starts with the batch dimension; else a request runs alone, as a whole."""
    return all(spec.shape[:1] == (BATCH,) for spec in (*inputs, *outputs))


@dataclass(frozen=True, slots=True)
class TensorRows:
    """The tensors of a graph.

    Attributes:
        inputs: what the graph takes, at least one.
        outputs: what it gives, at least one.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    name: ClassVar[str] = "tensors"
    codec_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for key in ("inputs", "outputs"):
            names = [spec.name for spec in getattr(self, key)]
            if not names or len(set(names)) != len(names):
                raise InvalidInput(f"`{key}` of {self.name} must be at least one tensor, no name twice. Got {names!r}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Json]) -> Self:
        """Build the task from a bundle's configuration.

        Raises:
            InvalidInput: a key is missing, unknown or of the wrong type.
        """
        if set(config) != {"inputs", "outputs"}:
            raise InvalidInput(
                f"The configuration of {cls.name} needs exactly inputs, outputs. "
                f"Got {', '.join(sorted(config)) or 'nothing'}."
            )
        return cls(inputs=_specs(config["inputs"], "inputs"), outputs=_specs(config["outputs"], "outputs"))

    def config(self) -> dict[str, Json]:
        """Return the configuration for the bundle; ``from_config`` reads it back."""
        return {
            key: [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
            for key, specs in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @property
    def batched(self) -> bool:
        """Whether rows are stacked into batches."""
        return is_batched(self.inputs, self.outputs)

    @property
    def labels(self) -> tuple[str, ...]:
        """No labels: what the outputs mean is not known."""
        return ()

    @property
    def media_types(self) -> tuple[str, ...]:
        """No media: there is no raw door."""
        return ()

    def identity(self, raw: Raw) -> bytes:
        """Return the bytes of ``raw`` in their only form."""
        return write_npz(self.encode(raw))

    def encode(self, raw: Raw) -> Tensors:
        """Return the tensors of one row (no batch axis), or the whole inputs of a graph without a batch dimension.

        Raises:
            UnsupportedMedia: ``raw`` is no bytes.
            InvalidInput: it is no ``.npz`` file.
            InvalidTensor: an array is missing, unknown, or of another dtype or shape.
        """
        if not isinstance(raw, bytes):
            raise UnsupportedMedia(f"A raw input of the task {self.name!r} must be the bytes of a .npz file.")
        arrays = read_npz(raw, what="The raw input")
        if set(arrays) != {spec.name for spec in self.inputs}:
            raise InvalidTensor(
                f"The raw input must hold the arrays {', '.join(repr(spec.name) for spec in self.inputs)}. "
                f"Got {', '.join(map(repr, sorted(arrays))) or 'none'}."
            )
        for spec in self.inputs:
            _check_row(arrays[spec.name], spec, spec.shape[1:] if self.batched else spec.shape)
        return arrays

    def decode(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return one ``{output: value}`` a row (one in all without a batch dimension); arrays as nested lists.

        Raises:
            InvalidTensor: an output is missing.
        """
        if missing := [spec.name for spec in self.outputs if spec.name not in outputs]:
            raise InvalidTensor(f"The graph must give the output {missing[0]!r}.")
        values = {spec.name: listed(outputs[spec.name]) for spec in self.outputs}
        if not self.batched:
            return [values]
        rows = min(len(value) for value in values.values())
        return [{name: value[row] for name, value in values.items()} for row in range(rows)]

    def answer_tolerance(self, tolerance: float) -> float:
        """Return ``tolerance``: an answer is the outputs themselves."""
        return tolerance

    def golden(self, raw: Raw) -> tuple[str, bytes]:
        """Return ``(".npz", bytes)``."""
        return ".npz", self.identity(raw)


def listed(array: np.ndarray) -> Any:
    """Return an array as nested lists, its texts as ``str``."""
    if array.dtype == object:
        texts = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in array.ravel()]
        return np.array(texts, dtype=object).reshape(array.shape).tolist()
    return array.tolist()


def _check_row(array: np.ndarray, spec: TensorSpec, shape: tuple[Dim, ...]) -> None:
    if array.dtype != np.dtype(DTYPES[spec.dtype]):
        raise InvalidTensor(f"The array {spec.name!r} must have the dtype {spec.dtype}. Got {array.dtype}.")
    sizes = zip(shape, array.shape, strict=False)
    if array.ndim != len(shape) or any(isinstance(dim, int) and dim != size for dim, size in sizes):
        raise InvalidTensor(f"The array {spec.name!r} must have the shape {list(shape)}. Got {list(array.shape)}.")


def _specs(value: Json, key: str) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"`{key}` of {TensorRows.name} must be a list of tensors. Got {value!r:.100}.")
    return tuple(_spec(item, key) for item in value)


def _spec(item: Json, key: str) -> TensorSpec:
    if isinstance(item, dict) and set(item) == {"name", "dtype", "shape"}:
        name, dtype, shape = item["name"], item["dtype"], item["shape"]
        if isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES and isinstance(shape, list):
            dims = tuple(dim for dim in shape if isinstance(dim, str) or (type(dim) is int and dim >= 1))
            if name and len(dims) == len(shape):
                return TensorSpec(name, dtype, dims)
    raise InvalidInput(
        f"`{key}` of {TensorRows.name} must hold tensors with name, dtype ({', '.join(DTYPES)}) and shape "
        f"(sizes from 1 on, and names of free dimensions). Got {item!r:.200}."
    )
