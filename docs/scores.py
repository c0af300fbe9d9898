"""Writes the default bundle's scores, as its manifest has them, into README.md: python docs/scores.py"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
MANIFEST = ROOT / "device" / "default_bundle" / "manifest.json"
BEGIN, END = "<!-- written by docs/scores.py -->\n", "<!-- end of the scores -->\n"
CORPORA = {"sprsound": "children, SPRSound 2022 and 2023", "kauh": "adults, KAUH", "icbhi": "people, ICBHI 2017"}
READINGS = {"live": "breaths as shown", "recordings": "whole recordings"}
HEAD = "| held-out people | what is judged | n | Se | Sp | Score [95 %] |\n|---|---|---|---|---|---|\n"


def row(who: str, what: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    se, sp, score = (found[name] for name in ("sensitivity", "specificity", "score"))
    interval = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    return f"| {who} | {what} | {found['n']} | {se['value']:.3f} | {sp['value']:.3f} | {interval} |\n"


def table() -> str:
    """The scores of the default bundle on held-out patients, by corpus."""
    readings = json.loads(MANIFEST.read_text())["metrics"]["validation"]
    lines = [
        row(f"{found['patients']} {CORPORA[corpus]}", READINGS[protocol], found)
        for corpus in CORPORA
        for protocol in READINGS
        if (corpus, protocol) != ("kauh", "live")  # its labels are of whole recordings
        and (found := readings[protocol]["per_corpus"].get(corpus)) is not None
    ]
    return HEAD + "".join(lines)


def page(text: str) -> str:
    """The page with the manifest's scores in it."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
