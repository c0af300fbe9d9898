"""What requests to the console carry: a model each, which docs/console_api.py documents, too."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from device.console.chest import SITES
from device.store.exams import OPINIONS, SUBJECT
from firmware_config.errors import RespSAMError

# who stores a text checks it, and says why it is refused; the document has the same rule
Subject = Annotated[str, Field(json_schema_extra={"pattern": f"^{SUBJECT.pattern}$"})]
Site = Annotated[str, Field(json_schema_extra={"enum": list(SITES)})]
Text = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": r"^\S(.*\S)?$"})]
SECONDS: Final = "a number from 5 to 600"


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _each_once(texts: list[str]) -> list[str]:
    if len(set(texts)) < len(texts):
        raise ValueError("each once")
    return texts


EachOnce: Final = AfterValidator(_each_once)


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


class Calibrate(Body):
    """Begin a calibration on healthy colleagues, or go on with an interrupted one."""

    people: Annotated[int, Field(description="a number from 5 to 100", ge=5, le=100), BeforeValidator(_whole)]
    sites: Annotated[
        list[Text],
        Field(
            description="a list of 1 to 20 texts, each once",
            min_length=1,
            max_length=20,
            json_schema_extra={"uniqueItems": True},
        ),
        EachOnce,
    ]
    seconds: Annotated[float, Field(description=SECONDS, ge=5, le=600, allow_inf_nan=False)]
    restart: Annotated[bool, Field(description="true or false: whether an interrupted one is given up")] = False


class SelfTest(Body):
    """Begin the self-test of a stethoscope."""

    name: Annotated[Text, Field(description="a text: the name of the passport")]
    seconds: Annotated[float, Field(description=SECONDS, ge=5, le=600, allow_inf_nan=False)]
    replace: Annotated[bool, Field(description="true or false: whether an own passport is replaced")] = False


class Forget(Body):
    """Record one colleague again."""

    person: Annotated[Text, Field(description="a text: the colleague's number")]


class Undo(Body):
    """Remove the last calibration of a passport."""

    name: Annotated[Text, Field(description="a text: the name of the passport")]
