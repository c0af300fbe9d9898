"""Loss around a minimum: relative radii, the gradient's direction the worst, and the weights as they were."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trainer.toy_fit import AST, RECIPE
from trainer.model.network import network, pool_moments
from trainer.report.sharpness import RADII, moved, normalised, sharpness
from trainer.run.recipe import with_changes


class Moments(nn.Linear):
    """Logits (batch, moments, 4) of features (batch, 8) or (batch, moments, 8)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features if features.ndim == 3 else features.unsqueeze(1))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    model = Moments(8, 4)
    nn.init.zeros_(model.bias)
    return model


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def test_every_filter_moves_by_its_own_norm() -> None:
    weights = {"a": torch.randn(3, 5), "b": torch.randn(2, 1, 3, 3)}
    direction = normalised({name: torch.randn_like(one) for name, one in weights.items()}, weights)
    for name, one in weights.items():
        expected = torch.linalg.vector_norm(one.flatten(1), dim=1)
        assert torch.allclose(torch.linalg.vector_norm(direction[name].flatten(1), dim=1), expected)


def test_a_filter_without_gradient_stays() -> None:
    direction = normalised({"a": torch.zeros(2, 3)}, {"a": torch.ones(2, 3)})
    assert torch.equal(direction["a"], torch.zeros(2, 3))


@pytest.mark.parametrize("at_once", [64, 7])
def test_adversarial_loss_against_a_step_by_hand(at_once: int) -> None:
    model, (features, labels) = linear(), data()
    read = sharpness(model, features, labels, at_once)
    moving = model.weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(features @ moving.T, labels), moving)
    weight = moving.detach()
    unit = gradient / gradient.norm(dim=1, keepdim=True) * weight.norm(dim=1, keepdim=True)
    for radius, loss in zip(read.radii, read.adversarial, strict=True):
        assert loss == pytest.approx(float(F.cross_entropy(features @ (weight + radius * unit).T, labels)), abs=1e-6)


def test_the_gradient_is_worse_than_chance_and_grows_with_the_radius() -> None:
    torch.manual_seed(0)
    model = network(with_changes(RECIPE, {"model": AST}).model).eval()
    generator = torch.Generator().manual_seed(2)
    windows = torch.randn(6, RECIPE.model.frames, RECIPE.model.mels, generator=generator)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    read = sharpness(model, windows, torch.tensor([0, 1, 2, 3, 0, 1]), 4)
    assert read.radii == (0.0, *RADII)
    assert read.random[0] == read.adversarial[0]
    assert list(read.adversarial) == sorted(read.adversarial)
    assert read.adversarial[-1] > read.random[-1]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert sharpness(model, windows, torch.tensor([0, 1, 2, 3, 0, 1]), 4) == read


def test_weights_come_back_after_an_error() -> None:
    model = linear()
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError), moved(model, {"weight": torch.randn(4, 8)}, 0.3):
        assert not torch.equal(model.weight, before)
        raise RuntimeError
    assert torch.equal(model.weight, before)


def test_the_loss_is_that_of_pooled_moments() -> None:
    model, generator = linear(), torch.Generator().manual_seed(1)
    features, labels = torch.randn(12, 5, 8, generator=generator), torch.randint(0, 4, (12,), generator=generator)
    read = sharpness(model, features, labels, 5)
    with torch.no_grad():
        expected = F.cross_entropy(pool_moments(model(features)), labels)
    assert read.adversarial[0] == pytest.approx(float(expected), abs=1e-6)
