"""Training on a made corpus: what is split and measured, and that a stopped run ends as one that was not stopped."""

import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device.model.judgement import pool
from device.signal import FRAMES
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import AST, RECIPE, Silent, run, toy_fit
from trainer.corpora import Corpus, load_corpus
from trainer.corpora.audio_cache import with_audio
from trainer.corpora.splits import patient_folds
from trainer.metrics import calibrate
from trainer.model.config import MobileNetConfig
from trainer.model.mobilenet import MobileNet
from trainer.run.folder import (
    CHECKPOINT_FILE,
    LOG_FILE,
    METRICS_FILE,
    RunError,
    load_tensors,
    member_folder,
    save_tensors,
)
from trainer.run.machine import start
from trainer.run.recipe import AugmentationRecipe, DataRecipe, OptimizerRecipe
from trainer.training.crops import SPANS, TrainingCrops
from trainer.training.train import (
    Fit,
    FitError,
    Learner,
    identity,
    learning_rate,
    measure_normalisation,
    moving_average,
    pooled,
    probabilities,
    run_folder,
    soft_targets,
    train,
)

EPOCHS = RECIPE.optimizer.epochs


@dataclass(frozen=True)
class Toy:
    """A made corpus, its cache, and the checkpoint of a run that nothing stopped."""

    corpus: Path
    cache: Path
    whole: Path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-identical means: with as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    root = tmp_path_factory.mktemp("fit")
    made = Toy(make_sprsound(root / "corpus"), root / "cache", root / "whole")
    run(made.corpus, made.cache, made.whole)
    return made


@pytest.fixture
def corpus(toy: Toy) -> Corpus:
    return load_corpus("sprsound", toy.corpus)


