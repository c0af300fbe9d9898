"""Writes the reference of all settings, and the comments of their defaults, from the models: python docs/settings.py"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from firmware_config.settings import DEFAULTS, Settings, read_toml

PAGE: Final = Path(__file__).with_name("settings.md")
BEGIN, END = "<!-- written by docs/settings.py -->\n", "<!-- end of the settings -->\n"
TABLE_HEAD: Final = "| key | default | unit | range | meaning |\n|---|---|---|---|---|\n"
WIDTH: Final = 120
BOUNDS: Final = {"minimum": "{}", "exclusiveMinimum": "above {}", "maximum": "to {}"}


def sections() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every section: its name, its meaning, and the JSON schema of its fields by name."""
    schema = Settings.model_json_schema()
    for name, section in schema["properties"].items():
        model = schema["$defs"][section["$ref"].rpartition("/")[2]]
        yield name, model["description"], model["properties"]


def allowed(field: dict[str, Any]) -> str:
    """A field's range or words; empty if it takes any text."""
    if "enum" in field:
        return ", ".join(field["enum"])
    if field["type"] == "boolean":
        return "true, false"
    return " ".join(words.format(f"{field[name]:.12g}") for name, words in BOUNDS.items() if name in field)


def meaning(field: dict[str, Any]) -> str:
    """A field's docstring as one line."""
    return " ".join(field["description"].split())


def table(name: str, fields: dict[str, Any]) -> str:
    """The rows of one section."""
    values: Any = read_toml(DEFAULTS).values[name]
    rows = []
    for key, field in fields.items():
        shown = str(values[key]).lower() if isinstance(values[key], bool) else values[key]
        default = f"`{shown}`" if shown != "" else "empty"
        cells = (f"`{key}`", default, field.get("unit", ""), allowed(field), meaning(field))
        rows.append(f"| {' | '.join(cells)} |\n")
    return TABLE_HEAD + "".join(rows)


def page(text: str) -> str:
    """The page with the settings of today in it."""
    written = "".join(f"\n## `[{name}]`\n\n{what}\n\n{table(name, fields)}" for name, what, fields in sections())
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{written}\n{END}{rest.partition(END)[2]}"


def comments(fields: dict[str, Any]) -> dict[str, list[str]]:
    """The comment above each key: meaning, range and unit."""
    found = {}
    for key, field in fields.items():
        limits = ", ".join(text for text in (allowed(field), field.get("unit", "")) if text)
        words = meaning(field) + f" ({limits})" * bool(limits)
        found[key] = [f"# {line}" for line in textwrap.wrap(words, WIDTH - 2)]
    return found


def commented(text: str) -> str:
    """The defaults with the comments of today; the values stay."""
    found = {name: comments(fields) for name, _, fields in sections()}
    section, lines = "", []
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
        if section and line.startswith("#"):
            continue
        key = line.partition(" = ")[0]
        lines += [*found.get(section, {}).get(key, []), line]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    DEFAULTS.write_text(commented(DEFAULTS.read_text()))
