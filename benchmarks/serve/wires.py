"""Requests as bytes on the wire, and answers read back: V2 in JSON and in its binary form."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["WIRES", "Question", "check_answers", "question"]

WIRES = ("binary", "json")
_DTYPES = {"float32": "FP32", "int64": "INT64"}
_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a V2 server."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    def bytes(self, host: str) -> bytes:
        """Return the whole request as HTTP/1.1."""
        headers = {"Host": host, **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body

    def ask(self, connection: http.client.HTTPConnection) -> np.ndarray:
        """Send it and return the one output.

        Raises:
            RuntimeError: the answer is not 200.
        """
        connection.request("POST", self.target, self.body, dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"The server answered {answer.status}: {body[:300]!r}")
        return self.read(answer.headers, body)

    def read(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        """Return the one output of an answer."""
        length = headers.get(_LENGTH)
        head = json.loads(body[: int(length)] if length else body)
        (output,) = head["outputs"]
        if length:
            return np.frombuffer(body[int(length) :], np.float32).reshape(output["shape"])
        return np.array(output["data"], np.float32).reshape(output["shape"])


def question(model: str, row: Mapping[str, np.ndarray], wire: str) -> Question:
    """Return the request for one row: ``json`` (floats with 4 decimals) or ``binary``."""
    heads: list[dict[str, Any]] = [
        {"name": name, "shape": list(value.shape), "datatype": _DTYPES[value.dtype.name]} for name, value in row.items()
    ]
    target = f"/v2/models/{model}/infer"
    if wire == "json":
        for head, value in zip(heads, row.values(), strict=True):
            numbers = value.ravel().tolist()
            head["data"] = [round(number, 4) for number in numbers] if value.dtype.kind == "f" else numbers
        body = json.dumps({"inputs": heads}, separators=(",", ":")).encode()
        return Question(target, {"Content-Type": "application/json"}, body)
    for head, value in zip(heads, row.values(), strict=True):
        head["parameters"] = {"binary_data_size": value.nbytes}
    first = json.dumps({"inputs": heads, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(first))}
    return Question(target, headers, first + b"".join(value.tobytes() for value in row.values()))


def check_answers(
    address: tuple[str, int],
    pairs: list[tuple[Question, np.ndarray]],
    *,
    together: int = 16,
    tolerance: float = 1e-4,
) -> float:
    """Ask all at once, so that batches form, and hold each answer against the engine's; return the worst difference.

    Raises:
        RuntimeError: an answer is not 200 or is wrong.
    """

    def one(pair: tuple[Question, np.ndarray]) -> float:
        asked, expected = pair
        connection = http.client.HTTPConnection(*address, timeout=60)
        try:
            got = asked.ask(connection)
        finally:
            connection.close()
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-3, atol=tolerance):
            raise RuntimeError(f"The server's answer is wrong. Expected {expected.ravel()[:4]}, got {got.ravel()[:4]}.")
        return float(np.abs(got - expected).max())

    with ThreadPoolExecutor(together) as pool:
        return max(pool.map(one, pairs))
