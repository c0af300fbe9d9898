"""SAM against a ten-line numpy version, and the promises that make its training reproducible."""

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.training.sam import SAM, backward_twice, frozen_batch_statistics, random_state, restore_random_state

CPU = torch.device("cpu")
Float64Array = npt.NDArray[np.float64]


def numpy_gradient(weights: Float64Array, inputs: Float64Array, targets: Float64Array) -> Float64Array:
    """Of the mean logistic loss."""
    gradient: Float64Array = inputs.T @ (1 / (1 + np.exp(-inputs @ weights)) - targets) / len(targets)
    return gradient


def numpy_sam_gradient(weights: Float64Array, inputs: Float64Array, targets: Float64Array, rho: float) -> Float64Array:
    """Foret et al. 2021, equations 2 and 3."""
    gradient = numpy_gradient(weights, inputs, targets)
    return numpy_gradient(weights + rho * gradient / np.linalg.norm(gradient), inputs, targets)


def numpy_asam_gradient(weights: Float64Array, inputs: Float64Array, targets: Float64Array, rho: float) -> Float64Array:
    """Kwon et al. 2021, equation 11, with T_w = diag(|w| + 0.01)."""
    gradient, size = numpy_gradient(weights, inputs, targets), np.abs(weights) + 0.01
    climbed = weights + rho * size**2 * gradient / np.linalg.norm(size * gradient)
    return numpy_gradient(climbed, inputs, targets)


