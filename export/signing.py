"""Signing a bundle for boxes that trust the key, and offering it to them."""

import time
from collections.abc import Sequence
from pathlib import Path

from device.bundle import ARCHIVE_SUFFIX, Bundle, pack_files
from device.updates import ROLLOUT, Rollout
from firmware_config.files import replacing, write_atomically
from firmware_config.trust import SIGNATURE, Signature, sign


def sign_bundle(bundle: Bundle, key: Path) -> str:
    """Add the signature of all files, or replace it; the key's fingerprint.

    After a BundleError, TrustError or FileError the bundle is as it was.
    """
    contents = bundle.contents()
    signature = sign(bundle.hashes(), key, round(time.time()))
    if bundle.path.is_dir():
        write_atomically(bundle.path / SIGNATURE, signature)
    else:
        with replacing(bundle.path) as partial:
            pack_files({**contents, SIGNATURE: signature}, partial)
    return Signature.model_validate_json(signature).key


def offer(bundle: Bundle, folder: Path, rings: Sequence[Sequence[str]]) -> Path:
    """Copy a bundle into the folder that boxes poll, then name it in `rollout.json`; the copy's path.

    Bundles that were offered earlier stay, because a box may be reading one. Raises FileError.
    """
    copy = folder / f"{bundle.fingerprint[:12]}{ARCHIVE_SUFFIX}"
    with replacing(copy) as partial:
        pack_files(bundle.contents(), partial)
    rollout = Rollout(bundle=copy.name, fingerprint=bundle.fingerprint, rings=tuple(map(tuple, rings)))
    write_atomically(folder / ROLLOUT, rollout.model_dump_json(indent=1) + "\n")
    return copy
