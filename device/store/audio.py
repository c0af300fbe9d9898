"""The sound of stored cycles: one FLAC a cycle beside the database, removed again by age and size."""

import glob
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np

from device.signal import INT24, SAMPLE_RATE, FloatArray
from device.store.database import StoreError
from device.store.database_file import close_to_others
from device.store.sealing import seal, unseal
from firmware_config.errors import RespSAMError
from firmware_config.files import PRIVATE, whole_file

AUDIO_SUFFIX: Final = ".flac"
SEALED_SUFFIX: Final = ".sealed"  # of an encrypted one
UNFINISHED: Final = ".part"  # of a file that kill -9 interrupted
OWNER: Final = "owner"  # the file in a session's folder with the mark of its writer
DAY_SECONDS: Final = 86_400.0
# A board without a clock battery starts in the past until the network sets the clock; such a file has no known age.
CLOCK_IS_SET: Final = 1_735_689_600.0  # 2025


class ForeignSoundError(RespSAMError):
    """Another session's sound is where this one's belongs."""


@dataclass(frozen=True, order=True)
class AudioFile:
    """A file of sound; sorted, the oldest comes first whatever its clock was."""

    session: int
    number: int
    path: Path
    bytes: int
    modified_at: float


class AudioStore:
    """24-bit mono FLAC at 16 kHz, `<database>-audio/<session>/<cycle>.flac`.

    A session's folder has the mark of its one writer, as its row has: another database with a session of the same
    number neither overwrites its sound nor deletes it.
    """

    def __init__(self, database: Path, owner: str = "", key: bytes | None = None) -> None:
        """`owner` is the mark of what is written; empty: nothing is marked. `key` encrypts it."""
        self.folder, self._owner, self._key = database.with_name(f"{database.name}-audio"), owner, key

    def path(self, session: int, number: int) -> Path:
        """The path of a cycle's sound, whether it exists or not."""
        plain = self.folder / str(session) / f"{number:06d}{AUDIO_SUFFIX}"
        sealed = plain.with_suffix(SEALED_SUFFIX)
        return sealed if sealed.exists() or (self._key is not None and not plain.exists()) else plain

    def owner(self, session: int) -> str:
        """The mark of a session's sound; empty without one."""
        try:
            return (self.folder / str(session) / OWNER).read_text(errors="replace")
        except OSError:
            return ""

    def belongs_to(self, session: int, owner: str) -> bool:
        """Whether a session's sound has this mark, or none."""
        return self.owner(session) in ("", owner)

    def last_session(self) -> int:
        """The highest number of a session's folder; 0 without one."""
        if not self.folder.is_dir():
            return 0
        return max((int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()), default=0)

    def keep(self, session: int, number: int, samples: FloatArray) -> None:
        """Write samples (n,) on the 24-bit grid; the file is on the disk when it returns, whole or not at all.

        Raises OSError, and ForeignSoundError where another writer's sound is.
        """
        import soundfile

        path = self.path(session, number)
        self._claim(path.parent)
        if path.exists():
            raise ForeignSoundError(f"{path}: there is sound already that is not of this session")
        encoded = BytesIO()
        # as integers: libraries scale floats differently
        whole = np.round(samples.astype(np.float64) * INT24).astype(np.int32) << 8
        soundfile.write(encoded, whole, SAMPLE_RATE, subtype="PCM_24", format="FLAC")
        with whole_file(path, path.with_suffix(UNFINISHED), PRIVATE) as unfinished:
            content = encoded.getvalue()
            unfinished.write_bytes(seal(content, self._key, _place(path)) if self._key else content)

    def _claim(self, folder: Path) -> None:
        """Make the session's folder with this writer's mark; ForeignSoundError when it has another mark."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        close_to_others(self.folder)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if self.owner(int(folder.name)) != self._owner:
                raise ForeignSoundError(f"{folder}: the sound of another session lies here") from None
            return
        if self._owner:
            (folder / OWNER).touch(PRIVATE)
            (folder / OWNER).write_text(self._owner)

    def discard(self, session: int, number: int) -> None:
        """Remove a cycle's sound if this writer wrote it."""
        if self.owner(session) == self._owner:
            with suppress(OSError):
                self.path(session, number).unlink()

    def read(self, session: int, number: int) -> FloatArray:
        """Samples (n,), bit for bit as judged.

        AudioError when the file is missing, damaged or locked with another key; StoreError without a key.
        """
        from device.capture.recording import read_audio

        path = self.path(session, number)
        if path.suffix != SEALED_SUFFIX:
            return read_audio(path)[0]
        return self._unsealed(path)

    def _unsealed(self, path: Path) -> FloatArray:
        import soundfile

        from device.capture.recording import AudioError

        if self._key is None:
            raise StoreError(f"{path}: encrypted; set store.audio_key to the file with its key")
        try:
            content = unseal(path.read_bytes(), self._key, _place(path))
        except (OSError, ValueError) as error:
            raise AudioError(f"{path}: cannot be read ({error})") from error
        return np.asarray(soundfile.read(BytesIO(content), dtype="float32")[0])

    def set_aside(self) -> list["AudioStore"]:
        """The sound of databases that were damaged and renamed."""
        asides = self.folder.parent.glob(f"{glob.escape(self.folder.name.removesuffix('-audio'))}.damaged-*-audio")
        return [AudioStore(folder.with_name(folder.name.removesuffix("-audio"))) for folder in asides]

    def surplus(self, now: float, days: float, megabytes: float) -> list[AudioFile]:
        """Files older than `days`, and the oldest ones above `megabytes` in all; `now` is seconds since 1970."""
        files = sorted(self.files())
        too_many = sum(file.bytes for file in files) - megabytes * 1e6
        surplus = []
        for file in files:
            known_age = file.modified_at >= CLOCK_IS_SET
            if too_many > 0 or (known_age and now - file.modified_at > days * DAY_SECONDS):
                surplus.append(file)
                too_many -= file.bytes
        return surplus

    def remove(self, files: Sequence[AudioFile]) -> None:
        """Remove files, and folders that become empty; a file that cannot be removed is tried again later."""
        for file in files:
            with suppress(OSError):
                file.path.unlink()
        for folder in {file.path.parent for file in files}:
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [OWNER]:
                    (folder / OWNER).unlink()
                folder.rmdir()

    def files(self, session: int | None = None) -> list[AudioFile]:
        """The files of one session, or of all; only files with names of this class."""
        found = []
        for path in self.folder.glob(f"{'*' if session is None else session}/*"):
            if (
                path.suffix in (AUDIO_SUFFIX, SEALED_SUFFIX, UNFINISHED)
                and path.stem.isdecimal()
                and path.parent.name.isdecimal()
            ):
                with suppress(FileNotFoundError):  # another process on the same store was faster
                    known = path.stat()
                    found.append(AudioFile(int(path.parent.name), int(path.stem), path, known.st_size, known.st_mtime))
        return found


def _place(path: Path) -> str:
    """`SESSION/CYCLE`: encrypted sound is valid in its place only."""
    return f"{path.parent.name}/{path.stem}"