class Logistic(nn.Module):
    """Two parameter tensors, so that a norm taken per tensor instead of over all would show."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.linspace(-0.5, 0.5, features // 2, dtype=torch.float64))
        self.right = nn.Parameter(torch.linspace(0.3, -0.2, features - features // 2, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.flat

    @property
    def flat(self) -> Tensor:
        return torch.cat([self.left, self.right])


def problem(seed: int = 0, rows: int = 40, features: int = 5) -> tuple[Float64Array, Float64Array]:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((rows, features))
    return inputs, (inputs @ random.standard_normal(features) + random.standard_normal(rows) > 0).astype(np.float64)


def logistic_loss(model: Logistic, inputs: Float64Array, targets: Float64Array) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(torch.from_numpy(inputs)), torch.from_numpy(targets))


def small_net(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 6 * 6, 3)
    )


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 8, 8, generator=random), torch.randint(3, (8,), generator=random)


def train(model: nn.Module, sam: SAM, steps: range) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        inputs, targets = batch(step % 4)
        losses.append(float(backward_twice(model, sam, lambda x=inputs, y=targets: F.cross_entropy(model(x), y), CPU)))  # type: ignore[misc]
        sam.step()
        sam.zero_grad()
    return losses


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_values_equal_the_numpy_version(rho: float, adaptive: bool) -> None:
    inputs, targets = problem()
    model = Logistic(inputs.shape[1])
    expected = model.flat.detach().numpy().copy()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.7), rho, adaptive=adaptive)
    gradient = numpy_asam_gradient if adaptive else numpy_sam_gradient
    for _ in range(20):
        expected -= 0.7 * gradient(expected, inputs, targets, rho)
        backward_twice(model, sam, lambda: logistic_loss(model, inputs, targets), CPU)
        sam.step()
        sam.zero_grad()
    np.testing.assert_allclose(model.flat.detach().numpy(), expected, rtol=1e-10)


def test_accumulation_is_the_mean_of_the_micro_batches_own_sam_gradients() -> None:
    """m-sharpness: each micro-batch climbs along its own gradient, from the same weights."""
    inputs, targets = problem(rows=60)
    model = Logistic(inputs.shape[1])
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.3)
    start = model.flat.detach().numpy().copy()
    parts = [slice(0, 20), slice(20, 40), slice(40, 60)]
    for part in parts:
        backward_twice(model, sam, lambda p=part: logistic_loss(model, inputs[p], targets[p]), CPU, 1 / 3)  # type: ignore[misc]
    expected = np.mean([numpy_sam_gradient(start, inputs[p], targets[p], 0.3) for p in parts], axis=0)
    assert model.left.grad is not None
    assert model.right.grad is not None
    got = torch.cat([model.left.grad, model.right.grad]).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert not np.allclose(got, numpy_sam_gradient(start, inputs, targets, 0.3), rtol=1e-4)


def test_the_climb_is_rho_long_and_the_way_back_bitwise() -> None:
    model = small_net()
    before = copy.deepcopy(model)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.05)
    inputs, targets = batch()
    torch.autograd.backward(F.cross_entropy(model(inputs), targets))
    norm = sam.climb()
    moved = [new.detach() - old.detach() for new, old in zip(model.parameters(), before.parameters(), strict=True)]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.05, rel=1e-3)
    assert norm == pytest.approx(torch.cat([part.flatten() for part in gradients]).norm().item(), rel=1e-5)
    sam.restore()
    for new, old in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old)


def test_the_weights_come_back_as_the_same_tensors() -> None:
    """Rebinding would leave the optimizer with the old ones."""
    model = small_net()
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    train(model, SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.05), range(1))
    assert [parameter.data_ptr() for parameter in model.parameters()] == storages


def test_without_a_radius_it_is_plain_adamw_bitwise() -> None:
    ours, plain = small_net(), small_net()
    train(ours, SAM(torch.optim.AdamW(ours.parameters(), lr=1e-2), rho=0.0), range(6))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for step in range(6):
        torch.manual_seed(step)
        inputs, targets = batch(step % 4)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(plain(inputs), targets))
        optimizer.step()
    assert same_state(ours, plain)


def test_both_passes_see_the_same_dropout_and_randomness_goes_on_as_after_one() -> None:
    model = nn.Linear(200, 1)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.5)
    masks: list[Tensor] = []

    def loss_of() -> Tensor:
        masks.append(F.dropout(torch.ones(3, 200), 0.5, training=True))
        loss: Tensor = model(masks[-1]).square().mean()
        return loss

    torch.manual_seed(0)
    backward_twice(model, sam, loss_of, CPU)
    after = torch.rand(4)
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    assert set(masks[0].flatten().tolist()) == {0.0, 2.0}
    torch.manual_seed(0)
    loss_of()
    assert torch.equal(after, torch.rand(4))


def test_randomness_can_be_rewound() -> None:
    state = random_state(CPU)
    first = torch.rand(3)
    restore_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)
    assert not torch.equal(torch.rand(3), first)


def test_batch_statistics_are_updated_by_the_first_pass_only() -> None:
    ours, once = small_net(), small_net()
    inputs, targets = batch()
    sam = SAM(torch.optim.SGD(ours.parameters(), lr=0.0), 0.5)
    torch.manual_seed(0)
    backward_twice(ours, sam, lambda: F.cross_entropy(ours(inputs), targets), CPU)
    torch.manual_seed(0)
    once(inputs)
    ours_norm, once_norm = ours[1], once[1]
    assert isinstance(ours_norm, nn.BatchNorm2d) and isinstance(once_norm, nn.BatchNorm2d)
    assert ours_norm.running_mean is not None and once_norm.running_mean is not None
    assert ours_norm.running_var is not None and once_norm.running_var is not None
    assert torch.equal(ours_norm.running_mean, once_norm.running_mean)
    assert torch.equal(ours_norm.running_var, once_norm.running_var)
    assert ours_norm.momentum == once_norm.momentum == 0.1
    assert not torch.equal(once_norm.running_mean, torch.zeros(4))


def test_batch_statistics_thaw_after_an_error() -> None:
    model = small_net()
    with pytest.raises(RuntimeError, match="lost"), frozen_batch_statistics(model):
        raise RuntimeError("lost")
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other = small_net(), small_net()
    losses = [
        train(model, SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), 0.05), range(8)) for model in (one, other)
    ]
    assert losses[0] == losses[1]
    assert same_state(one, other)


def test_it_converges_on_a_toy() -> None:
    model = small_net(dropout=0.0)
    losses = train(model, SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), 0.05), range(120))
    assert np.mean(losses[-4:]) < 0.05 * np.mean(losses[:4])


def test_state_goes_on_where_it_was_saved() -> None:
    model = small_net()
    sam = SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), 0.05)
    train(model, sam, range(3))
    saved, weights = copy.deepcopy(sam.base.state_dict()), copy.deepcopy(model.state_dict())
    train(model, sam, range(3, 6))

    resumed = small_net()
    resumed.load_state_dict(weights)
    again = SAM(torch.optim.AdamW(resumed.parameters(), lr=1.0), 0.05)
    again.base.load_state_dict(saved)
    train(resumed, again, range(3, 6))
    assert same_state(model, resumed)


@pytest.mark.parametrize("slope", [0.0, float("nan"), float("inf")])
def test_a_zero_or_infinite_gradient_does_not_move(slope: float) -> None:
    model = nn.Linear(4, 1)
    before = copy.deepcopy(model)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.0), 0.5)
    (model(torch.ones(2, 4)).sum() * slope).backward()
    sam.climb()
    assert same_state(model, before)
    sam.restore()
    assert same_state(model, before)


def test_a_step_from_the_climbed_point_is_refused() -> None:
    model = nn.Linear(4, 1)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
    model(torch.ones(2, 4)).sum().backward()
    sam.climb()
    with pytest.raises(RuntimeError, match="restore"):
        sam.step()
    with pytest.raises(ValueError, match="negative"):
        SAM(torch.optim.SGD(model.parameters(), lr=0.1), -0.1)
