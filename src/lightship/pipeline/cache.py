"""Results of finished stages, kept by what they were made from.

A stage's key is the digest of everything that decides its result: inputs, settings, the code and the libraries that it
uses and, where it measures, the machine. The same key means that the stage is not run again. A stage writes into a
folder that gets its name only when it is finished, so a crash leaves a finished stage or none; what an interrupted
stage wants to find again (a checkpoint) goes to its scratch folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightship.data.files import canonical_json, digest_file, fsync_dir, sha256_hex, write_atomic
from lightship.errors import Conflict
from lightship.types import Json

__all__ = ["Finished", "StageCache", "code_digest", "library_versions"]

_PACKAGE = Path(__file__).parent.parent
_MARK = "stage.json"
_KEPT = 8  # folders a stage; what was made before can be made again


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished stage.

    Attributes:
        key: 64 hex digits; equal keys mean equal results.
        path: the folder that holds the result.
        skipped: it had been finished before, nothing was run.
    """

    stage: str
    key: str
    path: Path
    skipped: bool

    def to_json(self) -> dict[str, Json]:
        """Return it for programs."""
        return {"stage": self.stage, "key": self.key, "skipped": self.skipped, "path": str(self.path)}


class StageCache:
    """The stages of one recipe, in one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes.

        Raises:
            Conflict: another process is at work on the same recipe.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise Conflict(
                    f"Another process (pid {holder}) is at work on {self._root.name!r} in this home. "
                    "Wait for it, or give this run its own LIGHTSHIP_HOME."
                ) from exc
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._remove_leftovers()
            yield

    def run(
        self,
        stage: str,
        decided_by: Mapping[str, Json],
        work: Callable[[Path, Path], None],
        *,
        still_good: Callable[[Path], bool] = lambda _: True,
    ) -> Finished:
        """Return the stage's result, running ``work(folder, scratch)`` only if there is none for these inputs.

        ``still_good`` may look at what a finished result relies on elsewhere; False runs the stage again.
        ``work`` fills ``folder``. ``scratch`` outlives a crash and is found again by a run with the same key; it is
        removed when the stage is finished.
        """
        key = sha256_hex(canonical_json(decided_by))
        final = self._root / f"{stage}-{key[:16]}"
        if self._is_whole(final, key) and still_good(final):
            os.utime(final)  # used now: the ones that were not used for longest go first
            return Finished(stage, key, final, skipped=True)
        temporary = self._root / f".tmp-{stage}-{key[:16]}-{os.getpid()}"
        scratch = self._root / f"{stage}-{key[:16]}.scratch"
        self._discard(final)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            work(temporary, scratch)
            self._seal(temporary, stage, key, decided_by)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                scratch.rmdir()  # unless there is something to find again
            raise
        fsync_dir(self._root)
        shutil.rmtree(scratch, ignore_errors=True)
        self._forget_oldest(stage)
        return Finished(stage, key, final, skipped=False)

    def _forget_oldest(self, stage: str) -> None:
        """Keep the folders of this stage that were used last, finished ones and scratch alike."""
        folders = [path for path in self._root.glob(f"{stage}-*") if path.is_dir()]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
            self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Remove a folder; its name goes first, so a crash leaves no half of it under that name."""
        doomed = self._root / f".tmp-discarded-{folder.name}-{os.getpid()}"
        try:
            folder.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _seal(self, folder: Path, stage: str, key: str, decided_by: Mapping[str, Json]) -> None:
        files: dict[str, Json] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                files[path.relative_to(folder).as_posix()] = digest_file(path)[1]
        for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            fsync_dir(path)
        mark: dict[str, Json] = {"stage": stage, "key": key, "decided_by": dict(decided_by), "files": files}
        write_atomic(folder / _MARK, json.dumps(mark, indent=1).encode())

    def _is_whole(self, folder: Path, key: str) -> bool:
        """Tell whether the folder holds a finished stage whose files are as they were written."""
        try:
            mark = json.loads((folder / _MARK).read_bytes())
            return bool(mark["key"] == key) and all(
                digest_file(folder / name)[1] == digest for name, digest in mark["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not what was written
            return False

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left; we hold the lock, so nobody else is writing."""
        for path in self._root.glob(".tmp-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@lru_cache
def code_digest(*parts: str) -> str:
    """Return a digest of our own source files below ``parts`` (``"train"``, ``"validate/gate.py"`` …)."""
    lines = []
    for part in sorted(parts):
        top = _PACKAGE / part
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            lines.append(f"{path.relative_to(_PACKAGE).as_posix()} {digest_file(path)[1]}")
    return sha256_hex("\n".join(lines).encode())


def library_versions(*names: str) -> dict[str, Json]:
    """Return the installed version of each named distribution (``None``: not installed)."""
    found: dict[str, Json] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
