"""Checkpoints of a training run: safetensors and JSON, never pickle; whole or not there.

A checkpoint is a folder ``<run>-epoch-<number>`` with ``state.safetensors`` (weights, best weights, optimizer state,
random state) and ``checkpoint.json`` (position, curves, the digest of the other file). ``<run>`` begins the digest of
settings, rows and library version, so a checkpoint of another run is never taken for one of this run; it is left
alone. Only the last one of a run is kept, and the one before it goes only after the new one is on the disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lightship.data.files import fsync_dir, sha256_hex, write_atomic
from lightship.errors import Conflict, InvalidData
from lightship.train.trained import EpochCurve, curves_from_json

__all__ = ["Checkpoint", "CheckpointFolder"]

FORMAT_VERSION = 1
_RUN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that the next epoch depends on.

    Attributes:
        epoch: how many epochs are done.
        best_epoch: of the best weights.
        curves: one point an epoch.
        tensors: ``weights.*``, ``best.*``, ``optimizer.<parameter>.<name>`` and ``random``.
    """

    epoch: int
    best_epoch: int
    curves: tuple[EpochCurve, ...]
    tensors: Mapping[str, torch.Tensor]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with ``prefix`` and a dot, without it."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


class CheckpointFolder:
    """The checkpoints of one run in ``folder``.

    Args:
        folder: created when the first checkpoint is saved; one process at a time.
        run: 64 hex digits that name settings, rows and library version.
    """

    def __init__(self, folder: Path, *, run: str) -> None:
        self.folder = folder
        self.run = run

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the run's older ones.

        Raises:
            Conflict: the checkpoint is there already: another process trains in this folder.
        """
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        state = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
        facts = {
            "format_version": FORMAT_VERSION,
            "run": self.run,
            "epoch": checkpoint.epoch,
            "best_epoch": checkpoint.best_epoch,
            "curves": [asdict(point) for point in checkpoint.curves],
            "state_sha256": sha256_hex(state),
        }
        target = self.folder / f"{self._prefix}{checkpoint.epoch:06d}"
        staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
        try:
            write_atomic(staging / "state.safetensors", state)
            write_atomic(staging / "checkpoint.json", json.dumps(facts).encode())
            staging.rename(target)
        except OSError as exc:
            shutil.rmtree(staging, ignore_errors=True)
            if target.exists():
                raise Conflict(f"{target} was written by another process. Train one run a folder.") from exc
            raise
        fsync_dir(self.folder)
        for older in self._saved():
            if older != target:
                shutil.rmtree(older, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the run's last checkpoint, or ``None``; remove what a killed process left half-written.

        Raises:
            InvalidData: the checkpoint is damaged; names it.
        """
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        saved = self._saved()
        return self._read(saved[-1]) if saved else None

    @property
    def _prefix(self) -> str:
        return f"{self.run[:_RUN_DIGITS]}-epoch-"

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self._prefix}*"))

    def _read(self, path: Path) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            facts = json.loads((path / "checkpoint.json").read_bytes())
            state = (path / "state.safetensors").read_bytes()
            if facts["state_sha256"] != sha256_hex(state):
                raise InvalidData(_damaged(path, "state.safetensors does not have its recorded digest"))
            if (facts["format_version"], facts["run"]) != (FORMAT_VERSION, self.run):
                raise InvalidData(_damaged(path, "checkpoint.json belongs to another run"))
            return Checkpoint(
                epoch=facts["epoch"],
                best_epoch=facts["best_epoch"],
                curves=curves_from_json(facts["curves"]),
                tensors=load(state),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
            raise InvalidData(_damaged(path, str(exc))) from exc


def _damaged(path: Path, why: str) -> str:
    return f"The checkpoint {path} is damaged: {why}. Delete this folder to train from the start."
