"""Keys for tests of trust."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A new Ed25519 key: the files of its private and its public half."""
    return write_keys(folder, name, Ed25519PrivateKey.generate())


def write_keys(folder: Path, name: str, key: Any) -> tuple[Path, Path]:
    """The files of the private and the public half of a key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
