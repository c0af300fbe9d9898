"""`paper-as-published` made small, from a checkpoint to a bundle that screens: said loudly at every step."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import typer
from typer.testing import CliRunner, Result

from device.bundle import read_bundle
from device.cli import app as device
from export.cli import app as export
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.training.test_checkpoints import hugging_face, theirs_of
from trainer.choices import shipped
from trainer.cli import app as trainer
from trainer.corpora.splits import SplitError
from trainer.run.initial import CheckpointError

SMALLER = {
    "dim = 768": "dim = 16",
    "depth = 12": "depth = 1",
    "heads = 12": "heads = 2",
    "stride = 10": "stride = 16",
    "mels = 128": "mels = 32",
    "epochs = 20": "epochs = 1",
    "learning_rate = 1e-5": "learning_rate = 1e-3",
}


def smaller(folder: Path) -> Path:
    """The shipped recipe with a model that a CPU fits in seconds."""
    assert "paper-as-published" in shipped("recipes")
    text = (Path(__file__).parents[2] / "trainer" / "recipes" / "paper-as-published.toml").read_text()
    for old, new in SMALLER.items():
        text, found = re.subn(rf"^{re.escape(old)}\b", new, text, flags=re.MULTILINE)
        assert found == 1, old
    (folder / "small.toml").write_text(text)
    return folder / "small.toml"


@dataclass(frozen=True)
class Published:
    """A finished run, what it printed, and where everything is."""

    run: Path
    source: tuple[str, ...]
    printed: Result


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    corpus = make_sprsound(root / "corpus", patients=6, seconds=5.0)
    make_sprsound(corpus, patients=4, seconds=5.0, part="inter")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    hugging_face(root / "ast", theirs_of(mels=32, stride=16, **sizes))
    source = ("--corpus", "sprsound", "--data", str(corpus))
    recipe = ("--recipe", str(smaller(root)), "--device", "cpu", "--out", str(root / "run"))
    lost = invoke(trainer, "fit", *source, *recipe, "--init", str(root / "no"))
    assert isinstance(lost.exception, CheckpointError)
    assert lost.output == "", "before any audio is read"
    return Published(root / "run", source, invoke(trainer, "fit", *source, *recipe, "--init", str(root / "ast")))


def invoke(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_fit_says_where_it_began_and_that_the_test_part_chose(published: Published) -> None:
    assert published.printed.exit_code == 0, published.printed.output
    weights = published.run.parent / "ast" / "model.safetensors"
    log = (published.run / "log.txt").read_text()
    for said in (published.printed.stderr, log):
        assert "warning: the test part chooses epoch, temperature and thresholds" in said
        assert f"weights begin at {weights}: 23 tensors used, positions of columns 0:64 of 64" in said
        assert "classifier.dense.weight" in said
    assert "THE TEST PART" in published.printed.stdout
    facts = json.loads((published.run / "run.json").read_text())
    assert "THE TEST PART" in facts["choice"]["threshold"]["rule"]
    assert (facts["front_end"]["frames"], facts["recipe"]["model"]["frames"]) == (1024, 1024)
    assert (facts["front_end"]["mean"], facts["front_end"]["std"]) == (-4.2677393, 4.5689974)
    assert {patient.removeprefix("sprsound/")[0] for patient in facts["held_out"][0]} == {"5"}, "the inter part's"
    assert "<h3>THE TEST PART: the test part chooses" in (published.run / "report.html").read_text()
    compared = invoke(trainer, "compare", str(published.run), str(published.run))
    assert "sprsound THE TEST PART, which chose epochs and thresholds" in compared.stdout


def test_its_bundle_says_so_too_and_screens_windows_of_1024_frames(published: Published, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    built = invoke(export, "build", str(published.run), "--out", str(bundle))
    assert built.exit_code == 0, built.output
    manifest = read_bundle(bundle).manifest
    assert manifest.front_end.frames == 1024
    assert manifest.recipe["init"] == "ast", "a path is of the machine where it was fitted"
    assert "THE TEST PART" in manifest.split
    shape = onnx.load(bundle / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim][1:] == [1024, 32]
    refused = invoke(trainer, "evaluate", str(published.run), *published.source, "--part", "inter")
    assert isinstance(refused.exception, SplitError), "what chose is no test"
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "weights begin at ast" in card
    assert "THE TEST PART: the test part chooses" in card
    for subject in (published.run, bundle):
        knowing = ("--part", "inter", "--split", "as-published", "--json")
        read = invoke(trainer, "evaluate", str(subject), *published.source, *knowing)
        assert read.exit_code == 0, read.output
        assert json.loads(read.stdout)["patients_seen_in_training"] is True, "they tuned it"
    recording = min((published.run.parent / "corpus" / "inter_test").glob("*.wav"))
    screened = invoke(device, "screen", str(recording), "--bundle", str(bundle), "--json")
    assert screened.exit_code == 0, screened.output
    assert "verdict" in json.loads(screened.stdout.splitlines()[0])
