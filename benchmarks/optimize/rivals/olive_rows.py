"""Rows of a `.npz` file as a data set of Olive's workflows (its `user_script`)."""

from __future__ import annotations

import numpy as np
from olive.data.registry import Registry


@Registry.register_dataset()
def npz_rows(path: str, **_: object) -> list[tuple[dict[str, np.ndarray], int]]:
    """Return each row with a label that nobody reads."""
    rows = dict(np.load(path))
    count = len(next(iter(rows.values())))
    return [({name: array[place] for name, array in rows.items()}, 0) for place in range(count)]
