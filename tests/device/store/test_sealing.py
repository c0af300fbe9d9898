"""Encrypted sound, and what `wipe` leaves."""

import os
from pathlib import Path

import numpy as np
import pytest

from device.bundle import DEFAULT_BUNDLE, read_bundle
from device.capture.recording import AudioError
from device.console.archive import Archive
from device.signal import quantise
from device.store.audio import AudioStore
from device.store.database import StoreError
from device.store.exams import Exams
from device.store.sealing import KEY_BYTES, read_key
from device.store.wiping import wipe
from firmware_config.settings import StoreSettings, load_settings
from tests.device.conftest import Device, one_error
from tests.device.storing import settings_for

SOUND = quantise(np.random.default_rng(3).normal(0.0, 0.1, 16_000).astype(np.float32))


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box of its own for each test, with a key beside its state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    key = tmp_path / "audio.key"
    key.write_bytes(os.urandom(KEY_BYTES))
    key.chmod(0o600)
    return tmp_path


def settings(key: Path, **changes: object) -> StoreSettings:
    return load_settings(environment={}).store.model_copy(update={"audio_key": str(key), "audio": True, **changes})


def test_sealed_sound_opens_bit_for_bit_with_its_key_in_its_place_only(box: Path) -> None:
    key, file = read_key(settings(box / "audio.key")), box / "respsam.sqlite"
    sealed = AudioStore(file, "me", key)
    sealed.keep(1, 1, SOUND)
    sealed.keep(1, 2, SOUND)
    path = sealed.path(1, 1)
    assert path.suffix == ".sealed" and b"fLaC" not in path.read_bytes()
    assert np.array_equal(AudioStore(file, key=key).read(1, 1), SOUND)
    assert len(sealed.files()) == 2
    with pytest.raises(StoreError, match=r"set store\.audio_key"):
        AudioStore(file).read(1, 1)
    with pytest.raises(AudioError, match="another key"):
        AudioStore(file, key=os.urandom(KEY_BYTES)).read(1, 1)
    path.write_bytes(sealed.path(1, 2).read_bytes())
    with pytest.raises(AudioError, match="damaged"):
        sealed.read(1, 1)
    path.write_bytes(b"")
    with pytest.raises(AudioError, match="damaged"):
        sealed.read(1, 1)


def test_a_key_that_cannot_be_used_is_refused_by_name(box: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(StoreError) as caught:
            read_key(settings(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    key = box / "audio.key"
    assert "cannot be read" in refused(box / "nowhere")
    inside = load_settings(environment={}).store.file.parent / "audio.key"
    assert "keep it in another folder" in refused(inside)
    key.chmod(0o644)
    assert "everybody can read" in refused(key)
    key.write_bytes(b"short")
    assert "5 bytes" in refused(key)


def test_a_session_is_sealed_and_replayed_and_without_the_key_nothing_is_in_the_clear(
    respsam_device: Device, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__AUDIO", "true")
    monkeypatch.setenv("RESPSAM_STORE__AUDIO_KEY", str(box / "audio.key"))
    listen = ("listen", "--source", "demo", "--fast", "--seconds", "12")
    assert respsam_device(*listen).code == 0
    kept = [path for path in (box / "state").rglob("*") if path.suffix in (".flac", ".sealed")]
    assert kept and {path.suffix for path in kept} == {".sealed"}
    assert respsam_device("replay", 1).code == 0
    store, manifest = load_settings().store, read_bundle(DEFAULT_BUNDLE).manifest
    archive = Archive(store, Exams(store.file), manifest.front_end, manifest.site_rule)
    graded = next(int(path.stem) for path in kept)
    assert archive.sound(1, graded).startswith(b"RIFF")
    (box / "audio.key").unlink()
    with pytest.raises(StoreError, match="the key of the sound cannot be read"):
        archive.sound(1, graded)
    answer = respsam_device(*listen)
    assert answer.code == 0 and "the key of the sound cannot be read" in answer.error
    assert not list((box / "state").rglob("*.flac"))
    assert "the key of the sound cannot be read" in one_error(respsam_device("replay", 1))
    monkeypatch.delenv("RESPSAM_STORE__AUDIO_KEY")
    assert "set store.audio_key" in one_error(respsam_device("replay", 1))


def test_wipe_leaves_nothing_and_replaces_the_key(
    respsam_device: Device, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__AUDIO", "true")
    monkeypatch.setenv("RESPSAM_STORE__AUDIO_KEY", str(box / "audio.key"))
    assert respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12").code == 0
    folder = box / "state/respsam"
    (folder / "respsam.sqlite.damaged-1-audio/1").mkdir(parents=True)
    (folder / "respsam.sqlite.damaged-1-audio/1/000001.flac").write_bytes(b"sound")
    (folder / "bundles").mkdir()
    before = (box / "audio.key").read_bytes()
    assert "--yes" in one_error(respsam_device("wipe"))
    assert (folder / "respsam.sqlite").exists()
    answer = respsam_device("wipe", "--yes")
    assert answer.code == 0 and "the key of the sound was replaced" in answer.error
    assert [path.name for path in folder.iterdir()] == ["bundles"]
    after = (box / "audio.key").read_bytes()
    assert len(after) == KEY_BYTES and after != before
    assert (box / "audio.key").stat().st_mode & 0o077 == 0
    assert respsam_device("wipe", "--yes").code == 0


def test_wipe_takes_the_name_of_the_store_to_the_letter(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("box[1].sqlite", "box[1].sqlite-wal", "box1.sqlite", "box[1].sqlite.damaged-1"):
        (folder / name).write_bytes(b"x")
    assert wipe(settings_for(folder / "box[1].sqlite").store).files == 3
    assert [path.name for path in folder.iterdir()] == ["box1.sqlite"]


def test_expired_sound_goes_without_a_session_and_that_of_damaged_stores_too(
    respsam_device: Device, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__AUDIO", "true")
    assert respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12").code == 0
    folder = box / "state/respsam"
    aside = folder / "respsam.sqlite.damaged-1-audio/1/000001.flac"
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"sound")
    sounds = [*folder.rglob("*.flac")]
    assert respsam_device("wipe", "--expired").code == 0
    assert all(path.exists() for path in sounds)
    for path in sounds:
        os.utime(path, (path.stat().st_mtime - 40 * 86_400,) * 2)
    assert respsam_device("wipe", "--expired").code == 0
    assert not list(folder.rglob("*.flac"))
    assert "deleted" in respsam_device("sessions", "show", 1).out
