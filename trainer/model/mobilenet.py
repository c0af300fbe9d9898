"""MobileNetV3-Large at width 0.4 as EfficientAT trained it on AudioSet, with class logits of every moment.

Howard et al. 2019 (arXiv 1905.02244); Schmid et al., "Efficient large-scale audio tagging via transformer-to-CNN
knowledge distillation", ICASSP 2023. Parameters are named as in that project's checkpoints, so that those load as they
are; `tests/trainer/model/test_mobilenet.py` holds both to the same numbers.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from trainer.model.config import MobileNetConfig

EMBEDDING: Final = 384
AUDIOSET_CLASSES: Final = 527
AUDIOSET_HIDDEN: Final = 512


class Layer(NamedTuple):
    """One inverted residual block: 1x1 to `expanded`, depthwise `kernel`, squeeze, 1x1 to `outputs`."""

    kernel: int
    expanded: int
    outputs: int
    squeeze: int
    """Width of the squeeze-excitation; 0 without."""
    hardswish: bool
    stride: int


STEM_CHANNELS: Final = 8
LAYERS: Final = (
    Layer(3, 8, 8, 0, False, 1),
    Layer(3, 24, 16, 0, False, 2),
    Layer(3, 32, 16, 0, False, 1),
    Layer(5, 32, 16, 8, False, 2),
    Layer(5, 48, 16, 16, False, 1),
    Layer(5, 48, 16, 16, False, 1),
    Layer(3, 96, 32, 0, True, 2),
    Layer(3, 80, 32, 0, True, 1),
    Layer(3, 72, 32, 0, True, 1),
    Layer(3, 72, 32, 0, True, 1),
    Layer(3, 192, 48, 48, True, 1),
    Layer(3, 272, 48, 72, True, 1),
    Layer(5, 272, 64, 72, True, 2),
    Layer(5, 384, 64, 96, True, 1),
    Layer(5, 384, 64, 96, True, 1),
)


def normed(convolution: nn.Conv2d, activation: type[nn.Module] | None) -> nn.Sequential:
    """A convolution with batch norm and, where given, an activation."""
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(convolution.out_channels, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class Gate(nn.Module):
    """Means of channels (batch, channels) to their weights, 0-1."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, means: Tensor) -> Tensor:
        return self.fc2(self.fc1(means).relu()).sigmoid()  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """Channels weighted by a gate of their means over time and frequency (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.Sequential(Gate(channels, squeezed))

    def forward(self, states: Tensor) -> Tensor:
        weights: Tensor = self.conc_se_layers(states.mean(dim=(2, 3)))
        return states * weights[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expand, convolve inside each channel, weigh the channels, project; added to its input where sizes agree."""

    def __init__(self, inputs: int, layer: Layer) -> None:
        super().__init__()
        activation = nn.Hardswish if layer.hardswish else nn.ReLU
        wide = layer.expanded
        parts: list[nn.Module] = []
        if wide != inputs:
            parts.append(normed(nn.Conv2d(inputs, wide, 1, bias=False), activation))
        depthwise = nn.Conv2d(wide, wide, layer.kernel, layer.stride, layer.kernel // 2, groups=wide, bias=False)
        parts.append(normed(depthwise, activation))
        if layer.squeeze:
            parts.append(SqueezeExcitation(wide, layer.squeeze))
        parts.append(normed(nn.Conv2d(wide, layer.outputs, 1, bias=False), None))
        self.block = nn.Sequential(*parts)
        self.residual = layer.stride == 1 and inputs == layer.outputs

    def forward(self, states: Tensor) -> Tensor:
        return states + self.block(states) if self.residual else self.block(states)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """Spectrograms (batch, 1, mels, frames) to features (batch, 384, mels / 32, frames / 32), rounded up."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (STEM_CHANNELS, *(layer.outputs for layer in LAYERS[:-1]))
        self.features = nn.Sequential(
            normed(nn.Conv2d(1, STEM_CHANNELS, 3, 2, 1, bias=False), nn.Hardswish),
            *(InvertedResidual(channels, layer) for channels, layer in zip(inputs, LAYERS, strict=True)),
            normed(nn.Conv2d(LAYERS[-1].outputs, EMBEDDING, 1, bias=False), nn.Hardswish),
        )

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.features(spectrogram)  # type: ignore[no-any-return]


class AudioSetMobileNet(Trunk):
    """The network as it was trained on AudioSet: (batch, 1, mels, frames) to 527 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Identity(),
            nn.Identity(),
            nn.Linear(EMBEDDING, AUDIOSET_HIDDEN),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(AUDIOSET_HIDDEN, AUDIOSET_CLASSES),
        )

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.classifier(self.features(spectrogram).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """Normalised log-mel windows (batch, frames, mels) to class logits of every moment (batch, moments, classes)."""

    def __init__(self, config: MobileNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # activations are few; nothing is recomputed
        self.trunk = Trunk()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(EMBEDDING, 2)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, windows: Tensor) -> Tensor:
        if windows.shape[1:] != (self.config.frames, self.config.mels):
            raise ValueError(
                f"windows are {tuple(windows.shape)}, not (batch, {self.config.frames}, {self.config.mels})"
            )
        return self.classified(self.features(windows))

    def features(self, windows: Tensor) -> Tensor:
        """(batch, 384, rows, moments) of windows (batch, frames, mels)."""
        return self.trunk(windows.transpose(1, 2).unsqueeze(1))  # type: ignore[no-any-return]

    def classified(self, features: Tensor) -> Tensor:
        """Logits (batch, moments, classes) of what `features` returns."""
        columns = features.mean(dim=2).transpose(1, 2)
        crackle, wheeze = self.head(self.dropout(columns)).unbind(dim=-1)
        # two independent sounds as four classes: their softmax is the product of two sigmoids
        return torch.stack([torch.zeros_like(crackle), crackle, wheeze, crackle + wheeze], dim=-1)
