"""A study: a question, and the settings of a recipe that answer it by comparison; a TOML file."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, model_validator

from firmware_config.errors import RespSAMError
from trainer.choices import Protocol
from trainer.documents import load, nearest
from trainer.run.recipe import Recipe, with_changes

# The test part judges no setting; a cell trains one member.
FIXED: Final = {"data.members": 1, "data.refit": 0, "data.choose_on": "held-out"}
# All settings of a study are read on the same patients.
SHARED: Final = (*FIXED, "data.folds", "data.hold_out")


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
        raise StudyError(f"{what} {name!r} is not there; the nearest is {nearest(name, names)!r}")


def load_study(name_or_path: str) -> Study:
    """A shipped study by name, or a TOML file by path; StudyError names the file and the key."""
    return load("study", "studies", name_or_path, Study, StudyError)
