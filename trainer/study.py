"""A study: a question, and the settings of a recipe whose comparison answers it; a TOML file."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from firmware_config.errors import RespSAMError
from trainer.protocols import Protocol
from trainer.recipe import Recipe, with_changes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The test part judges no setting; a cell trains one member.
FIXED = {"data.members": 1, "data.refit": 0, "data.choose_on": "held-out"}
# All settings of a study are read on the same patients.
SHARED = (*FIXED, "data.folds", "data.hold_out")


class StudyError(RespSAMError):
    """A study that does not exist, does not hold, or cannot run here."""


class Setting(BaseModel):
    """One way of training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """As the table shows it."""
    changes: dict[str, Any] = {}
    """`section.field = value` over the study's base."""


class Study(BaseModel):
    """A question and the settings that answer it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: str
    """Heading of table and picture."""
    question: str
    """What is asked."""
    reference: str
    """Name of the setting that the others are compared with."""
    protocols: tuple[Protocol, ...] = ()
    """What is read; nothing is the corpus's default protocol."""
    base: dict[str, Any] = {}
    """Changes to the recipe for all settings."""
    settings: tuple[Setting, ...]
    """Two or more."""

    @model_validator(mode="after")
    def _names_hold(self) -> "Study":
        names = [setting.name for setting in self.settings]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError("settings: two or more with different names are needed")
        _known(self.reference, names, "reference")
        return self

    def only(self, names: Sequence[str]) -> "Study":
        """With these settings and the reference, or with all if none is named; StudyError for one that is not here."""
        for name in names:
            _known(name, [setting.name for setting in self.settings], "setting")
        taken = tuple(one for one in self.settings if not names or one.name in (*names, self.reference))
        return self.model_copy(update={"settings": taken})

    def recipes(self, recipe: Recipe, changes: Mapping[str, object]) -> dict[str, Recipe]:
        """The recipe of each setting by name; `changes` are the command's, over the study's base.

        StudyError names a setting whose changes do not fit, and the nearest key.
        """
        keys = [f"{section}.{field}" for section, fields in recipe.model_dump().items() for field in fields]
        made = {}
        for setting in self.settings:
            for key in (*self.base, *setting.changes):
                _known(key, keys, f"setting {setting.name!r}: key")
            for key in set(SHARED) & set(setting.changes):
                raise StudyError(f"setting {setting.name!r}: {key} is one for all settings; change the recipe instead")
            try:
                made[setting.name] = with_changes(recipe, {**self.base, **changes, **setting.changes, **FIXED})
            except RespSAMError as error:
                raise StudyError(f"setting {setting.name!r}: {error}") from error
        return made


def _known(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise StudyError(f"{what} {name!r} is not there; the nearest is {near!r}")


def shipped_studies() -> list[str]:
    """Names of the studies inside the package."""
    folder = resources.files("trainer").joinpath("studies")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_study(name_or_path: str) -> Study:
    """A shipped study by name, or a TOML file by path; StudyError names the file and the key."""
    shipped = resources.files("trainer").joinpath(f"studies/{name_or_path}.toml")
    file = shipped if name_or_path in shipped_studies() else Path(name_or_path)
    if not file.is_file():
        raise StudyError(f"study {name_or_path!r}: neither a file nor one of {', '.join(shipped_studies())}")
    try:
        return Study.model_validate(tomllib.loads(file.read_bytes().decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"study {name_or_path}: not valid TOML: {error}") from error
    except StudyError as error:
        raise StudyError(f"study {name_or_path}: {error}") from error
    except ValidationError as error:
        # a key that is misspelt is also one that is missing; the first says more
        problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where, last = ".".join(map(str, problem["loc"][:-1])), str(problem["loc"][-1]) if problem["loc"] else ""
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            fields = Setting.model_fields if "settings" in where else Study.model_fields
            said = f"unknown key; the nearest valid one is {difflib.get_close_matches(last, fields, 1, 0.0)[0]}"
        key = ".".join(filter(None, [where, last]))
        raise StudyError(f"study {name_or_path}: {': '.join(filter(None, [key, said]))}") from error
