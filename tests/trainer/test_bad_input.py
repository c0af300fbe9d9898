"""What a researcher can get wrong or a machine can do to a run: one line, exit code 2, and nothing is lost.

Through `main` as the console script calls it. A loss that is no number is in test_fit_core, checkpoints key by key are
in test_checkpoints, damaged recordings in test_corpora.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import REPOSITORY
from tests.full_disk import largest_file, mounted
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import AST
from tests.trainer.toy_recipe import ALONE, TOML
from trainer.cli import main
from trainer.model.mobilenet import AudioSetMobileNet
from trainer.run.folder import CHECKPOINT_FILE, LOG_FILE, member_folder

PAGE = 4096
BASE = {
    **{"patch_size": 16, "time_stride": 10, "frequency_stride": 10, "num_mel_bins": 128, "max_length": 1024},
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}


OF_AN_AST = ALONE.replace(
    'architecture = "mobilenet"', "".join(f"{key} = {json.dumps(value)}\n" for key, value in AST.items())
).replace("cycle_loss = 1.0\n", "")


WHOLE_EPOCHS = """
from functools import partial
from trainer import api, cli
api.Call = partial(api.Call, whole_epochs=True)
cli.main()
"""


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    said: str

    @property
    def refusal(self) -> str:
        """The one line that a refused command says."""
        assert self.code == 2, self.said
        assert self.said.strip() == self.last, self.said
        return self.last

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return self.said.strip().splitlines()[-1]


Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sprsound(tmp_path_factory.mktemp("sprsound"), patients=9, recordings_per_patient=2)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`trainer ARGUMENTS` in an empty folder with the recipe toy.toml and a cache of its own."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # a worker's shared memory is a file, too
    monkeypatch.setenv("RESPSAM_TRAINING__WORKERS", "0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(ALONE)
    (tmp_path / "ast.toml").write_text(OF_AN_AST)

    def answer(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return Answer(int(left.value.code or 0), capsys.readouterr().err)

    return answer


def fit_of(corpus: Path, *more: str | Path) -> list[str | Path]:
    """Later options replace earlier ones."""
    return ["fit", "--corpus", "sprsound", "--data", corpus, "--recipe", "toy.toml", "--out", "run", *more]


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its cache; the run stopped after the first of two epochs, as a study's do."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "toy.toml").write_text(ALONE)
    line = [sys.executable, "-c", WHOLE_EPOCHS, *map(str, fit_of(corpus, "--minutes", "0.0001"))]
    own = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")}
    result = subprocess.run(line, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def begun(stopped: Path, tmp_path: Path) -> Path:
    """The checkpoint of a copy of that run, and its cache where `command` looks for it."""
    for name in ("run", "cache"):
        shutil.copytree(stopped / name, tmp_path / name)
    return member_folder(tmp_path / "run", 0) / CHECKPOINT_FILE


@pytest.mark.parametrize(
    ("option", "word", "said"),
    [
        ("--hold-out", "everyone", "'everyone' is not one of 'patients', 'device', 'maker'"),
        ("--precision", "8", "'8' is not one of '32', 'bf16'"),
        ("--sharpness", "flat", "'flat' is not one of 'sam', 'asam'"),
        ("--rho", "nan", "invalid value for '--rho'"),
        ("--members", "4", "4 members need as many folds, there are 3"),
        ("--batch", "1", "--batch"),
        ("--init", "absent.pt", "absent.pt: no weights here; a MobileNet begins at EfficientAT's mn04 .pt"),
        ("--init", "toy.toml", "toy.toml: cannot be read as tensors alone"),
        ("--recipe", "mobilenet", "mn04_as_mAP_432.pt: no weights here"),
        ("--recipe", "tyo.toml", "'tyo.toml' is neither a file nor one of mobilenet"),
    ],
)
def test_a_word_that_is_not_known(command: Command, corpus: Path, option: str, word: str, said: str) -> None:
    assert said in command(*fit_of(corpus, option, word)).refusal


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("absent.pth", "no checkpoint here; --init takes hub:OWNER/NAME, a folder or a .pth file"),
        ("hub:no/such/name", "hub:no/such/name: not in the cache and not to be downloaded"),
        (".", "no config.json here"),
    ],
)
def test_weights_of_an_ast_that_are_not_there(command: Command, corpus: Path, init: str, said: str) -> None:
    assert said in command(*fit_of(corpus, "--recipe", "ast.toml", "--init", init)).refusal


def test_another_file_than_the_recipe_states_is_said_before_any_audio_is_read(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    torch.save(AudioSetMobileNet().state_dict(), "own.pt")
    Path("toy.toml").write_text(f'init_sha256 = "{"0" * 64}"\n{ALONE}')
    refusal = command(*fit_of(corpus, "--init", "own.pt")).refusal
    assert "own.pt: sha256 " in refusal and "the recipe states 000000000000" in refusal
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rho =", "epocs = 3\nrho =", "unknown key optimizer.epocs; the nearest valid one is epochs"),
        ("rho = 0.05", 'rho = "wide"', "optimizer.rho: Input should be a valid number"),
        ("[front_end]", "[front_end", "not valid TOML"),
    ],
)
def test_a_recipe_that_does_not_hold(command: Command, corpus: Path, old: str, new: str, said: str) -> None:
    Path("toy.toml").write_text(TOML.replace(old, new))
    assert command(*fit_of(corpus)).refusal.startswith(f"respsam-trainer: error: recipe toy.toml: {said}")


@pytest.mark.parametrize("hold_out", ["patients", "device"])
@pytest.mark.parametrize(
    ("kind", "said"), [("Normal", "every cycle is normal"), ("Wheeze", "every cycle is wheeze"), (None, "no cycle is")]
)
def test_a_corpus_of_one_class(command: Command, tmp_path: Path, kind: str | None, said: str, hold_out: str) -> None:
    root = make_sprsound(tmp_path / "one", patients=6, recordings_per_patient=1, seconds=4.0)
    for file in root.rglob("*.json"):
        about = json.loads(file.read_text())
        events = [{**event, "type": kind} for event in about["event_annotation"] if kind]
        whole = {"Normal": "Normal", "Wheeze": "CAS", None: "Poor Quality"}[kind]
        file.write_text(json.dumps({"record_annotation": whole, "event_annotation": events}))
    refusal = command(*fit_of(root, "--hold-out", hold_out)).refusal
    assert f"{root}: {said}" in refusal and "choose another --data or --part" in refusal


@pytest.mark.parametrize("name", ["fit", "evaluate", "compare", "study", "describe"])
def test_corpora_and_folders_come_in_pairs(command: Command, corpus: Path, name: str) -> None:
    for folder in ("run", "a", "b"):
        Path(folder).mkdir()
    first = {
        "fit": ["fit", "--out", "run"],
        "evaluate": ["evaluate", "run"],
        "compare": ["compare", "a", "b"],
        "study": ["study", "rho", "--out", "studies"],
        "describe": ["data", "describe"],
    }[name]
    refusal = command(*first, "--corpus", "sprsound", "--data", corpus, "--corpus", "kauh").refusal
    assert "2 --corpus and 1 --data: they are given in pairs, --corpus NAME --data DIR" in refusal


def test_a_corpus_named_twice(command: Command, corpus: Path) -> None:
    twice = ("--corpus", "sprsound", "--data", corpus)
    assert f"--corpus sprsound --data {corpus} is given twice" in command(*fit_of(corpus, *twice)).refusal


def test_too_few_patients(command: Command, tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "two", patients=2, recordings_per_patient=2, seconds=4.0)
    assert f"{root}: too few patients (2) for 3 patient-wise folds" in command(*fit_of(root)).refusal


@pytest.mark.parametrize("out", ["toy.toml", "toy.toml/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_written(command: Command, corpus: Path, out: str) -> None:
    before = Path("toy.toml").read_text()
    assert f"{out}: cannot be written (" in command(*fit_of(corpus, "--out", out)).refusal
    assert Path("toy.toml").read_text() == before


def test_a_cache_folder_that_cannot_be_written(command: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    refusal = command(*fit_of(corpus)).refusal
    assert "cache/respsam/audio" in refusal and "cannot be written (Not a directory)" in refusal


def test_a_file_that_may_not_grow(command: Command, corpus: Path, begun: Path, tmp_path: Path) -> None:
    before = begun.read_bytes()
    with largest_file(len(before) // 2):
        answer = command(*fit_of(corpus, "--resume"))
    assert answer.code == 2
    assert answer.last.startswith(
        f"respsam-trainer: error: run/member-1/{CHECKPOINT_FILE}: cannot be written (File too"
    )
    assert "free the disk" in answer.last and not list((tmp_path / "run").rglob("*.part"))
    assert begun.read_bytes() == before
    again = command(*fit_of(corpus, "--resume"))
    assert again.code == 0, again.said
    assert "epoch   2" in again.said and "epoch   1" not in again.said


def test_a_disk_without_room_for_the_next_checkpoint(
    command: Command, corpus: Path, begun: Path, tmp_path: Path
) -> None:
    before = begun.read_bytes()
    pages = sum(-(-file.stat().st_size // PAGE) for file in (begun, tmp_path / "run" / LOG_FILE))
    disk = tmp_path / "disk"
    with mounted(disk, (pages + len(before) // PAGE // 2 + 2) * PAGE):
        moved = member_folder(disk, 0) / CHECKPOINT_FILE
        moved.parent.mkdir()
        shutil.copy(begun, moved)
        answer = command(*fit_of(corpus, "--resume", "--out", disk))
        assert answer.code == 2
        assert f"error: {moved}: cannot be written (No space left on device" in answer.last
        assert not list(disk.rglob("*.part"))
        assert moved.read_bytes() == before


def test_a_disk_without_room_for_the_audio(command: Command, corpus: Path, tmp_path: Path) -> None:
    with largest_file(100_000):
        answer = command(*fit_of(corpus))
    assert answer.code == 2
    assert ".npy: cannot be written (File too large); free the disk" in answer.last
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


@pytest.mark.parametrize("kept", [0, 20, 1000])
def test_a_damaged_cache_is_made_again_and_said(
    command: Command, corpus: Path, begun: Path, tmp_path: Path, kept: int
) -> None:
    audio = next((tmp_path / "cache").rglob("*.npy"))
    os.truncate(audio, kept)
    answer = command(*fit_of(corpus, "--resume"))
    assert answer.code == 0, answer.said
    note = f"{audio}: the audio cache was damaged and this file has been made again"
    assert f"note: {note}" in answer.said
    assert note in (tmp_path / "run" / LOG_FILE).read_text()
    assert "damaged" not in command("segmentation", "--corpus", "sprsound", "--data", corpus, "--folds", "0").said


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("--rho", "0.01"), "optimizer.rho (0.05 there, 0.01 here);"),
        (("--seed", "1"), "seed (0 there, 1 here);"),
        (("--epochs", "3"), "optimizer.epochs (2 there, 3 here);"),
    ],
)
def test_a_run_does_not_go_on_as_another(
    command: Command, corpus: Path, begun: Path, change: tuple[str, str], what: str
) -> None:
    before = begun.read_bytes()
    answer = command(*fit_of(corpus, "--resume", *change))
    assert f"{CHECKPOINT_FILE}: of a run that differs in {what}" in answer.refusal
    assert begun.read_bytes() == before


def test_weights_of_another_architecture(command: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(BASE))
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "base" / "model.safetensors")
    refusal = command(*fit_of(corpus, "--recipe", "ast.toml", "--init", "base")).refusal
    assert "base/model.safetensors: of another architecture, stride is 10 and the recipe's 16" in refusal
    assert not (tmp_path / "cache").exists()
