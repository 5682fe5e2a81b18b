"""A run that is killed and started again ends with the same bits."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from lightship.errors import InvalidData
from lightship.train.loop import EncodedRows, train
from lightship.train.settings import TrainSettings
from lightship.train.trained import TrainedModel
from lightship.types import Silent

PROGRAM = Path(__file__).parent / "killable.py"
SETTINGS = TrainSettings(epochs=3, batch_size=16, learning_rate=0.01, dropout=0.3, shift=1.0, threads=1)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a run in its own process."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def same_bits(one: TrainedModel, other: TrainedModel) -> bool:
    """Tell whether all weights are equal to the last bit."""
    return list(one.weights) == list(other.weights) and all(
        one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights
    )


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL in the middle, the same call again in a fresh process; beside a run in this one that nobody killed."""
    with start(tmp_path / "checkpoints", tmp_path / "resumed", 2) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "paused\n"  # the deadline is that of the test
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "resumed").exists()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.name.endswith("-epoch-000002")

    with start(tmp_path / "checkpoints", tmp_path / "resumed", 0) as resumed:
        resumed.wait(timeout=100)
    runpy.run_path(str(PROGRAM))["main"]("", str(tmp_path / "whole"), "0")

    first, second = TrainedModel.load(tmp_path / "whole"), TrainedModel.load(tmp_path / "resumed")
    assert len(second.curves) == 5
    assert same_bits(first, second)
    assert [point.validation_loss for point in first.curves] == [point.validation_loss for point in second.curves]


class Interrupting(Silent):
    """A person who presses Ctrl-C after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Raise when the time has come."""
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


def interrupted(settings: TrainSettings, rows: EncodedRows, validation: EncodedRows, folder: Path, epochs: int) -> Path:
    """Run until interrupted; return the one checkpoint that is left."""
    with pytest.raises(KeyboardInterrupt):
        train(
            settings,
            rows=rows,
            validation=validation,
            classes=3,
            checkpoint_dir=folder,
            progress=Interrupting(epochs),
        )
    (checkpoint,) = folder.iterdir()
    return checkpoint


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, rows, validation, optimizer, monitor):
    """After each single epoch, for each optimizer."""
    settings = TrainSettings(**{**SETTINGS.to_json(), "optimizer": optimizer, "monitor": monitor})
    whole = train(settings, rows=rows, validation=validation, classes=3)
    for _ in range(2):
        interrupted(settings, rows, validation, tmp_path, 1 if not any(tmp_path.iterdir()) else 2)

    resumed = train(settings, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)

    assert same_bits(whole, resumed)
    assert resumed.best_epoch == whole.best_epoch


def test_a_finished_run_returns_at_once(tmp_path, rows, validation):
    """No epoch is run again, and the model is the same."""
    first = train(SETTINGS, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)

    again = train(SETTINGS, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)

    assert again.curves == first.curves
    assert same_bits(first, again)


def test_only_the_last_checkpoint_is_kept_and_holds_no_pickle(tmp_path, rows, validation):
    """Two files, safetensors and JSON."""
    checkpoint = interrupted(SETTINGS, rows, validation, tmp_path, 2)

    assert checkpoint.name.endswith("-epoch-000002")
    assert sorted(path.name for path in checkpoint.iterdir()) == ["checkpoint.json", "state.safetensors"]
    tensors = load_file(checkpoint / "state.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"weights", "best", "optimizer", "random"}
    assert json.loads((checkpoint / "checkpoint.json").read_text())["epoch"] == 2


def test_a_checkpoint_of_other_settings_or_rows_is_left_alone(tmp_path, rows, validation):
    """Another rate, another label: the run starts from the beginning and both checkpoints stay apart."""
    interrupted(SETTINGS, rows, validation, tmp_path, 2)
    faster = TrainSettings(**{**SETTINGS.to_json(), "learning_rate": 0.02})
    relabelled = EncodedRows(rows.images, np.roll(rows.targets, 1))

    other = train(faster, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)
    third = train(SETTINGS, rows=relabelled, validation=validation, classes=3, checkpoint_dir=tmp_path)

    assert same_bits(other, train(faster, rows=rows, validation=validation, classes=3))
    assert same_bits(third, train(SETTINGS, rows=relabelled, validation=validation, classes=3))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, rows, validation, name):
    """One flipped bit in the state, a cut in the JSON."""
    checkpoint = interrupted(SETTINGS, rows, validation, tmp_path, 1)
    data = bytearray((checkpoint / name).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / name).write_bytes(data if name.startswith("state") else data[:-9])

    with pytest.raises(InvalidData, match=rf"{checkpoint.name} is damaged.*Delete this folder"):
        train(SETTINGS, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)


def test_a_checkpoint_moved_from_another_run_is_refused(tmp_path, rows, validation):
    """The JSON says which run it is of; the folder's name alone does not decide."""
    checkpoint = interrupted(SETTINGS, rows, validation, tmp_path, 1)
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    facts["run"] = facts["run"][:16] + "0" * 48
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))

    with pytest.raises(InvalidData, match="belongs to another run"):
        train(SETTINGS, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)


def test_half_written_checkpoints_are_swept_away(tmp_path, rows, validation):
    """What a killed process was writing is not read and does not stay."""
    leftover = tmp_path / ".tmp-killed"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(os.urandom(100))

    train(SETTINGS, rows=rows, validation=validation, classes=3, checkpoint_dir=tmp_path)

    assert not leftover.exists()
