"""A trained model on disk and in memory: weights, how they came about, and the learning curves.

A folder holds ``model.safetensors`` (the weights) and ``model.json`` (all else, with the weights' digest). It appears
whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.data.files import fsync_dir, sha256_hex, write_atomic
from lightship.errors import InvalidData, NotFound
from lightship.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EpochCurve", "ModelShape", "TrainedModel"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class EpochCurve:
    """One point of the learning curves.

    Attributes:
        epoch: from 1.
        train_loss: cross entropy of up to 1000 training rows after the epoch: no dropout, no augmentation.
        train_accuracy: of the same rows.
        validation_loss: of all validation rows.
        validation_accuracy: likewise.
        learning_rate: of the epoch's last step.
        seconds: wall time of the epoch. It differs from run to run; leave it out of anything that is digested.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What goes into the network and how many logits come out."""

    channels: int
    height: int
    width: int
    classes: int


@dataclass(frozen=True)
class TrainedModel:
    """The best weights of a training run.

    Attributes:
        weights: name -> array, sorted by name, those of the best epoch.
        settings: of the run.
        shape: of image and logits.
        curves: one point an epoch.
        best_epoch: the epoch that the weights are from.
        stopped_early: whether patience ended the run before its last epoch.
    """

    weights: Mapping[str, np.ndarray]
    settings: TrainSettings
    shape: ModelShape
    curves: tuple[EpochCurve, ...]
    best_epoch: int
    stopped_early: bool

    def module(self) -> nn.Module:
        """Return the network with these weights, in evaluation mode."""
        import torch

        from lightship.train.architectures import build_model

        model = build_model(self.settings.architecture, **asdict(self.shape), dropout=self.settings.dropout)
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in self.weights.items()})
        return model.eval()

    def save(self, folder: Path) -> None:
        """Write the model to ``folder``, replacing what is there."""
        from safetensors.numpy import save

        weights = save(dict(self.weights))
        facts = {
            "format_version": FORMAT_VERSION,
            "weights_sha256": sha256_hex(weights),
            "settings": self.settings.to_json(),
            "shape": asdict(self.shape),
            "curves": [asdict(point) for point in self.curves],
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        try:
            staging.chmod(0o755)
            write_atomic(staging / "model.safetensors", weights)
            write_atomic(staging / "model.json", json.dumps(facts, indent=1).encode())
            _put_in_place(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> TrainedModel:
        """Read a model that ``save`` wrote.

        Raises:
            NotFound: there is none.
            InvalidData: the files are damaged or of another format version.
        """
        from safetensors.numpy import load

        try:
            facts = json.loads((folder / "model.json").read_bytes())
            weights = (folder / "model.safetensors").read_bytes()
        except FileNotFoundError as exc:
            raise NotFound(
                f"There is no trained model in {folder}: {exc.filename} is missing. Train it first."
            ) from exc
        except ValueError as exc:
            raise InvalidData(f"{folder / 'model.json'} is damaged: {exc}. Train the model again.") from exc
        if not isinstance(facts, dict) or facts.get("format_version") != FORMAT_VERSION:
            raise InvalidData(
                f"{folder / 'model.json'} is not of format version {FORMAT_VERSION}. Train the model again."
            )
        if facts.get("weights_sha256") != sha256_hex(weights):
            raise InvalidData(
                f"{folder / 'model.safetensors'} does not have its recorded digest. Train the model again."
            )
        return cls(
            weights=dict(sorted(load(weights).items())),  # the library gives them in any order
            settings=TrainSettings(**facts["settings"]),
            shape=ModelShape(**facts["shape"]),
            curves=curves_from_json(facts["curves"]),
            best_epoch=facts["best_epoch"],
            stopped_early=facts["stopped_early"],
        )


def curves_from_json(points: list[dict[str, Any]]) -> tuple[EpochCurve, ...]:
    """Read curves that were written by ``asdict``."""
    names = [field.name for field in fields(EpochCurve)]
    return tuple(EpochCurve(**{name: point[name] for name in names}) for point in points)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename ``staging`` to ``folder``. An old folder steps aside first: rename replaces only empty ones."""
    aside = staging.with_name(staging.name + "-old")
    if folder.exists():
        folder.rename(aside)
    os.replace(staging, folder)  # noqa: PTH105  # Path.replace is the same; the name says that nothing may be there
    fsync_dir(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
