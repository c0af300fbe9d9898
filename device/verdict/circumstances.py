"""Under what a verdict is given, beside its bundle and its settings."""

from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field
from typing_extensions import TypedDict


class CircumstancesObject(TypedDict):
    """Part of the `summary` object of `listen --json`."""

    passport: Annotated[str, Field(description="Key of the stethoscope's passport; empty without one.")]
    calibration: Annotated[str, Field(description="Of the site's threshold; empty if it is the bundle's own.")]
    safe_mode: Annotated[str, Field(description="Why the settings are not the file's; empty if they are.")]


@dataclass(frozen=True)
class Circumstances:
    """The stethoscope, its calibration, and whether the settings are those of the file; shown, logged and stored."""

    passport: str = ""
    """Key of the stethoscope's passport; empty without one."""
    calibration: str = ""
    """Name of the calibration of the site's threshold; empty if the threshold is the bundle's own."""
    safe_mode: str = ""
    """Why the settings are the last good ones instead of the file's; empty if they are the file's."""

    def as_json(self) -> CircumstancesObject:
        """Part of the `summary` object of `listen --json`."""
        return {"passport": self.passport, "calibration": self.calibration, "safe_mode": self.safe_mode}

    def lines(self) -> list[str]:
        """What people have to know of it, one line each."""
        return [
            *([f"SAFE MODE: {self.safe_mode}"] if self.safe_mode else []),
            *([f"stethoscope: passport {self.passport}"] if self.passport else []),
            *([f"calibration: {self.calibration}"] if self.calibration else []),
        ]


PLAIN: Final = Circumstances()
