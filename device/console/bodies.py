"""What requests to the console carry: a model each, which docs/console_api.py documents, too."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from device.console.chest import SITES
from device.store.exams import OPINIONS, SUBJECT
from firmware_config.errors import RespSAMError

# who stores a text checks it, and says why it is refused; the document has the same rule
Subject = Annotated[str, Field(json_schema_extra={"pattern": f"^{SUBJECT.pattern}$"})]
Site = Annotated[str, Field(json_schema_extra={"enum": list(SITES)})]


class BodyError(RespSAMError):
    """A field of a request that is missing, or of another kind."""


class Body(BaseModel):
    """A JSON object; a field's description completes the sentence 'FIELD is ...' of an error."""

    model_config = ConfigDict(frozen=True, strict=True, str_strip_whitespace=True)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """The body with its fields checked. Raises BodyError."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise BodyError(f"{name} is {cls.model_fields[name].description}") from error


class Listen(Body):
    """Begin a session."""

    age: Annotated[
        float | None, Field(description="a number of years from 0 to 120, or null", ge=0, le=120, allow_inf_nan=False)
    ] = None


class BeginExam(Listen):
    """Begin an exam."""

    subject: Annotated[Subject, Field(description="a text: a pseudonym, never a name")] = ""
    sites: Annotated[list[Site], Field(description="a list of texts: the codes of sites")]
    advance: Annotated[bool, Field(description="true or false: whether the next site begins by itself")] = False


class BeginSite(Body):
    """Listen at a site of the exam."""

    site: Annotated[Site, Field(description="a text: the code of a site")]


class Opinion(Body):
    """Agree or disagree with a cycle's class."""

    opinion: Annotated[
        str,
        Field(
            description="a text: agree, disagree, or empty to take it back",
            json_schema_extra={"enum": ["", *OPINIONS]},
        ),
    ]


class Assign(Body):
    """Give an exam or a session another subject."""

    subject: Annotated[Subject, Field(description="a text: a pseudonym, never a name, or empty")]
