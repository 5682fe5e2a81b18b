"""The training loop: epochs over encoded images, a checkpoint after each, the best weights at the end.

A run that was killed and started again ends with the same bits as one that was not: the order of rows, dropout and
augmentation all draw from one generator, whose state is in the checkpoint, and the learning rate is a function of the
step. That holds for one machine type, one torch version and one number of threads; all but the first are part of the
run's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lightship.errors import InvalidData, InvalidTensor
from lightship.train.architectures import build_model
from lightship.train.augmentation import augment
from lightship.train.checkpoints import Checkpoint, CheckpointFolder
from lightship.train.schedules import rate_at
from lightship.train.settings import TrainSettings
from lightship.train.trained import EpochCurve, ModelShape, TrainedModel
from lightship.types import Progress, Silent

__all__ = ["EncodedRows", "train"]

_MOMENTUM = 0.9
_EVALUATION_BATCH = 512
_TRAIN_ROWS_EVALUATED = 1000


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Images as a task encodes them, with their classes.

    Attributes:
        images: float32 (rows, channels, height, width); may be memory-mapped, batches are copied out of it.
        targets: int64 (rows,), indices into the task's labels.
    """

    images: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.ndim != 4 or not len(self.images):
            raise InvalidTensor(
                "Images must be float32 (rows, channels, height, width), at least one row. "
                f"Got {self.images.dtype} {self.images.shape}."
            )
        if self.targets.dtype != np.int64 or self.targets.shape != self.images.shape[:1]:
            raise InvalidTensor(
                f"Targets must be int64 ({len(self.images)},), one a row. "
                f"Got {self.targets.dtype} {self.targets.shape}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows at ``indices`` as tensors of their own."""
        # Torch's own memory is aligned, numpy's is not always, and kernels may sum in another order by alignment.
        images = torch.empty((len(indices), *self.images.shape[1:]))
        np.take(self.images, indices, axis=0, out=images.numpy())
        return images, torch.from_numpy(self.targets[indices])


def train(
    settings: TrainSettings,
    *,
    rows: EncodedRows,
    validation: EncodedRows,
    classes: int,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a network, or go on from the last checkpoint of the same run.

    Args:
        settings: what to train and how.
        rows: training rows.
        validation: rows that choose the best epoch and stop the run early.
        classes: number of classes.
        checkpoint_dir: where to save after each epoch; ``None``: nowhere.
        progress: hears of each epoch.

    Returns:
        The weights of the best epoch. A finished run that is started again returns at once.

    Raises:
        InvalidTensor: targets outside of the classes, or rows of two shapes.
        InvalidData: the loss became NaN or infinite, or a checkpoint is damaged.
        InvalidInput: the architecture does not fit the images.
    """
    channels, height, width = rows.images.shape[1:]
    shape = ModelShape(channels, height, width, classes)
    _check_rows(rows, validation, classes)
    folder = (
        CheckpointFolder(checkpoint_dir, run=_run_digest(settings, shape, rows, validation)) if checkpoint_dir else None
    )
    with _fixed_conditions(settings):
        return _Run(settings, shape, rows, validation).finish(folder, progress or Silent())


class _Run:
    """The state of a run between epochs."""

    def __init__(self, settings: TrainSettings, shape: ModelShape, rows: EncodedRows, validation: EncodedRows) -> None:
        from accelerate import Accelerator

        self.settings, self.shape, self.rows, self.validation = settings, shape, rows, validation
        self.accelerator = Accelerator(cpu=True)
        network = build_model(settings.architecture, **asdict(shape), dropout=settings.dropout, seed=settings.seed)
        self.model, self.optimizer = self.accelerator.prepare(network, _optimizer(network, settings))
        chosen = np.random.default_rng(settings.seed).permutation(len(rows))[:_TRAIN_ROWS_EVALUATED]
        self.looked_at = EncodedRows(rows.images[chosen], rows.targets[chosen])
        self.curves: list[EpochCurve] = []
        self.best_epoch = 0
        self.best = self._weights()
        torch.manual_seed(settings.seed)

    def finish(self, folder: CheckpointFolder | None, progress: Progress) -> TrainedModel:
        if folder and (checkpoint := folder.latest()):
            self._restore(checkpoint)
        progress.start("Train", self.settings.epochs)
        if self.curves:
            progress.advance(len(self.curves), f"goes on after epoch {len(self.curves)}")
        while not self._is_over():
            self._epoch()
            if folder:
                folder.save(self._checkpoint())
            point = self.curves[-1]
            progress.advance(1, f"loss {point.validation_loss:.4f}, accuracy {point.validation_accuracy:.4f}")
        progress.done(f"kept epoch {self.best_epoch} of {len(self.curves)}")
        return TrainedModel(
            weights={name: tensor.numpy() for name, tensor in sorted(self.best.items())},
            settings=self.settings,
            shape=self.shape,
            curves=tuple(self.curves),
            best_epoch=self.best_epoch,
            stopped_early=len(self.curves) < self.settings.epochs,
        )

    def _is_over(self) -> bool:
        done = len(self.curves)
        return done >= self.settings.epochs or (done > 0 and done - self.best_epoch >= self.settings.patience)

    def _epoch(self) -> None:
        started = time.perf_counter()
        epoch = len(self.curves) + 1
        rate = self._steps(epoch)
        train_loss, train_accuracy = self._evaluate(self.looked_at)
        loss, accuracy = self._evaluate(self.validation)
        if not math.isfinite(loss):
            raise _diverged(epoch, loss, self.settings)
        self.curves.append(
            EpochCurve(epoch, train_loss, train_accuracy, loss, accuracy, rate, time.perf_counter() - started)
        )
        if self.best_epoch == 0 or self._rank(epoch) > self._rank(self.best_epoch):
            self.best_epoch, self.best = epoch, self._weights()

    def _steps(self, epoch: int) -> float:
        """Go once over the training rows; return the last learning rate."""
        settings = self.settings
        self.model.train()
        order = torch.randperm(len(self.rows)).numpy()
        per_epoch = math.ceil(len(order) / settings.batch_size)
        rate = settings.learning_rate
        for step in range(per_epoch):
            rate = rate_at(
                (epoch - 1) * per_epoch + step,
                steps=settings.epochs * per_epoch,
                highest=settings.learning_rate,
                schedule=settings.schedule,
            )
            self._step(order[step * settings.batch_size :][: settings.batch_size], rate, epoch)
        return rate

    def _step(self, indices: np.ndarray, rate: float, epoch: int) -> None:
        settings = self.settings
        images, targets = self.rows.batch(indices)
        if settings.augments:
            images = augment(images, shift=settings.shift, rotate=settings.rotate, scale=settings.scale)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = functional.cross_entropy(self.model(images), targets, label_smoothing=settings.label_smoothing)
        if not math.isfinite(loss.item()):
            raise _diverged(epoch, loss.item(), settings)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()

    def _evaluate(self, rows: EncodedRows) -> tuple[float, float]:
        """Return (mean cross entropy, accuracy) without dropout and augmentation."""
        self.model.eval()
        loss, right = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(rows), _EVALUATION_BATCH):
                images, targets = rows.batch(np.arange(start, min(start + _EVALUATION_BATCH, len(rows))))
                logits = self.model(images)
                loss += functional.cross_entropy(logits.double(), targets, reduction="sum").item()
                right += int((logits.argmax(dim=1) == targets).sum())
        return loss / len(rows), right / len(rows)

    def _rank(self, epoch: int) -> tuple[float, ...]:
        """Return what makes one epoch better than another; of equal ones the first stays."""
        point = self.curves[epoch - 1]
        if self.settings.monitor == "last":
            return (epoch,)
        if self.settings.monitor == "loss":
            return (-point.validation_loss,)
        return (point.validation_accuracy, -point.validation_loss)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _checkpoint(self) -> Checkpoint:
        tensors = {f"weights.{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for parameter, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{parameter}.{name}": value for name, value in state.items() if value is not None}
        tensors["random"] = torch.get_rng_state()
        return Checkpoint(len(self.curves), self.best_epoch, tuple(self.curves), tensors)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.under("weights"))
        self.best = checkpoint.under("best")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in checkpoint.under("optimizer").items():
            parameter, key = name.split(".", 1)
            state.setdefault(int(parameter), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]  # the rate in it is set anew at each step
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(checkpoint.tensors["random"])
        self.curves, self.best_epoch = list(checkpoint.curves), checkpoint.best_epoch


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    momentum = _MOMENTUM if settings.optimizer == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)


@contextmanager
def _fixed_conditions(settings: TrainSettings) -> Iterator[None]:
    """Set torch's threads, determinism and random state for a run, and put the caller's back afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def _check_rows(rows: EncodedRows, validation: EncodedRows, classes: int) -> None:
    if rows.images.shape[1:] != validation.images.shape[1:]:
        raise InvalidTensor(
            f"Training images are {rows.images.shape[1:]}, validation images {validation.images.shape[1:]}; "
            "both must come from one task."
        )
    for part, targets in (("training", rows.targets), ("validation", validation.targets)):
        if targets.min() < 0 or targets.max() >= classes:
            raise InvalidTensor(
                f"Targets of the {part} rows must be in [0, {classes - 1}]. Got {targets.min()} to {targets.max()}."
            )


def _run_digest(settings: TrainSettings, shape: ModelShape, rows: EncodedRows, validation: EncodedRows) -> str:
    """Return 64 hex digits that name everything the weights depend on, except the machine."""
    facts = {"settings": settings.to_json(), "shape": asdict(shape), "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (rows, validation):
        digest.update(len(part).to_bytes(8, "big"))
        for start in range(0, len(part), _EVALUATION_BATCH):  # in pieces: the images may not fit into memory
            digest.update(np.ascontiguousarray(part.images[start : start + _EVALUATION_BATCH]).data)
        digest.update(np.ascontiguousarray(part.targets).data)
    return digest.hexdigest()


def _diverged(epoch: int, loss: float, settings: TrainSettings) -> InvalidData:
    return InvalidData(
        f"Training diverged in epoch {epoch}: the loss is {loss}. "
        f"Lower `learning_rate` (now {settings.learning_rate:g}), for example to {settings.learning_rate / 10:g}; "
        "if it stays so, look for extreme values in the images."
    )
