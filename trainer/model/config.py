"""Sizes of the networks, as recipes state them and weights carry them; no torch here."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from device.labels import LABELS
from device.signal import FRAMES

TOKENS_AT_ONCE: Final = 6400  # six windows of AST base: with gradients 8 GiB, less than a training step of eight
STRIDE: Final = 32  # of a MobileNet, in frames and in bands
SECONDS_AT_ONCE: Final = 512


class ModelConfig(BaseModel):
    """Sizes of one AST; travels with the weights. Defaults are AST base at this project's window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: Literal["ast"] = "ast"
    """Beside it there is `mobilenet`."""
    frames: int = Field(default=FRAMES, ge=32)
    """Time frames of the input."""
    mels: int = Field(default=128, ge=8)
    """Mel bands of the input."""
    patch: int = Field(default=16, ge=1)
    """Side of a square patch."""
    stride: int = Field(default=10, ge=1)
    """Step between patches in both directions."""
    dim: int = Field(default=768, ge=8)
    """Width of a token."""
    depth: int = Field(default=12, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; divides `dim`."""
    mlp_ratio: float = Field(default=4.0, gt=0.0)
    """Hidden width of a block's MLP over `dim`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout after the embedding, the attention and MLP outputs, and before the head."""
    pooling: Literal["mean", "cls+dist"] = "mean"
    """What the head reads: the mean of the spectrogram's tokens, or the mean of the two special tokens."""
    classes: int = Field(default=len(LABELS), ge=2)
    """Logits."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}")
        if min(self.grid) < 1:
            raise ValueError(f"a patch of {self.patch} does not fit into {self.mels} mels x {self.frames} frames")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Token grid (mel rows, time columns); floors, a patch that would run over the edge is dropped."""
        return (self.mels - self.patch) // self.stride + 1, (self.frames - self.patch) // self.stride + 1

    @property
    def moments(self) -> int:
        """The class logits are of the whole window."""
        return 1

    @property
    def windows_at_once(self) -> int:
        """How many windows are read in one pass: 6 of AST base's 948 tokens."""
        rows, columns = self.grid
        return max(1, TOKENS_AT_ONCE // (rows * columns))


class MobileNetConfig(BaseModel):
    """Sizes of one MobileNet; travels with the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: Literal["mobilenet"] = "mobilenet"
    """MobileNetV3-Large at width 0.4."""
    frames: int = Field(default=FRAMES, ge=STRIDE)
    """Time frames of the input."""
    mels: int = Field(default=128, ge=STRIDE)
    """Mel bands of the input."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Before the head."""
    classes: Literal[4] = len(LABELS)  # type: ignore[assignment]  # derived: mypy sees an int
    """Logits of a moment."""

    @property
    def moments(self) -> int:
        """Time columns with logits of their own."""
        return -(-self.frames // STRIDE)

    @property
    def windows_at_once(self) -> int:
        """How many windows are read in one pass."""
        return max(1, SECONDS_AT_ONCE * 100 // self.frames)
