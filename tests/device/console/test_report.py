"""The report of an exam, also where there is little to report, and where no PDF can be made."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.console.picture import Stream, outline, png, still
from device.console.report import BROWSERS, PdfError, pdf, report
from device.console.visit import Visit
from device.signal import HOP_SAMPLES, FrontEnd
from tests.device.console.conftest import BLOCK, noise, summary_of
from tests.full_disk import mounted

MODEL = {"name": "m", "fingerprint": "ab" * 32, "cycle_threshold": 0.5, "site_threshold": 0.4, "stretch_cycles": 6}


def visited(flag: bool, picture: bytes) -> Visit:
    visit = Visit("", None, ("p1", "p3"), False, MODEL, id=3)
    visit.begin("p1")
    for number in range(1, 7):
        judged = {"probability": 0.1 * number, "class": "crackle" if flag else "normal", "flag": flag}
        cycle = {"number": number, "start": number, "end": number + 1, "reason": "", **judged}
        visit.add(cycle, summary_of(number, "nothing flagged" if number == 6 else ""), picture)
    visit.end(None, 1)
    return visit


def test_an_exam_without_flags_shows_its_strongest_breaths_and_what_is_missing() -> None:
    page = report(visited(False, b"PNG").document(), inline=True)
    assert "Strongest cycles; none is flagged" in page and page.count("<img") == 3
    assert "probability 0.60, not flagged" in page and "probability 0.30" not in page
    assert "not enough" in page and "not recorded" in page
    assert "<style>" in page and "<script" not in page


def test_an_exam_without_pictures_says_so() -> None:
    assert "There is no picture of a cycle" in report(visited(True, b"").document())


def test_a_box_without_chromium_says_how_to_get_a_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(PdfError, match="press Print on the report"):
        asyncio.run(pdf(visited(True, b"").document()))


def test_the_pdf_of_an_exam_without_flags_is_one_page() -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip("no chromium on this machine")
    picture = png(np.zeros((90, 32), np.uint8), scale=2)
    made = asyncio.run(pdf(visited(False, picture).document()))
    assert made.startswith(b"%PDF") and made.count(b"/Type /Page\n") == 1


@pytest.mark.parametrize("room", [20_000, 300_000])
def test_a_disk_without_room_gives_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip("no chromium on this machine")
    with mounted(tmp_path / "small", room):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
        with pytest.raises(PdfError, match="press Print on the report") as refusal:
            asyncio.run(pdf(visited(False, png(np.zeros((900, 64), np.uint8))).document()))
        assert len(str(refusal.value).splitlines()) == 1
        assert not list((tmp_path / "small").iterdir())


def test_the_picture_of_a_stream_does_not_depend_on_its_blocks() -> None:
    samples = np.concatenate([noise(number) for number in range(20)])

    def columns(length: int) -> Any:
        stream = Stream(FrontEnd(mels=32))
        pieces = [stream.add(at, samples[at : at + length]) for at in range(0, samples.size, length)]
        assert all(first == sum(len(piece) for _, piece in pieces[:n]) for n, (first, _) in enumerate(pieces))
        return np.concatenate([piece for _, piece in pieces])

    assert columns(BLOCK).shape == columns(777).shape == still(samples, FrontEnd(mels=32)).shape == (198, 32)


def test_the_outline_has_each_peak() -> None:
    samples = np.zeros(3 * HOP_SAMPLES + 1, np.float32)
    samples[HOP_SAMPLES + 5], samples[2 * HOP_SAMPLES] = 0.5, -0.25
    assert outline(samples).tolist() == [[0.0, 0.0], [0.0, 0.5], [-0.25, 0.0], [0.0, 0.0]]


def test_a_picture_is_a_png() -> None:
    assert png(np.zeros((7, 5), np.uint8), scale=2).startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x07\0\0\0\x0a")
