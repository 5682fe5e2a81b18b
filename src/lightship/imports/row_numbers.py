"""What a graph's file says of the values that it takes: inputs that are row numbers of a table, such as token ids."""

from __future__ import annotations

from dataclasses import replace

from lightship.engine.onnx_lookups import table_rows
from lightship.imports.trial import Found
from lightship.types import ValueRange

__all__ = ["with_row_numbers"]


def with_row_numbers(found: Found, graph: bytes) -> Found:
    """Return what a trial found, with the range of each input that is looked up in a table.

    ONNX counts negative numbers from the table's end. Who sends them has mostly made a mistake, so they are in the
    range only if rows of the trial have them.
    """
    values = dict(found.interface.values)
    words = list(found.words)
    for name, size in table_rows(graph).items():
        negative = any((row[name] < 0).any() for row in found.rows)
        values[name] = ValueRange(-size if negative else 0, size - 1)
        words.append(f"{name!r} is looked up in a table of {size} rows: other values are refused")
    return replace(found, interface=replace(found.interface, values=values), words=tuple(words))
