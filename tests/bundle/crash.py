"""Kill a publisher at each of its file system calls and look at what is left: ``python crash.py FOLDER STEP``.

A child process builds, signs and exports a bundle, and kills itself with SIGKILL right before call number n, for
n = 1, 1 + STEP, … until it comes through. After each death: blobs are whole, the folder is absent or verifies, and
the next run succeeds. Prints how often a child was killed, and in how many of these cases the folder was there.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lightship.bundle.build import export_folder
from lightship.bundle.digest import Digest
from lightship.bundle.verify import verify_folder
from lightship.data.files import sha256_hex

EVENTS = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def load_conftest() -> ModuleType:
    """Return the module with the example bundle."""
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conftest"] = module
    spec.loader.exec_module(module)
    return module


def die_at(count: int) -> None:
    """Kill this process right before its ``count``-th file system call."""
    seen = 0

    def tick() -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda _: tick()  # type: ignore[assignment]  # it raises no audit event; see main for the rest
    sys.addaudithook(lambda event, _: tick() if event in EVENTS else None)


def publish(root: Path, conftest: ModuleType) -> Digest:
    """Do what is killed."""
    shipped: Any = conftest.ship(root)
    if not (root / "out").exists():
        export_folder(shipped.store, shipped.release_digest, root / "out")
    digest: Digest = shipped.release_digest
    return digest


def killed_at(count: int, root: Path, conftest: ModuleType) -> bool:
    """Return whether a child died at call ``count``; False: it came through before."""
    child = os.fork()
    if child == 0:
        die_at(count)
        publish(root, conftest)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the child failed at call {count}"
    return os.WIFSIGNALED(status)


def look(root: Path, conftest: ModuleType) -> bool:
    """Check what a dead child left; return whether the exported folder is there."""
    for blob in (root / "store").glob("blobs/sha256/*"):
        assert blob.name.startswith(".tmp-") or sha256_hex(blob.read_bytes()) == blob.name, f"{blob} is not whole"
    there = (root / "out").exists()
    publish(root, conftest)  # the next run does not stumble over what is left
    trust = conftest.TrustStore(root / "trust")
    assert verify_folder(root / "out", trust=trust).name == "digits"
    return there


def main(base: Path, step: int) -> None:
    """Kill at every ``step``-th call."""
    conftest = load_conftest()
    # A killed process loses nothing that the kernel has, so here the disk need not be waited for (it takes minutes).
    os.fsync = lambda _: None  # type: ignore[assignment]
    publish(base / "warm", conftest)  # imports are done before anything is counted
    killed = exported = 0
    for count in itertools.count(1, step):
        root = base / "case"
        if not killed_at(count, root, conftest):
            break
        killed += 1
        exported += look(root, conftest)
        shutil.rmtree(root)
    sys.stdout.write(f"{killed} {exported}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
