"""One door to ONNX Runtime's quantizers: graphs as bytes in and out, nothing left on the disk.

Two traps are met here. The quantizers infer shapes again and stumble over the ones that the exporter noted, so those
are dropped first. And they work on paths and leave side files, so they get a folder of their own that goes with them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from lightship.optimize.variant_pass import PassFailed

__all__ = ["quantize"]


def quantize(graph: bytes, run: Callable[[Path, Path], None], *, name: str) -> bytes:
    """Return the graph that ``run(source, destination)`` makes of ``graph``.

    Args:
        graph: ONNX bytes.
        run: calls one of ONNX Runtime's quantizers on two paths.
        name: the pass, for the error message.

    Raises:
        PassFailed: the quantizer raised, or gave a graph that is not valid ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_from_string(graph)
    except DecodeError as exc:
        raise PassFailed(f"{name} cannot treat this graph: its bytes are no ONNX model.") from exc
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="lightship-quantize-") as folder:
        source, destination = Path(folder) / "source.onnx", Path(folder) / "destination.onnx"
        source.write_bytes(model.SerializeToString(deterministic=True))
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # the quantizers advise on the root logger to run their own pre-processing
        try:
            run(source, destination)
            quantized = onnx.load_from_string(destination.read_bytes())
            onnx.checker.check_model(quantized)
        except Exception as exc:  # whatever a quantizer raises, this variant cannot be made
            raise PassFailed(f"{name} cannot treat this graph: {type(exc).__name__}: {exc}") from exc
        finally:
            root.setLevel(level)
    return _clean(quantized)


def _clean(model: object) -> bytes:
    import onnx

    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"Expected a ModelProto. Got {type(model).__name__}.")
    del model.graph.value_info[:]
    model.producer_name, model.producer_version, model.doc_string = "lightship", "", ""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