def checkpoint(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata, the measured times left out."""
    tensors, metadata = load_tensors(out / CHECKPOINT_FILE)
    for row in metadata["progress"]["history"]:
        del row["seconds"], row["step_seconds"]
    return tensors, metadata


def same_result(one: Path, other: Path) -> None:
    """Weights, average, best weights, moments and history, bit for bit."""
    (tensors, metadata), (expected, facts) = checkpoint(one), checkpoint(other)
    assert metadata == facts
    assert tensors.keys() == expected.keys()
    assert {"model", "average", "best", "optimizer"} == {name.split(".")[0] for name in tensors}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


# --- a run that stops


class Interrupting(Silent):
    """Ctrl-C in the second step of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.now = epoch, -1

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self.now = epoch

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        if (self.now, step) == (self.epoch, 2):
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_interrupted_in_an_epoch_ends_as_one_that_was_not(toy: Toy, tmp_path: Path, workers: int) -> None:
    fit, known = toy_fit(toy.corpus, toy.cache)
    with pytest.raises(KeyboardInterrupt):
        train(fit, tmp_path, known, resume=False, minutes=None, watcher=Interrupting(1))
    assert checkpoint(tmp_path)[1]["progress"]["epochs_done"] == 1
    resumed = run(toy.corpus, toy.cache, tmp_path, resume=True, workers=workers)
    assert resumed.progress.epochs_done == EPOCHS
    same_result(tmp_path, toy.whole)


def test_a_run_stopped_by_the_clock_ends_as_one_that_was_not(toy: Toy, tmp_path: Path) -> None:
    for done in range(1, EPOCHS + 1):
        fit, known = toy_fit(toy.corpus, toy.cache)
        train(fit, tmp_path, known, resume=True, minutes=1e-9, watcher=Silent(), whole_epochs=True)
        assert fit.progress.epochs_done == done, "one epoch is always done, the next one does not fit"
    same_result(tmp_path, toy.whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stopped_within_its_epochs_ends_as_one_that_was_not(toy: Toy, tmp_path: Path, workers: int) -> None:
    """One step a call: dropout, mixtures, crops, batch norms, the average, the mean loss and the best are all kept."""
    where = []
    for _ in range(2 * EPOCHS):
        fit, known = toy_fit(toy.corpus, toy.cache, machine=start("cpu", workers=workers))
        train(fit, tmp_path, known, resume=True, minutes=1e-9, watcher=Silent())
        where.append((fit.progress.epochs_done, fit.progress.steps_done))
    assert where == [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    same_result(tmp_path, toy.whole)
    fit, known = toy_fit(toy.corpus, toy.cache)
    train(fit, tmp_path, known, resume=True, minutes=1.0, watcher=Silent())
    assert fit.progress.epochs_done == EPOCHS


def test_no_time_left_trains_a_model_that_has_trained_no_further(toy: Toy, tmp_path: Path) -> None:
    for expected in (1, 1):
        fit, known = toy_fit(toy.corpus, toy.cache)
        train(fit, tmp_path, known, resume=True, minutes=0.0, watcher=Silent())
        assert (fit.progress.epochs_done, fit.progress.steps_done) == (0, expected)


def test_a_checkpoint_of_before_runs_could_stop_within_an_epoch_goes_on(toy: Toy, tmp_path: Path) -> None:
    fit, known = toy_fit(toy.corpus, toy.cache)
    with pytest.raises(KeyboardInterrupt):
        train(fit, tmp_path, known, resume=False, minutes=None, watcher=Interrupting(1))
    tensors, metadata = load_tensors(tmp_path / CHECKPOINT_FILE)
    for name in ("steps_done", "seconds_spent"):
        del metadata["progress"][name]
    save_tensors(tmp_path / CHECKPOINT_FILE, tensors, metadata)
    run(toy.corpus, toy.cache, tmp_path, resume=True)
    same_result(tmp_path, toy.whole)


def test_a_killed_run_ends_as_one_that_was_not(toy: Toy, repository: Path, tmp_path: Path) -> None:
    """A real process, killed with SIGKILL in the middle of its second epoch."""
    out = tmp_path / "killed"
    arguments = [sys.executable, "-m", "tests.trainer.toy_fit", *map(str, (toy.corpus, toy.cache, out)), "--halt"]
    with subprocess.Popen(arguments, cwd=repository) as process:
        while not (out / "halted-0").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert checkpoint(out)[1]["progress"]["epochs_done"] == 1
    run(toy.corpus, toy.cache, out, resume=True)
    same_result(out, toy.whole)


def test_resuming_a_finished_run_changes_nothing(toy: Toy, tmp_path: Path) -> None:
    for name in (CHECKPOINT_FILE, METRICS_FILE):
        (tmp_path / name).write_bytes((toy.whole / name).read_bytes())
    run(toy.corpus, toy.cache, tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == (toy.whole / CHECKPOINT_FILE).read_bytes()


def test_another_seed_is_another_run(toy: Toy, tmp_path: Path) -> None:
    run(toy.corpus, toy.cache, tmp_path, seed=1, optimizer__epochs=1)
    first, whole = checkpoint(tmp_path)[1], checkpoint(toy.whole)[1]
    assert first["progress"]["history"][0]["loss"] != whole["progress"]["history"][0]["loss"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer__rho": 0.1}, "optimizer.rho (0.05 there, 0.1 here);"),
        ({"data__draws": 32}, "data.draws (16 there, 32 here);"),
        ({"seed": 1}, "held_out, seed (0 there, 1 here);"),
    ],
)
def test_a_checkpoint_of_another_recipe_or_seed_is_refused(toy: Toy, change: dict[str, Any], said: str) -> None:
    fit, known = toy_fit(toy.corpus, toy.cache, **change)
    with pytest.raises(RunError, match=re.escape(f"of a run that differs in {said} go on with the same")):
        train(fit, toy.whole, known, resume=True, minutes=None, watcher=Silent())


def test_a_checkpoint_of_another_corpus_is_refused(toy: Toy, tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "corpus", seed=1)
    fit, known = toy_fit(root, tmp_path / "cache")
    with pytest.raises(RunError, match="of a run that differs in recordings"):
        train(fit, toy.whole, known, resume=True, minutes=None, watcher=Silent())


def test_a_recording_without_cycles_that_comes_or_goes_is_another_corpus(corpus: Corpus) -> None:
    """It moves patients between the folds: who was held out may then have trained."""
    first = corpus.recordings[0]
    silent = dataclasses.replace(first, name="another", label="poor quality", cycles=())
    more = dataclasses.replace(corpus, recordings=(*corpus.recordings, silent))
    assert more.cycles == corpus.cycles
    known = identity(RECIPE, corpus, None)
    assert known == identity(RECIPE, corpus, None)
    assert known != identity(RECIPE, more, None)
    of_somebody_else = dataclasses.replace(silent, patient="somebody else")
    assert identity(RECIPE, more, None) != identity(
        RECIPE, dataclasses.replace(corpus, recordings=(*corpus.recordings, of_somebody_else)), None
    )
    _, held_out = patient_folds(corpus, 3, 0)[0]
    assert known != identity(RECIPE, corpus, held_out) != identity(RECIPE, corpus, held_out, processes=2)


def test_a_damaged_checkpoint_is_named(toy: Toy, tmp_path: Path) -> None:
    raw = (toy.whole / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(raw[: len(raw) // 2])
    fit, known = toy_fit(toy.corpus, toy.cache)
    with pytest.raises(RunError, match=CHECKPOINT_FILE):
        train(fit, tmp_path, known, resume=True, minutes=None, watcher=Silent())


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(toy: Toy, tmp_path: Path) -> None:
    def fail(folder: Path, made: str | None = None) -> None:
        with pytest.raises(FitError, match="no"), run_folder(folder):
            assert (folder / LOG_FILE).is_file()
            if made:
                shutil.copytree(toy.whole, member_folder(folder, 0))
            (folder / "tensorboard").mkdir()
            raise FitError("no")

    fail(tmp_path / "runs" / "fit-1")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").touch()
    fail(tmp_path / "own")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["notes.txt"]
    fail(tmp_path / "begun", made="a checkpoint")
    assert (member_folder(tmp_path / "begun", 0) / CHECKPOINT_FILE).is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FitError, match="cannot be written"), run_folder(tmp_path / "file" / "run"):
        pass


# --- what a run leaves


def test_one_row_an_epoch_and_the_best_of_them_kept(toy: Toy) -> None:
    rows = [json.loads(line) for line in (toy.whole / METRICS_FILE).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert all(row["sensitivity"] >= row["specificity"] for row in rows)
    tensors, metadata = checkpoint(toy.whole)
    history, progress = metadata["progress"]["history"], metadata["progress"]
    best = max(history, key=lambda row: (row["score"], row["auroc"]))
    assert (progress["best_epoch"], progress["best"]) == (best["epoch"], [best["score"], best["auroc"]])
    assert not list(toy.whole.glob(".*.part"))

    fit, _ = toy_fit(toy.corpus, toy.cache)
    fit.average.module.load_state_dict({name[5:]: t for name, t in tensors.items() if name.startswith("best.")})
    readings = ("sensitivity", "specificity", "score", "auroc", "held_out_loss")
    assert fit.validation is not None
    assert fit.validate(fit.validation) == {name: best[name] for name in readings}


def test_a_longer_run_learns_the_toy(toy: Toy, tmp_path: Path) -> None:
    fit = run(
        toy.corpus,
        toy.cache,
        tmp_path,
        optimizer__epochs=6,
        optimizer__accumulation=1,
        optimizer__batch=8,
        optimizer__rho=0.0,
        optimizer__learning_rate=1e-2,
        data__draws=96,
        augmentation__mixup=0.0,
        augmentation__noise_share=0.0,
        augmentation__background_share=0.0,
    )
    history = fit.progress.history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert fit.progress.best[1] > 0.75


# --- a run that cannot go on


class Poisoning(Silent):
    """Weights that become NaN in a step of an epoch."""

    def __init__(self, fit: Fit, epoch: int, step: int = 1) -> None:
        self.fit, self.epoch, self.step, self.now = fit, epoch, step, -1

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self.now = epoch

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        if (self.now, step) == (self.epoch, self.step):
            with torch.no_grad():
                self.fit.model.head.bias.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(toy: Toy, tmp_path: Path) -> None:
    """The second step of the second epoch: the first epoch's state stays, and goes on to where it would have come."""
    fit, known = toy_fit(toy.corpus, toy.cache)
    with pytest.raises(FitError, match=r"loss is nan in epoch 2, in a batch of .*; look at these") as raised:
        train(fit, tmp_path, known, resume=False, minutes=None, watcher=Poisoning(fit, 1))
    drawn = fit.drawn(1)[8:12]  # the third micro-batch of four: two to a step
    for _, _, index in drawn:
        assert fit.crops.cycles[index].recording in str(raised.value)
    run(toy.corpus, toy.cache, tmp_path, resume=True)
    same_result(tmp_path, toy.whole)


@pytest.mark.parametrize(("rho", "said"), [(0.05, "loss is inf"), (0.0, "gradient's norm is nan")])
def test_a_step_without_numbers_is_not_taken(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rho: float, said: str
) -> None:
    """Finite losses that lead nowhere: a second pass that is lost at the climbed point, or a lost gradient."""
    fit, known = toy_fit(toy.corpus, toy.cache, optimizer__rho=rho)
    forward, passes = fit.learner.forward, 0

    def lost(*arguments: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        loss = forward(*arguments)
        if rho:
            return loss + float("inf") if passes == 2 else loss
        return loss + (loss - loss.detach()).abs().sqrt()  # adds 0, whose slope is no number

    monkeypatch.setattr(fit.learner, "forward", lost)
    before = {name: tensor.clone() for name, tensor in fit.model.named_parameters()}
    with pytest.raises(FitError, match=rf"{said} in epoch 1, in a batch of "):
        train(fit, tmp_path, known, resume=False, minutes=None, watcher=Silent())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fit.model.named_parameters())


def test_weights_that_are_no_numbers_are_not_kept(toy: Toy, tmp_path: Path) -> None:
    """After the last step of an epoch no loss would tell; the checkpoint is that of the epoch before."""
    fit, known = toy_fit(toy.corpus, toy.cache)
    with pytest.raises(FitError, match="no numbers any more at the end of epoch 2"):
        train(fit, tmp_path, known, resume=False, minutes=None, watcher=Poisoning(fit, 1, fit.steps_per_epoch))
    run(toy.corpus, toy.cache, tmp_path, resume=True)
    same_result(tmp_path, toy.whole)


class Failing(nn.Module):
    """Stands for a GPU that is too small, which this machine cannot have."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, windows: Tensor) -> Tensor:
        raise self.error


def failing(toy: Toy, folder: Path, error: Exception, **changes: Any) -> None:
    fit, known = toy_fit(toy.corpus, toy.cache, **changes)
    fit.learner.model = Failing(error)  # type: ignore[assignment]
    train(fit, folder, known, resume=False, minutes=None, watcher=Silent())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_the_batch_and_the_flag(toy: Toy, tmp_path: Path, error: Exception) -> None:
    with pytest.raises(FitError, match=r"--batch 4 on cpu; try --batch 2 --accumulation 4") as raised:
        failing(toy, tmp_path, error)
    assert "\n" not in str(raised.value)
    with pytest.raises(FitError, match=r"--batch 2 on cpu; .*smaller model"):
        failing(toy, tmp_path, error, optimizer__batch=2)


def test_another_failure_is_not_called_out_of_memory(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        failing(toy, tmp_path, RuntimeError("shapes cannot be multiplied"))


# --- how it computes


def losses(fit: Fit) -> list[float]:
    return [row["loss"] for row in fit.progress.history]


def test_recomputed_activations_change_nothing(toy: Toy, tmp_path: Path) -> None:
    """Dropout is on: the second forward of an AST's block must draw the same masks."""
    changes: dict[str, Any] = {"model": AST, "optimizer__epochs": 1}
    run(toy.corpus, toy.cache, tmp_path / "kept", **changes)
    fit, known = toy_fit(toy.corpus, toy.cache, machine=start("cpu", checkpointing=True), **changes)
    (tmp_path / "recomputed").mkdir()
    train(fit, tmp_path / "recomputed", known, resume=False, minutes=None, watcher=Silent())
    same_result(tmp_path / "recomputed", tmp_path / "kept")


def test_bf16_learns_nearly_the_same_with_float32_weights(toy: Toy, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": AST, "optimizer__epochs": 2}
    expected = losses(run(toy.corpus, toy.cache, tmp_path / "float32", **changes))
    changes["optimizer__precision"] = "bf16"
    fit, known = toy_fit(toy.corpus, toy.cache, machine=start("cpu", precision="bf16"), **changes)
    train(fit, tmp_path, known, resume=False, minutes=None, watcher=Silent())
    np.testing.assert_allclose(losses(fit), expected, rtol=0.02)
    assert losses(fit) != expected
    assert {parameter.dtype for parameter in fit.model.parameters()} == {torch.float32}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_learns_the_same(toy: Toy, tmp_path: Path) -> None:
    model = {**AST, "dropout": 0.0}
    changes: dict[str, Any] = {"model": model, "optimizer__epochs": 1, "data__draws": 8, "optimizer__rho": 0.0}
    plain = run(toy.corpus, toy.cache, tmp_path / "plain", **changes)
    (tmp_path / "compiled").mkdir()
    fit, known = toy_fit(toy.corpus, toy.cache, machine=start("cpu", compiled=True), **changes)
    train(fit, tmp_path / "compiled", known, resume=False, minutes=None, watcher=Silent())
    assert losses(fit) == pytest.approx(losses(plain), rel=1e-3)


# --- the parts


def test_the_normalised_training_windows_have_mean_0_and_half_deviation(toy: Toy, corpus: Corpus) -> None:
    """(x - mean) / (2 std): mean 0, standard deviation 0.5; on other crops than those measured."""
    heard, cache = with_audio(corpus, toy.cache)
    plain = TrainingCrops(heard, cache, RECIPE.front_end, RECIPE.data, AugmentationRecipe(), 0)
    front_end = measure_normalisation(plain, RECIPE.front_end, 0)
    assert front_end == measure_normalisation(plain, RECIPE.front_end, 0)
    crops = TrainingCrops(heard, cache, front_end, RECIPE.data, AugmentationRecipe(), 7)
    windows = torch.stack([crops[(0, position, position)][0] for position in range(len(crops))])
    assert windows.shape[1:] == (FRAMES, RECIPE.front_end.mels)
    assert float(windows.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(windows.std()) == pytest.approx(0.5, abs=0.03)


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_half_cosine() -> None:
    recipe = OptimizerRecipe(rho=0, learning_rate=0.01, weight_decay=0, batch=2, epochs=5, warmup_epochs=1)
    rates = [learning_rate(recipe, step, steps_per_epoch=10) for step in range(50)]
    np.testing.assert_allclose(rates[:10], 0.001 * np.arange(1, 11))
    expected = [0.005 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    np.testing.assert_allclose(rates[10:], expected)
    assert rates[-1] < 2e-5


def test_the_average_grows_its_horizon_up_to_the_decay() -> None:
    update, averaged, expected = moving_average(0.9), [torch.zeros(3), torch.tensor(0)], 0.0
    for taken in range(200):
        update(averaged, [torch.full((3,), float(taken)), torch.tensor(taken)], taken)
        decay = min(0.9, (1 + taken) / (10 + taken))
        expected = decay * expected + (1 - decay) * taken
    np.testing.assert_allclose(averaged[0].numpy(), expected, rtol=1e-5)
    assert averaged[1] == 199, "counters are copied, not averaged"


def test_smoothed_targets() -> None:
    targets = soft_targets(torch.tensor([0, 3]), 0.1)
    np.testing.assert_allclose(targets.numpy(), [[0.925, 0.025, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]], atol=1e-7)


def batches_of(fit: Fit, epoch: int) -> list[tuple[Tensor, ...]]:
    return list(fit.batches(epoch))


def test_an_epochs_batches_are_the_same_with_and_without_workers(toy: Toy) -> None:
    fit, _ = toy_fit(toy.corpus, toy.cache)
    with_worker, _ = toy_fit(toy.corpus, toy.cache, machine=start("cpu", workers=1))
    alone, helped, other = batches_of(fit, 1), batches_of(with_worker, 1), batches_of(fit, 2)
    assert len(alone) == fit.steps_per_epoch * RECIPE.optimizer.accumulation == 4
    moments, front_end = RECIPE.model.moments, RECIPE.front_end
    for one, other_one in zip(alone, helped, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other_one, strict=True))
        windows, members, targets, shares = one
        assert windows.shape == (4, FRAMES, front_end.mels)
        # mixup: the spans of both windows
        assert members.shape == (4, 2 * SPANS, moments) and shares.shape == (4, 2 * SPANS)
        torch.testing.assert_close(targets.sum(dim=-1), torch.ones(4, 2 * SPANS))
        assert members[shares > 0].sum(dim=-1).min() >= 1
    assert not torch.equal(alone[0][0], other[0][0])


def test_mixup_has_the_spans_of_both_windows_with_their_shares(toy: Toy) -> None:
    plain, _ = toy_fit(toy.corpus, toy.cache, augmentation__mixup=0.0, optimizer__label_smoothing=0.0)
    mixed, _ = toy_fit(toy.corpus, toy.cache, augmentation__mixup=0.4, optimizer__label_smoothing=0.0)
    random = np.random.default_rng((0, 0, 3))
    for unmixed, got in zip(batches_of(plain, 0), batches_of(mixed, 0), strict=True):
        share, order = random.beta(0.4, 0.4), random.permutation(4)
        windows, members, targets, shares = unmixed
        torch.testing.assert_close(got[0], (share * windows + (1 - share) * windows[order]).float())
        for before, after in ((members, got[1]), (targets, got[2])):
            assert torch.equal(after[:, :SPANS], before) and torch.equal(after[:, SPANS:], before[order])
        torch.testing.assert_close(got[3][:, :SPANS], (share * shares).float())
        torch.testing.assert_close(got[3][:, SPANS:], ((1 - share) * shares[order]).float())


def test_spans_are_pooled_as_the_device_pools_a_cycle() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0.0, 3.0, (2, 25, 4)).astype(np.float32)
    members = np.zeros((2, 3, 25), np.float32)
    chosen = [[slice(0, 25), slice(3, 9), slice(12, 13)], [slice(0, 25), slice(20, 25), slice(0, 25, 8)]]
    for window, row in enumerate(chosen):
        for span, moments in enumerate(row):
            members[window, span, moments] = 1.0
    found = pooled(torch.from_numpy(logits), torch.from_numpy(members)).numpy()
    for window, row in enumerate(chosen):
        for span, moments in enumerate(row):
            np.testing.assert_allclose(found[window, span], pool(logits[window, moments]), atol=1e-4)
    # a span without moments has no weight; its numbers stay numbers
    assert np.isfinite(pooled(torch.from_numpy(logits), torch.zeros(2, 1, 25)).numpy()).all()


def test_the_loss_is_the_weighted_mean_over_spans_and_those_without_weight_do_not_count() -> None:
    """Against numpy, with soft targets."""
    torch.manual_seed(0)
    model = MobileNet(MobileNetConfig(mels=32))  # in training its norms keep random weights from shrinking to nothing
    torch.nn.init.normal_(model.head.weight)
    learner, windows = Learner(model), torch.randn(3, FRAMES, 32)
    members = torch.zeros(3, 2, model.config.moments)
    members[:, 0], members[:, 1, 4:11] = 1.0, 1.0
    targets = soft_targets(torch.tensor([[0, 1], [3, 2], [1, 1]]), 0.1)
    weights = torch.tensor([[1.0, 0.5], [0.0, 0.7], [0.3, 0.0]])
    with torch.no_grad():
        loss, logits = float(learner(windows, members, targets, weights)), model(windows).numpy()
        surprise = np.zeros((3, 2))
        for window in range(3):
            for span, moments in enumerate((slice(None), slice(4, 11))):
                read = pool(logits[window, moments])
                known = targets[window, span].numpy()
                surprise[window, span] = np.log(np.exp(read).sum()) - (known * read).sum()
        assert loss == pytest.approx(float(np.average(surprise, weights=weights.numpy())), rel=1e-4)
        other = targets.clone()
        other[1, 0], other[2, 1] = other[0, 0].flip(0), other[0, 0].flip(0)
        assert float(learner(windows, members, other, weights)) == loss
        assert float(learner(windows, members, targets, torch.zeros(3, 2))) == 0.0


def test_a_cycle_that_is_taught_moves_its_own_moments_alone() -> None:
    logits = torch.zeros(1, 25, 4, requires_grad=True)
    members = torch.zeros(1, 1, 25)
    members[0, 0, 5:9] = 1.0
    (slope,) = torch.autograd.grad(pooled(logits, members)[0, 0, 1], logits)
    moved = slope.abs().sum(dim=-1)[0]
    assert (moved[5:9] > 0.1).all() and moved[:5].max() < 1e-6 and moved[9:].max() < 1e-6


def test_draws_balance_corpora_and_stethoscopes_as_the_recipe_says(toy: Toy, corpus: Corpus) -> None:
    """Two corpora; one has two stethoscopes of one family, which count as one, and one of another."""
    devices = ["Littmann 3200", "Litt3200", "Meditron", "Meditron", "Yunting", "Yunting"]
    recordings = []
    for number, recording in enumerate(corpus.recordings[:6]):
        own = tuple(dataclasses.replace(cycle, device=devices[number]) for cycle in recording.cycles)
        recordings.append(
            dataclasses.replace(recording, corpus="two" if number >= 4 else "one", device=devices[number], cycles=own)
        )
    made = dataclasses.replace(corpus, recordings=tuple(recordings))
    crops = TrainingCrops(
        made, with_audio(corpus, toy.cache)[1], RECIPE.front_end, RECIPE.data, AugmentationRecipe(), 0
    )
    even = DataRecipe(crops="random", balance="none", corpus_balance=1.0, device_balance=1.0)
    drawn = probabilities(crops, even)
    by_device = {name: 0.0 for name in devices}
    for cycle, share in zip(made.cycles, drawn, strict=True):
        by_device[cycle.device] += float(share)
    assert by_device["Littmann 3200"] + by_device["Litt3200"] == pytest.approx(0.25)
    assert (by_device["Meditron"], by_device["Yunting"]) == pytest.approx((0.25, 0.5))
    plain = probabilities(crops, DataRecipe(crops="random", balance="none"))
    np.testing.assert_allclose(plain, 1 / len(made.cycles))


def test_calibration_takes_the_temperature_before_the_threshold() -> None:
    """A model that is three times too sure gets the same threshold on its calibrated probability."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, (4000, 4))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    temperature, threshold = calibrate(logits, labels)
    overconfident, same_threshold = calibrate(3 * logits, labels)
    assert temperature == pytest.approx(1.0, rel=0.1)
    assert overconfident == pytest.approx(3 * temperature, rel=1e-3)
    assert same_threshold == pytest.approx(threshold, abs=1e-3)


def test_the_optimizer_does_not_decay_norms_biases_and_positions(toy: Toy) -> None:
    def decayed(**changes: Any) -> dict[str, bool]:
        fit, _ = toy_fit(toy.corpus, toy.cache, **changes)
        groups = fit.sam.base.param_groups
        matrices = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        names = {name.split(".", 1)[1]: id(parameter) in matrices for name, parameter in fit.learner.named_parameters()}
        assert sum(len(group["params"]) for group in groups) == len(names)
        return names

    mobilenet, ast = decayed(), decayed(model=AST)
    assert all(mobilenet[name] for name in ("head.weight", "trunk.features.0.0.weight"))
    assert not any(mobilenet[name] for name in ("head.bias", "trunk.features.0.1.weight", "trunk.features.0.1.bias"))
    assert all(ast[name] for name in ("head.weight", "blocks.0.attention.qkv.weight", "stem.projection.weight"))
    assert not any(ast[name] for name in ("head.bias", "norm.weight", "positions", "cls_token"))
