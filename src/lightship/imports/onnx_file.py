"""An ONNX file as a model: it is its own reference graph, once the audit has let it through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightship.errors import LightshipError
from lightship.types import Json

__all__ = ["OnnxFile"]

_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}  # of a ModelProto (onnx.proto)
_IR_VERSION, _GRAPH = 1, 7
_ENOUGH = 10_000  # fields of a model beside its graph: opsets, metadata, functions


class OnnxFile:
    """Reads ONNX files, and weights that lie beside them."""

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes begin as a ModelProto does: ONNX has no magic number, but a known set of fields."""
        from lightship.engine.onnx_wire import top_fields

        seen: set[int] = set()
        try:
            for count, (number, _, _) in enumerate(top_fields(data)):
                if number not in _FIELDS or count > _ENOUGH:
                    return False
                seen.add(number)
        except LightshipError:
            # Cut short: still ONNX if it began like one, and then the audit says what is wrong.
            return _IR_VERSION in seen and data[:1] == b"\x08" and len(data) > 1 and data[1] < 128
        return _GRAPH in seen

    def to_graph(self, data: bytes, *, folder: Path) -> tuple[bytes, Mapping[str, Json], str]:
        """Audit the file; its bytes are the graph, unchanged unless weights had to be put into it."""
        from lightship.engine.onnx_audit import audit_onnx
        from lightship.imports.onnx_external import inlined

        graph, files = inlined(data, folder)
        audited = audit_onnx(graph, counted=True)  # before weights were put inside, which adds no parts
        facts: dict[str, Json] = {
            "producer": "".join(c for c in audited.producer if c.isprintable())[:200],
            "opsets": {domain[:64] or "ai.onnx": version for domain, version in sorted(audited.opsets.items())[:32]},
            "nodes": audited.nodes,
        }
        if files:
            facts["files"] = {place[:200]: digest for place, digest in sorted(files.items())}
        outside = "nothing outside of the file is named"
        if files:
            outside = f"weights of {len(files)} other file(s) were put inside"
        return graph, facts, f"{audited.nodes:,} nodes, all known operators; {outside}"
