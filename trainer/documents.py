"""TOML files, shipped with the package or a user's own, and one line for the first problem in one."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from firmware_config.errors import RespSAMError
from trainer.choices import document, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Document = TypeVar("Document", bound=BaseModel)


def load(what: str, folder: str, name: str, kind: type[Document], failure: type[RespSAMError]) -> Document:
    """A shipped file by name, or a user's by path, as `kind`; `failure` names the file and the key.

    `what` is its name for the user ("recipe"), `folder` its place in the package.
    """
    file = document(folder, name)
    if file is None:
        raise failure(f"{what} {name!r}: neither a file nor one of {', '.join(shipped(folder))}")
    try:
        return kind.model_validate(tomllib.loads(file.read_bytes().decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise failure(f"{what} {name}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise failure(f"{what} {name}: {first_problem(error, kind)}") from error
    except failure as error:
        raise failure(f"{what} {name}: {error}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of some names."""
    return get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def first_problem(error: ValidationError, kind: type[BaseModel]) -> str:
    """One line about the first problem: the key, and what is wrong with it."""
    # a misspelt key is also a missing one
    problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    unknown = problem["type"] == "extra_forbidden"
    parents, models, place = [kind], [kind], []
    for number, part in enumerate(problem["loc"], 1):
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        tagged = [model for model in models if not fields and _tagged(model, part)]
        # pydantic puts a union's tag between a field and the next one
        if tagged and not (unknown and number == len(problem["loc"])):
            models = tagged
            continue
        place.append(str(part))
        parents, models = models, [found for annotation in fields for found in _models(annotation)] or models
    key = ".".join(place)
    if unknown:
        return f"unknown key {key}; the nearest valid one is {nearest(place[-1], parents[0].model_fields)}"
    return ": ".join(filter(None, [key, problem["msg"].removeprefix("Value error, ")]))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a field's type: its own, a union's, or a sequence's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]


def _tagged(model: type[BaseModel], tag: Any) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
