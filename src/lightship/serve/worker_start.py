"""The first lines of a worker process: it imports what it needs while the server still verifies what it will run.

    python -m lightship.serve.worker_start --fd N --parent PID

Nothing that is imported here becomes garbage, so the collector is off until the graph is loaded: that is a tenth of
the time. ONNX Runtime is what nearly every variant runs on; one of another engine has imported it for nothing.
"""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Run a worker."""
    gc.disable()
    import lightship.engine.onnx_runtime  # noqa: F401 - for later
    from lightship.serve.worker import main as work

    work()


if __name__ == "__main__":
    main()
