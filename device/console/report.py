"""The report of an exam: one page of HTML, and the same page as PDF by the Chromium of this machine."""

import asyncio
import os
import shutil
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from device.console.chest import SITES
from device.console.markup import Markup, element, joined
from device.console.visit import threshold_of
from device.verdict.population import NOT_VALIDATED
from device.verdict.summary import ACCOUNT
from firmware_config.command_line import counted
from firmware_config.errors import RespSAMError

STATIC: Final = Path(__file__).with_name("static")
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
PDF_SECONDS: Final = 60.0
ROOM_BYTES: Final = 20_000_000  # a profile of Chromium, the page and its PDF
PDF_END: Final = b"%%EOF"
PRINT: Final = "press Print on the report and choose 'Save as PDF'"
MARKS: Final = {"flagged": "▲", "nothing flagged": "✓", "not enough": "…", "poor quality": "?", None: "·"}
CLASSES: Final = {verdict: (verdict or "missing").replace(" ", "-") for verdict in MARKS}
NOTICE: Final = (
    "This is a screening aid, not a diagnosis and not a medical device. Nobody has certified it. "
    "A clinician has to listen to this chest before anything is decided."
)


class PdfError(RespSAMError):
    """A report that cannot become a PDF here."""


def report(document: dict[str, Any], *, inline: bool = False) -> str:
    """The page of an exam; `inline` puts the style into it, so that it stands alone."""
    css = (STATIC / "report.css").read_text()
    style = element("style", Markup(css)) if inline else Markup('<link rel="stylesheet" href="/static/report.css">')
    head = joined(
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", f"Exam {document['id']}"),
        style,
        *([] if inline else [Markup('<script type="module" src="/static/report.js"></script>')]),
    )
    body = element("main", *(part for part in _parts(document, inline) if part))
    return f'<!doctype html><html lang="en">{element("head", head)}{element("body", body)}</html>'


def _parts(document: dict[str, Any], inline: bool) -> list[Markup]:
    return [
        Markup("") if inline else _tools(document["id"]),
        element("p", "DEMO: simulated sound, no patient", class_="demo") if document["demo"] else Markup(""),
        _heading(document),
        _verdict(document),
        element("section", element("h2", "Sites"), element("div", _map(document), _sites(document), class_="sites")),
        _evidence(document),
        _account(document),
        element("p", NOTICE, class_="notice"),
    ]


def _tools(number: int) -> Markup:
    return element(
        "nav",
        element("a", "‹ History", href="/history"),
        element("button", "Print", id="print", type="button"),
        _download(number, "PDF", "pdf"),
        _download(number, "FHIR", "fhir.json"),
        class_="tools",
    )


def _download(number: int, name: str, suffix: str) -> Markup:
    file = f"exam-{number}.{suffix}"
    return element("a", name, href=f"/exams/{number}/report.{suffix}", class_="made", data_name=file)


def _heading(document: dict[str, Any]) -> Markup:
    age = document["age_years"]
    facts = (
        ("subject", document["subject"] or "not given"),
        ("age", "not given" if age is None else f"{age:g} years"),
        ("date", datetime.fromtimestamp(document["started_at"]).strftime("%Y-%m-%d %H:%M")),
        ("exam", str(document["id"])),
    )
    listed = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    return element("header", element("h1", "Lung sound screening"), element("dl", *listed))


def _verdict(document: dict[str, Any]) -> Markup:
    verdict, doubts = document["verdict"], document["not_validated"]
    words = element("p", f"{MARKS[verdict]} {verdict}", class_=f"verdict {CLASSES[verdict]}")
    doubt = element("p", f"{NOT_VALIDATED}: {'; '.join(doubts)}", class_="doubt") if doubts else Markup("")
    return element("section", words, doubt)


def _map(document: dict[str, Any]) -> Markup:
    torso = Markup((STATIC / "torso.svg").read_text().strip())
    faces = []
    for face in ("front", "back"):
        marks = [_mark(code, site) for code, site in document["sites"].items() if SITES[code].face == face]
        if marks:
            faces.append(element("figure", _layered(torso, marks), element("figcaption", face)))
    return element("div", *faces, class_="map")


def _layered(torso: Markup, marks: list[Markup]) -> Markup:
    return Markup(torso.replace("</svg>", f"{joined(*marks)}</svg>"))


def _mark(code: str, site: dict[str, Any]) -> Markup:
    place = SITES[code]
    at = {"cx": place.x * 2, "cy": place.y * 2.4, "r": 17.0}
    circle = element("circle", class_=CLASSES[site["verdict"]], **at)
    text = element("text", MARKS[site["verdict"]], x=place.x * 2, y=place.y * 2.4 + 6, text_anchor="middle")
    return element("g", element("title", f"{site['words']}: {site['verdict'] or 'not recorded'}"), circle, text)


