"""The four classes of a breath cycle, in the order of the model's logits (ICBHI 2017 convention)."""

from typing import Final, Literal

Label = Literal["normal", "crackle", "wheeze", "both"]

LABELS: tuple[Label, ...] = ("normal", "crackle", "wheeze", "both")
"""Index 0 is normal; 'both' is crackle and wheeze in one cycle."""

NORMAL: Final = 0
