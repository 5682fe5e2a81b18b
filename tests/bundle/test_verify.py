"""The bundle attacked by files: every change is refused, and the refusal names the file (BI-038 to BI-043, R-16)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightship.bundle.release import peek_release
from lightship.bundle.signing import TrustStore
from lightship.bundle.verify import evidence_path, verify_folder, verify_stored
from lightship.data.files import canonical_json
from lightship.errors import BundleRefused, NotFound
from lightship.types import Verdict


def evidence_files(folder: Path) -> list[Path]:
    """Return the evidence in a folder, by name."""
    return sorted((folder / "evidence").iterdir())


def blob(shipped: Any, digest: str) -> Path:
    """Return where a blob lies."""
    path: Path = shipped.store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
    return path


def refuse(shipped: Any, folder: Path, reason: str, *, trust: TrustStore | None = None) -> None:
    """Check that the folder is refused for this reason."""
    with pytest.raises(BundleRefused, match=reason):
        verify_folder(folder, trust=trust or shipped.trust)


def test_a_good_folder_is_described(shipped, folder, parts):
    """Name, signer, evidence and totals, as they were released."""
    found = verify_folder(folder, trust=shipped.trust)

    assert (found.bundle, found.release) == (shipped.manifest.digest, shipped.release_digest)
    assert (found.name, found.version, found.status, found.signer.name) == ("digits", 1, "passed", "ada")
    assert [(item.check, item.verdict, item.listed) for item in found.evidence] == [
        ("parity", Verdict.PASSED, True),
        ("latency", Verdict.PASSED, True),
    ]
    assert tuple(item.digest for item in found.evidence) == tuple(digest for _, digest in shipped.release.evidence)
    assert found.variants == ("int8", "reference")
    assert (found.files, found.bytes) == (7, sum(map(len, parts["contents"].values())))


def test_a_good_store_is_described_alike(shipped, folder):
    """The same release gives the same words from both places."""
    stored = verify_stored(shipped.store, shipped.release_digest, trust=shipped.trust)

    assert stored == verify_folder(folder, trust=shipped.trust)


def test_a_self_made_key_is_shown_as_local(own, tmp_path):
    """Who sees the verification sees that no other person vouches."""
    trust = TrustStore(tmp_path / "own-trust")
    trust.add_local(own.key)

    assert verify_folder(own.export("out"), trust=trust).signer.local


PATHS = [
    "bundle.json",
    "release.json",
    "card.md",
    "evidence/0",
    "evidence/1",
    "variants/reference/model.onnx",
    "variants/int8/scales.bin",
    "assets/n.txt",
    "golden/000.png",
    "golden/int8-logits.npy",
]


@pytest.fixture(params=PATHS)
def target(request, folder) -> Path:
    """Each kind of file in turn."""
    if request.param.startswith("evidence/"):
        return evidence_files(folder)[int(request.param[-1])]
    return folder / request.param


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "truncated": lambda data: data[:-1],
    "emptied": lambda _: b"",
    "newline appended": lambda data: data + b"\n",
    "doubled": lambda data: data + data,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_by_name(shipped, folder, target, change):
    """Flips, cuts and additions at each kind of file."""
    target.write_bytes(CHANGES[change](target.read_bytes()))

    refuse(shipped, folder, rf"{target.relative_to(folder)}")


def test_a_missing_file_is_refused_by_name(shipped, folder, target):
    """Each kind of file must be there."""
    target.unlink()

    refuse(
        shipped,
        folder,
        rf"{target.relative_to(folder)} is missing in ",
    )


@pytest.mark.parametrize("kind", ["link inside", "link outside", "dangling link", "hard link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused_by_name(shipped, folder, target, tmp_path, kind):
    """The same bytes behind a link are refused too: what is not verified could change them."""
    copy = (folder if kind == "link inside" else tmp_path) / "copy"
    shutil.copy(target, copy)
    target.unlink()
    if kind in ("link inside", "link outside"):
        target.symlink_to(copy)
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    elif kind == "hard link":
        target.hardlink_to(copy)
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir()

    refuse(shipped, folder, rf"{target.relative_to(folder)}")


def test_a_folder_behind_a_link_is_refused(shipped, folder, tmp_path):
    """A link in the middle of a path is a link."""
    shutil.move(folder / "golden", tmp_path / "golden")
    (folder / "golden").symlink_to(tmp_path / "golden")

    refuse(shipped, folder, "golden in .* is a link")


@pytest.mark.parametrize(
    "path",
    [
        "extra",
        "variants/extra",
        "golden/001.png",
        ".hidden",
        "evidence/notes.txt",
        "evidence/parity.json",
        "a b\n",
        "é",
    ],
)
def test_an_added_file_is_refused_by_name(shipped, folder, path):
    """Whatever neither release nor manifest names does not belong there."""
    (folder / path).write_bytes(b"x")

    refuse(shipped, folder, "is no part of the bundle")


def test_a_file_whose_name_is_no_text_is_refused(shipped, folder):
    """Names that are not UTF-8 do not break the verifier."""
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_bytes(b"x")

    refuse(shipped, folder, r"'\\udcff' in .* is no part of the bundle")


@pytest.mark.parametrize("path", ["empty", "variants/empty", "golden/a/b/c", ".git"])
def test_an_added_empty_folder_is_refused_by_name(shipped, folder, path):
    """An empty folder is an addition too."""
    (folder / path).mkdir(parents=True)

    refuse(shipped, folder, f"{path}/ in .* is an empty folder")


def test_no_folder_is_not_found(shipped, tmp_path):
    """Absence is not damage."""
    with pytest.raises(NotFound, match="cannot be opened as a folder"):
        verify_folder(tmp_path / "none", trust=shipped.trust)


def test_an_unknown_signer_is_refused_by_key_and_way_out(shipped, folder, tmp_path):
    """Without trust nothing is verified, and the first comer is not trusted."""
    refuse(
        shipped,
        folder,
        rf"release\.json: The signer {shipped.key.key_id} is not trusted here.*lightship trust add",
        trust=TrustStore(tmp_path / "nobody"),
    )


def write_release(shipped: Any, folder: Path, **changes: Any) -> None:
    """Exchange the release for one with ``changes``, signed by ada unless ``key`` says otherwise."""
    (folder / "release.json").write_bytes(shipped.store.get(shipped.release_again(**changes)))


def test_a_release_signed_again_by_a_stranger_is_refused(shipped, folder, stranger):
    """A full re-signing without a trusted key is worth nothing (BI-040)."""
    write_release(shipped, folder, key=stranger)

    refuse(shipped, folder, rf"release\.json: The signer {stranger.key_id} is not trusted")


def test_the_release_of_another_bundle_is_refused(shipped, folder, other):
    """Both are trusted and good, and do not belong together (BI-041)."""
    shipped.trust.add(other.key.public_pem, "other")
    (folder / "release.json").write_bytes(other.store.get(other.release_digest))

    refuse(shipped, folder, r"bundle\.json has the digest sha256:\w+, and the release rests on sha256:")
    (shipped.trust.path / "other.pem").unlink()


def test_a_manifest_that_was_changed_and_made_consistent_is_refused(shipped, folder):
    """An exchanged graph with its new digest in the manifest still lacks a signature (BI-040)."""
    (folder / "variants/reference/model.onnx").write_bytes(b"abd")
    manifest = json.loads((folder / "bundle.json").read_bytes())
    entry = next(entry for entry in manifest["files"] if entry["path"] == "variants/reference/model.onnx")
    entry["sha256"] = "a" * 64
    (folder / "bundle.json").write_bytes(canonical_json(manifest))

    refuse(shipped, folder, r"bundle\.json has the digest")


@pytest.mark.parametrize("path", ["../outside", "golden/../../outside", "/etc/passwd", "./a//b"])
def test_a_path_that_leaves_is_refused_even_when_it_is_signed(shipped, folder, path):
    """A signature does not make ``..`` a path."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    manifest["files"].insert(0, {"path": path, "sha256": "0" * 64, "size": 0})
    data = canonical_json(manifest)
    (folder / "bundle.json").write_bytes(data)
    write_release(shipped, folder, bundle=shipped.store.put(data))

    refuse(shipped, folder, r"bundle\.json: files\[0\]\.path must be a relative path")


