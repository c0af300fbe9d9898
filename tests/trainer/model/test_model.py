"""AST against transformers' ASTModel with the same weights, at two sizes and with both poolings."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification, ASTModel

from device.model.judgement import pool
from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.model.network import AST, Ensemble, network, pool_moments, predict
from trainer.run.recipe import load_recipe

SMALL = ModelConfig(frames=75, mels=48, dim=24, depth=2, heads=3, mlp_ratio=2.0, classes=4)
# this project's window: 12 x 79 patches
WINDOW = ModelConfig(dim=32, depth=1, heads=4, patch=16, stride=10)
SIZES = [pytest.param(SMALL, id="small"), pytest.param(WINDOW, id="window")]
# our name -> theirs (transformers 5), the three projections of attention aside
EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "distillation_token": "embeddings.distillation_token",
    "positions": "embeddings.position_embeddings",
    "stem.projection": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK = {
    "attention_norm": "layernorm_before",
    "attention.out": "attention.o_proj",
    "mlp_norm": "layernorm_after",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def theirs_of(config: ModelConfig) -> ASTConfig:
    sizes: dict[str, Any] = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": round(config.dim * config.mlp_ratio),
        "patch_size": config.patch,
        "frequency_stride": config.stride,
        "time_stride": config.stride,
        "max_length": config.frames,
        "num_mel_bins": config.mels,
        "num_labels": config.classes,
    }
    return ASTConfig(**sizes)


def randomised(model: Any) -> Any:
    """Their model in eval mode with every weight and bias away from its zero or one, so that none can be forgotten."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def renamed(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our state dict, without the head, from that of an ASTModel; a weight left over on their side is an error."""
    left = dict(theirs)
    names = dict(EMBEDDINGS)
    for block in range(depth):
        names |= {f"blocks.{block}.{ours}": f"layers.{block}.{name}" for ours, name in BLOCK.items()}
    result = {}
    for ours, name in names.items():
        for suffix in ("", ".weight", ".bias"):
            if name + suffix in left:
                result[ours + suffix] = left.pop(name + suffix)
    for block in range(depth):
        for suffix in (".weight", ".bias"):
            parts = [left.pop(f"layers.{block}.attention.{part}_proj{suffix}") for part in "qkv"]
            result[f"blocks.{block}.attention.qkv{suffix}"] = torch.cat(parts)
    assert not left, f"not mapped: {sorted(left)}"
    return result


def same_weights(ours: AST, theirs: nn.Module) -> None:
    head = {f"head.{name}": tensor for name, tensor in ours.head.state_dict().items()}
    ours.load_state_dict({**renamed(theirs.state_dict(), ours.config.depth), **head})


def windows_of(config: ModelConfig, count: int = 2) -> Tensor:
    return torch.randn(count, config.frames, config.mels, generator=torch.Generator().manual_seed(1))


def with_pooling(config: ModelConfig, pooling: str) -> ModelConfig:
    return ModelConfig.model_validate({**config.model_dump(), "pooling": pooling})


@pytest.mark.parametrize("config", SIZES)
def test_tokens_equal_those_of_transformers(config: ModelConfig) -> None:
    ours, theirs = AST(config).eval(), randomised(ASTModel(theirs_of(config)))
    same_weights(ours, theirs)
    with torch.inference_mode():
        expected = theirs(windows_of(config)).last_hidden_state
        got = ours.tokens(windows_of(config))
    assert got.shape == (2, 2 + config.grid[0] * config.grid[1], config.dim)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", SIZES)
