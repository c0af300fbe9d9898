"""Sharpness-Aware Minimization (Foret et al. 2021, arXiv 2010.01412) around any torch optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class SAM:
    """Two passes a step: climb by rho along the gradient, take the gradient there, step from where the climb began.

    `climb` and `restore` enclose the second forward and backward of one micro-batch (m-sharpness when gradients are
    accumulated over several); `step` is the base optimizer's. rho = 0 makes every climb a no-op.
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float) -> None:
        if rho < 0.0:
            raise ValueError(f"rho must not be negative, got {rho}")
        self.base, self.rho = base, rho
        self._origins: dict[Tensor, Tensor] = {}

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.base.param_groups:
            yield from (parameter for parameter in group["params"] if parameter.grad is not None)

    @torch.no_grad()
    def climb(self) -> float:
        """Move to w + rho * g / |g|; returns |g|. A zero or non-finite gradient does not move."""
        parameters = list(self._parameters())
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in parameters]))
        self._origins = {}
        if bool(torch.isfinite(norm)) and float(norm) > 0.0:
            for parameter in parameters:
                assert parameter.grad is not None
                self._origins[parameter] = parameter.detach().clone()
                parameter.add_(parameter.grad, alpha=self.rho / float(norm))
        return float(norm)

    @torch.no_grad()
    def restore(self) -> None:
        """Back to where the climb began. Copies the saved values: w + e - e is not w in floating point."""
        for parameter, origin in self._origins.items():
            parameter.copy_(origin)
        self._origins = {}

    def step(self) -> None:
        """One step of the base optimizer with the gradients now held."""
        if self._origins:
            raise RuntimeError("SAM.step before restore: the weights still stand on the perturbed point")
        self.base.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.base.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state and rho."""
        return {"base": self.base.state_dict(), "rho": self.rho}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict inverse of `state_dict`."""
        self.base.load_state_dict(state["base"])
        self.rho = float(state["rho"])


@contextmanager
def same_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Yields a function that rewinds torch's random state to where the block began, so dropout repeats its masks."""
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)

    yield rewind


@contextmanager
def frozen_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch but leave their running averages alone: the perturbed weights never serve."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def backward_twice(
    model: nn.Module, sam: SAM, loss_of: Callable[[], Tensor], device: torch.device, scale: float = 1.0
) -> Tensor:
    """Gradient of `scale` * loss at the climbed point, added to what the parameters held; returns the first loss.

    `loss_of` runs one forward of one micro-batch. Both passes see the same dropout. With rho = 0 it is one plain pass.
    """
    if sam.rho == 0.0:
        loss = loss_of()
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    held = {p: p.grad for p in model.parameters() if p.grad is not None}
    sam.zero_grad()
    with same_randomness(device) as rewind:
        first = loss_of()
        first.backward()  # type: ignore[no-untyped-call]
        sam.climb()
        sam.zero_grad()
        rewind()
        with frozen_batch_statistics(model):
            (loss_of() * scale).backward()  # type: ignore[no-untyped-call]
    sam.restore()
    for parameter, gradient in held.items():
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return first.detach()