def test_a_duplicate_key_is_refused_even_when_it_is_signed(shipped, folder):
    """Two readers could take two manifests from it."""
    data = b'{"default":"reference",' + (folder / "bundle.json").read_bytes()[1:]
    (folder / "bundle.json").write_bytes(data)
    write_release(shipped, folder, bundle=shipped.store.put(data))

    refuse(shipped, folder, r"bundle\.json has the key 'default' twice")


def test_swapped_evidence_is_refused(shipped, folder):
    """Two good pieces under each other's names."""
    first, second = evidence_files(folder)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)

    refuse(shipped, folder, r"evidence/\w+-\w+\.json has the digest")


def test_renamed_evidence_is_refused(shipped, folder):
    """The name says check and digest; another name is another file."""
    first = evidence_files(folder)[0]
    first.rename(first.with_name("latency-000000000000.json"))

    refuse(shipped, folder, rf"evidence/{first.name} is missing")


def test_a_check_under_another_name_in_the_release_is_refused(shipped):
    """A release cannot call a latency measurement parity."""
    (_, parity), (_, latency) = shipped.release.evidence
    digest = shipped.release_again(evidence=(("latency", parity), ("parity", latency)))

    with pytest.raises(BundleRefused, match="is evidence of the check 'parity'; the release lists it as 'latency'"):
        verify_stored(shipped.store, digest, trust=shipped.trust)


