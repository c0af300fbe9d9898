"""The documents that scripts write: the rooms of the house and the scores are today's."""

import importlib.util
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    return script("architecture")


def test_no_room_imports_itself_through_others(architecture: ModuleType) -> None:
    assert architecture.circles(architecture.rooms()) == []


def test_a_circle_is_found(architecture: ModuleType) -> None:
    drawn = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert architecture.circles(drawn) == ["b", "c"]


def test_an_arrow_that_follows_from_others_is_not_drawn(architecture: ModuleType) -> None:
    drawn = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.necessary(drawn) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("name", ["architecture", "commands", "scores", "settings"])
def test_the_page_is_what_its_script_writes_today(name: str) -> None:
    written = script(name)
    text = written.PAGE.read_text()
    assert written.BEGIN in text and written.END in text
    assert written.page(text) == text, f"run: python docs/{name}.py"


def test_the_comments_of_the_defaults_are_those_of_the_models() -> None:
    written = script("settings")
    text = written.DEFAULTS.read_text()
    assert written.commented(text) == text, "run: python docs/settings.py"
    assert written.commented(text.replace("# Hz to record at", "# Hertz")) == text
