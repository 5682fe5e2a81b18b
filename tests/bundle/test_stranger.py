"""A program written from the document alone agrees with ours, on the worked example and on damage."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightship.bundle.envelope import pre_authentication_encoding
from lightship.bundle.manifest import Manifest
from lightship.bundle.signing import TrustStore
from lightship.bundle.verify import verify_folder
from lightship.types import Verdict

STRANGER = Path(__file__).with_name("stranger.py")
DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle-format.md"


def ask_stranger(folder: Path, *trusted: Path) -> tuple[int, str]:
    """Return exit code and answer of the stranger's program."""
    done = subprocess.run(
        [sys.executable, "-I", STRANGER, folder, *trusted], capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def documented() -> dict[str, str]:
    """Return the blocks of the worked example by name."""
    text = DOCUMENT.read_text()
    return dict(re.findall(r"<!-- example: (.+?) -->\n\n```\n(.*?)\n```", text, flags=re.DOTALL))


def write_documented(root: Path) -> Path:
    """Write the folder and the key of the worked example from the document and nothing else."""
    blocks = documented()
    folder = root / "from-document"
    files = {
        name: text.encode() for name, text in blocks.items() if name.endswith(".json") and not name.endswith("payload")
    }
    files["golden/reference-y.npy"] = bytes.fromhex(blocks["golden/reference-y.npy"])
    files["golden/000.bin"] = b"?"
    files["variants/reference/model.onnx"] = b"abc"
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (root / "example.pem").write_text(blocks["public pem"])
    return folder


def test_stranger_imports_nothing_of_lightship():
    """The program stands on the document, not on our code."""
    assert "import lightship" not in STRANGER.read_text()
    assert "from lightship" not in STRANGER.read_text()


def test_stranger_accepts_what_we_export(shipped, folder):
    """Both programs accept one folder and agree on its name."""
    ours = verify_folder(folder, trust=shipped.trust)

    code, answer = ask_stranger(folder, shipped.trust.path / "ada.pem")

    assert (code, answer) == (0, f"ok {ours.bundle}")


@pytest.mark.parametrize(
    "path", ["bundle.json", "release.json", "card.md", "golden/000.png", "variants/int8/scales.bin", "evidence"]
)
def test_stranger_refuses_one_flipped_bit(shipped, folder, path):
    """The document is enough to notice damage in each kind of file."""
    target = next((folder / path).iterdir()) if path == "evidence" else folder / path
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 4
    target.write_bytes(data)

    code, answer = ask_stranger(folder, shipped.trust.path / "ada.pem")

    assert code == 1
    assert answer.startswith("refused:")
    assert target.name in answer


def test_stranger_refuses_an_added_file_and_an_unknown_signer(shipped, folder):
    """Nothing may be added, and nobody is trusted for being first."""
    code, answer = ask_stranger(folder)
    assert (code, "unknown signer" in answer) == (1, True)
    (folder / "golden" / "more").write_text("x")

    code, answer = ask_stranger(folder, shipped.trust.path / "ada.pem")

    assert (code, answer) == (1, "refused: golden/more: no part of the bundle")


def test_document_holds_the_bytes_that_we_write(example):
    """Every byte of the worked example is what the program writes today."""
    blocks = documented()
    folder = example.export("folder")
    paths = ["bundle.json", "release.json", *(f"evidence/{path.name}" for path in (folder / "evidence").iterdir())]

    for path in paths:
        assert blocks[path] == (folder / path).read_text(), path
    array = (folder / "golden/reference-y.npy").read_bytes()
    assert bytes.fromhex(blocks["golden/reference-y.npy"]) == array
    assert blocks["bundle digest"] == example.manifest.digest
    assert blocks["task digest"] == example.manifest.task.digest
    assert blocks["release digest"] == example.release_digest
    assert blocks["key id"] == example.key.key_id
    assert blocks["public pem"] == example.key.public_pem.decode().strip()


def test_document_shows_what_is_signed():
    """Payloads and the pre-authentication encoding in the document belong to its envelopes."""
    blocks = documented()
    (evidence,) = (text for name, text in blocks.items() if name.startswith("evidence/"))

    payload = base64.b64decode(json.loads(evidence)["payload"])
    released = base64.b64decode(json.loads(blocks["release.json"])["payload"])

    assert blocks["evidence payload"].encode() == payload
    assert blocks["release payload"].encode() == released
    encoded = pre_authentication_encoding("application/vnd.in-toto+json", payload)
    assert blocks["evidence pae"].encode() == encoded


def test_folder_written_from_the_document_verifies(tmp_path):
    """The document alone makes a folder that both programs accept."""
    folder = write_documented(tmp_path)
    trust = TrustStore(tmp_path / "trust")
    trust.add((tmp_path / "example.pem").read_bytes(), "example")

    ours = verify_folder(folder, trust=trust)
    code, answer = ask_stranger(folder, tmp_path / "example.pem")

    assert (code, answer) == (0, f"ok {ours.bundle}")
    assert Manifest.from_bytes(documented()["bundle.json"].encode()).default == "reference"


def test_stranger_refuses_a_release_that_its_own_evidence_denies(own, make_evidence, tmp_path):
    """Step 8 of the document."""
    denied = replace(make_evidence(own.manifest), verdict=Verdict.UNDECIDED)
    digest = own.release_again(evidence=(("parity", own.store.put(own.sign(denied))),))
    pem = tmp_path / "ada.pem"
    pem.write_bytes(own.key.public_pem)

    code, answer = ask_stranger(own.export("denied", digest), pem)

    assert code == 1
    assert "parity did not pass" in answer
