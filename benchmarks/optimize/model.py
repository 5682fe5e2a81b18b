"""What a benchmark of `optimize` runs on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Model"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model under test.

    Attributes:
        graph: ONNX bytes.
        rows: by the name of the input, first axis rows; ``label`` if there are labels.
        upto: the largest size of each free dimension.
    """

    name: str
    graph: bytes
    rows: dict[str, np.ndarray]
    upto: dict[str, int]
