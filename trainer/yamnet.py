"""`init = "yamnet"`: a separable stem begins as the first seven layers of YAMNet, which has heard AudioSet.

YAMNet (Plakal and Ellis 2020, tensorflow/models, Apache-2.0) is MobileNet v1 on log-mels of 521 kinds of sound,
breathing and wheezing among them. `yamnet.safetensors` holds its kernels and biases with the batch norms folded in.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from device.signal import PREEMPHASIS, SAMPLE_RATE, FrontEnd
from trainer.metrics import Float64Array
from trainer.model import ModelConfig, SeparableStem

YAMNET: Final = "yamnet"
ORIGIN: Final = (
    "Its stem began as the first layers of YAMNet (M. Plakal and D. Ellis, tensorflow/models, Apache-2.0), which "
    'learnt AudioSet (J. F. Gemmeke et al., "Audio Set: an ontology and human-labeled dataset for audio events", '
    "ICASSP 2017)."
)
FILE: Final = Path(__file__).with_name("yamnet.safetensors")
CHANNELS: Final = (32, 64, 128, 128, 256, 256, 512)
STRIDES: Final = (2, 1, 2, 1, 2, 1, 2)
# of its 64 bands; kernels mean what they meant where ours are as far apart, from the same first one
LOW_HZ, HIGH_HZ, MELS = 125.0, 7500.0, 64
MOST_OFF: Final = 0.01  # of a band's distance to the next


def misfit(front_end: FrontEnd, config: ModelConfig) -> str:
    """Why YAMNet's first layers cannot begin such a model, in words; empty where they can."""
    strides = [[one, one] for one in STRIDES]
    if (config.stem, config.stem_channels, [*map(list, config.stem_strides)]) != ("separable", CHANNELS, strides):
        return f"it takes stem 'separable' with stem_channels {list(CHANNELS)} and stem_strides {strides}"
    wanted = mel_step(LOW_HZ, HIGH_HZ, MELS)
    # the last band is off by as many steps as there are bands
    off = front_end.mels * abs(mel_step(LOW_HZ, front_end.high_hz, front_end.mels) / wanted - 1)
    if front_end.low_hz != LOW_HZ or off > MOST_OFF:
        return f"its bands begin at {LOW_HZ:g} Hz and are {wanted:.2f} mel apart, as 48 up to 3959 Hz are"
    return ""


def mel_step(low_hz: float, high_hz: float, mels: int) -> float:
    """Mel (1127 ln(1 + f / 700)) from one band's centre to the next."""
    return float(1127.0 * np.log((700.0 + high_hz) / (700.0 + low_hz)) / (mels + 1))


def band_centres(front_end: FrontEnd) -> Float64Array:
    """Hz (mels,)."""
    step = mel_step(front_end.low_hz, front_end.high_hz, front_end.mels)
    ratio = np.exp(step / 1127.0 * np.arange(1, front_end.mels + 1))
    return np.asarray((700.0 + front_end.low_hz) * ratio - 700.0)


def fit_to(stem: SeparableStem, front_end: FrontEnd, windows: Tensor) -> None:
    """Make a stem with YAMNet's kernels say of windows (n, frames, mels) what YAMNet would, and able to learn on.

    YAMNet reads logarithms of magnitudes without pre-emphasis, ours are of powers with it; and its folded batch norms
    are opened again, with the mean and the variance that these windows give them, because without any the same model
    learnt less (AUROC 0.910 instead of 0.950 on held-out patients after one epoch).
    """
    hertz = band_centres(front_end)
    emphasis = np.log(np.abs(1.0 - PREEMPHASIS * np.exp(-2j * np.pi * hertz / SAMPLE_RATE)))
    with torch.no_grad():
        stem.band_scale.fill_(front_end.std)
        stem.band_shift.copy_(torch.from_numpy(front_end.mean / 2 - emphasis))
        states = stem.banded(windows.transpose(1, 2).unsqueeze(1))
        for layer in stem.layers:
            states = open_norm(layer, states) if isinstance(layer, nn.BatchNorm2d) else layer(states)


def open_norm(norm: nn.BatchNorm2d, states: Tensor) -> Tensor:
    """Give a norm that only adds its bias the statistics of (n, channels, mels, frames); its answer stays the same."""
    variance, mean = torch.var_mean(states, (0, 2, 3), correction=0)
    answer = states + norm.bias[:, None, None]
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.add_(mean)
    return answer
