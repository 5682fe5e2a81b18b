"""What tells one release from another: how it runs, what it was made from, its task, interface, policy, libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from lightship.bundle.interface import interface_to_json
from lightship.bundle.manifest import REFERENCE
from lightship.pipeline.compare_figures import tried
from lightship.registry.statements import Statements
from lightship.types import Json
from lightship.validate.report.comparison import Change
from lightship.validate.report.measured import items_of, mapping_of, texts_of

__all__ = ["MACHINE_KEYS", "changes_of", "shown"]

MACHINE_KEYS = ("cpu", "cores", "memory_gib", "vnni", "flags_digest", "platform", "python")
"""What of a machine is shown; its libraries stand apart."""

_SHOWN_CHARACTERS = 200
_LONG_DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{8,32}(e-?[0-9]{1,3})?")


def changes_of(one: Statements, two: Statements) -> Iterator[Change]:
    """Yield what is not the same, topic by topic."""
    for (topic, before), (_, after) in zip(_topics(one), _topics(two), strict=True):
        yield from _differing(topic, before, after)


def _topics(found: Statements) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield what a release is made of, topic by topic."""
    default, manifest, record = found.default, found.manifest, found.record
    lineage = dict(manifest.lineage)
    origin = dict(mapping_of(lineage.pop("origin", None))) or lineage
    if origin is not lineage:
        lineage.pop("parent", None)  # says itself which version it was; that is no difference of the two
    machine = found.machine
    yield (
        "How it runs",
        {
            "variant": default.name,
            "engine": default.engine,
            "engine options": dict(default.options),
            "precision": default.precision,
            "passes": list(texts_of(tried(found, default.name).get("passes"))),
            "graph": found.graph_digest(default.name),
            "size, bytes": found.size_bytes(found.default.name),
            "variants in the bundle": [each.name for each in manifest.variants],
        },
    )
    yield (
        "The model",
        {
            "reference graph": found.graph_digest(REFERENCE),
            "recipe": origin.pop("recipe", None),
            "data": origin.pop("data", None),
            "source": origin.pop("source", None),
            "optimized": lineage.pop("optimized", None),
        },
    )
    yield "Task", {"task": manifest.task.name, "codec": manifest.task.codec_version, **manifest.task.config}
    yield "Interface", _interface(found)
    yield "Golden examples", {name: f"within {e.tolerance}" for name, e in manifest.golden.expected.items()}
    yield "Policy", dict(record.policy)
    libraries = {"lightship": origin.pop("lightship", None), **mapping_of(origin.pop("libraries", None))}
    yield "Libraries", libraries
    yield "Origin", {**origin, **lineage}
    yield "Machine", {**{key: machine.get(key) for key in MACHINE_KEYS}, "libraries": machine.get("libraries")}
    yield "Release", {"status": record.status, "signed by": found.signed_by}


def _interface(found: Statements) -> dict[str, Json]:
    said = interface_to_json(found.manifest.interface)
    topic: dict[str, Json] = {}
    for side in ("inputs", "outputs"):
        for tensor in items_of(said[side]):
            dims = tensor["shape"]
            shape = ", ".join(map(str, dims)) if isinstance(dims, list) else ""
            topic[f"{side[:-1]} {tensor['name']}"] = f"{tensor['dtype']} [{shape}]"
    for name, bounds in found.manifest.interface.proven.items():
        topic[f"proven {name}"] = f"{bounds[0]} to {bounds[1]}"
    for name, values in found.manifest.interface.values.items():
        topic[f"values of {name}"] = str(values)
    return topic


def _differing(topic: str, before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[Change]:
    one, two = dict(_leaves(before)), dict(_leaves(after))
    for key in dict.fromkeys((*one, *two)):
        old, new = one.get(key), two.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            yield from _lists(topic, key, old, new)
        else:
            yield Change(topic, key, shown(old) or None, shown(new) or None)


def _leaves(value: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _leaves(item, f"{name} · ")
        elif item is not None:
            yield name, item


def _lists(topic: str, key: str, old: list[Json], new: list[Json]) -> Iterator[Change]:
    """Tell what a list lost and gained; of a long one nobody sees the difference otherwise."""
    lost = [item for item in old if item not in new]
    gained = [item for item in new if item not in old]
    if not lost and not gained:
        yield Change(topic, f"{key}, order", shown(old), shown(new))
    elif len(old) + len(new) <= 12:
        yield Change(topic, key, shown(old) or None, shown(new) or None)
    else:
        words = [f"without {shown(lost)}" if lost else "", f"with {shown(gained)}" if gained else ""]
        yield Change(topic, key, f"{len(old)} items", f"{len(new)} items: {', '.join(filter(None, words))}")


def shown(value: Json) -> str:
    """Return a value in one line of a bounded length."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        text = ", ".join(shown(item) for item in value)
    elif isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = "" if value is None else str(value)
        if _LONG_DECIMAL.fullmatch(text):  # a sum of floats: 0.050000000000000044
            text = f"{float(text):.6g}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
