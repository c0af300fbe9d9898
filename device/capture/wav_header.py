"""The header of a wav against the length of the file: recorders stream, are killed, and count wrong."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

RIFF_SIZES: Final = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<"}  # magic -> byte order
SAMPLE_FORMATS: Final = frozenset(
    {1, 3, 6, 7, 0xFFFE}
)  # PCM, float, A-law, mu-law, extensible: a frame has a fixed size
PLACEHOLDER_SLACK: Final = 1 << 16  # writers to a pipe (SoX, arecord, ffmpeg) put sizes so near to 2 or 4 GiB
SLOPPY_SECONDS: Final = 0.01  # less than this is a wrong count, not lost sound
SLOPPY_BYTES: Final = 8  # writers count the head of the file, or not, and leave out a pad byte
MOST_CHUNKS: Final = 1000
WHOLE_U32: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class WavHeader:
    """Where the samples of a wav are, and how many bytes the header promises."""

    order: str
    format: bytes
    """The body of the chunk `fmt `."""
    start: int
    """Of the samples, in bytes from the file's begin."""
    promised: int
    """Bytes of samples by the chunk `data`."""
    file_bytes: int
    riff_whole: bool
    """Whether the file has the length that the RIFF header gives."""

    @property
    def tag(self) -> int:
        """Encoding of a sample."""
        return int(struct.unpack(f"{self.order}H", self.format[:2])[0])

    @property
    def frame_bytes(self) -> int:
        """Of one sample of every channel; at least 1."""
        return max(1, int(struct.unpack(f"{self.order}H", self.format[12:14])[0]))

    @property
    def bytes_per_second(self) -> int:
        """By sample rate and frame, as the header's own rate of bytes may be wrong; at least 1."""
        return max(1, self.frame_bytes * int(struct.unpack(f"{self.order}I", self.format[4:8])[0]))

    @property
    def there(self) -> int:
        """Bytes from the samples' start to the file's end."""
        return self.file_bytes - self.start

    @property
    def streamed(self) -> bool:
        """Whether the size is the placeholder of a writer that cannot seek back."""
        return any(abs(self.promised - size) <= PLACEHOLDER_SLACK for size in (1 << 31, WHOLE_U32))

    @property
    def seconds_there(self) -> float:
        """Seconds of sound in the file."""
        return min(self.there, self.promised) / self.bytes_per_second

    @property
    def seconds_missing(self) -> float:
        """Seconds of sound that are promised and missing; 0 if only the header is wrong."""
        missing = self.promised - self.there
        if missing <= 0 or self.streamed or self.riff_whole:
            return 0.0
        seconds = missing / self.bytes_per_second
        return seconds if seconds > SLOPPY_SECONDS else 0.0


def read_wav_header(path: Path) -> WavHeader | None:
    """The header; None if the file is no wav or its chunks are damaged, which libsndfile then reports."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic, length, form = file.read(4), file.read(4), file.read(4)
        order = RIFF_SIZES.get(magic)
        if order is None or form != b"WAVE":
            return None
        riff = struct.unpack(f"{order}I", length)[0]
        format_chunk, long_size = b"", None
        for name, start, promised in _chunks(file, order, 12, size):
            if name == b"fmt ":
                format_chunk = _body(file, start, min(promised, 1024))
            elif name == b"ds64" and promised >= 16:
                riff, long_size = struct.unpack("<QQ", _body(file, start, 16))
            elif name == b"data":
                if long_size is not None and promised == WHOLE_U32:
                    promised = long_size
                riff_whole = abs(riff + 8 - size) <= SLOPPY_BYTES
                return WavHeader(order, format_chunk, start, promised, size, riff_whole) if format_chunk[15:] else None
    return None


def _chunks(file: BinaryIO, order: str, position: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the body and size of each chunk, as far as their heads lie in the file."""
    for _ in range(MOST_CHUNKS):
        head = _body(file, position, 8)
        if len(head) < 8 or position > size:
            return
        name, length = head[:4], struct.unpack(f"{order}I", head[4:])[0]
        yield name, position + 8, length
        position += 8 + length + length % 2


def _body(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def unfinished(path: Path, header: WavHeader) -> bool:
    """Whether the recorder never wrote the length, though samples follow: it was killed or streams."""
    if header.promised or header.there < header.frame_bytes or header.tag not in SAMPLE_FORMATS:
        return False
    with path.open("rb") as file:
        chunks = list(_chunks(file, header.order, header.start, header.file_bytes))
    # an empty `data` may also be followed by other chunks, which end where the file ends
    if not chunks or not all(name.isascii() and name.decode().isprintable() for name, _, _ in chunks):
        return True
    _, start, length = chunks[-1]
    return not 0 <= header.file_bytes - start - length <= 1


class Mended(io.RawIOBase):
    """The file behind a new header that counts all its samples, for reading; it may be of any length."""

    def __init__(self, path: Path, header: WavHeader) -> None:
        self._file = path.open("rb")
        self._start, self._length = header.start, header.there - header.there % header.frame_bytes
        self._head = _rf64_head(header, self._length) if header.order == "<" else _rifx_head(header, self._length)
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the begin of the new header."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._head) + self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        """The next bytes of the header, or of the samples."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        if self._position < len(self._head):
            piece = self._head[self._position : self._position + len(view)]
        else:
            inside = self._position - len(self._head)
            piece = _body(self._file, self._start + inside, max(0, min(len(view), self._length - inside)))
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _rf64_head(header: WavHeader, length: int) -> bytes:
    """Header by EBU Tech 3306, with sizes of 64 bits."""
    body = struct.pack("<4sI", b"fmt ", len(header.format)) + header.format + struct.pack("<4sI", b"data", WHOLE_U32)
    sizes = struct.pack("<QQQI", 4 + 36 + len(body) + length, length, length // header.frame_bytes, 0)
    return struct.pack("<4sI4s4sI", b"RF64", WHOLE_U32, b"WAVE", b"ds64", len(sizes)) + sizes + body


def _rifx_head(header: WavHeader, length: int) -> bytes:
    length = min(length, WHOLE_U32 - 1024 - len(header.format))
    body = struct.pack(">4sI", b"fmt ", len(header.format)) + header.format + struct.pack(">4sI", b"data", length)
    return struct.pack(">4sI4s", b"RIFX", 4 + len(body) + length, b"WAVE") + body
