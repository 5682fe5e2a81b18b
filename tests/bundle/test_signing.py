"""Keys are kept from others, and nobody is trusted whom no person added."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lightship.bundle.signing import PrivateKey, Signer, TrustStore
from lightship.errors import BundleRefused, Conflict, InvalidInput, Refused


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def public_pem(key: x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the PEM of a public key of another kind."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_signature_is_that_of_rfc_8032():
    """The second test vector of RFC 8032, section 7.1."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")

    signature = PrivateKey(Ed25519PrivateKey.from_private_bytes(secret)).sign(b"\x72")

    assert signature.hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_key_id_is_the_digest_of_the_raw_public_key(make_key):
    """A stranger computes the same id from the public PEM."""
    key = make_key(0)

    raw = serialization.load_pem_public_key(key.public_pem).public_bytes_raw()
    assert key.key_id == "ed25519:" + hashlib.sha256(raw).hexdigest()[:32]


def test_a_key_is_made_once_and_kept_from_others(tmp_path):
    """Folder 0700, file 0600, unencrypted PKCS #8; the second call gives the same key."""
    key = PrivateKey.load_or_create(tmp_path / "home" / "keys")

    (path,) = (tmp_path / "home" / "keys").iterdir()
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert PrivateKey.load_or_create(path.parent).key_id == key.key_id
    assert PrivateKey.from_pem(path.read_bytes()).key_id == key.key_id


def test_a_key_does_not_show_its_secret(tmp_path):
    """Neither repr nor attributes print it."""
    key = PrivateKey.load_or_create(tmp_path / "keys")
    (path,) = (tmp_path / "keys").iterdir()
    secret = path.read_text().splitlines()[1]

    assert repr(key) == f"PrivateKey({key.key_id})"
    assert secret not in f"{key!r} {key} {key.public_pem!r}"


def _key_id(keys: Path) -> str:
    return PrivateKey.load_or_create(keys).key_id


def test_processes_that_start_at_once_have_one_key(tmp_path):
    """The first to write wins and the others take his key."""
    with ProcessPoolExecutor(8, mp_context=get_context("fork")) as pool:
        found = set(pool.map(_key_id, [tmp_path / "keys"] * 16))

    assert len(found) == 1
    assert len(list((tmp_path / "keys").iterdir())) == 1


@pytest.mark.parametrize(("what", "bits"), [("folder", 0o750), ("folder", 0o701), ("file", 0o640), ("file", 0o604)])
def test_a_key_that_others_may_read_is_refused(tmp_path, what, bits):
    """A loosened mode is not silently used, nor silently mended."""
    PrivateKey.load_or_create(tmp_path / "keys")
    (path,) = (tmp_path / "keys").iterdir()
    (path.parent if what == "folder" else path).chmod(bits)

    with pytest.raises(Refused, match=r"may be open to its owner only.*chmod go="):
        PrivateKey.load_or_create(tmp_path / "keys")


@pytest.mark.parametrize("kind", ["text", "link", "folder", "another kind"])
def test_a_key_file_that_is_no_key_is_refused(tmp_path, kind):
    """No other file is taken for the key, and none is overwritten."""
    PrivateKey.load_or_create(tmp_path / "keys")
    (path,) = (tmp_path / "keys").iterdir()
    if kind == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.unlink()
        path.mkdir(mode=0o700)
    elif kind == "another kind":
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    else:
        path.write_text("no key")

    with pytest.raises(Refused, match=r"signing\.pem can"):
        PrivateKey.load_or_create(tmp_path / "keys")


def test_an_absent_trust_folder_trusts_nobody(tmp_path, make_key):
    """There is no trust on first use; the refusal says whose key and what to do."""
    trust, key = TrustStore(tmp_path / "trust"), make_key(0)

    assert trust.signers() == ()
    with pytest.raises(BundleRefused, match=f"The signer {key.key_id} is not trusted here.*lightship trust add"):
        trust.signer(key.key_id)
    assert not (tmp_path / "trust").exists()


def test_added_signers_are_known_by_name(tmp_path, make_key):
    """Adding twice is fine; an own key is local; files are PEM that other tools read."""
    trust, ada, own = TrustStore(tmp_path / "trust"), make_key(0), make_key(1)

    added = [trust.add(ada.public_pem, "ada@example.org") for _ in range(2)]
    local = [trust.add_local(own) for _ in range(2)]

    assert added == [Signer(ada.key_id, "ada@example.org", local=False)] * 2
    assert local == [Signer(own.key_id, f"local-{own.key_id[8:16]}", local=True)] * 2
    assert trust.signers() == (added[0], local[0])
    assert (tmp_path / "trust" / "ada@example.org.pem").read_bytes() == ada.public_pem


