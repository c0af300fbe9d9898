"""The rooms of the trainer: which may know which, and that none is known from below."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

# Each may import those after it, never one before it; ground is the files beside the rooms.
ORDER = ("top", "studies", "report", "training", "evaluation", "breaths", "run", "model", "corpora", "ground")
TOP = ("__init__", "__main__", "cli", "api", "view")
TRAINER = REPOSITORY / "trainer"


def room_of(module: str) -> str:
    """Of `trainer.ROOM.file`, or of a file beside the rooms."""
    parts = [*module.split("."), "__init__"]
    return parts[1] if parts[1] in ORDER else "top" if parts[1] in TOP else "ground"


def imports(file: Path) -> Iterator[str]:
    """Modules of the trainer that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trainer":
            for name in node.names:
                inner = TRAINER.joinpath(*node.module.split(".")[1:], name.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{name.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "trainer")


def modules() -> dict[str, Path]:
    names = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in TRAINER.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def test_every_room_is_listed() -> None:
    rooms = {file.parent.name for file in TRAINER.rglob("*.py") if file.parent != TRAINER}
    assert rooms == {*ORDER} - {"top", "ground"}


def test_no_room_knows_one_above_it() -> None:
    """So there is no circle between rooms, either; evaluation knows no training."""
    upward = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imports(file)
        if ORDER.index(room_of(other)) < ORDER.index(room_of(name))
    ]
    assert not upward


def test_no_circle_between_files() -> None:
    left = {name: set(imports(file)) - {name, "trainer"} for name, file in modules().items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_the_tests_mirror_the_rooms() -> None:
    tests = REPOSITORY / "tests" / "trainer"
    assert {folder.name for folder in tests.iterdir() if list(folder.glob("test_*.py"))} <= {*ORDER}
