"""Audio Spectrogram Transformer in plain torch (Gong et al. 2021, arXiv 2104.01778), sizes by config.

The state dict is named by concept, not after another library; `tests/trainer/model/test_model.py` maps it onto
transformers' ASTModel and holds both to the same numbers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from device.signal import FloatArray
from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.model.mobilenet import MobileNet


class PatchStem(nn.Module):
    """Overlapping square patches, one projection each: (batch, 1, mels, frames) -> (batch, dim, rows, columns)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, config.dim, config.patch, config.stride)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.projection(spectrogram)  # type: ignore[no-any-return]


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
            context = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
            if kept is not None:
                kept.append(weights)
            context = weights @ value
        return self.out(context.transpose(1, 2).reshape(batch, count, dim))  # type: ignore[no-any-return]


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
    """Normalised log-mel windows (batch, frames, mels) to logits (batch, 1, classes): one moment, the whole window."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # a block's activations are computed again in the backward pass instead of kept
        rows, columns = config.grid
        self.stem = PatchStem(config)
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
        return self.classified(self.tokens(windows)).unsqueeze(1)

    def attended(self, windows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, classes), and the blocks' attention weights (batch, heads, tokens, tokens) behind them."""
        kept: list[Tensor] = []
        return self.classified(self.tokens(windows, kept)), kept

    def classified(self, states: Tensor) -> Tensor:
        """Logits (batch, classes) of the states that `tokens` returns."""
        pooled = states[:, 2:].mean(dim=1) if self.config.pooling == "mean" else states[:, :2].mean(dim=1)
        return self.head(self.dropout(pooled))  # type: ignore[no-any-return]


Network = AST | MobileNet
"""One network: windows (batch, frames, mels) to class logits of every moment (batch, moments, classes)."""


def network(config: ModelConfig | MobileNetConfig) -> Network:
    """A network of these sizes, with random weights."""
    return MobileNet(config) if isinstance(config, MobileNetConfig) else AST(config)


def pool_moments(logits: Tensor) -> Tensor:
    """`device.model.judgement.pool` in torch: logits (batch, classes) of moments' logits (batch, moments, classes)."""
    against_normal = logits - logits[..., :1]
    return against_normal.logsumexp(dim=1) - math.log(logits.shape[1])


class Ensemble(nn.Module):
    """Models of one run, of its folds or of all patients; logits (batch, moments, classes) are the mean of theirs."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, windows: Tensor) -> Tensor:
        total = self.members[0](windows)
        for member in self.members[1:]:
            total = total + member(windows)
        return total / len(self.members)  # type: ignore[no-any-return]


def predict(model: Network | Ensemble, inputs: FloatArray, device: torch.device) -> FloatArray:
    """Logits (n, moments, classes) of model inputs (n, frames, mels), in eval mode without gradients."""
    model.eval()
    at_once = model.config.windows_at_once
    with torch.inference_mode():
        batches = [
            model(torch.from_numpy(inputs[start : start + at_once]).to(device)).float().cpu().numpy()
            for start in range(0, len(inputs), at_once)
        ]
    return np.concatenate(batches)
