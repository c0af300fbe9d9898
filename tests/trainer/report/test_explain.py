"""Attention against references, seams and silence against the padding itself, and what the command says of a file."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from device.model.judgement import judge
from device.signal import (
    FRAME_SAMPLES,
    FRAMES,
    HOP_SAMPLES,
    SAMPLE_RATE,
    SEAM_SAMPLES,
    WINDOW_SAMPLES,
    FloatArray,
    FrontEnd,
    cyclic_pad,
    window,
)
from firmware_config.settings import load_settings
from tests.conftest import RunCli
from tests.export.run_maker import MOBILENET, make_run
from tests.trainer.corpus_maker import make_sprsound
from trainer.model.config import ModelConfig
from trainer.model.mobilenet import MobileNet
from trainer.model.network import AST, Ensemble, pool_moments
from trainer.report.explain import (
    ExplainError,
    Explanation,
    attend,
    attention_shares,
    draw,
    evidence_of,
    explain,
    gradient_weighted,
    is_flat,
    on_seam,
    over_grid,
    per_frame,
    picture_of,
    rollout,
    runs,
    silent,
)

CPU = torch.device("cpu")
SMALL = ModelConfig(mels=32, dim=16, depth=3, heads=2, stride=16)
FRONT = FrontEnd(mels=32, mean=-8.0, std=3.0)


def model_of(config: ModelConfig, seed: int = 0) -> AST:
    """Random, with attention that is far from even."""
    torch.manual_seed(seed)
    model = AST(config).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12.0)
    return model


def random_windows(config: ModelConfig, count: int = 2) -> torch.Tensor:
    return torch.randn(count, config.frames, config.mels, generator=torch.Generator().manual_seed(3))


def breath(seconds: float, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32) * 0.1


# --- the two readings of attention


def test_attended_gives_the_logits_of_forward_and_weights_that_sum_to_one() -> None:
    config = SMALL
    model, windows = model_of(config), random_windows(config)
    logits, weights = model.attended(windows)
    assert torch.equal(logits.unsqueeze(1), model(windows))
    tokens = 2 + config.grid[0] * config.grid[1]
    assert [one.shape for one in weights] == [(2, config.heads, tokens, tokens)] * config.depth
    assert all(torch.allclose(one.sum(dim=-1), torch.ones(()), atol=1e-5) for one in weights)


def test_the_weights_are_those_of_the_block() -> None:
    model, windows = model_of(SMALL), random_windows(SMALL, 1)
    grid = model.stem(windows.transpose(1, 2).unsqueeze(1)).flatten(2).transpose(1, 2)
    states = torch.cat([model.cls_token, model.distillation_token, grid], dim=1) + model.positions
    first: Any = model.blocks[0]
    tokens = first.attention_norm(states)[0].detach().numpy()
    both = tokens @ first.attention.qkv.weight.detach().numpy().T + first.attention.qkv.bias.detach().numpy()
    head = slice(8, 16)  # the second of two heads of eight
    scores = both[:, :16][:, head] @ both[:, 16:32][:, head].T / np.sqrt(8)
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(model.attended(windows)[1][0][0, 1].detach().numpy() - expected).max() < 1e-5


def test_rollout_against_numpy() -> None:
    weights = [one.detach() for one in model_of(SMALL).attended(random_windows(SMALL))[1]]
    found = rollout(weights).numpy()
    assert np.abs(found.sum(axis=-1) - 1.0).max() < 1e-5
    for example in range(2):
        joint = np.eye(found.shape[-1])
        for block in weights:
            mixed = 0.5 * block[example].numpy().mean(axis=0) + 0.5 * np.eye(len(joint))
            joint = (mixed / mixed.sum(axis=1, keepdims=True)) @ joint
        assert np.abs(found[example] - joint).max() < 1e-5
        assert np.abs(joint - 1 / len(joint)).max() > 0.01, "attention is even; this test would see nothing"


def test_gradient_weighted_against_backward() -> None:
    model, windows = model_of(SMALL), random_windows(SMALL)
    logits, weights = model.attended(windows)
    found = gradient_weighted(logits[torch.arange(2), torch.tensor([1, 3])], weights).numpy()
    for example, label in enumerate((1, 3)):  # one at a time, by the gradients that backward leaves
        logits, weights = model.attended(windows[example : example + 1])
        for one in weights:
            one.retain_grad()
        torch.autograd.backward(logits[0, label])
        relevance = np.eye(found.shape[-1])
        for one in weights:
            assert one.grad is not None
            relevance = relevance + np.maximum((one.grad * one.detach()).numpy()[0], 0).mean(axis=0) @ relevance
        expected = relevance - np.eye(len(relevance))
        assert expected.max() > 0
        assert np.abs(found[example] - expected).max() < 1e-4 * expected.max()


@pytest.mark.parametrize("pooling", ["mean", "cls+dist"])
def test_over_the_grid_reads_the_pooled_tokens_alone(pooling: str) -> None:
    config = SMALL.model_copy(update={"pooling": pooling})
    rows, columns = config.grid
    tokens = torch.zeros(1, 2 + rows * columns, 2 + rows * columns)
    reading, other = (slice(2, None), slice(0, 2)) if pooling == "mean" else (slice(0, 2), slice(2, None))
    tokens[:, reading, 2 + columns + 4] = 0.3  # second row, fifth column
    tokens[:, other, 5] = 9.0
    tokens[:, reading, 0] = 9.0  # a special token is no place in the spectrogram
    grid = over_grid(tokens, config)
    assert grid.shape == (1, rows, columns)
    assert grid[0, 1, 4] == pytest.approx(1.0)
    assert np.allclose(over_grid(torch.zeros_like(tokens), config), 1 / (rows * columns))


def looking_at(column: int, config: ModelConfig) -> AST:
    """Every token attends to one time column alone, and what it finds there speaks for class 1."""
    model = AST(config).eval()
    rows, columns = config.grid
    with torch.no_grad():
        for parameter in (*model.stem.parameters(), *model.blocks.parameters(), *model.head.parameters()):
            parameter.zero_()
        block: Any = model.blocks[0]
        for norm in (block.attention_norm, block.mlp_norm, model.norm):
            norm.weight.fill_(1.0)
        model.positions.zero_()
        model.positions[:, :, 0], model.positions[:, :, 1] = -1.0, 3.0  # the second keeps the norms from saturating
        chosen = 2 + torch.arange(rows) * columns + column
        model.positions[:, chosen, 0] = 1.0
        identity = torch.eye(config.dim)
        block.attention.qkv.weight[config.dim :] = torch.cat([identity, identity])
        block.attention.qkv.bias[0] = 100.0
        block.attention.out.weight.copy_(identity)
        model.head.weight[1, 0], model.head.bias[1] = 1.0, 9.0
    return model


def test_a_model_that_only_looks_at_one_column_has_its_attention_there() -> None:
    config = ModelConfig(mels=32, dim=8, depth=1, heads=1, stride=16)
    columns = config.grid[1]
    (found,) = attend(looking_at(7, config), [breath(8.0)], FRONT, CPU, np.array([1]))
    # rollout passes half of every token on to itself
    assert found.rollout.sum(axis=0)[7] == pytest.approx(0.5 + 0.5 / columns, abs=1e-3)
    assert found.gradient.sum(axis=0)[7] == pytest.approx(1.0, abs=1e-3)
    frames = per_frame(found.gradient, FRAMES)
    assert frames.sum() == pytest.approx(1.0)
    assert int(np.average(np.arange(FRAMES), weights=frames)) == pytest.approx((7 + 0.5) * FRAMES / columns, abs=2)


def test_an_ensembles_attention_is_the_mean_of_its_members() -> None:
    members, samples = [model_of(SMALL, seed) for seed in (0, 1)], [breath(2.5, seed) for seed in range(5)]
    asked = np.array([1, 2, 3, 0, 1])
    together = attend(Ensemble(members), samples, FRONT, CPU, asked)
    alone = [attend(member, samples, FRONT, CPU, asked) for member in members]
    for one, *each in zip(together, *alone, strict=True):
        for way in ("rollout", "gradient", "logits"):
            assert np.allclose(getattr(one, way), np.mean([getattr(e, way) for e in each], axis=0), atol=1e-5)


# --- a MobileNet, which has no attention


def mobilenet(seed: int = 0) -> MobileNet:
    """Random, its norms as after training, so that it hears anything at all."""
    torch.manual_seed(seed)
    model = MobileNet(MOBILENET)
    torch.nn.init.normal_(model.head.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(random_windows_of(8))
    return model.eval()


def test_a_mobilenets_moments_have_their_share_of_the_pooled_odds() -> None:
    model, windows = mobilenet(), random_windows_of(3)
    looked, spoke = evidence_of(model, windows, np.array([1, 2, 3]))
    with torch.no_grad():
        logits = model(windows).double().numpy()
    odds = np.exp(logits[..., 1:]).sum(axis=-1)  # normal is at 0
    assert looked.shape == (3, 1, 25)
    np.testing.assert_allclose(looked[:, 0], odds / odds.sum(axis=1, keepdims=True), rtol=1e-3)
    assert spoke.shape[2] == 25 and spoke.min() >= 0.0
    np.testing.assert_allclose(spoke.sum(axis=(1, 2)), 1.0)


def test_what_speaks_for_a_class_is_grad_cam_of_the_pooled_logit() -> None:
    """One window at a time, by the gradients that backward leaves (Selvaraju et al. 2017)."""
    model, windows = mobilenet(), random_windows_of(2)
    _, spoke = evidence_of(model, windows, np.array([1, 2]))
    for example, label in enumerate((1, 2)):
        features = model.features(windows[example : example + 1])
        features.retain_grad()
        torch.autograd.backward(pool_moments(model.classified(features))[0, label])
        assert features.grad is not None
        importance = features.grad.mean(dim=(2, 3), keepdim=True)
        activation = (importance * features).sum(dim=1).clamp(min=0)[0].detach().double().numpy()
        np.testing.assert_allclose(spoke[example], activation / activation.sum(), atol=1e-5)


def random_windows_of(count: int) -> torch.Tensor:
    return torch.randn(count, FRAMES, MOBILENET.mels, generator=torch.Generator().manual_seed(5))


def test_an_ensemble_of_mobilenets_is_read_too() -> None:
    members = [mobilenet(seed) for seed in (0, 1)]
    samples = [breath(2.5), breath(8.0, 1)]
    found = attend(Ensemble(members), samples, FRONT, CPU)
    inputs = torch.from_numpy(np.stack([window(one, FRONT) for one in samples]))
    with torch.no_grad():
        expected = pool_moments(torch.stack([member(inputs) for member in members]).mean(dim=0)).numpy()
    for one, logits in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logits, logits, atol=1e-5)
        assert one.rollout.shape == (1, 25) and one.gradient.shape == (1, 25)
        assert one.rollout.sum() == pytest.approx(1.0) and one.gradient.sum() == pytest.approx(1.0)
        assert 0.0 <= one.shares.seams.rollout <= 1.0
    alone = attend(members[0], samples, FRONT, CPU)
    assert not np.allclose(alone[0].rollout, found[0].rollout)


# --- seams and silence


@pytest.mark.parametrize("size", [40_000, 61_003, 4_000, 127_999, 128_000])
def test_seams_are_the_frames_whose_samples_the_padding_mixed(size: int) -> None:
    samples = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    padded = cyclic_pad(samples, WINDOW_SAMPLES)
    plain = samples[np.arange(WINDOW_SAMPLES) % (size - SEAM_SAMPLES if size < WINDOW_SAMPLES else size)]
    mixed = padded != plain
    framed = np.lib.stride_tricks.sliding_window_view(mixed, FRAME_SAMPLES)[::HOP_SAMPLES].any(axis=1)
    assert framed.shape == (FRAMES,)
    assert framed.any() == (size < WINDOW_SAMPLES)
    assert np.array_equal(on_seam(size, FrontEnd()), framed)


def test_a_cycle_of_two_and_a_half_seconds_repeats_at_the_right_frames() -> None:
    period = 2.5 - 0.01
    centres = [(first + last) / 2 * 0.01 for first, last in runs(on_seam(40_000, FrontEnd()))]
    assert centres == pytest.approx([period, 2 * period, 3 * period], abs=0.02)


def test_a_hard_seam_is_the_frames_that_hold_the_jump() -> None:
    padded = cyclic_pad(np.arange(50_000, dtype=np.float32), WINDOW_SAMPLES, 0)
    jumps = np.lib.stride_tricks.sliding_window_view(np.diff(padded) < 0, FRAME_SAMPLES - 1)[::HOP_SAMPLES].any(axis=1)
    assert np.array_equal(on_seam(50_000, FrontEnd(seam="hard")), jumps)


def test_silence_is_a_pause_and_not_a_quiet_breath() -> None:
    samples = breath(8.0)
    samples[2 * SAMPLE_RATE : 3 * SAMPLE_RATE] *= 10 ** (-12 / 20)
    samples[5 * SAMPLE_RATE : 6 * SAMPLE_RATE] *= 10 ** (-30 / 20)
    ((first, last),) = runs(silent(window(samples, FRONT), FRONT))
    assert [first * 0.01, last * 0.01] == pytest.approx([5.0, 6.0], abs=0.03)


def test_added_frames_are_silence_however_bright_they_are() -> None:
    longer = FRONT.model_copy(update={"frames": 1024})
    found = silent(window(breath(8.0), longer), longer)
    assert found.shape == (1024,) and not found[:FRAMES].any() and found[FRAMES:].all()


def test_shares_are_the_attention_that_lies_there() -> None:
    config = ModelConfig(mels=32, dim=8, depth=1, heads=1, stride=16)
    columns = config.grid[1]
    seam = runs(on_seam(40_000, FRONT))[0]
    at = int(np.mean(seam)) * columns // FRAMES
    samples = [breath(2.5, seed) for seed in range(3)]
    looking = attention_shares(looking_at(at, config), samples, FRONT, CPU)
    away = attention_shares(looking_at(at + 3, config), samples, FRONT, CPU)
    even = on_seam(40_000, FRONT).mean()
    assert looking.seams.even == away.seams.even == pytest.approx(even)
    assert looking.seams.gradient > 5 * even and looking.seams.rollout > 3 * even
    assert away.seams.gradient < 0.01
    assert looking.silence.even == looking.silence.gradient == 0.0


# --- the picture


def test_even_attention_is_flat_and_a_place_is_not() -> None:
    even, place = np.full((3, 50), 1 / 150), np.zeros((3, 50))
    place[1, 20] = 1.0
    assert is_flat(even) and is_flat(even * (1 + 0.01 * np.sin(np.arange(50)))) and not is_flat(place)


def explained(model: Any) -> Explanation:
    """A window that a model judged as crackle."""
    (found,) = attend(model, [breath(2.5)], FRONT, CPU, np.array([1]))
    return Explanation("a.wav", 0.0, 2.5, "", judge(found.logits[None, None], 1.0, 0.5), 0.5, found, FRONT)


def test_colours_mean_the_same_in_every_picture_and_flat_is_said() -> None:
    """Differences of a few per cent, as random weights have them, do not fill the palette."""
    torch.manual_seed(0)
    flat = explained(AST(SMALL).eval())
    pointed = explained(looking_at(7, ModelConfig(mels=32, dim=8, depth=1, heads=1, stride=16)))
    for one, said in ((flat, True), (pointed, False)):
        axes = picture_of(one).axes
        overlays = [axis.get_images()[1] for axis in axes if len(axis.get_images()) == 2]
        assert [image.get_clim() for image in overlays] == [(0.0, 5.0)] * 2
        assert axes[1].get_title(loc="left").endswith(": flat") == said
        assert ("rollout is flat" in one.in_words) == said and one.as_json()["flat"]["rollout"] == said
    lows_and_highs = np.asarray(picture_of(flat).axes[1].get_images()[1].get_array())
    assert lows_and_highs.min() > 0.9 and lows_and_highs.max() < 1.1


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run and one of its recordings in which breath is found."""
    root = tmp_path_factory.mktemp("explained")
    data = make_sprsound(root / "corpus")
    make_run(root / "run", data, root / "cache", MOBILENET, members=2)
    for file in sorted(data.rglob("*.wav")):
        with suppress(ExplainError):
            explain(root / "run", file, CPU, load_settings().quality)
            return root / "run", file
    raise AssertionError("no made recording is gradable")


