"""``bundle.json``: what a bundle holds. Its bytes are canonical, so their SHA-256 is the name of the bundle.

``Manifest.from_bytes`` takes exactly the bytes that ``Manifest.to_bytes`` would write and refuses all others, so one
manifest has one name. The format is specified in ``docs/bundle-format.md``; a change to it is a new
``format_version``, and the reader of the old one stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightship.bundle.digest import Digest
from lightship.bundle.document import (
    parse_document,
    plain_json,
    take_hex,
    take_int,
    take_list,
    take_mapping,
    take_name,
    take_object,
    take_text,
)
from lightship.bundle.interface import interface_from_json, interface_to_json
from lightship.bundle.paths import check_tree, take_path
from lightship.data.files import canonical_json, sha256_hex
from lightship.errors import BundleRefused
from lightship.types import Interface, Json

if TYPE_CHECKING:
    from lightship.tasks.task import Task

__all__ = [
    "FORMAT_VERSION",
    "MAX_FILES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "REFERENCE",
    "Expected",
    "FileEntry",
    "Golden",
    "Manifest",
    "TaskRef",
    "Variant",
]

FORMAT_VERSION = 2
"""The newest version. A bundle whose interface has no ranges of values is written as version 1, which all can read."""

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 10_000
MAX_FILE_BYTES = 1 << 40
REFERENCE = "reference"
"""The variant that every bundle has: the faithful export of the trained model."""

_MAX_VARIANTS = 64
_MAX_GOLDEN = 1_000
_MAX_OPTIONS = 64
_KEYS = ("default", "files", "format_version", "golden", "interface", "lineage", "task", "variants")
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,15})(\.[0-9]{1,32})?(e-?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: where it stands in the bundle, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TaskRef:
    """The task of a model: a name and a codec version that the reader must know, and the configuration for it."""

    name: str
    codec_version: int
    config: Mapping[str, Json]

    @classmethod
    def of(cls, task: Task) -> TaskRef:
        """Return a task as a bundle carries it."""
        return cls(task.name, task.codec_version, task.config())

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of name, codec version and configuration. Evidence names it."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"name": self.name, "codec_version": self.codec_version, "config": plain_json(self.config)}


@dataclass(frozen=True, slots=True)
class Variant:
    """One graph with the way to run it.

    Attributes:
        graph: path of the graph, below ``variants/``.
        precision: e.g. ``fp32``, ``int8-dynamic``.
        options: for the engine; integers, strings and truth values.
        files: paths of the other files that the graph needs, below ``variants/`` or ``assets/``; not the graph itself.
    """

    name: str
    engine: str
    graph: str
    precision: str
    options: Mapping[str, Json] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """What one variant answers to the golden inputs.

    Attributes:
        outputs: path of a ``.npy`` file by the name of an output; row i is the answer to golden input i.
        tolerance: the largest absolute difference that is allowed, as a decimal string, e.g. ``"1.2e-05"``.
    """

    outputs: Mapping[str, str]
    tolerance: str


@dataclass(frozen=True, slots=True)
class Golden:
    """Raw inputs (paths) and what each variant answers to them. Either both are empty or every variant is there."""

    inputs: tuple[str, ...] = ()
    expected: Mapping[str, Expected] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of ``bundle.json``. ``variants`` are sorted by name and ``files`` by path.

    Attributes:
        default: name of the variant to run.
        lineage: where the model comes from; any JSON without floats.
    """

    task: TaskRef
    interface: Interface
    variants: tuple[Variant, ...]
    default: str
    golden: Golden
    lineage: Mapping[str, Json]
    files: tuple[FileEntry, ...]

    @property
    def format_version(self) -> int:
        """The least version of the format that can say this: 2 with ranges of values, else 1."""
        return FORMAT_VERSION if self.interface.values else 1

    @property
    def digest(self) -> Digest:
        """The name of the bundle: the digest of ``bundle.json``."""
        return Digest.of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the bytes of ``bundle.json``.

        Raises:
            InvalidInput: a float, or something that is not JSON, in the task's configuration, options or lineage.
        """
        return canonical_json(
            {
                "default": self.default,
                "files": [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in self.files],
                "format_version": self.format_version,
                "golden": _golden_to_json(self.golden),
                "interface": interface_to_json(self.interface),
                "lineage": plain_json(self.lineage),
                "task": self.task.to_json(),
                "variants": [_variant_to_json(variant) for variant in self.variants],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, what: str = "bundle.json") -> Manifest:
        """Return the manifest whose canonical form is exactly ``data``. ``what`` names the bytes in messages.

        Raises:
            BundleRefused: the bytes are not a manifest of a version that this program reads, or break one of its rules.
        """
        document = take_mapping(parse_document(data, what=what, max_bytes=MAX_MANIFEST_BYTES), at=what)
        version = _version(document.get("format_version"), what=what)
        members = take_object(document, _KEYS, at=what)
        manifest = cls(
            task=_task(members["task"], at=f"{what}: task"),
            interface=interface_from_json(
                members["interface"], at=f"{what}: interface", with_values=version >= FORMAT_VERSION
            ),
            variants=_variants(members["variants"], at=f"{what}: variants"),
            default=take_name(members["default"], at=f"{what}: default"),
            golden=_golden(members["golden"], at=f"{what}: golden"),
            lineage=take_mapping(members["lineage"], at=f"{what}: lineage"),
            files=_files(members["files"], at=f"{what}: files"),
        )
        _check_names(manifest, what=what)
        _check_paths(manifest, what=what)
        if (canonical := manifest.to_bytes()) != data:
            offset = next((i for i, (a, b) in enumerate(zip(canonical, data, strict=False)) if a != b), len(canonical))
            raise BundleRefused(
                f"{what} must be canonical JSON (RFC 8785): no white space, sorted keys, shortest escapes. "
                f"It differs from that at byte {offset}."
            )
        return manifest

    def file(self, path: str) -> FileEntry | None:
        """Return the entry of ``path``, or None."""
        return next((file for file in self.files if file.path == path), None)

    def variant(self, name: str) -> Variant | None:
        """Return the variant of that name, or None."""
        return next((variant for variant in self.variants if variant.name == name), None)


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    return {
        "engine": variant.engine,
        "files": list(variant.files),
        "graph": variant.graph,
        "name": variant.name,
        "options": dict(variant.options),
        "precision": variant.precision,
    }


def _golden_to_json(golden: Golden) -> dict[str, Any]:
    expected = {
        name: {"outputs": dict(answer.outputs), "tolerance": answer.tolerance}
        for name, answer in golden.expected.items()
    }
    return {"expected": expected, "inputs": list(golden.inputs)}


def _version(version: Json, *, what: str) -> int:
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise BundleRefused(
            f"{what} has format_version {version!r}. This program reads versions 1 to {FORMAT_VERSION}; "
            "use the version of Lightship that wrote it, or a newer one."
        )
    return version


def _task(value: Json, *, at: str) -> TaskRef:
    members = take_object(value, ("name", "codec_version", "config"), at=at)
    return TaskRef(
        name=take_name(members["name"], at=f"{at}.name"),
        codec_version=take_int(members["codec_version"], at=f"{at}.codec_version", low=1, high=1_000_000),
        config=take_mapping(members["config"], at=f"{at}.config"),
    )


def _variants(value: Json, *, at: str) -> tuple[Variant, ...]:
    items = take_list(value, at=at, min_items=1, max_items=_MAX_VARIANTS)
    return tuple(_variant(item, at=f"{at}[{index}]") for index, item in enumerate(items))


def _variant(value: Json, *, at: str) -> Variant:
    members = take_object(value, ("engine", "files", "graph", "name", "options", "precision"), at=at)
    options = take_mapping(members["options"], at=f"{at}.options", max_items=_MAX_OPTIONS)
    for name, option in options.items():
        if not isinstance(option, bool | int | str):
            raise BundleRefused(f"{at}.options.{name[:100]} must be an integer, a string, true or false.")
    files = take_list(members["files"], at=f"{at}.files", max_items=MAX_FILES)
    return Variant(
        name=take_name(members["name"], at=f"{at}.name"),
        engine=take_name(members["engine"], at=f"{at}.engine"),
        graph=take_path(members["graph"], at=f"{at}.graph", under=("variants",)),
        precision=take_name(members["precision"], at=f"{at}.precision"),
        options=options,
        files=tuple(take_path(path, at=f"{at}.files", under=("variants", "assets")) for path in files),
    )


def _golden(value: Json, *, at: str) -> Golden:
    members = take_object(value, ("expected", "inputs"), at=at)
    inputs = take_list(members["inputs"], at=f"{at}.inputs", max_items=_MAX_GOLDEN)
    expected = take_mapping(members["expected"], at=f"{at}.expected", max_items=_MAX_VARIANTS)
    return Golden(
        inputs=tuple(take_path(path, at=f"{at}.inputs", under=("golden",)) for path in inputs),
        expected={name: _expected(item, at=f"{at}.expected.{name[:64]}") for name, item in expected.items()},
    )


def _expected(value: Json, *, at: str) -> Expected:
    members = take_object(value, ("outputs", "tolerance"), at=at)
    outputs = take_mapping(members["outputs"], at=f"{at}.outputs")
    tolerance = take_text(members["tolerance"], at=f"{at}.tolerance", max_chars=64)
    if not _DECIMAL.fullmatch(tolerance):
        raise BundleRefused(f"{at}.tolerance must be a decimal string such as '0.001' or '1e-05'. Got {tolerance!r}.")
    return Expected(
        outputs={name: take_path(path, at=f"{at}.outputs", under=("golden",)) for name, path in outputs.items()},
        tolerance=tolerance,
    )


def _files(value: Json, *, at: str) -> tuple[FileEntry, ...]:
    items = take_list(value, at=at, min_items=1, max_items=MAX_FILES)
    return tuple(_file(item, at=f"{at}[{index}]") for index, item in enumerate(items))


def _file(value: Json, *, at: str) -> FileEntry:
    members = take_object(value, ("path", "sha256", "size"), at=at)
    return FileEntry(
        path=take_path(members["path"], at=f"{at}.path", under=("variants", "assets", "golden")),
        size=take_int(members["size"], at=f"{at}.size", high=MAX_FILE_BYTES),
        sha256=take_hex(members["sha256"], at=f"{at}.sha256"),
    )


def _check_names(manifest: Manifest, *, what: str) -> None:
    """Check that every name that a manifest uses is one that it defines."""
    names = [variant.name for variant in manifest.variants]
    if names != sorted(set(names)):
        raise BundleRefused(f"{what}: variants must be sorted by name, each name once. Got {', '.join(names)}.")
    for role, name in (("the faithful export", REFERENCE), ("default", manifest.default)):
        if name not in names:
            raise BundleRefused(f"{what}: no variant is named {name!r} ({role}). Variants: {', '.join(names)}.")
    golden = manifest.golden
    if set(golden.expected) != (set(names) if golden.inputs else set()):
        raise BundleRefused(
            f"{what}: golden.expected must have an answer for each variant ({', '.join(names)}), or none when there "
            f"are no golden inputs. Got {', '.join(sorted(golden.expected)) or 'none'}."
        )
    known = {tensor.name for tensor in manifest.interface.outputs}
    for name, answer in golden.expected.items():
        if not answer.outputs or not set(answer.outputs) <= known:
            raise BundleRefused(
                f"{what}: golden.expected.{name}.outputs must name outputs of the interface ({', '.join(sorted(known))}"
                f"), at least one. Got {', '.join(sorted(answer.outputs)) or 'none'}."
            )


def _check_paths(manifest: Manifest, *, what: str) -> None:
    """Check that the files listed are exactly the files used, and can stand in one folder tree."""
    listed = [file.path for file in manifest.files]
    if listed != sorted(set(listed)):
        raise BundleRefused(f"{what}: files must be sorted by path, each path once.")
    check_tree(listed, at=what)
    for variant in manifest.variants:
        if list(variant.files) != sorted(set(variant.files) - {variant.graph}):
            raise BundleRefused(
                f"{what}: files of variant {variant.name!r} must be sorted, each once and without the graph itself."
            )
    if len(set(manifest.golden.inputs)) != len(manifest.golden.inputs):
        raise BundleRefused(f"{what}: golden.inputs names a path twice.")
    used = {path for variant in manifest.variants for path in (variant.graph, *variant.files)}
    used.update(manifest.golden.inputs)
    used.update(path for answer in manifest.golden.expected.values() for path in answer.outputs.values())
    if unlisted := sorted(used - set(listed)):
        raise BundleRefused(f"{what}: {unlisted[0]!r} is used and not listed in files.")
    # A task names its assets by path in its configuration; the manifest needs to know nothing else about them.
    used.update(text for text in _texts(plain_json(manifest.task.config)) if text.startswith("assets/"))
    if unused := sorted(set(listed) - used):
        raise BundleRefused(f"{what}: {unused[0]!r} is listed in files and nothing uses it.")


def _texts(value: Json) -> list[str]:
    """Return every string value inside ``value``."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [text for item in items for text in _texts(item)]
    return [value] if isinstance(value, str) else []