@pytest.mark.parametrize("subject", ["graph", "task"])
def test_listed_evidence_of_another_bundle_is_refused(shipped, other, make_evidence, subject):
    """Evidence about other bytes, or another task, carries no release, whoever signs."""
    graph = "variants/reference/model.onnx"
    evidence = make_evidence(shipped.manifest)
    name = graph if subject == "graph" else "task"
    evidence = replace(evidence, subjects={**evidence.subjects, name: other.manifest.file(graph).sha256})
    digest = shipped.store.put(shipped.sign(evidence))

    with pytest.raises(
        BundleRefused, match=rf"evidence/parity-\w+\.json is evidence of another bundle: its subject '{name}'"
    ):
        verify_stored(shipped.store, shipped.release_again(evidence=(("parity", digest),)), trust=shipped.trust)


def test_a_graph_is_no_task_and_a_task_no_graph(shipped, make_evidence):
    """The digest of the task counts only under its own name, and that of a file only under others."""
    evidence = make_evidence(shipped.manifest)
    graph = shipped.manifest.file("variants/reference/model.onnx").sha256
    for subjects in ({"task": graph}, {"reference": shipped.manifest.task.digest}):
        digest = shipped.store.put(shipped.sign(replace(evidence, subjects=subjects)))
        with pytest.raises(BundleRefused, match="is evidence of another bundle"):
            verify_stored(shipped.store, shipped.release_again(evidence=(("parity", digest),)), trust=shipped.trust)


def add_evidence(folder: Path, envelope: bytes, check: str) -> Path:
    """Put an envelope where evidence of that check belongs."""
    from lightship.bundle.digest import Digest

    path = folder / evidence_path(check, Digest.of(envelope))
    path.write_bytes(envelope)
    return path


def test_evidence_added_later_is_shown_as_not_listed(shipped, folder, make_evidence):
    """Somebody who is trusted judged the bundle again: its name stays, the evidence is there."""
    envelope = shipped.sign(replace(make_evidence(shipped.manifest, check="robustness"), verdict=Verdict.FAILED))
    add_evidence(folder, envelope, "robustness")

    found = verify_folder(folder, trust=shipped.trust)
    assert (found.evidence[-1].check, found.evidence[-1].verdict, found.evidence[-1].listed) == (
        "robustness",
        Verdict.FAILED,
        False,
    )


