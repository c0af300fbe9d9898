"""Sharpness-Aware Minimization (Foret et al. 2021, arXiv 2010.01412), and its adaptive form, around any optimizer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

ADAPTIVE_FLOOR: Final = 0.01  # eta of arXiv 2102.11600: a weight of zero can still be perturbed


class SAM:
    """Two passes a step: climb by rho along the gradient, take the gradient there, step from where the climb began.

    `climb` and `restore` enclose the second forward and backward of one micro-batch (m-sharpness when gradients are
    accumulated over several); `step` is the base optimizer's. rho = 0 makes every climb a no-op. `adaptive` measures
    the climb relative to each weight's size (ASAM, Kwon et al. 2021, arXiv 2102.11600), which wants a larger rho.
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float, *, adaptive: bool = False) -> None:
        if rho < 0.0:
            raise ValueError(f"rho must not be negative, got {rho}")
        self.base, self.rho, self.adaptive = base, rho, adaptive
        self._origins: dict[Tensor, Tensor] = {}

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.base.param_groups:
            yield from (parameter for parameter in group["params"] if parameter.grad is not None)

    @torch.no_grad()
    def climb(self) -> float:
        """Move to w + rho * g / |g|, adaptive to w + rho * t^2 g / |t g| with t = |w| + eta; returns the norm.

        A zero or non-finite gradient does not move.
        """
        parameters = list(self._parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scales = [parameter.abs() + ADAPTIVE_FLOOR for parameter in parameters] if self.adaptive else []
        if self.adaptive:
            gradients = [scale * gradient for scale, gradient in zip(scales, gradients, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        self._origins = {}
        if bool(torch.isfinite(norm)) and float(norm) > 0.0:
            if self.adaptive:
                gradients = [scale * gradient for scale, gradient in zip(scales, gradients, strict=True)]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                self._origins[parameter] = parameter.detach().clone()
                parameter.add_(gradient, alpha=self.rho / float(norm))
        return float(norm)

    @torch.no_grad()
    def restore(self) -> None:
        """Back to where the climb began. Copies the saved values: w + e - e is not w in floating point."""
        for parameter, origin in self._origins.items():
            parameter.copy_(origin)
        self._origins = {}

    def step(self) -> None:
        """One step of the base optimizer with the present gradients."""
        if self._origins:
            raise RuntimeError("SAM.step before restore: the weights still stand on the perturbed point")
        self.base.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.base.zero_grad(set_to_none=True)


def random_state(device: torch.device) -> Tensor:
    """The state (n,) of torch's random numbers, which dropout draws from; uint8."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Inverse of `random_state`."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)


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
    model: nn.Module,
    sam: SAM,
    loss_of: Callable[[], Tensor],
    device: torch.device,
    scale: float = 1.0,
    *,
    unshared: Callable[[], AbstractContextManager[None]] = nullcontext,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Tensor:
    """Gradient of `scale` * loss at the climbed point, added to the gradients that the parameters had.

    Returns the first pass's loss, or the second's where that one is not finite.

    `loss_of` runs one forward of one micro-batch. Both passes see the same dropout. With rho = 0 it is one plain pass.
    Among several processes the first pass runs inside `unshared`: each climbs along its own gradient (m-sharpness per
    process), and the gradients of the second pass are the ones that are averaged.
    """
    if sam.rho == 0.0:
        loss = loss_of()
        backward(loss * scale)
        return loss.detach()
    earlier = {p: p.grad for p in model.parameters() if p.grad is not None}
    sam.zero_grad()
    state = random_state(device)
    with unshared():
        first = loss_of()
        backward(first)
    sam.climb()
    sam.zero_grad()
    # before the second pass: where it averages over processes, the earlier gradients must be in it
    for parameter, gradient in earlier.items():
        parameter.grad = gradient
    restore_random_state(state, device)
    with frozen_batch_statistics(model):
        second = loss_of()
        backward(second * scale)
    sam.restore()
    return first.detach() if bool(second.isfinite()) else second.detach()
