"""Under what a verdict is given, beside its bundle and its settings."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Circumstances:
    """The stethoscope, its calibration, and whether the settings are those of the file; shown, logged and stored."""

    passport: str = ""
    """Key of the stethoscope's passport; empty without one."""
    calibration: str = ""
    """Name of the calibration of the site's threshold; empty if the threshold is the bundle's own."""
    safe_mode: str = ""
    """Why the settings are the last good ones instead of the file's; empty if they are the file's."""

    def as_json(self) -> dict[str, str]:
        """Part of the `summary` object of `listen --json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What people have to know of it, one line each."""
        return [
            *([f"SAFE MODE: {self.safe_mode}"] if self.safe_mode else []),
            *([f"stethoscope: passport {self.passport}"] if self.passport else []),
            *([f"calibration: {self.calibration}"] if self.calibration else []),
        ]


PLAIN = Circumstances()
