"""grpcio, loaded when it is needed, and quiet."""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["load_grpc"]


def load_grpc() -> Any:
    """Return the module ``grpc``.

    Anybody who can reach a port can make it write about failed handshakes and strange headers, in a form of its own.
    The server's log is JSON lines, and what matters of a call is in them.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core reads this when it is loaded
    import grpc

    logging.getLogger("grpc").addHandler(logging.NullHandler())
    return grpc
