"""The sites of an auscultation on the chest map, in words; codes as in ICBHI 2017 and SPRSound."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True)
class ChestSite:
    """One site; `x` and `y` are per cent of the map's width and height, as one looks at the patient."""

    code: str
    words: str
    face: Literal["front", "back"]
    side: Literal["left", "right", ""]
    x: float
    y: float
    opposite: str = ""
    """The same place on the other side."""


ICBHI: Final = (
    ChestSite("Tc", "trachea", "front", "", 50, 15),
    ChestSite("Al", "left anterior", "front", "left", 64, 38, "Ar"),
    ChestSite("Ar", "right anterior", "front", "right", 36, 38, "Al"),
    ChestSite("Pl", "left posterior", "back", "left", 35, 42, "Pr"),
    ChestSite("Pr", "right posterior", "back", "right", 65, 42, "Pl"),
    ChestSite("Ll", "left lateral", "front", "left", 70, 60, "Lr"),
    ChestSite("Lr", "right lateral", "front", "right", 30, 60, "Ll"),
)
SPRSOUND: Final = (
    ChestSite("p1", "left posterior", "back", "left", 35, 42, "p3"),
    ChestSite("p2", "left lateral", "front", "left", 70, 60, "p4"),
    ChestSite("p3", "right posterior", "back", "right", 65, 42, "p1"),
    ChestSite("p4", "right lateral", "front", "right", 30, 60, "p2"),
)
PLANS: Final = {"sprsound": SPRSOUND, "icbhi": ICBHI}
SITES: Final = {site.code: site for plan in PLANS.values() for site in plan}


def in_words(code: str) -> str:
    """`left posterior (p1)`; the code itself where it has no words."""
    return f"{SITES[code].words} ({code})" if code in SITES else code


def plans_as_json() -> dict[str, list[dict[str, Any]]]:
    """The two plans for the page."""
    return {name: [asdict(site) for site in plan] for name, plan in PLANS.items()}