def test_cls_and_distillation_pooling_equals_transformers_classifier(config: ModelConfig) -> None:
    """Their classifier on our pooled tokens gives their logits, so the pooling in front of it is theirs."""
    ours = AST(with_pooling(config, "cls+dist")).eval()
    theirs = randomised(ASTForAudioClassification(theirs_of(config)))
    same_weights(ours, theirs.audio_spectrogram_transformer)
    ours.head = nn.Identity()  # type: ignore[assignment]  # what is left is the pooled state
    with torch.inference_mode():
        expected = theirs(windows_of(config)).logits
        got = theirs.classifier(ours(windows_of(config))[:, 0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", SIZES)
def test_mean_pooling_reads_the_spectrogram_tokens_only(config: ModelConfig) -> None:
    ours, theirs = AST(with_pooling(config, "mean")).eval(), randomised(ASTModel(theirs_of(config)))
    same_weights(ours, theirs)
    with torch.inference_mode():
        expected = ours.head(theirs(windows_of(config)).last_hidden_state[:, 2:].mean(dim=1))
        got = ours(windows_of(config))
    assert got.shape == (2, config.moments, config.classes) == (2, 1, 4)
    torch.testing.assert_close(got[:, 0], expected, rtol=0, atol=1e-4)


def test_the_default_is_ast_base_at_our_window() -> None:
    """86 M parameters (Gong et al. 2021, table 1), 12 x 79 patches."""
    config = ModelConfig()
    assert config.grid == (12, 79)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in AST(config).parameters())
    assert 85e6 < parameters < 88e6


def test_a_batch_is_its_windows_one_by_one() -> None:
    model, windows = AST(SMALL).eval(), windows_of(SMALL, 3)
    with torch.inference_mode():
        together = model(windows)
        alone = torch.cat([model(one.unsqueeze(0)) for one in windows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", SIZES)
def test_training_computes_the_same_attention_and_gradients(config: ModelConfig) -> None:
    """Fused in training, written out elsewhere."""
    model = AST(config).eval()
    gradients = []
    for training in (True, False):
        for block in model.blocks:
            block.train(training)
        model.zero_grad()
        logits = model(windows_of(config))
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for fused, written in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, written, rtol=1e-3, atol=1e-5)


def test_dropout_works_in_training_only() -> None:
    model = AST(ModelConfig.model_validate({**SMALL.model_dump(), "dropout": 0.5}))
    windows = windows_of(SMALL)
    assert not torch.equal(model(windows), model(windows))
    model.eval()
    assert torch.equal(model(windows), model(windows))


@pytest.mark.parametrize("shape", [(2, 48, 75), (2, 74, 48), (75, 48), (2, 1, 75, 48)])
def test_a_window_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not \\(batch, 75, 48\\)"):
        AST(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dim": 30, "heads": 4}, "does not divide"),
        ({"stem": "convolutional"}, "stem"),
        ({"architecture": "mobilenet"}, "architecture"),
        ({"mels": 12, "patch": 16}, "does not fit"),
        ({"pooling": "max"}, "pooling"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": 3}, "layers"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate(wrong)


def test_weights_of_another_size_or_name_are_refused() -> None:
    """torch's strict load names the key; nothing here loosens it."""
    state = AST(SMALL).state_dict()
    state["stray"] = state.pop("head.bias")
    with pytest.raises(RuntimeError, match=r"(?s)head\.bias.*stray"):
        AST(SMALL).load_state_dict(state)


@pytest.mark.parametrize("config", [SMALL, MobileNetConfig(mels=32)])
def test_an_ensembles_logits_are_the_mean_of_its_members_at_every_moment(config: ModelConfig | MobileNetConfig) -> None:
    torch.manual_seed(0)
    # in training a MobileNet's norms keep random weights from shrinking to nothing; there is no dropout
    members = [network(config) for _ in range(3)]
    windows = torch.randn(2, config.frames, config.mels)
    with torch.inference_mode():
        together = Ensemble(members)(windows)
        expected = torch.stack([member(windows) for member in members]).mean(dim=0)
    assert together.shape == (2, config.moments, 4)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-6)


def test_moments_are_pooled_as_the_device_pools_them() -> None:
    logits = 5.0 * torch.randn(3, 25, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(pool_moments(logits).numpy(), pool(logits.numpy()), atol=1e-5)


def test_a_pass_takes_fewer_windows_of_more_tokens() -> None:
    """AST base with its gradients must fit beside everything else; a MobileNet need not wait."""
    assert ModelConfig().windows_at_once == 6
    assert load_recipe("mobilenet").model.windows_at_once == 64
    assert ModelConfig(stride=1).windows_at_once == 1


def test_logits_do_not_depend_on_how_many_windows_are_read_at_once() -> None:
    sizes: list[int] = []
    model = AST(ModelConfig(dim=16, depth=1, heads=2)).eval()
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    windows = np.random.default_rng(0).standard_normal((14, 798, 128), dtype=np.float32)
    together = predict(model, windows, torch.device("cpu"))
    assert sizes == [6, 6, 2]
    with torch.inference_mode():
        np.testing.assert_allclose(together, model(torch.from_numpy(windows)).numpy(), atol=1e-5)
