"""The words that options, recipes and studies take. Nothing heavy is imported: a wrong word is refused at once."""

from pathlib import Path
from typing import Final, Literal, get_args

CorpusName = Literal["icbhi", "sprsound", "kauh", "manifest"]
Part = Literal["train", "test", "intra", "inter", "all"]
Split = Literal["official", "as-published"]
Protocol = Literal["events", "windows", "stretches", "live", "recordings"]
LabelForm = Literal["audacity", "raven"]
HoldOut = Literal["patients", "device", "maker"]
CropKind = Literal["random", "events"]
Sharpness = Literal["sam", "asam"]
Precision = Literal["32", "bf16"]
DeviceKind = Literal["auto", "cpu", "cuda"]

CORPORA: Final[tuple[str, ...]] = get_args(CorpusName)
SPLITS: Final[tuple[str, ...]] = get_args(Split)


def shipped(folder: str) -> list[str]:
    """Names of the TOML files in a folder of the package: `recipes` or `studies`."""
    return sorted(file.stem for file in Path(__file__).with_name(folder).glob("*.toml"))


def document(folder: str, name: str) -> Path | None:
    """The TOML file of that name in a folder of the package, or a user's file at that path; None without either."""
    file = Path(__file__).with_name(folder) / f"{name}.toml" if name in shipped(folder) else Path(name)
    return file if file.is_file() else None
