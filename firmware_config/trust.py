"""Who may change a box's model: Ed25519 keys, the signature of a bundle, and what a box trusts.

A folder holds the trusted public keys, one PEM file each. A key that was removed stays there as revoked. Without any
key nothing has to be signed.
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firmware_config.errors import RespSAMError
from firmware_config.files import FileError, sync, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE: Final = "manifest.sig"
PURPOSE: Final = "respsam bundle 1"  # part of what is signed: the key may sign other things too
TRUSTED: Final = ".pem"
REVOKED: Final = ".revoked"
SHORT: Final = 16  # characters of a key's fingerprint
MAKE_KEY: Final = "make one with 'openssl genpkey -algorithm ed25519 -out KEY'"
PUBLIC_HALF: Final = "'openssl pkey -in KEY -pubout -out KEY.pub'"


class TrustError(RespSAMError):
    """A key that cannot be used, or content that no trusted key has signed."""


class Signature(BaseModel):
    """The content of `manifest.sig`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    key: str = Field(pattern=r"^[0-9a-f]+$")
    """Fingerprint of the public key."""
    signed_at: int = Field(ge=0)
    """Seconds since 1970 by the signer's clock; a box takes nothing that was signed earlier than its newest bundle."""
    files: dict[str, str]
    """sha256 of every file but this one."""
    signature: str
    """Ed25519, base64, of all above."""

    @property
    def message(self) -> bytes:
        """The signed bytes."""
        signed = {"purpose": PURPOSE, **self.model_dump(exclude={"signature"})}
        return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Key:
    """A key that a box knows."""

    fingerprint: str
    revoked: bool


def fingerprint_of(public: "Ed25519PublicKey") -> str:
    """The first digits of the SHA-256 of a public key."""
    import hashlib

    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:SHORT]


def sign(files: Mapping[str, str], key: Path, signed_at: int) -> bytes:
    """The content of `manifest.sig` for files (name to sha256); TrustError when `key` is no private Ed25519 key."""
    private = _private_key(key)
    unsigned = Signature(key=fingerprint_of(private.public_key()), signed_at=signed_at, files=dict(files), signature="")
    signature = base64.b64encode(private.sign(unsigned.message)).decode()
    return unsigned.model_copy(update={"signature": signature}).model_dump_json(indent=1).encode() + b"\n"


class Trust:
    """The keys that a box trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def keys(self) -> list[Key]:
        """All keys, revoked ones too; [] where nobody has added one. TrustError when the folder cannot be read."""
        try:
            found = sorted(path for path in self.folder.iterdir() if path.suffix in (TRUSTED, REVOKED))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TrustError(f"{self.folder}: the trusted keys cannot be read ({error.strerror})") from error
        return [Key(path.stem, path.suffix == REVOKED) for path in found]

    def add(self, key: Path) -> Key:
        """Trust a public key; TrustError when it is of another kind or was revoked, FileError on a full disk."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = _public_key(key)
        known = Key(fingerprint_of(public), revoked=False)
        if Key(known.fingerprint, revoked=True) in self.keys:
            raise TrustError(f"{key}: key {known.fingerprint} was revoked on this box; sign with a new key")
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        file = self.folder / f"{known.fingerprint}{TRUSTED}"
        write_atomically(file, pem)
        with suppress(OSError):
            file.chmod(0o644)  # root's umask must not hide it from the service
        return known

    def remove(self, fingerprint: str) -> Key:
        """Revoke a key for good; TrustError when it is not trusted."""
        found = [key for key in self.keys if not key.revoked and key.fingerprint.startswith(fingerprint)]
        if len(found) != 1:
            trusted = ", ".join(key.fingerprint for key in self.keys if not key.revoked) or "none"
            raise TrustError(f"{fingerprint!r} is not one trusted key; trusted: {trusted}")
        path = self.folder / found[0].fingerprint
        try:
            path.with_suffix(TRUSTED).rename(path.with_suffix(REVOKED))
            sync(self.folder)
        except OSError as error:
            raise FileError(f"{path}{TRUSTED}: cannot be revoked ({error.strerror}); run it as the owner") from error
        return Key(found[0].fingerprint, revoked=True)

    def require(self, what: Path, files: Mapping[str, str], signature: bytes | None) -> Signature | None:
        """The valid signature of `files` (name to sha256); None where no key was ever added. TrustError otherwise."""
        keys = {key.fingerprint: key for key in self.keys}
        if not keys:
            return None
        if signature is None:
            raise TrustError(
                f"{what}: not signed, and this box takes signed bundles only; sign it with 'respsam-export sign {what} "
                "--key KEY'"
            )
        stated = _stated(what, signature)
        if stated.key not in keys:
            raise TrustError(f"{what}: signed by key {stated.key}, which this box does not trust")
        if keys[stated.key].revoked:
            raise TrustError(f"{what}: signed by key {stated.key}, which was revoked; sign it with a key in use")
        self._verify(what, stated)
        changed = sorted(name for name in {*files, *stated.files} if files.get(name) != stated.files.get(name))
        if changed:
            raise TrustError(f"{what}: {', '.join(changed)}: not as signed; it was changed or damaged, copy it again")
        return stated

    def _verify(self, what: Path, stated: Signature) -> None:
        from cryptography.exceptions import InvalidSignature

        public = _public_key(self.folder / f"{stated.key}{TRUSTED}")
        try:
            public.verify(base64.b64decode(stated.signature), stated.message)
        except (InvalidSignature, ValueError):
            raise TrustError(f"{what}: {SIGNATURE} is not valid; it was changed or damaged, copy it again") from None


def _stated(what: Path, signature: bytes) -> Signature:
    try:
        return Signature.model_validate_json(signature)
    except ValidationError as error:
        raise TrustError(f"{what}: {SIGNATURE} is damaged; copy the bundle again or sign it again") from error


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _key_bytes(path)
    if b"PUBLIC KEY" in data:
        raise TrustError(f"{path}: a public key; to sign give the private one")
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise TrustError(f"{path}: locked by a password; open it with 'openssl pkey -in KEY -out OPEN'") from None
    except Exception as error:  # cryptography has its own error for each reason
        raise TrustError(f"{path}: no private key in PEM; {MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path}: {_kind(key)}, but signatures are Ed25519; {MAKE_KEY}")
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _key_bytes(path)
    if b"PRIVATE KEY" in data:
        raise TrustError(f"{path}: a private key; a box gets its public half only: {PUBLIC_HALF}")
    try:
        key = load_pem_public_key(data)
    except Exception as error:  # cryptography has its own error for each reason
        raise TrustError(f"{path}: no public key in PEM; write one with {PUBLIC_HALF}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{path}: {_kind(key)}, but signatures are Ed25519; {MAKE_KEY}")
    return key


def _key_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path}: the key cannot be read ({error.strerror})") from error


def _kind(key: Any) -> str:
    return f"a key of the kind {type(key).__name__.removesuffix('PrivateKey').removesuffix('PublicKey').strip('_')}"
