"""What a call costs the server over gRPC and over HTTP: the public client's asyncio form, one row a call.

    .venv/bin/lightship serve digits --auth none --grpc-port 0 --json > serve.json &
    .venv/bin/python benchmarks/grpc/cost.py serve.json $!

Prints calls a second, and the processor time of the server's process (not of the model's) for each call. Client and
server share the machine, so compare the two rows of one run, not runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as over_grpc
import tritonclient.http.aio as over_http

CALLS = 2_000


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(client: Any, inputs: list[Any], at_once: int, pid: int) -> tuple[float, float]:
    """Return calls a second and the server's processor time a call, in seconds."""

    async def some(count: int) -> None:
        for _ in range(count):
            await client.infer("digits", inputs)

    await some(50)
    cpu, began = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(some(CALLS // at_once) for _ in range(at_once)))
    return CALLS / (time.perf_counter() - began), (cpu_s(pid) - cpu) / CALLS


async def main(said: dict[str, Any], pid: int) -> None:
    """Measure both doors, one call at a time and sixteen."""
    address = said["url"].partition("://")[2]
    doors: list[tuple[str, Any, Any]] = [
        ("gRPC", over_grpc, over_grpc.InferenceServerClient(said["grpc_url"])),
        ("HTTP", over_http, over_http.InferenceServerClient(address)),
    ]
    for at_once in (1, 16):
        for name, module, client in doors:
            tensor = module.InferInput("image", [1, 1, 28, 28], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
            rate, cpu = await measure(client, [tensor], at_once, pid)
            print(f"{name}, {at_once:2} at once: {rate:6.0f} calls/s, server {cpu * 1e6:5.0f} us CPU a call")
    for _, _, client in doors:
        await client.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
