"""How sharp a minimum is: the loss on fixed windows with the weights moved away, at random and along the gradient.

Radii are relative: every filter moves by that share of its own norm, so two models of another scale compare (filter
normalisation, Li et al. 2018, arXiv 1712.09913). The adversarial direction is the gradient's, normalised alike: one
step of the relative perturbation of Wu et al. 2020 (arXiv 2004.05884). Biases, norms and positions stay.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.model.network import pool_moments

RADII: Final = (0.005, 0.01, 0.02, 0.05, 0.1)
DIRECTIONS: Final = 2
TINY: Final = 1e-12

Direction = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sharpness:
    """Mean cross-entropy by radius, 0 first."""

    radii: tuple[float, ...]
    random: tuple[float, ...]
    """Mean over a few directions."""
    adversarial: tuple[float, ...]
    """The highest within the radius, along the gradient."""


def normalised(direction: Direction, weights: Direction) -> dict[str, Tensor]:
    """The direction with each filter (first dimension) scaled to the norm of the filter it moves."""

    def norms(tensor: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
        return length.reshape(-1, *[1] * (tensor.ndim - 1))

    return {name: moved * (norms(weights[name]) / norms(moved).clamp(min=TINY)) for name, moved in direction.items()}


@contextmanager
def moved(model: nn.Module, direction: Direction, radius: float) -> Iterator[None]:
    """The model with `radius` times the direction added; afterwards its own weights again, bit by bit."""
    parameters = dict(model.named_parameters())
    origins = {name: parameters[name].detach().clone() for name in direction}
    with torch.no_grad():
        for name, step in direction.items():
            parameters[name].add_(step, alpha=radius)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, origin in origins.items():
                parameters[name].copy_(origin)


def sharpness(model: nn.Module, windows: Tensor, labels: Tensor, at_once: int, seed: int = 0) -> Sharpness:
    """Losses of a model in eval mode on windows (n, frames, mels) with class indices (n,), `at_once` in a pass."""
    weights = {name: one.detach() for name, one in model.named_parameters() if one.ndim in (2, 4)}
    generator = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Tensor]:
        """What each pass adds to the mean."""
        for some, theirs in zip(torch.split(windows, at_once), torch.split(labels, at_once), strict=True):
            yield F.cross_entropy(pool_moments(model(some)), theirs, reduction="sum") / len(labels)

    def loss_at(direction: Direction, radius: float) -> float:
        with moved(model, direction, radius), torch.no_grad():
            return sum(map(float, losses()))

    chosen = [one for one in model.parameters() if one.ndim in (2, 4)]
    start, slopes = 0.0, [torch.zeros_like(one) for one in chosen]
    for loss in losses():
        start += float(loss.detach())
        for slope, more in zip(slopes, torch.autograd.grad(loss, chosen), strict=True):
            slope += more
    climb = normalised(dict(zip(weights, slopes, strict=True)), weights)
    drawn = [
        normalised(
            {name: torch.randn(one.shape, generator=generator).to(one.device) for name, one in weights.items()}, weights
        )
        for _ in range(DIRECTIONS)
    ]
    return Sharpness(
        (0.0, *RADII),
        (start, *(sum(loss_at(direction, radius) for direction in drawn) / DIRECTIONS for radius in RADII)),
        tuple(accumulate((start, *(loss_at(climb, radius) for radius in RADII)), max)),
    )
