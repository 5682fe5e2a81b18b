"""What a pass is: it takes the reference graph and gives another graph that should answer the same, lighter.

Passes are entry points in the group ``lightship.passes``. A pass may fail on a graph (``PassFailed``): the search then
drops it with the reason, and a recipe that names it is refused. What a person should know of a graph that was made,
such as the layers that stayed in float, the pass writes into the graph itself (``write_note``), so that it travels
with the bytes and anybody can read it (``read_note``).

A pass may say ``rescues``, the name of another one whose answers it brings nearer to the reference's, at no more speed:
it is tried where that one is fast and answers too differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from lightship.errors import InvalidInput, LightshipError
from lightship.extensions import load_extension

if TYPE_CHECKING:
    import onnx

__all__ = ["PassFailed", "VariantPass", "apply_passes", "load_pass", "read_note", "write_note"]

_NOTE = "lightship.note"


class PassFailed(LightshipError):
    """A pass cannot make a variant of this graph."""


class VariantPass(Protocol):
    """Makes one variant. An implementation holds no state between calls."""

    name: ClassVar[str]
    """The variant's name, e.g. ``int8-static``."""
    precision: ClassVar[str]
    """What the weights become, e.g. ``int8``."""
    needs_calibration: ClassVar[bool]
    """Whether ``apply`` must see rows. They are training rows, never any that judge the result."""
    lossless: ClassVar[bool]
    """Whether the new graph answers the same up to float rounding. Only such passes are tried without data."""
    default: ClassVar[bool]
    """Whether a search that was told nothing tries it on CPUs."""
    engines: ClassVar[tuple[str, ...]]
    """Names of the engines that its graphs are worth trying with, the best guess first."""

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the bytes of the new graph: the same bytes whenever the arguments are the same.

        Args:
            graph: the reference, or what another pass made of it; ONNX.
            calibration: batches of the graph's inputs by name, each with a batch axis; empty unless needed.

        Raises:
            PassFailed: the graph cannot be treated.
        """


def load_pass(name: str) -> VariantPass:
    """Return the installed pass called ``name``.

    Raises:
        NotFound, Conflict: there is none, or there are two.
        InvalidInput: it does not say all that a pass must say of itself.
    """
    loaded: VariantPass = load_extension("passes", name)()
    missing = [fact for fact in VariantPass.__annotations__ if not hasattr(loaded, fact)]
    if missing:
        raise InvalidInput(
            f"The pass {name!r} does not say its {', '.join(missing)}. "
            "Add what `lightship.optimize.variant_pass.VariantPass` asks for, or uninstall its package."
        )
    return loaded


def apply_passes(passes: Sequence[VariantPass], graph: bytes, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    """Return what the passes make of an ONNX graph, one after the other; rows are shown to those that need them.

    Raises:
        PassFailed: one of them cannot treat the graph, or failed in whatever way.
    """
    for each in passes:
        try:
            graph = each.apply(graph, calibration=calibration if each.needs_calibration else ())
        except LightshipError:
            raise
        except Exception as exc:  # a pass may be anybody's code; its failure costs its own variant and no other
            raise PassFailed(f"{each.name} failed: {type(exc).__name__}: {exc}") from exc
        if not isinstance(graph, bytes):
            raise PassFailed(f"{each.name} failed: it must give the bytes of a graph, and gave {type(graph).__name__}.")
    return graph


def write_note(model: onnx.ModelProto, note: str) -> None:
    """Put ``note`` into the model's metadata, in the place of an earlier one; an empty one takes it away.

    One sentence or list for people, e.g. ``in float: /encoder/layer.0/MatMul (SNR 3.1 dB)``.
    """
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != _NOTE]
    del model.metadata_props[:]
    for key, value in (*kept, *(((_NOTE, note),) if note else ())):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def read_note(graph: bytes) -> str:
    """Return what the pass that made these ONNX bytes noted; empty when it noted nothing."""
    import onnx

    model = onnx.load_from_string(graph)
    return next((str(entry.value) for entry in model.metadata_props if entry.key == _NOTE), "")
