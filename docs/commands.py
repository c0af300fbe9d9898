"""Writes every command with its options, as its help says them, into docs/commands.md: python docs/commands.py"""

import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import device.cli  # noqa: E402
import export.cli  # noqa: E402
import trainer.cli  # noqa: E402

PAGE = ROOT / "docs" / "commands.md"
BEGIN, END = "<!-- written by docs/commands.py -->\n", "<!-- end of the commands -->\n"
APPS = {"respsam-device": device.cli.app, "respsam-trainer": trainer.cli.app, "respsam-export": export.cli.app}


def commands() -> str:
    """All three programs, by typer's own writer of documentation."""
    written = []
    for name, app in APPS.items():
        command = typer.main.get_command(app)
        written.append(get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name=name))
    return "\n".join(line.rstrip() for line in "".join(written).splitlines()) + "\n"


def page(text: str) -> str:
    """The page with the commands as they are now."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}{commands()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
