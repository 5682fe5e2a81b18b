"""The first lines of a worker process: it imports what it needs while the server still verifies what it will run.

    python -m lightship.serve.worker_start --fd N --stop-fd N --slots-fd N --parent PID

Nothing that is imported here becomes garbage, so the collector is off until the graph is loaded: that is a tenth of
the time. ONNX Runtime is what nearly every variant runs on; one of another engine has imported it for nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run a worker on the sockets and the memory that the server passed."""
    gc.disable()
    parser = argparse.ArgumentParser(prog="lightship.serve.worker_start")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--stop-fd", type=int, required=True)
    parser.add_argument("--slots-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    # Before anything that takes long: a server may end as soon as it has begun.
    _die_with_parent(arguments.parent)
    # Ctrl-C in a terminal reaches the whole group; the server decides when a worker ends, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    import lightship.engine.onnx_runtime  # noqa: F401 - for later
    from lightship.serve.worker import work

    work(arguments.fd, stop_fd=arguments.stop_fd, slots_fd=arguments.slots_fd)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the call above
        os._exit(0)


if __name__ == "__main__":
    main()