def test_a_removed_signer_is_not_trusted_any_longer(tmp_path, make_key):
    """The folder is the truth, at once."""
    trust, key = TrustStore(tmp_path / "trust"), make_key(0)
    trust.add(key.public_pem, "ada")
    trust.signer(key.key_id)
    (tmp_path / "trust" / "ada.pem").unlink()

    with pytest.raises(BundleRefused, match="is not trusted here"):
        trust.signer(key.key_id)


def test_a_name_and_a_key_belong_together(tmp_path, make_key):
    """Neither is given twice, so a name in a report means one key."""
    trust = TrustStore(tmp_path / "trust")
    trust.add(make_key(0).public_pem, "ada")

    for key, name in ((make_key(1), "ada"), (make_key(0), "bob")):
        with pytest.raises(Conflict, match="already trusts 'ada'"):
            trust.add(key.public_pem, name)
    assert len(trust.signers()) == 1


@pytest.mark.parametrize("name", ["", "../ada", ".ada", "a/b", "a b", "a\n", "local-1234", "a" * 101, "é"])
def test_a_name_is_a_file_name_and_nothing_else(tmp_path, make_key, name):
    """A name cannot leave the folder, hide, or claim to be local."""
    with pytest.raises(InvalidInput, match="A signer's name must have"):
        TrustStore(tmp_path / "trust").add(make_key(0).public_pem, name)
    assert not (tmp_path / "trust").exists()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        public_pem(ec.generate_private_key(ec.SECP256R1())),
        public_pem(x25519.X25519PrivateKey.generate()),
    ],
    ids=range(4),
)
def test_only_ed25519_public_keys_are_trusted(tmp_path, pem):
    """Other kinds of keys and other bytes are refused when they are added."""
    with pytest.raises(InvalidInput, match="The key of ada must be an Ed25519 public key"):
        TrustStore(tmp_path / "trust").add(pem, "ada")


@pytest.mark.parametrize(("what", "bits"), [("folder", 0o775), ("folder", 0o757), ("file", 0o664), ("file", 0o646)])
def test_trust_that_others_may_change_is_refused(tmp_path, make_key, what, bits):
    """If anybody may add a signer, no signer means anything."""
    trust, key = TrustStore(tmp_path / "trust"), make_key(0)
    trust.add(key.public_pem, "ada")
    (tmp_path / "trust" / ("ada.pem" if what == "file" else "")).chmod(bits)

    with pytest.raises(BundleRefused, match=r"may be changed by its owner only.*chmod go-w"):
        trust.signer(key.key_id)


def test_a_trust_folder_is_made_with_safe_modes_under_any_umask(tmp_path, make_key):
    """A group-friendly umask does not make a folder that is refused afterwards."""
    before = os.umask(0o002)
    try:
        TrustStore(tmp_path / "trust").add(make_key(0).public_pem, "ada")
    finally:
        os.umask(before)

    assert mode(tmp_path / "trust") == 0o755
    assert len(TrustStore(tmp_path / "trust").signers()) == 1


@pytest.mark.parametrize("kind", ["text", "private key", "link", "folder"])
def test_a_file_that_is_no_public_key_is_refused(tmp_path, make_key, kind):
    """A trust folder holds public keys; anything else called .pem is named, not skipped."""
    trust, key = TrustStore(tmp_path / "trust"), make_key(0)
    trust.add(key.public_pem, "ada")
    odd = tmp_path / "trust" / "odd.pem"
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(key.public_pem)
        odd.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.write_bytes(b"no key" if kind == "text" else key._to_pem())

    with pytest.raises(BundleRefused, match=r"odd\.pem .*Mend or remove it"):
        trust.signer(key.key_id)


def test_verify_says_who_signed(tmp_path, make_key, stranger):
    """A right signature gives the signer; other bytes, another key and an unknown key are refused."""
    trust, ada, bob = TrustStore(tmp_path / "trust"), make_key(0), make_key(1)
    trust.add(ada.public_pem, "ada")
    trust.add(bob.public_pem, "bob")
    signature = ada.sign(b"message")

    assert trust.verify(b"message", signature, key_id=ada.key_id, what="x").name == "ada"
    for message, key in ((b"Message", ada), (b"message", bob)):
        with pytest.raises(BundleRefused, match=r"^x: the signature is not one of (ada|bob)"):
            trust.verify(message, signature, key_id=key.key_id, what="x")
    with pytest.raises(BundleRefused, match=f"^x: The signer {stranger.key_id} is not trusted"):
        trust.verify(b"message", stranger.sign(b"message"), key_id=stranger.key_id, what="x")
