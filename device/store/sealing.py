"""Kept sound, encrypted with AES-256-GCM; the key is a file outside of the store."""

import os
from pathlib import Path
from typing import Final

from device.store.database import StoreError
from firmware_config.files import write_atomically
from firmware_config.settings import StoreSettings

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MARK: Final = b"RSE1"
EVERYBODY: Final = 0o007
MAKE_KEY: Final = "make one with 'head -c 32 /dev/urandom > KEY; chmod 600 KEY'"


def read_key(settings: StoreSettings) -> bytes | None:
    """The key of the settings; None without one. StoreError when it cannot be used: nothing is stored then."""
    path = settings.key_file
    if path is None:
        return None
    if path.resolve().is_relative_to(settings.file.parent.resolve()):
        raise StoreError(f"{path}: the key lies beside the sound that it locks; keep it in another folder")
    try:
        key, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise StoreError(f"{path}: the key of the sound cannot be read ({error.strerror}); {MAKE_KEY}") from error
    if len(key) != KEY_BYTES:
        raise StoreError(f"{path}: {len(key)} bytes, but the key of the sound has {KEY_BYTES}; {MAKE_KEY}")
    if mode & EVERYBODY:
        raise StoreError(f"{path}: everybody can read the key of the sound; run 'chmod 600 {path}'")
    return key


def replace_key(path: Path) -> None:
    """Put a new key in place of the old one: what it locked cannot be read any more. Raises FileError."""
    before = os.umask(0o077)
    try:
        write_atomically(path, os.urandom(KEY_BYTES))
    finally:
        os.umask(before)


def seal(data: bytes, key: bytes, place: str) -> bytes:
    """Encrypt; `place` has to be the same to open it, so that no file can take another one's place."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    return MARK + nonce + AESGCM(key).encrypt(nonce, data, place.encode())


def unseal(sealed: bytes, key: bytes, place: str) -> bytes:
    """Decrypt what `seal` gave; ValueError when it is damaged, or the key or place is another one."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = sealed[len(MARK) : len(MARK) + NONCE_BYTES]
    try:
        return AESGCM(key).decrypt(nonce, sealed[len(MARK) + NONCE_BYTES :], place.encode())
    except (InvalidTag, ValueError):
        raise ValueError("damaged, or locked with another key") from None
