"""Run as a program by the tests. Reads commands and forks writers, so that Python and SQLAlchemy load only once.

``run WRITERS ROUNDS``: that many processes register ROUNDS versions each, all at once; then ``done`` and exit codes.
``endless``: one process that registers until it is killed; ``pid N`` first, ``dead`` after.
Each number is printed once it is acknowledged.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.registry.database import open_database


def say(text: str) -> None:
    """Print a line in one piece."""
    os.write(1, f"{text}\n".encode())


def write(home: Home, rounds: int | None) -> None:
    """Register ``rounds`` versions; None: without end."""
    registry = open_database(home)
    for turn in range(rounds) if rounds is not None else itertools.count():
        bundle = f"sha256:{sha256_hex(f'{os.getpid()} {turn}'.encode())}"
        say(
            str(
                registry.add_version(
                    "digits", bundle=bundle, release=bundle, who=f"writer {os.getpid()}", accept_unproven=True
                ).version
            )
        )


def fork(home: Home, rounds: int | None) -> int:
    """Start a writer and return its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        write(home, rounds)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Obey until the input ends."""
    home = Home(Path(sys.argv[1]))
    for line in sys.stdin:
        match line.split():
            case ["run", writers, rounds]:
                pids = [fork(home, int(rounds)) for _ in range(int(writers))]
                codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
                say(f"done {codes}")
            case ["endless"]:
                pid = fork(home, None)
                say(f"pid {pid}")
                os.waitpid(pid, 0)
                say("dead")


if __name__ == "__main__":
    main()
