"""Draws the rooms of the house and who imports whom into docs/architecture.md: python docs/architecture.py

A room is a folder of modules; a module that lies in a package itself is one, too. An arrow that follows from others is
left out.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("export", "trainer", "device", "firmware_config")
BEGIN, END = "<!-- drawn by docs/architecture.py -->\n", "<!-- end of the drawing -->\n"
Rooms = dict[str, set[str]]
"""The rooms that each room imports from, by dotted name."""


def modules() -> dict[str, Path]:
    """Every module of the product by dotted name."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def room_of(name: str, known: dict[str, Path]) -> str:
    """The folder of a module, or the module itself where it lies in a package; `__init__` belongs to its folder."""
    folder = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    return name if folder in PACKAGES else folder


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """The product's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from trainer import reading` names a module, `from trainer.reading import Reading` what is in one
            found |= {name if name in known else node.module for name in inner}
    return found & set(known)


def rooms() -> Rooms:
    """Every room, and the other rooms that it imports from."""
    known = modules()
    drawn: Rooms = {room_of(name, known): set() for name in known}
    for name, file in known.items():
        drawn[room_of(name, known)] |= {room_of(other, known) for other in imported(file, known)}
    return {room: others - {room} for room, others in drawn.items()}


def reached(room: str, drawn: Rooms) -> set[str]:
    """All rooms below a room."""
    found: set[str] = set()
    left = list(drawn[room])
    while left:
        other = left.pop()
        if other not in found:
            found.add(other)
            left += drawn[other]
    return found


def circles(drawn: Rooms) -> list[str]:
    """The rooms that import themselves through others."""
    return sorted(room for room in drawn if room in reached(room, drawn))


def necessary(drawn: Rooms) -> Rooms:
    """Without the arrows that follow from others."""
    return {
        room: {one for one in others if not any(one in reached(other, drawn) for other in others - {one})}
        for room, others in drawn.items()
    }


def drawing(drawn: Rooms) -> str:
    """A Mermaid flow chart: a box a package, a node a room."""
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES:
        lines.append(f'  subgraph {package}_package["{package}"]')
        inside = sorted(room for room in drawn if room.split(".")[0] == package)
        lines += [f'    {room.replace(".", "_")}["{room.partition(".")[2] or room}"]' for room in inside]
        lines.append("  end")
    arrows = [(room, other) for room, others in sorted(necessary(drawn).items()) for other in sorted(others)]
    lines += [f"  {room.replace('.', '_')} --> {other.replace('.', '_')}" for room, other in arrows]
    return "\n".join([*lines, "```", ""])


def page(text: str) -> str:
    """The page with today's drawing in it."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + drawing(rooms()) + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