def _sites(document: dict[str, Any]) -> Markup:
    names = ("site", "verdict", "good breaths", "a minute")
    rows = [_row(site) for site in document["sites"].values()]
    return element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in names))),
        element("tbody", *rows),
    )


def _row(site: dict[str, Any]) -> Markup:
    summary, verdict = site["summary"] or {}, site["verdict"]
    rate = summary.get("breaths_per_minute")
    breaths = f"{summary['gradable']}, {summary['flagged']} flagged" if summary else "-"
    words = element("strong", f"{MARKS[verdict]} {verdict or 'not recorded'}", class_=CLASSES[verdict])
    return element(
        "tr",
        element("th", site["words"], scope="row"),
        element("td", words, element("div", "; ".join(site["reasons"]))),
        element("td", breaths),
        element("td", "-" if rate is None else f"{rate:.0f}"),
    )


def _evidence(document: dict[str, Any]) -> Markup:
    found = document["evidence"]
    if not found:
        return element("p", "There is no picture of a cycle.")
    title = "Strongest cycles" if any(one["cycle"]["flag"] for one in found) else "Strongest cycles; none is flagged"
    return element("section", element("h2", title), element("div", *map(_figure, found), class_="evidence"))


def _figure(one: dict[str, Any]) -> Markup:
    cycle = one["cycle"]
    what = f"{one['words']}, {cycle['start']:.1f}-{cycle['end']:.1f} s: {cycle['class']}"
    picture = Markup(element("img", src=one["picture"], alt=f"Spectrogram, {what}").removesuffix("</img>"))
    flag = "flagged" if cycle["flag"] else "not flagged"
    return element("figure", picture, element("figcaption", f"{what}, probability {cycle['probability']:.2f}, {flag}"))


def _account(document: dict[str, Any]) -> Markup:
    sites = [site for site in document["sites"].values() if site["summary"]]
    summaries = [site["summary"] for site in sites]
    seconds = {name: sum(summary["seconds"][name] for summary in summaries) for name in ACCOUNT}
    cycles, flagged = (sum(summary[name] for summary in summaries) for name in ("gradable", "flagged"))
    model = document["model"]
    thresholds = sorted({f"{threshold_of(site, model):.2f}" for site in sites} or {f"{model['site_threshold']:.2f}"})
    lines = (
        f"{counted(cycles, 'graded cycle')}, {flagged} flagged; "
        + ", ".join(f"{value:.0f} s {name}" for name, value in seconds.items()),
        f"Model {model['name']} ({model['fingerprint'][:12]}); a cycle is flagged from {model['cycle_threshold']:.2f}, "
        f"a site from {' or '.join(thresholds)} over its first {model['stretch_cycles']} good breaths together.",
    )
    return element("section", element("h2", "Account"), *(element("p", line) for line in lines), class_="account")


async def pdf(document: dict[str, Any]) -> bytes:
    """The report as PDF; PdfError without a Chromium, or when it fails, also for want of room on the disk."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise PdfError(f"this box has no Chromium to make a PDF; {PRINT}")
    try:
        with TemporaryDirectory(prefix="respsam-report-", ignore_cleanup_errors=True) as folder:
            return await _printed(document, browser, Path(folder))
    except OSError as error:
        raise PdfError(f"there is no room to make a PDF ({error.strerror}: {error.filename}); {PRINT}") from error


async def _printed(document: dict[str, Any], browser: str, folder: Path) -> bytes:
    if (free := shutil.disk_usage(folder).free) < ROOM_BYTES:
        raise PdfError(f"there is no room to make a PDF ({free / 1e6:.0f} MB are free in {folder.parent}); {PRINT}")
    page, made = folder / "report.html", folder / "report.pdf"
    page.write_text(report(document, inline=True))
    options = ("--headless", "--disable-gpu", "--no-pdf-header-footer", "--disable-dev-shm-usage")
    alone = ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium's sandbox refuses root
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", "10", browser, *options, *alone, f"--user-data-dir={folder}/profile"),
        *(f"--print-to-pdf={made}", page.as_uri()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await asyncio.wait_for(process.wait(), PDF_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
    content = made.read_bytes() if made.is_file() else b""
    if not content.rstrip().endswith(PDF_END):  # a full disk cuts it short
        raise PdfError(f"{browser} made no PDF; {PRINT}")
    return content