def test_the_most_suspicious_stretch_and_the_one_asked_for(run: tuple[Path, Path]) -> None:
    quality = load_settings().quality
    best = explain(*run, CPU, quality)
    seen = [explain(*run, CPU, quality, at) for at in (1.0, 3.0, 5.0, 7.0)]
    assert all(one.start_seconds <= at <= one.end_seconds for one, at in zip(seen, (1.0, 3.0, 5.0, 7.0), strict=True))
    assert all(best.judgement.probability >= one.judgement.probability for one in seen if not one.not_gradable)
    with pytest.raises(ExplainError, match=r"nothing was cut at 99 s of its 9\.0 s"):
        explain(*run, CPU, quality, 99.0)


def test_a_recording_of_nothing_says_why(run: tuple[Path, Path], tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, 1e-5 * breath(9.0), SAMPLE_RATE, subtype="PCM_24")
    with pytest.raises(ExplainError, match=r"quiet\.wav: nothing in its 9\.0 s is gradable \(.*quiet.*\).*--at"):
        explain(run[0], quiet, CPU, load_settings().quality)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(run: tuple[Path, Path], tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"picture.{ending}"
    draw(explain(*run, CPU, load_settings().quality), out)
    assert out.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])


def test_a_picture_that_cannot_be_made(run: tuple[Path, Path], tmp_path: Path) -> None:
    found = explain(*run, CPU, load_settings().quality)
    with pytest.raises(ExplainError, match=r"is \.png or \.svg"):
        draw(found, tmp_path / "picture.bmp")
    with pytest.raises(ExplainError, match="cannot be written"):
        draw(found, tmp_path / "absent" / "picture.png")


def test_the_command(run: tuple[Path, Path], run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli("trainer", "explain", *run, "--out", "picture.png", "--json", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert {"class", "probability", "threshold", "start", "end", "attention"} <= set(told)
    assert set(told["attention"]["seams"]) == {"even", "rollout", "gradient"}
    assert (tmp_path / "picture.png").is_file()
    words = run_cli("trainer", "explain", *run, "--device", "cpu")
    assert words.returncode == 0, words.stderr
    assert "seams" in words.stdout and "silence" in words.stdout and "threshold" in words.stdout
    wrong = run_cli("trainer", "explain", run[1].parent, run[1], "--device", "cpu")
    assert wrong.returncode == 2 and "no run here" in wrong.stderr
