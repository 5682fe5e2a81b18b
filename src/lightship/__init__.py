"""Lightship makes an AI model light, then ships it: one artifact that carries its own proof."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightship.version import __version__

if TYPE_CHECKING:
    from lightship.apply.model import Model as Model
    from lightship.apply.model import load as load
    from lightship.pipeline.imported import import_model as import_model
    from lightship.pipeline.optimized import optimize_model as optimize_model
    from lightship.pipeline.ship import ship as ship

# We send nothing to anybody. ONNX Runtime reports to its maker unless this is set before it is loaded (its own function
# for it comes too late: the first report is queued by then). It stands here because all that loads it imports us first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Model", "__version__", "import_model", "load", "optimize_model", "ship"]

_HOMES = {
    "Model": "lightship.apply.model",
    "import_model": "lightship.pipeline.imported",
    "load": "lightship.apply.model",
    "optimize_model": "lightship.pipeline.optimized",
    "ship": "lightship.pipeline.ship",
}


def __getattr__(name: str) -> Any:
    # Late, so that `import lightship` costs nothing: each verb loads what it needs when it is first used.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lightship' has no attribute {name!r}")
