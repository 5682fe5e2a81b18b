"""One way to run one model, timed in a process of its own: python contestant.py JOB.json (used by by_hand.py).

A job: {"kind": "torch"|"onnxruntime"|"openvino", "model": file, "rows": file.npz, "batches": [...], "threads": [...],
"precision": "f32", "seconds": s, "judged": file.npz or null, "answers": file.npy}. Writes its answers to the rows that
judge it. Prints p50 of one row and the best rows a second, each with the threads that are best for it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SLOW_S = 0.4  # a call

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # all outputs


def with_torch(job: dict, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    sys.path.insert(0, str(Path(__file__).parent))
    import eager

    module = eager.Interpreted(Path(job["model"])).eval()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [module(*(torch.from_numpy(array) for array in inputs.values())).numpy()]

    return run


def with_onnxruntime(job: dict, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def with_openvino(job: dict, threads: int) -> Run:
    from lightship.engine.openvino_library import load_openvino

    openvino = load_openvino()
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": job["precision"]}
    compiled = openvino.Core().compile_model(job["model"], "CPU", hints)
    return lambda inputs: list(compiled(inputs).values())


def answered(run: Run, rows: dict[str, np.ndarray], at_once: int) -> np.ndarray:
    """Return the answer to each row: all outputs, one after the other."""
    count, found = len(next(iter(rows.values()))), []
    for start in range(0, count, at_once):
        outputs = run({name: array[start : start + at_once] for name, array in rows.items()})
        found.append(np.concatenate([each.reshape(len(each), -1) for each in outputs], axis=1))
    return np.concatenate(found)


def timed(run: Run, rows: dict[str, np.ndarray], batch: int, seconds: float) -> float:
    """Return the median seconds of a call."""
    order = np.arange(batch) % len(next(iter(rows.values())))
    inputs = {name: np.ascontiguousarray(array[order]) for name, array in rows.items()}
    started = time.perf_counter()
    run(inputs)
    slow = time.perf_counter() - started > SLOW_S
    for _ in range(0 if slow else 2):
        run(inputs)
    taken, until = [], time.perf_counter() + seconds
    while len(taken) < (3 if slow else 7) or (time.perf_counter() < until and len(taken) < 2000):
        started = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rows = dict(np.load(job["rows"]))
    load = {"torch": with_torch, "onnxruntime": with_onnxruntime, "openvino": with_openvino}[job["kind"]]
    if job["judged"]:
        judged = dict(np.load(job["judged"]))
        np.save(job["answers"], answered(load(job, max(job["threads"])), judged, min(8, max(job["batches"]))))
    share = job["seconds"] / (1 + len(job["batches"])) / len(job["threads"])
    quickest, busiest = [], []
    for threads in job["threads"]:
        run = load(job, threads)
        for batch in job["batches"]:
            call_s = timed(run, rows, batch, share)
            busiest.append((batch / call_s, batch, threads))
            if call_s > SLOW_S:
                break  # larger batches serve no more
        quickest.append((1000 * timed(run, rows, 1, share), threads))
        del run  # its threads may spin
    (rows_per_s, batch, busy_threads), (p50_ms, quick_threads) = max(busiest), min(quickest)
    found = {"p50_ms": p50_ms, "rows_per_s": rows_per_s, "batch": batch}
    print(json.dumps(found | {"threads": {"p50_ms": quick_threads, "rows_per_s": busy_threads}}))


if __name__ == "__main__":
    main()
