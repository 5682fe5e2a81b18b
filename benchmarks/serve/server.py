"""A Lightship server as a user starts it: a home with the model released, then ``lightship serve``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from floor import bare_session
from graphs import Subject

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import Expected, Golden, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.registry.database import open_database
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.image_pixels import png_bytes
from lightship.types import Interface

__all__ = ["ProcessTree", "Server", "release"]

PROVEN_BATCH = 64
_TICKS = os.sysconf("SC_CLK_TCK")


def release(home: Home, subject: Subject) -> None:
    """Put the network into ``home`` as a signed release with three golden examples."""
    if subject.image is None:
        raise SystemExit(f"{subject.name} needs `lightship import`, which this version does not have.")
    channels, height, width, labels = subject.image
    task = ImageClassification(
        labels=tuple(str(label) for label in range(labels)),
        channels=channels,
        height=height,
        width=width,
        mean=("0.5",) * channels,
        std=("0.25",) * channels,
    )
    rng = np.random.default_rng(5)
    images = [png_bytes(rng.integers(0, 256, (height, width, channels), np.uint8)) for _ in range(3)]
    session = bare_session(subject.graph)
    rows = [session.run(None, {"image": task.encode(image)["image"][None]})[0][0] for image in images]
    contents = {f"golden/inputs/{index}.png": image for index, image in enumerate(images)}
    contents["variants/reference/model.onnx"] = subject.graph
    contents["golden/expected/logits.npy"] = npy_from_array(np.stack(rows))
    store, key = BlobStore(home.store), PrivateKey.load_or_create(home.keys)
    TrustStore(home.trust).add_local(key)
    manifest = build_bundle(
        store,
        task=TaskRef(task.name, task.codec_version, task.config()),
        interface=Interface(task.inputs, task.outputs, proven={"batch": (1, PROVEN_BATCH)}),
        variants=[Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32")],
        default="reference",
        golden=Golden(
            tuple(f"golden/inputs/{index}.png" for index in range(3)),
            {"reference": Expected({"logits": "golden/expected/logits.npy"}, "0.001")},
        ),
        lineage={"source": "benchmark"},
        contents=contents,
    )

    def record(version: int) -> str:
        made = Release(subject.name, version, manifest.digest, (), {}, "2026-01-01T00:00:00+00:00", "structural")
        return store.put(sign_release(made, key=key))

    with open_database(home) as registry:
        registry.add_version(subject.name, bundle=manifest.digest, release=record, who="benchmark")


class ProcessTree:
    """A process and all of its children: what they cost together."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def pids(self) -> list[int]:
        """Every process that is alive in it."""
        return [self.pid, *_children(self.pid)]

    def cpu_s(self) -> float:
        """User and system time so far, of all of them. A process that ended counts through its parent."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def memory_mb(self) -> float:
        """Proportional set size: pages that several share are counted once."""
        return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in self.pids) / 1024


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _children(int(child))


def _kilobytes(path: str, key: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(key))


class Server:
    """``lightship serve NAME``, pinned on ``core`` with all of its processes."""

    def __init__(self, home: Home, name: str, *arguments: str, core: int | None, log: Path) -> None:
        pin = () if core is None else ("taskset", "-c", str(core))
        serve = (sys.executable, "-m", "lightship.cli.main", "serve", name, "--port", "0", "--auth", "none", "--json")
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                (*pin, *serve, *arguments),
                env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The server did not start: {log.read_text()}")
        said = json.loads(line)
        self.address = _address(said["url"])
        self.control_address = _address(said["control_url"])
        self.tree = ProcessTree(self._process.pid)
        self._log = log

    def complaints(self) -> list[str]:
        """Return what the server logged as a warning or worse: a worker that died explains a strange figure."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [f"{line['level']}: {line['event']}" for line in lines if line["level"] not in ("debug", "info")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
