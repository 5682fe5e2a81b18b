"""The process that makes variants: it gives what the pass gives, and can be ended."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightship.optimize.ledger import Interrupted
from lightship.optimize.maker import PassProcess
from lightship.optimize.passes.int8_dynamic import Int8Dynamic
from lightship.optimize.passes.int8_static import Int8Static
from lightship.optimize.variant_pass import PassFailed, apply_passes

FOREIGN = """
import os, signal, sys, tempfile, time

class Odd:
    precision, needs_calibration, lossless, default, engines = "fp32", False, False, False, ("onnxruntime",)

class Hangs(Odd):
    name = "hangs"
    def apply(self, graph, *, calibration):
        open(os.path.join(tempfile.gettempdir(), "left-behind"), "w").close()
        time.sleep(600)

class Crashes(Odd):
    name = "crashes"
    def apply(self, graph, *, calibration):
        os.kill(os.getpid(), signal.SIGSEGV)

class Talks(Odd):
    name = "talks"
    def apply(self, graph, *, calibration):
        print("{}"), os.write(1, b"{}\\n")
        return graph + b"talked"

class Gives(Odd):
    name = "gives"
    def apply(self, graph, *, calibration):
        return None

class Hoards(Odd):
    name = "hoards"
    def apply(self, graph, *, calibration):
        return bytes(1 << 50)

class Fails(Odd):
    name = "fails"
    def apply(self, graph, *, calibration):
        return {}["weight"]
"""


@dataclass
class Named:
    """What the process is told of a pass."""

    name: str
    needs_calibration: bool = False


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Install a distribution with odd passes, for other processes to find."""
    place = tmp_path / "site"
    (place / "odd-1.0.dist-info").mkdir(parents=True)
    (place / "odd_passes.py").write_text(FOREIGN)
    names = ("Hangs", "Crashes", "Talks", "Gives", "Fails", "Hoards")
    points = "".join(f"{name.lower()} = odd_passes:{name}\n" for name in names)
    (place / "odd-1.0.dist-info/entry_points.txt").write_text(f"[lightship.passes]\n{points}")
    (place / "odd-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))


@pytest.fixture
def process(tmp_path, calibration):
    """Lend a process with calibration rows."""
    (folder := tmp_path / "scratch").mkdir()
    made = PassProcess(folder, calibration)
    yield made
    made.close()


def test_graphs_are_the_same_bytes_as_without_a_process(process, reference, calibration):
    """Rows reach the pass whole and in order, one process serves several jobs, and what is made does not change."""
    for each in (Int8Static(), Int8Dynamic()):
        wanted = apply_passes([each], reference, calibration)

        assert process.make([each], reference, limit_s=120) == wanted


@pytest.mark.usefixtures("foreign")
def test_pass_that_takes_too_long_is_stopped(process, reference):
    """It ends with its time, and the next variant is made all the same."""
    with pytest.raises(Interrupted, match=r"stopped after 3 s .* Give the search more minutes"):
        process.make([Named("hangs")], reference, limit_s=3)

    assert process.make([Named("talks")], reference, limit_s=60) == reference + b"talked"


@pytest.mark.usefixtures("foreign")
def test_crash_costs_its_own_variant(process, reference):
    """A quantizer that takes its process down is a failure that is remembered; the next one gets a new process."""
    with pytest.raises(PassFailed, match=f"was killed by signal {signal.SIGSEGV.value}"):
        process.make([Named("crashes")], reference, limit_s=60)

    assert process.make([Named("talks")], reference, limit_s=60) == reference + b"talked"


@pytest.mark.usefixtures("foreign")
def test_what_a_pass_prints_is_no_answer(process, reference):
    """It prints what looks like an answer, by Python and below it."""
    assert process.make([Named("talks")], reference, limit_s=60) == reference + b"talked"
    with pytest.raises(PassFailed, match="fails failed: KeyError: 'weight'"):
        process.make([Named("fails")], reference, limit_s=60)
    with pytest.raises(PassFailed, match="hoards failed: MemoryError"):
        process.make([Named("hoards")], reference, limit_s=60)
    with pytest.raises(PassFailed, match="gives failed: it must give the bytes of a graph, and gave NoneType"):
        process.make([Named("gives")], reference, limit_s=60)


@pytest.mark.usefixtures("foreign")
def test_files_of_a_stopped_pass_stay_in_the_folder_that_was_lent(process, reference, tmp_path):
    """The temporary folder of the process is the one that goes with the search."""
    with pytest.raises(Interrupted):
        process.make([Named("hangs")], reference, limit_s=3)

    assert (tmp_path / "scratch/left-behind").exists() or list((tmp_path / "scratch").glob("*/left-behind"))


def test_process_ends_with_its_maker(process, reference):
    """Nobody is left at work."""
    process.make([Int8Dynamic()], reference, limit_s=120)
    pid = process._process.pid

    process.close()

    assert not Path(f"/proc/{pid}").exists()