def test_evidence_added_by_a_stranger_is_refused(shipped, folder, make_evidence, stranger):
    """Nobody who is unknown adds anything."""
    path = add_evidence(folder, shipped.sign(make_evidence(shipped.manifest), key=stranger), "parity")

    refuse(shipped, folder, rf"evidence/{path.name}: The signer {stranger.key_id} is not trusted")


def test_added_evidence_of_another_bundle_is_refused(shipped, folder, other, make_evidence):
    """A trusted signer's statement about other bytes does not belong here."""
    path = add_evidence(folder, shipped.sign(make_evidence(other.manifest)), "parity")

    refuse(shipped, folder, rf"evidence/{path.name} is evidence of another bundle")


def test_added_evidence_under_another_name_is_refused(shipped, folder, make_evidence):
    """The name of the file is that of its contents."""
    path = add_evidence(folder, shipped.sign(make_evidence(shipped.manifest, check="accuracy")), "parity")

    refuse(shipped, folder, rf"evidence/{path.name} holds evidence that belongs at evidence/accuracy-")


def test_a_card_that_the_release_does_not_name_is_refused(shipped, folder):
    """The card is covered by the signature or not there."""
    write_release(shipped, folder, card=None)

    refuse(shipped, folder, r"'card\.md' in .* is no part of the bundle")


def test_a_thousand_random_flips_are_refused(shipped, folder):
    """One random bit in a random file, a thousand times, weighted so that each file has its share (R-16)."""
    rng = np.random.default_rng(20260131)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    missed = []
    for _ in range(1_000):
        path = files[rng.integers(len(files))]
        data = path.read_bytes()
        bit = int(rng.integers(len(data) * 8))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            verify_folder(folder, trust=shipped.trust)
            missed.append((path.name, bit))
        except BundleRefused as refusal:
            if str(path.relative_to(folder)) not in str(refusal):
                missed.append((path.name, str(refusal)))
        path.write_bytes(data)

    assert missed == []
    assert verify_folder(folder, trust=shipped.trust)


def test_a_manifest_exchanged_for_each_byte_flip_in_the_release_is_never_accepted(shipped, folder):
    """Every single bit of the release, also of the parts outside of the signature (R-22)."""
    data = (folder / "release.json").read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (folder / "release.json").write_bytes(changed)
        with pytest.raises(BundleRefused, match=r"release\.json"):
            verify_folder(folder, trust=shipped.trust)


def test_a_stored_release_with_a_damaged_blob_is_refused_by_path(own):
    """The refusal names the file of the bundle, not only the blob."""
    paths = {own.release.bundle: "bundle.json", own.release.card: "card.md"}
    paths |= {digest: evidence_path(check, digest) for check, digest in own.release.evidence}
    paths |= {f"sha256:{entry.sha256}": entry.path for entry in reversed(own.manifest.files)}  # twins: the first path
    for digest, path in paths.items():
        data = blob(own, digest).read_bytes()
        blob(own, digest).write_bytes(data + b"\0")
        with pytest.raises(BundleRefused, match=rf"^{path}"):
            verify_stored(own.store, own.release_digest, trust=own.trust)
        blob(own, digest).unlink()
        with pytest.raises(BundleRefused, match=rf"^{path} is missing"):
            verify_stored(own.store, own.release_digest, trust=own.trust)
        own.store.put(data)
    assert verify_stored(own.store, own.release_digest, trust=own.trust)


