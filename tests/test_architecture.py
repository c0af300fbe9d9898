"""The rooms of the house: no circle among them, and a drawing that is today's."""

import importlib.util
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", REPOSITORY / "docs" / "architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_room_imports_itself_through_others(architecture: ModuleType) -> None:
    assert architecture.circles(architecture.rooms()) == []


def test_a_circle_is_found(architecture: ModuleType) -> None:
    drawn = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert architecture.circles(drawn) == ["b", "c"]


def test_an_arrow_that_follows_from_others_is_not_drawn(architecture: ModuleType) -> None:
    drawn = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.necessary(drawn) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_page_shows_the_rooms_as_they_are(architecture: ModuleType) -> None:
    text = architecture.PAGE.read_text()
    assert architecture.page(text) == text, "run: python docs/architecture.py"
