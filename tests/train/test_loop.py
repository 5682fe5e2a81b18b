"""The loop: it learns, repeats itself, stops in time, and says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightship.errors import InvalidData, InvalidTensor
from lightship.train.loop import EncodedRows, train
from lightship.train.settings import TrainSettings
from lightship.types import Silent

SETTINGS = TrainSettings(epochs=6, batch_size=16, learning_rate=0.01, threads=1)


def changed(**values: object) -> TrainSettings:
    """Return the settings with some values changed."""
    return TrainSettings(**{**SETTINGS.to_json(), **values})


@pytest.mark.parametrize(
    "settings",
    [
        changed(),
        changed(optimizer="momentum", learning_rate=0.05),
        changed(optimizer="sgd", learning_rate=0.2, schedule="constant"),
        changed(architecture="cnn-24", schedule="cosine", learning_rate=0.003, label_smoothing=0.1),
    ],
)
def test_every_optimizer_schedule_and_architecture_learns(rows, validation, settings):
    """The problem is easy: 90 % right within six epochs, 33 % by chance."""
    model = train(settings, rows=rows, validation=validation, classes=3)

    assert model.curves[model.best_epoch - 1].validation_accuracy >= 0.9


def test_two_runs_have_the_same_bits_and_another_seed_has_not(rows, validation):
    """Whatever the caller's random state and threads are, and both are given back."""
    settings = changed(epochs=2, dropout=0.4, shift=1.0, rotate=15.0, scale=0.1)
    torch.manual_seed(1)
    first = train(settings, rows=rows, validation=validation, classes=3)
    torch.manual_seed(2)
    state, threads = torch.get_rng_state(), torch.get_num_threads()

    second = train(settings, rows=rows, validation=validation, classes=3)

    other = train(changed(epochs=2, seed=9), rows=rows, validation=validation, classes=3)
    assert all(first.weights[name].tobytes() == second.weights[name].tobytes() for name in first.weights)
    assert any(not np.array_equal(first.weights[name], other.weights[name]) for name in first.weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_curves_tell_of_every_epoch(trained, rows):
    """Losses, accuracies in [0, 1], the rate of the schedule, seconds."""
    assert [point.epoch for point in trained.curves] == [1, 2, 3]
    for point in trained.curves:
        assert 0 <= point.train_accuracy <= 1
        assert 0 <= point.validation_accuracy <= 1
        assert point.train_loss > 0
        assert point.seconds > 0
    assert trained.curves[-1].learning_rate < trained.curves[0].learning_rate


def test_train_loss_is_of_the_plain_rows(rows, validation):
    """Measured without dropout and augmentation, so it can be compared with the validation loss."""
    model = train(changed(epochs=1, dropout=0.5, shift=2.0), rows=rows, validation=validation, classes=3)

    with torch.no_grad():
        logits = model.module()(torch.from_numpy(rows.images)).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.targets)).item()
    assert model.curves[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_patience_stops_the_run_and_the_best_weights_come_back(rows):
    """Labels of the validation rows are noise, so the loss soon rises."""
    noise = np.random.default_rng(5).integers(0, 3, 32)
    validation = EncodedRows(np.random.default_rng(6).normal(size=(32, 1, 8, 8)).astype(np.float32), noise)

    model = train(changed(epochs=40, patience=3, schedule="constant"), rows=rows, validation=validation, classes=3)

    losses = [point.validation_loss for point in model.curves]
    assert model.stopped_early
    assert len(model.curves) == model.best_epoch + 3
    assert losses[model.best_epoch - 1] == min(losses)
    with torch.no_grad():
        logits = model.module()(torch.from_numpy(validation.images)).double()
    again = torch.nn.functional.cross_entropy(logits, torch.from_numpy(noise)).item()
    assert again == pytest.approx(min(losses), rel=1e-5)


def test_accuracy_can_be_what_is_watched(rows, validation):
    """Of equal accuracies the lower loss is better."""
    model = train(changed(monitor="accuracy"), rows=rows, validation=validation, classes=3)

    best = max(model.curves, key=lambda point: (point.validation_accuracy, -point.validation_loss))
    assert model.best_epoch == best.epoch


def test_monitor_last_keeps_the_last_epoch_and_never_stops_early(rows, validation):
    """Under a schedule that ends low, noise in the validation rows cannot pick an epoch from before the end."""
    model = train(changed(monitor="last", patience=1), rows=rows, validation=validation, classes=3)

    assert model.best_epoch == len(model.curves) == model.settings.epochs
    assert not model.stopped_early


def test_a_diverging_run_names_epoch_and_setting(rows, validation):
    """Not a model of NaNs."""
    wild = changed(optimizer="sgd", learning_rate=100.0, schedule="constant", epochs=20)
    hot = EncodedRows(rows.images * np.float32(1e6), rows.targets)

    with pytest.raises(InvalidData, match=r"diverged in epoch \d+: the loss is (nan|inf).*`learning_rate` \(now 100\)"):
        train(wild, rows=hot, validation=validation, classes=3)


def test_progress_hears_of_every_epoch(rows, validation):
    """Started once with the number of epochs, advanced once an epoch, done."""
    heard: list[tuple[object, ...]] = []

    class Listening(Silent):
        def start(self, what: str, total: int | None = None) -> None:
            heard.append((what, total))

        def advance(self, steps: int = 1, note: str = "") -> None:
            heard.append((steps,))
            assert "accuracy" in note

        def done(self, note: str = "") -> None:
            heard.append(("done",))

    train(changed(epochs=2), rows=rows, validation=validation, classes=3, progress=Listening())

    assert heard == [("Train", 2), (1,), (1,), ("done",)]


def test_memory_mapped_images_train_to_the_same_bits(tmp_path, rows, validation):
    """A data set larger than the memory is a file; where the numbers lie does not matter."""
    np.save(tmp_path / "images.npy", rows.images)
    mapped = EncodedRows(np.load(tmp_path / "images.npy", mmap_mode="r"), rows.targets)
    settings = changed(epochs=1)

    one = train(settings, rows=mapped, validation=validation, classes=3)
    other = train(settings, rows=rows, validation=validation, classes=3)

    assert all(one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights)


@pytest.mark.parametrize(
    ("images", "targets", "why"),
    [
        (np.zeros((3, 1, 8, 8)), np.zeros(3, np.int64), "must be float32"),
        (np.zeros((3, 8, 8), np.float32), np.zeros(3, np.int64), "must be float32"),
        (np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64), "at least one row"),
        (np.zeros((3, 1, 8, 8), np.float32), np.zeros(2, np.int64), r"must be int64 \(3,\)"),
        (np.zeros((3, 1, 8, 8), np.float32), np.zeros(3), "must be int64"),
    ],
)
def test_rows_of_other_types_are_refused(images, targets, why):
    """Before training, by name."""
    with pytest.raises(InvalidTensor, match=why):
        EncodedRows(images, targets)


def test_targets_outside_of_the_classes_are_refused(rows, validation):
    """Torch would fail later and say less."""
    with pytest.raises(InvalidTensor, match=r"training rows must be in \[0, 1\]. Got 0 to 2"):
        train(SETTINGS, rows=rows, validation=validation, classes=2)


def test_rows_of_two_shapes_are_refused(rows):
    """Training and validation come from one task."""
    wide = EncodedRows(np.zeros((3, 1, 8, 9), np.float32), np.zeros(3, np.int64))

    with pytest.raises(InvalidTensor, match="one task"):
        train(SETTINGS, rows=rows, validation=wide, classes=3)
