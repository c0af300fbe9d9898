"""The MobileNet against EfficientAT's own numbers, its moments, and where its weights begin."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from device.labels import LABELS
from device.model.judgement import moment_centres, pool
from device.signal import FrontEnd, log_mel, mel_filters
from trainer.model.config import MobileNetConfig
from trainer.model.mobilenet import AudioSetMobileNet, MobileNet
from trainer.model.network import pool_moments
from trainer.run.initial import CheckpointError
from trainer.run.recipe import load_recipe
from trainer.training.checkpoints import initial_weights, load_initial

CONFIG = MobileNetConfig(mels=32)


@pytest.fixture(scope="module")
def pretrained(shared_data: Path) -> Path:
    """EfficientAT's weights, where they are beside the recordings."""
    file = shared_data.parent / "pretrained" / "mn04_as_mAP_432.pt"
    if not file.is_file():
        pytest.skip(f"no AudioSet weights: {file} is not there")
    return file


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    """A file like EfficientAT's, of random weights."""
    torch.manual_seed(0)
    file = tmp_path / "random.pt"
    torch.save(AudioSetMobileNet().state_dict(), file)
    return file


def test_the_network_gives_the_authors_own_numbers(pretrained: Path) -> None:
    model = AudioSetMobileNet().eval()
    model.load_state_dict(torch.load(pretrained, weights_only=True))
    with np.load(pretrained.with_name("reference.npz")) as reference, torch.no_grad():
        mel = torch.from_numpy(reference["mel"]).float()
        features = model.features(mel)
        assert np.abs(features.numpy() - reference["features"]).max() < 1e-4
        assert np.abs(features.mean(dim=(2, 3)).numpy() - reference["embedding"]).max() < 1e-4
        assert np.abs(model(mel).numpy() - reference["logits"]).max() < 1e-4


def test_every_key_of_the_file_is_used_or_named(pretrained: Path) -> None:
    recipe = load_recipe("mobilenet")
    model = MobileNet(MobileNetConfig(mels=78))
    account = load_initial(str(pretrained), model, recipe.init_sha256)
    read = torch.load(pretrained, weights_only=True)
    assert account.used + len(account.left) == len(read) == 312
    assert {name.split(".")[0] for name in account.left} == {"classifier"}
    assert all(torch.equal(model.trunk.state_dict()[name], read[name]) for name in read if name not in account.left)


def test_the_recipe_has_the_bands_of_the_network_that_it_begins_with() -> None:
    """EfficientAT: 128 kaldi bands from 0 to 15 kHz; ours are the first of them, at half the rate and half the FFT."""
    front_end = load_recipe("mobilenet").front_end
    step = 1127.0 * np.log1p(15_000 / 700.0) / 129
    assert 1127.0 * np.log1p(front_end.high_hz / 700.0) == pytest.approx(step * (front_end.mels + 1), abs=1e-3)
    assert (front_end.low_hz, front_end.mean, front_end.std, front_end.floor) == (0.0, -4.5, 2.5, 1e-5)
    bins = 1127.0 * np.log1p(np.arange(257) * 31.25 / 700.0)
    centre = step * 40
    expected = np.maximum(0.0, 1.0 - np.abs(bins - centre) / step)
    assert np.abs(mel_filters(front_end.mels, 0.0, front_end.high_hz)[:, 39] - expected).max() < 1e-3


def test_a_floor_is_the_smallest_energy() -> None:
    front_end = FrontEnd(mels=32, floor=1e-5)
    assert log_mel(np.zeros(16_000, np.float32), front_end).max() == pytest.approx(np.log(1e-5), abs=1e-5)


def test_logits_are_two_independent_sounds_at_every_moment() -> None:
    model = MobileNet(CONFIG).eval()
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        logits = model(torch.randn(2, CONFIG.frames, CONFIG.mels))
    assert logits.shape == (2, CONFIG.moments, len(LABELS)) == (2, 25, 4)
    probability = logits.softmax(dim=-1)
    crackle, wheeze = (probability[..., [one, 3]].sum(dim=-1) for one in (1, 2))
    assert torch.allclose(probability[..., 3], crackle * wheeze, atol=1e-6)
    assert np.abs(pool(logits.numpy()) - pool_moments(logits).numpy()).max() < 1e-5


def test_a_moment_is_about_the_sound_at_its_centre() -> None:
    """A click moves the features most where it is, whatever the rest of the window holds."""
    torch.manual_seed(0)
    model = MobileNet(CONFIG).eval()
    window = torch.zeros(1, CONFIG.frames, CONFIG.mels)
    with torch.no_grad():
        quiet = model.features(window)
        for moment in (6, 12, 18):
            frame = round(moment_centres(CONFIG.moments)[moment] / 160)
            clicked = window.clone()
            clicked[:, frame - 1 : frame + 2] = 5.0
            moved = (model.features(clicked) - quiet).abs().sum(dim=(0, 1, 2))
            assert abs(int(moved.argmax()) - moment) <= 1


def test_other_sizes_than_the_shipped_ones() -> None:
    for frames, mels in ((798, 103), (400, 64)):
        config = MobileNetConfig(frames=frames, mels=mels)
        assert MobileNet(config)(torch.zeros(2, frames, mels)).shape == (2, config.moments, 4)
    with pytest.raises(ValueError, match="windows are"):
        MobileNet(CONFIG)(torch.zeros(1, 100, 32))


def _changed(file: Path, tmp_path: Path, **changes: object) -> Path:
    tensors = torch.load(file, weights_only=True)
    for name, value in changes.items():
        key = name.replace("__", ".")
        tensors.pop(key) if value is None else tensors.update({key: value})
    out = tmp_path / "changed.pt"
    torch.save(tensors, out)
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features__0__0__weight": None}, "features.0.0.weight is missing"),
        ({"features__99__weight": torch.zeros(1)}, "features.99.weight is left over"),
        ({"features__0__0__weight": torch.zeros(8, 3, 3, 3)}, r"features.0.0.weight is \(8, 3, 3, 3\)"),
        ({"features__0__0__weight": torch.full((8, 1, 3, 3), float("nan"))}, "NaN or infinite weights"),
    ],
)
def test_weights_of_another_network_are_refused(
    audioset: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as refused:
        initial_weights(str(_changed(audioset, tmp_path, **changes)), CONFIG)
    assert "\n" not in str(refused.value)


def test_another_file_than_the_recipe_states_is_refused(audioset: Path, tmp_path: Path) -> None:
    own = hashlib.sha256(audioset.read_bytes()).hexdigest()
    assert initial_weights(str(audioset), CONFIG, own)[1].used > 0
    with pytest.raises(CheckpointError, match=r"sha256 .* the recipe states"):
        initial_weights(str(audioset), CONFIG, "0" * 64)
    with pytest.raises(CheckpointError, match="give it with --init"):
        initial_weights(str(tmp_path / "absent.pt"), CONFIG)
    (tmp_path / "text.pt").write_text("not tensors")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        initial_weights(str(tmp_path / "text.pt"), CONFIG)
