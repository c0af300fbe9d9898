"""YAMNet's first layers as a stem: what they say is what the folded weights say, and a recipe that cannot hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from device.signal import PREEMPHASIS, SAMPLE_RATE, FrontEnd, mel_filters
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import Silent, toy_fit
from trainer.checkpoints import CheckpointError, load_initial
from trainer.fit import Fit, train
from trainer.model import AST, SeparableStem
from trainer.recipe import Recipe, RecipeError, load_recipe, with_changes
from trainer.yamnet import FILE, STRIDES, YAMNET, band_centres, fit_to, mel_step

FRONT_END = FrontEnd(mels=48, low_hz=125.0, high_hz=3959.0, mean=-8.5, std=3.2)


@pytest.fixture
def model() -> AST:
    torch.manual_seed(0)
    return AST(load_recipe("compact-audioset").model).eval()


def windows_of(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(0, 0.5, (count, 798, 48)).astype(np.float32))


def folded(magnitudes: Tensor) -> Tensor:
    """The file's network on log magnitudes (batch, 1, mels, frames), straight from its tensors."""
    tensors, states, strides = load_file(FILE), magnitudes, iter(STRIDES)
    for number in range(len(tensors) // 2):
        weight, bias = tensors[f"layers.{3 * number}.weight"], tensors[f"layers.{3 * number + 1}.bias"]
        within = weight.shape[-1] == 3
        groups = states.shape[1] if within and number else 1
        states = F.relu(F.conv2d(states, weight, bias, next(strides) if within else 1, int(within), groups=groups))
    return states


@pytest.mark.parametrize("count", [3, 40])
def test_the_stem_says_what_the_folded_network_says(model: AST, count: int) -> None:
    assert isinstance(model.stem, SeparableStem)
    load_initial(YAMNET, model)
    windows, stem = windows_of(count), model.stem
    fit_to(stem, FRONT_END, windows)
    # ours are logarithms of powers with pre-emphasis
    log_mels = windows * 2 * FRONT_END.std + FRONT_END.mean
    emphasis = np.abs(1 - PREEMPHASIS * np.exp(-2j * np.pi * band_centres(FRONT_END) / SAMPLE_RATE))
    magnitudes = log_mels / 2 - torch.from_numpy(np.log(emphasis).astype(np.float32))
    expected = folded(magnitudes.transpose(1, 2).unsqueeze(1))
    assert expected.std() > 0.1
    with torch.no_grad():
        heard = stem.layers(stem.banded(windows.transpose(1, 2).unsqueeze(1)))
        stem.train()
        learning = stem.layers(stem.banded(windows.transpose(1, 2).unsqueeze(1)))
    torch.testing.assert_close(heard, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(learning, expected, rtol=1e-3, atol=1e-3)


def test_every_tensor_of_the_file_is_used_and_nothing_else_is_touched(model: AST) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    account = load_initial(YAMNET, model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"stem.{name}" for name in load_file(FILE)} and account.used == len(changed) == 26
    assert "26 tensors used, positions and blocks are new; nothing left behind; the head is new" in str(account)


def test_the_bands_are_yamnets() -> None:
    """48 of its 64 up to 7500 Hz, each within a hundredth of a band of its own; the filters' peaks are there."""
    theirs = FrontEnd(mels=64, low_hz=125.0, high_hz=7500.0)
    step = mel_step(125.0, 7500.0, 64)
    off = 1127 * (np.log1p(band_centres(FRONT_END) / 700) - np.log1p(band_centres(theirs)[:48] / 700)) / step
    assert np.abs(off).max() < 0.01
    peaks = mel_filters(48, 125.0, 3959.0).argmax(axis=0) * SAMPLE_RATE / 512
    assert np.abs(peaks - band_centres(FRONT_END)).max() <= SAMPLE_RATE / 512 / 2 + 1e-6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"front_end.low_hz": 20.0}, "bands begin at 125 Hz and are 39.82 mel apart"),
        ({"front_end.high_hz": 4000.0}, "bands begin at 125 Hz and are 39.82 mel apart"),
        ({"model.stem_strides": [[2, 2]] * 7}, "stem 'separable' with stem_channels"),
        ({"model.stem": "patch", "model.stem_channels": [], "model.stem_strides": []}, "takes stem 'separable'"),
    ],
)
def test_a_recipe_that_cannot_hold_it_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        with_changes(load_recipe("compact-audioset"), changes)
    plain = with_changes(load_recipe("compact-audioset"), {"init": "", **changes})
    assert isinstance(plain, Recipe)


def test_a_damaged_file_is_named(model: AST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yamnet.safetensors").write_bytes(FILE.read_bytes()[:1000])
    monkeypatch.setattr("trainer.checkpoints.YAMNET_FILE", tmp_path / "yamnet.safetensors")
    with pytest.raises(CheckpointError, match=r"yamnet\.safetensors: damaged"):
        load_initial(YAMNET, model)


class Trained:
    """Runs of the shipped recipe on a made corpus, with few draws."""

    def __init__(self, root: Path) -> None:
        self.root, self.corpus = root, make_sprsound(root / "corpus")

    def __call__(self, out: str, *, resume: bool = False, minutes: float | None = None, rate: float = 1e-3) -> Fit:
        changes = {"optimizer__batch": 4, "optimizer__epochs": 2, "optimizer__learning_rate": rate, "data__draws": 12}
        fit, known = toy_fit(self.corpus, self.root / "cache", recipe=load_recipe("compact-audioset"), **changes)  # type: ignore[arg-type]
        (self.root / out).mkdir(exist_ok=True)
        train(fit, self.root / out, known, resume=resume, minutes=minutes, watcher=Silent())
        return fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("yamnet"))


def test_training_begins_with_its_kernels_and_the_corpus_statistics(trained: Trained) -> None:
    fit = trained("still", rate=1e-9)
    assert isinstance(fit.model.stem, SeparableStem)
    state, front_end = fit.model.stem.state_dict(), fit.crops.front_end
    for name, tensor in load_file(FILE).items():
        if name.endswith("weight"):
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)
    torch.testing.assert_close(state["band_scale"], torch.full((48,), front_end.std), rtol=0, atol=1e-5)
    # open norms: what comes out varies as it did before they were opened, not as one would have it
    gains = torch.cat([state[name] for name in state if name.endswith("weight") and state[name].ndim == 1])
    assert gains.std() > 0.1
    serving = fit.serving.stem.state_dict()
    torch.testing.assert_close(serving["layers.0.weight"], state["layers.0.weight"], rtol=0, atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_bits(trained: Trained) -> None:
    whole = trained("whole")
    assert trained("stopped", minutes=0.0).progress.epochs_done == 1
    resumed = trained("stopped", resume=True)
    for ours, theirs in ((whole.model, resumed.model), (whole.serving, resumed.serving)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
