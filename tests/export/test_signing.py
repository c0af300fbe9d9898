"""`sign` and `offer`: what a box that trusts the key takes."""

import json
from pathlib import Path

from device.bundle import MANIFEST, pack, read_bundle
from firmware_config.trust import SIGNATURE, Trust
from tests.conftest import RunCli
from tests.device.bundle_maker import make_bundle
from tests.firmware_config.keys import key_pair


def test_a_folder_and_an_archive_are_signed_in_place(run_cli: RunCli, tmp_path: Path) -> None:
    folder, archive = make_bundle(tmp_path / "mine"), tmp_path / "mine.respsam"
    pack(folder, archive)
    private, public = key_pair(tmp_path, "key")
    trust = Trust(tmp_path / "trust")
    trust.add(public)
    before = (folder / MANIFEST).read_bytes()
    for bundle in (folder, archive):
        done = run_cli("export", "sign", bundle, "--key", private)
        assert done.returncode == 0 and trust.keys[0].fingerprint in done.stdout
        opened = read_bundle(bundle)
        assert opened.require_trust(trust) is not None
        assert opened.fingerprint == read_bundle(folder).fingerprint
        assert set(opened.contents()) == {MANIFEST, SIGNATURE, "model.onnx", "model.int8.cpu.onnx"}
    assert (folder / MANIFEST).read_bytes() == before


def test_a_key_or_bundle_that_cannot_be_used_is_one_line_and_changes_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "mine")
    private, public = key_pair(tmp_path, "key")
    for bundle, key, why in ((folder, public, "a public key"), (tmp_path / "none", private, "no bundle here")):
        done = run_cli("export", "sign", bundle, "--key", key)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and why in line
    assert not (folder / SIGNATURE).exists()


def test_an_offer_is_a_copy_and_a_list_of_rings(run_cli: RunCli, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "mine")
    done = run_cli("export", "offer", folder, "--to", tmp_path / "shared", "--ring", "box-1", "--ring", "box-2, box-3")
    assert done.returncode == 0 and "in 2 rings" in done.stdout
    rollout = json.loads((tmp_path / "shared/rollout.json").read_text())
    assert rollout["rings"] == [["box-1"], ["box-2", "box-3"]]
    assert read_bundle(tmp_path / "shared" / rollout["bundle"]).fingerprint == rollout["fingerprint"]
