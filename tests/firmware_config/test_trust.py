"""Whose signature a box takes, and which keys it refuses."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from firmware_config.trust import Trust, TrustError, sign
from tests.firmware_config.keys import key_pair, write_keys

FILES = {"manifest.json": hashlib.sha256(b"{}").hexdigest(), "model.onnx": hashlib.sha256(b"model").hexdigest()}
BUNDLE = Path("mine.respsam")


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(TrustError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_key_nothing_has_to_be_signed(tmp_path: Path) -> None:
    assert Trust(tmp_path / "nowhere").require(BUNDLE, FILES, None) is None


def test_what_a_trusted_key_has_signed_is_taken_and_nothing_else(tmp_path: Path) -> None:
    trust, (private, public), (other, _) = (
        Trust(tmp_path / "trust"),
        key_pair(tmp_path, "one"),
        key_pair(tmp_path, "two"),
    )
    trust.add(public)
    signature = sign(FILES, private, 1000)
    taken = trust.require(BUNDLE, FILES, signature)
    assert taken is not None and taken.signed_at == 1000
    assert "not signed" in refused(lambda: trust.require(BUNDLE, FILES, None))
    assert "does not trust" in refused(lambda: trust.require(BUNDLE, FILES, sign(FILES, other, 1000)))
    without = {"model.onnx": FILES["model.onnx"]}
    for changed in ({**FILES, "model.onnx": "0" * 64}, {**FILES, "extra": "0" * 64}, without):
        assert "not as signed" in refused(partial(trust.require, BUNDLE, changed, signature))
    later = signature.replace(b"1000", b"2000")
    assert "not valid" in refused(lambda: trust.require(BUNDLE, FILES, later))
    assert "damaged" in refused(lambda: trust.require(BUNDLE, FILES, signature[:-9]))


def test_keys_are_rotated_and_revoked(tmp_path: Path) -> None:
    trust, old, new = Trust(tmp_path / "trust"), key_pair(tmp_path, "old"), key_pair(tmp_path, "new")
    first = trust.add(old[1])
    trust.add(new[1])
    for private, _ in (old, new):
        assert trust.require(BUNDLE, FILES, sign(FILES, private, 1)) is not None
    trust.remove(first.fingerprint[:6])
    assert "which was revoked" in refused(lambda: trust.require(BUNDLE, FILES, sign(FILES, old[0], 2)))
    assert trust.require(BUNDLE, FILES, sign(FILES, new[0], 2)) is not None
    assert "was revoked on this box" in refused(lambda: trust.add(old[1]))
    assert "is not one trusted key" in refused(lambda: trust.remove(first.fingerprint))
    trust.remove(next(key.fingerprint for key in trust.keys if not key.revoked))
    # with every key revoked the box is locked, not open
    assert "not signed" in refused(lambda: trust.require(BUNDLE, FILES, None))


def test_a_key_of_the_wrong_kind_is_refused_by_name(tmp_path: Path) -> None:
    trust = Trust(tmp_path / "trust")
    private, public = key_pair(tmp_path, "ed")
    assert "a private key" in refused(lambda: trust.add(private))
    assert "a public key" in refused(lambda: sign(FILES, public, 1))
    others = {"RSA": rsa.generate_private_key(65537, 2048), "EC": ec.generate_private_key(ec.SECP256R1())}
    for kind, key in others.items():
        wrong, wrong_public = write_keys(tmp_path, kind, key)
        assert f"a key of the kind {kind}, but signatures are Ed25519" in refused(partial(sign, FILES, wrong, 1))
        assert "Ed25519" in refused(partial(trust.add, wrong_public))
    locked = tmp_path / "locked.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    assert "locked by a password" in refused(lambda: sign(FILES, locked, 1))
    text = tmp_path / "text.pem"
    text.write_text("no key")
    assert "no private key in PEM" in refused(lambda: sign(FILES, text, 1))
    assert "no public key in PEM" in refused(lambda: trust.add(text))
    assert "cannot be read" in refused(lambda: trust.add(tmp_path / "nowhere"))
    assert trust.keys == []


def test_a_trusted_key_that_is_damaged_locks_the_box(tmp_path: Path) -> None:
    trust, (private, public) = Trust(tmp_path / "trust"), key_pair(tmp_path, "one")
    key = trust.add(public)
    (trust.folder / f"{key.fingerprint}.pem").write_text("damaged")
    assert "no public key in PEM" in refused(lambda: trust.require(BUNDLE, FILES, sign(FILES, private, 1)))
