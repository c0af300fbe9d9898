"""Audio Spectrogram Transformer in plain torch (Gong et al. 2021, arXiv 2104.01778), sizes by config.

The state dict is named by concept, not after another library; `tests/trainer/test_model.py` maps it onto transformers'
ASTModel and holds both to the same numbers.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from device.labels import LABELS
from device.signal import FRAMES

TOKENS_AT_ONCE = 6400  # six windows of AST base: with gradients 8 GiB, less than a training step of eight


class ModelConfig(BaseModel):
    """Sizes of one AST; travels with the weights. Defaults are AST base at this project's window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: Literal["ast"] = "ast"
    """The only family so far."""
    frames: int = Field(default=FRAMES, ge=32)
    """Time frames of the input."""
    mels: int = Field(default=128, ge=8)
    """Mel bands of the input."""
    stem: Literal["patch", "convolutional", "separable"] = "patch"
    """How the spectrogram becomes tokens: AST's overlapping patches, strided convolutions, or MobileNet's."""
    patch: int = Field(default=16, ge=1)
    """Side of a square patch (stem 'patch')."""
    stride: int = Field(default=10, ge=1)
    """Step between patches in both directions (stem 'patch')."""
    stem_channels: tuple[int, ...] = ()
    """Output channels of each 3x3 convolution but the last, which gives `dim` (stem 'convolutional'), or of each
    layer before a 1x1 convolution to `dim` (stem 'separable')."""
    stem_strides: tuple[tuple[int, int], ...] = ()
    """Stride (mels, frames) of each of those 3x3 convolutions, the last one included."""
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
        if {bool(self.stem_channels), bool(self.stem_strides)} != {self.stem != "patch"}:
            raise ValueError("stem_channels and stem_strides go with stem = 'convolutional' or 'separable' alone")
        strides = len(self.stem_channels) + (self.stem == "convolutional")
        if self.stem_channels and len(self.stem_strides) != strides:
            raise ValueError(f"stem_strides needs {strides} pairs with {len(self.stem_channels)} stem_channels")
        if any(size < 1 for sizes in (self.stem_channels, *self.stem_strides) for size in sizes):
            raise ValueError("stem_channels and stem_strides must be 1 or more")
        if min(self.grid) < 1:
            raise ValueError(f"a patch of {self.patch} does not fit into {self.mels} mels x {self.frames} frames")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Token grid (mel rows, time columns); floors, a patch that would run over the edge is dropped."""
        if self.stem == "patch":
            return (self.mels - self.patch) // self.stride + 1, (self.frames - self.patch) // self.stride + 1
        rows, columns = self.mels, self.frames
        for mel_stride, frame_stride in self.stem_strides:
            rows, columns = (rows - 1) // mel_stride + 1, (columns - 1) // frame_stride + 1
        return rows, columns

    @property
    def windows_at_once(self) -> int:
        """How many windows are read in one pass: 64 of a hundred tokens, 6 of AST base's 948."""
        rows, columns = self.grid
        return max(1, TOKENS_AT_ONCE // (rows * columns))


class PatchStem(nn.Module):
    """Overlapping square patches, one projection each: (batch, 1, mels, frames) -> (batch, dim, rows, columns)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, config.dim, config.patch, config.stride)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.projection(spectrogram)  # type: ignore[no-any-return]


class ConvolutionalStem(nn.Module):
    """Strided 3x3 convolutions with batch norm and GELU (Xiao et al. 2021, "Early convolutions").

    A pure patch transformer from scratch hardly learns on a few thousand cycles; this stem learns in the first epoch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = (1, *config.stem_channels, config.dim)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(channels[:-1], channels[1:], config.stem_strides, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.layers(spectrogram)  # type: ignore[no-any-return]


class SeparableStem(nn.Module):
    """MobileNet's layers (Howard et al. 2017, arXiv 1704.04861) and a 1x1 convolution from them to `dim`.

    A 3x3 convolution, then pairs of a 3x3 convolution inside each channel and a 1x1 one across them, all with batch
    norm and ReLU. Each mel band is scaled and shifted first, so that another front end's weights find what they know.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.band_scale = nn.Parameter(torch.ones(config.mels))
        self.band_shift = nn.Parameter(torch.zeros(config.mels))
        channels, strides = config.stem_channels, config.stem_strides
        layers = [*self._normed(nn.Conv2d(1, channels[0], 3, strides[0], 1, bias=False))]
        for (inputs, outputs), stride in zip(pairwise(channels), strides[1:], strict=True):
            layers += self._normed(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False))
            layers += self._normed(nn.Conv2d(inputs, outputs, 1, bias=False))
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(channels[-1], config.dim, 1)

    @staticmethod
    def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
        return convolution, nn.BatchNorm2d(convolution.out_channels, eps=1e-3), nn.ReLU(inplace=True)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.projection(self.layers(self.banded(spectrogram)))  # type: ignore[no-any-return]

    def banded(self, spectrogram: Tensor) -> Tensor:
        """(batch, 1, mels, frames) with every band at its own scale."""
        return spectrogram * self.band_scale.unsqueeze(-1) + self.band_shift.unsqueeze(-1)


STEMS: Final[dict[str, type[PatchStem | ConvolutionalStem | SeparableStem]]] = {
    "patch": PatchStem,
    "convolutional": ConvolutionalStem,
    "separable": SeparableStem,
}


def recomputed(block: nn.Module, states: Tensor) -> Tensor:
    """`block(states)` that keeps its input alone and runs again, with the same dropout, when the gradient is due."""
    return checkpoint(block, states, use_reentrant=False)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention over (batch, tokens, dim), written as matmul-softmax-matmul outside of training.

    Plain on purpose: scaled_dot_product_attention exports with IsNaN / Where chains that TensorRT reads badly. In
    training it takes two thirds of the time, and keeps no (tokens, tokens) weights for the backward pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.scale = (config.dim // config.heads) ** -0.5

    def forward(self, tokens: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0] * self.scale, qkv[1], qkv[2]
        if self.training and kept is None:
            heard = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
            if kept is not None:
                kept.append(weights)
            heard = weights @ value
        return self.out(heard.transpose(1, 2).reshape(batch, count, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = round(config.dim * config.mlp_ratio)
        self.attention_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.mlp_in = nn.Linear(config.dim, hidden)
        self.mlp_out = nn.Linear(hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), kept))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(tokens)))
        return tokens + self.dropout(self.mlp_out(hidden))  # type: ignore[no-any-return]


class AST(nn.Module):
    """Normalised log-mel windows (batch, frames, mels) to logits (batch, classes)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # a block's activations are computed again in the backward pass instead of kept
        rows, columns = config.grid
        self.stem = STEMS[config.stem](config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(torch.zeros(1, 2 + rows * columns, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.head = nn.Linear(config.dim, config.classes)
        for parameter in (self.cls_token, self.distillation_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(self, windows: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """Last hidden states (batch, 2 + rows * columns, dim) after the final norm: cls, distillation, the grid.

        Each block's attention weights (batch, heads, tokens, tokens) are appended to `kept`, unless recomputed.
        """
        if windows.shape[1:] != (self.config.frames, self.config.mels):
            raise ValueError(
                f"windows are {tuple(windows.shape)}, not (batch, {self.config.frames}, {self.config.mels})"
            )
        grid = self.stem(windows.transpose(1, 2).unsqueeze(1)).flatten(2).transpose(1, 2)
        # each on its own: the gradient of a part of both has strides that torch warns of where processes share it
        special = [token.expand(grid.shape[0], -1, -1) for token in (self.cls_token, self.distillation_token)]
        states = self.dropout(torch.cat([*special, grid], dim=1) + self.positions)
        for block in self.blocks:
            states = recomputed(block, states) if self.checkpointing and self.training else block(states, kept)
        return self.norm(states)  # type: ignore[no-any-return]

    def forward(self, windows: Tensor) -> Tensor:
        return self.classified(self.tokens(windows))

    def attended(self, windows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, classes), and the blocks' attention weights (batch, heads, tokens, tokens) behind them."""
        kept: list[Tensor] = []
        return self.classified(self.tokens(windows, kept)), kept

    def classified(self, states: Tensor) -> Tensor:
        """Logits (batch, classes) of what `tokens` returns."""
        pooled = states[:, 2:].mean(dim=1) if self.config.pooling == "mean" else states[:, :2].mean(dim=1)
        return self.head(self.dropout(pooled))  # type: ignore[no-any-return]

    def columns(self, states: Tensor) -> Tensor:
        """What `tokens` returns as one vector a time column: (batch, columns, dim), the mean over the mel rows."""
        grid = states[:, 2:].reshape(len(states), *self.config.grid, self.config.dim)
        return grid.mean(dim=1)


class Ensemble(nn.Module):
    """Models of one run, of its folds or of all patients; logits (batch, classes) are the mean of theirs."""

    def __init__(self, members: Sequence[AST]) -> None:
        super().__init__()
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, windows: Tensor) -> Tensor:
        total = self.members[0](windows)
        for member in self.members[1:]:
            total = total + member(windows)
        return total / len(self.members)  # type: ignore[no-any-return]