def test_a_server_may_hold_one_variant_only(own):
    """Without ``complete`` absent variants are said to be absent; what is there must be right all the same."""
    scales = own.manifest.file("variants/int8/scales.bin").sha256
    blob(own, scales).unlink()

    with pytest.raises(BundleRefused, match=r"variants/int8/scales\.bin is missing"):
        verify_stored(own.store, own.release_digest, trust=own.trust)
    found = verify_stored(own.store, own.release_digest, trust=own.trust, complete=False)
    assert (found.variants, found.files) == (("reference",), 6)

    blob(own, own.manifest.file("variants/reference/model.onnx").sha256).write_bytes(b"abd")
    with pytest.raises(BundleRefused, match=r"variants/reference/model\.onnx"):
        verify_stored(own.store, own.release_digest, trust=own.trust, complete=False)


@pytest.mark.parametrize("path", ["golden/000.png", "assets/n.txt"])
def test_golden_examples_and_assets_are_never_optional(own, path):
    """Without them nobody can tell whether a variant answers rightly."""
    blob(own, own.manifest.file(path).sha256).unlink()

    with pytest.raises(BundleRefused, match=f"{path} is missing"):
        verify_stored(own.store, own.release_digest, trust=own.trust, complete=False)


def test_what_is_in_a_store_is_no_release_because_it_is_there(own, stranger, make_evidence):
    """Bundles, evidence, unknown digests and releases of strangers are refused."""
    with pytest.raises(BundleRefused, match=r"release\.json has the unknown key"):
        verify_stored(own.store, own.manifest.digest, trust=own.trust)
    with pytest.raises(BundleRefused, match=r"release\.json must have the payloadType"):
        verify_stored(own.store, own.release.evidence[0][1], trust=own.trust)
    with pytest.raises(NotFound, match="There is no blob"):
        verify_stored(own.store, "sha256:" + "0" * 64, trust=own.trust)
    with pytest.raises(BundleRefused, match="is not trusted"):
        verify_stored(own.store, own.release_again(key=stranger), trust=own.trust)


def test_the_smallest_listing_wins_over_a_forged_size(shipped, folder):
    """A manifest that lies about a size is refused even when it is signed."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    manifest["files"][0]["size"] += 1
    data = canonical_json(manifest)
    (folder / "bundle.json").write_bytes(data)
    write_release(shipped, folder, bundle=shipped.store.put(data))

    refuse(shipped, folder, r"assets/n\.txt is not the file that bundle\.json lists: it has 7 bytes")
    release = peek_release((folder / "release.json").read_bytes())
    digest = shipped.release_again(bundle=release.bundle, evidence=())
    with pytest.raises(BundleRefused, match=r"assets/n\.txt must have 8 bytes\. It has 7"):
        verify_stored(shipped.store, digest, trust=shipped.trust)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.UNDECIDED, Verdict.UNPROVEN])
def test_a_release_that_calls_itself_passed_against_its_own_evidence_is_refused(own, make_evidence, verdict):
    """The word `passed` is the signer's program's; the evidence that it signed too must say the same."""
    evidence = replace(make_evidence(own.manifest), verdict=verdict)
    listed = (("parity", own.store.put(own.sign(evidence))),)

    with pytest.raises(BundleRefused, match=f"requires 'parity', but the evidence for that says {verdict}"):
        verify_stored(own.store, own.release_again(evidence=listed), trust=own.trust)


def test_a_required_check_without_evidence_is_refused(own):
    """Leaving the evidence out is no way round it."""
    digest = own.release_again(policy={"required": ["accuracy"]})

    with pytest.raises(BundleRefused, match="requires 'accuracy', but the evidence for that says nothing"):
        verify_folder(own.export("folder", digest), trust=own.trust)


@pytest.mark.parametrize("kind", ["empty folder", "file"])
def test_an_extra_name_that_a_terminal_would_obey_is_escaped(shipped, folder, kind):
    """An escape sequence in a name, or letters that change direction, reach no screen."""
    for name in ("a\x1b[2Jb", "a\u202eb"):
        place = folder / name
        place.mkdir() if kind == "empty folder" else place.write_text("x")
        with pytest.raises(BundleRefused) as caught:
            verify_folder(folder, trust=shipped.trust)
        assert str(caught.value).isprintable()
        place.rmdir() if kind == "empty folder" else place.unlink()
