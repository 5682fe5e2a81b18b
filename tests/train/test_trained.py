"""A trained model on disk."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.errors import InvalidData, NotFound
from lightship.train.trained import TrainedModel


def test_a_model_goes_round(tmp_path, trained):
    """Weights to the last bit, curves, settings; two files and nothing else."""
    trained.save(tmp_path / "deep" / "model")

    found = TrainedModel.load(tmp_path / "deep" / "model")

    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == ["model", "model.json", "model.safetensors"]
    assert (found.settings, found.shape, found.curves) == (trained.settings, trained.shape, trained.curves)
    assert (found.best_epoch, found.stopped_early) == (trained.best_epoch, trained.stopped_early)
    assert all(np.array_equal(found.weights[name], array) for name, array in trained.weights.items())


def test_saving_again_replaces_and_gives_the_same_bytes(tmp_path, trained):
    """Nothing of the old folder stays."""
    trained.save(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "leftover").write_text("old")

    trained.save(tmp_path / "model")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "leftover").exists()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_the_network_is_in_evaluation_mode(trained, validation):
    """No dropout: two calls agree."""
    import torch

    network = trained.module()

    images = torch.from_numpy(validation.images)
    assert not network.training
    assert torch.equal(network(images), network(images))


def test_a_missing_model_is_not_found(tmp_path):
    """The folder and the file are named."""
    with pytest.raises(NotFound, match=r"no trained model in .*model\.json is missing"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("model.safetensors", b"\0" * 99, "does not have its recorded digest"),
        ("model.json", b"{", "is damaged"),
        ("model.json", b"{}", "format version 1"),
        ("model.json", b"[]", "format version 1"),
    ],
)
def test_damaged_files_are_named(tmp_path, trained, name, data, why):
    """Never half a model."""
    trained.save(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(data)

    with pytest.raises(InvalidData, match=why):
        TrainedModel.load(tmp_path / "model")
