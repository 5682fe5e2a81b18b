"""The graph behind mosec with its dynamic batching. Started by `peers.py` in an environment of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))
from floor import bare_session
from mosec import Server, Worker

RAW = os.environ["PEER_WIRE"] == "binary"


class Inference(Worker):  # type: ignore[misc]
    """One worker; mosec collects up to 32 requests, and waits at most 1 ms for more."""

    def __init__(self) -> None:
        self._session = bare_session(Path(os.environ["PEER_GRAPH"]).read_bytes())
        self._shapes = {one.name: one.shape[1:] for one in self._session.get_inputs()}

    def deserialize(self, data: bytes) -> dict[str, np.ndarray]:
        """Return one row of each input."""
        if RAW:
            ((name, shape),) = self._shapes.items()
            return {name: np.frombuffer(data, np.float32).reshape(shape)}
        return {
            name: np.array(values, np.float32 if name == "image" else np.int64).reshape(
                [-1 if isinstance(size, str) else size for size in self._shapes[name]]
            )
            for name, values in orjson.loads(data).items()
        }

    def forward(self, rows: list[dict[str, np.ndarray]]) -> list[Any]:
        """Run a batch."""
        feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return list(self._session.run(None, feeds)[0])

    def serialize(self, row: np.ndarray) -> bytes:
        """Return the bytes of an answer."""
        return row.tobytes() if RAW else orjson.dumps({"data": row}, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=32, max_wait_time=1)
    server.run()
