"""The sound of stored cycles: one FLAC a cycle beside the database, removed again by age and size."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from device.signal import INT24, SAMPLE_RATE, FloatArray
from device.store.file import close_to_others
from firmware_config.errors import RespSAMError

SUFFIX = ".flac"
UNFINISHED = ".part"  # what kill -9 may leave
OWNER = "owner"  # the file in a session's folder that says whose sound it is
DAY_SECONDS = 86_400.0
# A board without a battery begins in the past until the network sets its clock; the age of such a file is unknown.
CLOCK_IS_SET = 1_735_689_600.0  # 2025


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class ForeignSoundError(RespSAMError):
    """Another session's sound lies where this one's belongs."""


@dataclass(frozen=True, order=True)
class Kept:
    """One file; in order, the oldest comes first whatever the clock said."""

    session: int
    number: int
    path: Path
    bytes: int
    modified_at: float


class AudioStore:
    """24-bit mono FLAC at 16 kHz, `<database>-audio/<session>/<cycle>.flac`.

    A session's folder bears the mark of its one writer, as its row does: a database that is replaced by another one
    with the same number neither writes over its sound nor deletes it.
    """

    def __init__(self, database: Path, owner: str = "") -> None:
        """`owner` marks what is written; without one nothing is marked."""
        self.folder, self._owner = database.with_name(f"{database.name}-audio"), owner

    def path(self, session: int, number: int) -> Path:
        """Where a cycle's sound is, or would be."""
        return self.folder / str(session) / f"{number:06d}{SUFFIX}"

    def owner(self, session: int) -> str:
        """The mark of a session's sound; empty where there is none."""
        try:
            return (self.folder / str(session) / OWNER).read_text(errors="replace")
        except OSError:
            return ""

    def belongs_to(self, session: int, owner: str) -> bool:
        """Whether a session's sound is that of the writer with this mark; sound without a mark is anybody's."""
        return self.owner(session) in ("", owner)

    def last_session(self) -> int:
        """The highest number that a session's folder has; 0 without any."""
        if not self.folder.is_dir():
            return 0
        return max((int(one.name) for one in self.folder.iterdir() if one.name.isdecimal()), default=0)

    def keep(self, session: int, number: int, samples: FloatArray) -> None:
        """Samples (n,) on the 24-bit grid; on the disk when it returns, whole or not at all.

        Raises OSError, and ForeignSoundError rather than writing over what is not this writer's.
        """
        import soundfile

        path = self.path(session, number)
        self._claim(path.parent)
        if path.exists():
            raise ForeignSoundError(f"{path}: there is sound already that is not of this session")
        encoded = BytesIO()
        # as integers: how floats are scaled is the library's affair
        whole = np.round(samples.astype(np.float64) * INT24).astype(np.int32) << 8
        soundfile.write(encoded, whole, SAMPLE_RATE, subtype="PCM_24", format="FLAC")
        unfinished = path.with_suffix(UNFINISHED)
        try:
            with open(unfinished, "wb", opener=_private) as file:
                file.write(encoded.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            # the rename itself: a row must not outlive its file
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise

    def _claim(self, folder: Path) -> None:
        """The session's folder, with this writer's mark in it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        close_to_others(self.folder)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if self.owner(int(folder.name)) != self._owner:
                raise ForeignSoundError(f"{folder}: the sound of another session lies here") from None
            return
        if self._owner:
            with open(folder / OWNER, "w", opener=_private) as file:
                file.write(self._owner)

    def discard(self, session: int, number: int) -> None:
        """A cycle's sound, when this writer has kept it."""
        if self.owner(session) == self._owner:
            with suppress(OSError):
                self.path(session, number).unlink()

    def read(self, session: int, number: int) -> FloatArray:
        """Samples (n,), bit for bit as they were judged; AudioError when the file is missing or damaged."""
        from device.capture.recording import read_audio

        return read_audio(self.path(session, number))[0]

    def surplus(self, now: float, days: float, megabytes: float) -> list[Kept]:
        """What is too old, and the oldest of what is too much."""
        kept = sorted(self.kept())
        too_many = sum(one.bytes for one in kept) - megabytes * 1e6
        surplus = []
        for one in kept:
            known_age = one.modified_at >= CLOCK_IS_SET
            if too_many > 0 or (known_age and now - one.modified_at > days * DAY_SECONDS):
                surplus.append(one)
                too_many -= one.bytes
        return surplus

    def remove(self, kept: Iterable[Kept]) -> None:
        """These files, and folders that become empty; what cannot be removed is tried again the next time."""
        files = list(kept)
        for one in files:
            with suppress(OSError):
                one.path.unlink()
        for folder in {one.path.parent for one in files}:
            with suppress(OSError):
                if [one.name for one in folder.iterdir()] == [OWNER]:
                    (folder / OWNER).unlink()
                folder.rmdir()

    def kept(self, session: int | None = None) -> list[Kept]:
        """The files of one session, or of all; only what this class has named itself."""
        found = []
        for path in self.folder.glob(f"{'*' if session is None else session}/*"):
            if path.suffix in (SUFFIX, UNFINISHED) and path.stem.isdecimal() and path.parent.name.isdecimal():
                with suppress(FileNotFoundError):  # another device on the same store was faster
                    known = path.stat()
                    found.append(Kept(int(path.parent.name), int(path.stem), path, known.st_size, known.st_mtime))
        return found
