"""`export build`: what a bundle holds, that it is made again bit for bit, and when it is refused."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from device.bundle import BundleError, CalibrationBounds, Manifest, read_bundle
from device.labels import LABELS
from device.model.classifier import Classifier, open_session, self_test
from device.model.judgement import abnormal_probability, pool
from export.building import (
    Built,
    Reporter,
    Served,
    Wanted,
    build,
    default_precision,
    exchange,
    make_self_test,
    read_corpus,
    simulated_breaths,
)
from export.cli import main
from export.manifest import make_manifest
from export.model_card import model_card
from export.onnx_graph import run
from export.quantize import CONVERTED, CPU, FP32, draw_hash, layers, patient_balanced
from export.sensitivity import named
from firmware_config.errors import GateRefused, RespSAMError
from tests.conftest import REPOSITORY, RunCli
from tests.export.conftest import LATE, Made, Workshop
from tests.export.run_maker import PATCH, make_model, make_run, with_weights
from tests.full_disk import largest_file
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Source
from trainer.corpora.audio_cache import open_corpora
from trainer.corpora.protocols import examples
from trainer.corpora.splits import only_patients
from trainer.evaluation.validation import Validation
from trainer.metrics import Rates
from trainer.model.config import ModelConfig
from trainer.model.network import AST, Block, Ensemble, Network
from trainer.run.folder import (
    CHECKPOINT_FILE,
    READINGS_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    RunError,
    RunFacts,
    load_model,
    load_tensors,
    member_folder,
    read_facts,
    save_tensors,
)

BOTH = {"model.onnx", "model.int8.cpu.onnx", "manifest.json", "MODEL_CARD.md"}
LINEAR = ("attention.qkv", "attention.out", "mlp_in", "mlp_out")
ALL = BOTH | {"model.int8.trt.onnx", "model.fp16.trt.onnx"}


# AST base in width, heads, bands and stem; it is less deep, and its patches do not overlap
BASE = ModelConfig(depth=2, stride=16)


def contents(bundle: Path) -> dict[str, bytes]:
    if bundle.is_dir():
        return {file.name: file.read_bytes() for file in bundle.iterdir()}
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_says_what_the_run_decided(patch_made: Made) -> None:
    bundle, facts = read_bundle(patch_made.built.bundle.path), patch_made.facts
    manifest = bundle.manifest
    assert set(contents(bundle.path)) == ALL
    assert [(file.path, file.precision, file.target) for file in manifest.files] == [
        ("model.onnx", "fp32", "any"),
        ("model.int8.cpu.onnx", "int8", "cpu"),
        ("model.int8.trt.onnx", "int8", "tensorrt"),
        ("model.fp16.trt.onnx", "fp16", "tensorrt"),
    ]
    assert {(file.temperature, file.threshold) for file in manifest.files} == {(1.5, facts.choice.cycle_threshold)}
    assert (manifest.name, manifest.corpus, manifest.labels) == ("small-sprsound", "sprsound", LABELS)
    assert (manifest.front_end, manifest.population) == (facts.front_end, facts.population)
    assert (manifest.threshold, manifest.site_rule) == (facts.choice.threshold, facts.choice.site_rule)
    assert manifest.segmentation == facts.choice.segmentation
    assert manifest.architecture["parameters"] == sum(
        parameter.numel() for parameter in load_model(patch_made.run, facts).parameters()
    )
    assert "of 6 patients 2 were held out and chose" in manifest.split
    assert manifest.seen_parts == ("intra", "train"), "SPRSound's intra test has the training patients"
    assert manifest.recipe["seed"] == 3 and manifest.recipe["run"] == facts.fingerprint
    assert {"torch", "onnx", "onnxruntime", "python"} <= set(manifest.versions)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_file_answers_the_self_test_as_fp32_did(patch_made: Made, precision: str) -> None:
    bundle = read_bundle(patch_made.built.bundle.path)
    deviation = self_test(Classifier(bundle, "int8" if precision == "int8" else "fp32"))
    assert deviation < (0.75 * bundle.manifest.self_test.tolerance if precision == "int8" else 1e-5)
    assert set(bundle.manifest.self_test.labels) == set(LABELS)


def test_the_score_is_the_one_that_the_run_recorded(patch_made: Made) -> None:
    fp32, *converted = patch_made.built.served
    recorded = patch_made.facts.choice.readings["windows"].binary.score.value
    assert round(fp32.rates.score, 4) == recorded
    measured: Any = patch_made.built.bundle.manifest.metrics["export"]
    assert measured["parity"] == float(f"{fp32.difference:.1e}")
    assert measured["files"]["model.onnx"] == {"score": recorded}
    for one in converted:
        read = measured["files"][one.form.path]
        assert read["score"] == round(one.rates.score, 4)
        assert read["unchanged"]["score"]["value"] == pytest.approx(one.rates.score - fp32.rates.score, abs=1e-4)
        assert read["unchanged"]["score"]["low"] is None, "the gates read two patients"
        assert read["refitted"].keys() == {"sensitivity", "specificity", "score"}
        assert 0.9 <= read["top1_agreement"] <= 1 and 0 < read["relative_logit_error"] < 0.2 and read["kl_nats"] >= 0
        assert fp32.difference < 1e-4 < one.difference


def test_every_number_is_said(patch_made: Made) -> None:
    assert patch_made.lines[0].startswith("gates: ")
    assert patch_made.lines[0].endswith("; too few patients for any claim: 2, 50 are the least")
    fp32, *converted = patch_made.built.served
    assert any(f"{fp32.difference:.1e}" in line and line.startswith("parity") for line in patch_made.lines)
    for one in converted:
        assert any(
            line.startswith(f"{one.form.path}: same top-1 class in ") and "refitted" in line
            for line in patch_made.lines
        )
        assert any(line.startswith(f"self-test: {one.form.path}") for line in patch_made.lines)


def test_calibration_heard_training_patients_only(patch_made: Made, workshop: Workshop) -> None:
    facts, how = patch_made.facts, patch_made.built.bundle.manifest.recipe["quantization"]
    assert isinstance(how, dict) and isinstance(how["calibration"], dict)
    corpus, cache = open_corpora([Source("sprsound", workshop.data)], workshop.cache, part="train")
    training = only_patients(corpus, set(facts.patients) - set(facts.held_out[0]))
    drawn = patient_balanced(examples(training, "windows", cache), 128, facts.seed)
    assert how["calibration"] == {
        "cycles": len(drawn),
        "patients": len(facts.patients) - len(facts.held_out[0]),
        "sha256": draw_hash(drawn),
        "other_data": False,
    }
    assert any("of 4 training patients" in line for line in patch_made.lines)


def test_the_manifest_names_what_is_float_in_every_file(patch_made: Made, mobilenet_made: Made) -> None:
    for made, asked in ((patch_made, ()), (mobilenet_made, LATE)):
        every = layers(made.built.bundle.read("model.onnx"))
        kept = named(asked, every)
        how: Any = made.built.bundle.manifest.recipe["quantization"]
        for form in CONVERTED:
            if form.path in how["files"]:
                left = how["files"][form.path]["kept_float"]
                assert left == [name for name in every if name in kept or not form.converts(name)]
    assert how["files"]["model.int8.cpu.onnx"]["method"] == CPU.method


def test_a_cpu_never_gets_a_file_for_tensorrt(patch_made: Made) -> None:
    bundle = patch_made.built.bundle
    first = tuple(sorted(bundle.manifest.files, key=lambda file: file.target != "tensorrt"))
    assert first[0].target == "tensorrt"
    turned = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": first}))
    assert turned.file().path == "model.onnx" and turned.file("int8").path == "model.int8.cpu.onnx"
    only = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": first[:2]}))
    with pytest.raises(BundleError, match="no auto file for a CPU"):
        only.file()


def test_an_archive_with_a_name_and_int8_first(mobilenet_made: Made) -> None:
    bundle = mobilenet_made.built.bundle
    assert bundle.path.suffix == ".respsam" and bundle.path.is_file()
    assert set(contents(bundle.path)) == BOTH
    assert bundle.manifest.name == "Ward 7"
    assert [file.precision for file in bundle.manifest.files] == ["int8", "fp32"]
    assert Classifier(bundle).file.precision == "int8"
    assert "--prefer int8" in contents(bundle.path)["MODEL_CARD.md"].decode()


def test_another_process_in_another_folder_makes_the_same_bytes(
    patch_made: Made, workshop: Workshop, tmp_path: Path, run_cli: RunCli
) -> None:
    out = tmp_path / "again" / "b.respsam"
    done = run_cli(
        "export",
        "build",
        patch_made.run,
        "--int8",
        "--fp16",
        "--target",
        "both",
        "--prefer",
        "fp32",
        "--out",
        out,
        PYTHONHASHSEED="7",
        RESPSAM_TRAINING__CACHE=str(workshop.cache),
        timeout_seconds=280,
    )
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(patch_made.built.bundle.path)
    assert "model.int8.cpu.onnx" in done.stdout and f"--bundle {out}" in done.stdout
    assert "parity: fp32" in done.stderr and "refitted" in done.stderr
    assert [file.name for file in out.parent.iterdir()] == ["b.respsam"]


class TestModelCard:
    def test_what_it_is_and_is_not(self, patch_made: Made) -> None:
        card = contents(patch_made.built.bundle.path)["MODEL_CARD.md"].decode()
        assert "Not a medical device" in card and "GPL-3.0" in card and "IEEE" in card
        people = patch_made.facts.population
        assert f"{people.patients} patients, {people.youngest_years:g} to {people.oldest_years:g} years" in card
        for file in patch_made.built.bundle.manifest.files:
            assert file.sha256 in card
        assert "{" not in card

    def test_readings_with_intervals_confounders_and_how_often_they_were_taken(self, patch_made: Made) -> None:
        card = contents(patch_made.built.bundle.path)["MODEL_CARD.md"].decode()
        reading = json.loads((patch_made.run / READINGS_FILE).read_text().splitlines()[0])
        score = reading["binary"]["score"]
        (row,) = [line for line in card.splitlines() if line.startswith("| sprsound intra") and "training" in line]
        assert f"| {score['value']:.3f} |" in row, "six patients have no interval"
        assert row.endswith(f"| {reading['patients']} patients seen in training | 2 |")
        assert "1 earlier reading was of other weights or thresholds of this run." in card
        assert "| read on | duration | age | level |" in card
        crackles = sum(reading["confusion"]["counts"][1])
        assert f"| sprsound intra, `windows` | crackle | {crackles} |" in card
        assert "--part intra --protocol windows" in card

    def test_too_few_patients_are_said_and_enough_have_intervals(self, patch_made: Made) -> None:
        manifest, few = patch_made.built.bundle.manifest, "too few patients for any claim: {}, 50 are the least."
        sizes = {file.path: 1 for file in manifest.files}
        card = model_card(manifest, sizes)
        assert f"sprsound intra, `windows`: {few.format(6)}" in card
        assert f"sprsound train, `windows`: {few.format(2)}" in card and f"These files: {few.format(2)}" in card
        metrics: Any = json.loads(json.dumps(manifest.metrics))
        for reading in (*metrics["readings"], *metrics["validation"].values()):
            reading["patients"], reading["binary"]["score"] = 60, {"value": 0.8, "low": 0.7, "high": 0.9}
        metrics["export"]["patients"] = 60
        card = model_card(manifest.model_copy(update={"metrics": metrics}), sizes)
        assert "0.800 [0.700, 0.900]" in card and "too few patients for any claim" not in card

    def test_where_it_fails_by_stethoscope_site_and_age(self, patch_made: Made) -> None:
        card = contents(patch_made.built.bundle.path)["MODEL_CARD.md"].decode()
        *_, held_out = patch_made.facts.choice.readings.values()
        for what, groups in (
            ("stethoscope", held_out.per_device),
            ("site", held_out.per_site),
            ("age", held_out.per_age),
        ):
            assert groups
            for name, read in groups.items():
                assert f"| {what} {name or 'unknown'} | {read.n} | {read.patients} |" in card

    def test_what_carries_labels_and_what_weak_ones_are(self, patch_made: Made) -> None:
        bundle = patch_made.built.bundle
        card = contents(bundle.path)["MODEL_CARD.md"].decode()
        (line,) = [line for line in card.splitlines() if line.startswith("- Labels: ")]
        assert re.fullmatch(r"- Labels: of events \(\d+ recordings\)\.", line)
        weak = bundle.manifest.model_copy(
            update={"metrics": {**bundle.manifest.metrics, "label_grains": {"cycle": 1, "recording": 159}}}
        )
        card = model_card(weak, {file.path: 1 for file in weak.files})
        assert "- Labels: of breath cycles (1 recording), whole recordings (159 recordings). Weak labels: one" in card
        assert "Training gives it to crops of 4 to 8 s from anywhere in the recording" in card
        older = bundle.manifest.model_copy(
            update={"metrics": {name: one for name, one in bundle.manifest.metrics.items() if name != "label_grains"}}
        )
        assert "- Labels: " not in model_card(older, {file.path: 1 for file in older.files})

    def test_without_a_test_reading_it_says_so(self, mobilenet_made: Made) -> None:
        card = contents(mobilenet_made.built.bundle.path)["MODEL_CARD.md"].decode()
        assert "on the first fold, whom the other models have met:" in card
        assert "No test part has been read; see" in card
        manifest = mobilenet_made.built.bundle.manifest
        resumed = manifest.model_copy(update={"metrics": {**manifest.metrics, "earlier_readings": 2}})
        card = model_card(resumed, {file.path: 1 for file in manifest.files})
        assert "No test part has been read with this model; 2 earlier readings were of other weights" in card


def test_neither_manifest_nor_card_names_a_place(patch_made: Made, workshop: Workshop) -> None:
    for name in ("manifest.json", "MODEL_CARD.md"):
        text = contents(patch_made.built.bundle.path)[name].decode()
        for place in (
            str(workshop.root),
            str(REPOSITORY),
            str(Path.home()) + os.sep,
            os.environ.get("HOSTNAME") or "//",
        ):
            assert place not in text
    # the third in the run's folder is not of these weights
    (reading, _) = json.loads(contents(patch_made.built.bundle.path)["manifest.json"])["metrics"]["readings"]
    assert reading["notes"] == ["a note", "1 more notes name files; they are in the run's readings.jsonl"]


def test_a_changed_byte_shows_afterwards(patch_made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(patch_made.built.bundle.path, copy)
    data = bytearray((copy / "model.int8.cpu.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.int8.cpu.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.int8\.cpu\.onnx has sha256"):
        read_bundle(copy)


def changed_run(run: Path, folder: Path, change: Callable[[Network], None]) -> Path:
    """A copy of a run whose weights were changed."""
    copy = folder / "run"
    shutil.copytree(run, copy)
    model = load_model(copy, read_facts(copy))
    assert not isinstance(model, Ensemble)
    with torch.no_grad():
        change(model)
    with_weights(copy, model)
    return copy


def blocks(model: Network) -> list[Block]:
    assert isinstance(model, AST)
    return [block for block in model.blocks if isinstance(block, Block)]


def test_rounding_worse_than_the_parity_gate_is_refused(workshop: Workshop, patch_run: Path, tmp_path: Path) -> None:
    def explode(model: Network) -> None:
        model.head.weight.mul_(1e6)

    run = changed_run(patch_run, tmp_path, explode)
    with pytest.raises(GateRefused, match=r"^parity: fp32 is off torch by .*allowed 0\.0001"):
        workshop.build(run, tmp_path / "bundle")
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def fragile_run(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What breaks real transformers in int8: one channel a thousand times the others. fp32 does not even see it."""

    def outlier(model: Network) -> None:
        block = blocks(model)[1]
        for norm, linear in ((block.attention_norm, block.attention.qkv), (block.mlp_norm, block.mlp_in)):
            norm.weight[0], norm.bias[0] = 0.0, 1000.0
            linear.weight[:, 0] = 0.0

    run = tmp_path_factory.mktemp("fragile") / "run"
    make_run(run, workshop.data, workshop.cache, PATCH, outlier)
    return run


FRAGILE = ("blocks.1.attention.qkv", "blocks.1.mlp_in")


def test_int8_that_costs_score_is_refused_with_the_layers_by_sensitivity(
    workshop: Workshop,
    fragile_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(workshop.cache))
    code = export(monkeypatch, "build", fragile_run, "--int8", "--out", tmp_path / "bundle")
    lines = capsys.readouterr().err.splitlines()
    assert code == 3
    assert lines[-1].startswith("respsam-export: error: model.int8.cpu.onnx: loses ")
    assert "allowed 0.005" in lines[-1] and "--keep-float LAYER or --auto-keep N" in lines[-1]
    (head,) = [number for number, line in enumerate(lines) if line.startswith("layer ")]
    ranked = [line.split() for line in lines[head + 1 : -1]]
    assert len(ranked) == 8 and {name for name, _ in ranked[:2]} == set(FRAGILE)
    errors = [float(error) for _, error in ranked]
    assert errors == sorted(errors, reverse=True) and errors[1] > 10 * errors[2]
    assert list(tmp_path.iterdir()) == []


def test_scores_at_the_threshold_refuse_a_file_and_blame_no_layer(
    workshop: Workshop, patch_made: Made, tmp_path: Path
) -> None:
    """fp16 rounds a patient's score from one side of the threshold to the other: leaving layers float is no remedy."""
    facts = patch_made.facts
    _, validation, cache = read_corpus(facts, [], workshop.cache, Reporter())
    held = Validation(validation, cache, facts.front_end)
    fp32, fp16 = (
        abnormal_probability(pool(run(open_session(patch_made.built.bundle.read(path)), held.inputs)), temperature=1.5)
        for path in ("model.onnx", "model.fp16.trt.onnx")
    )
    row = int(np.argmax(np.where(held.labels > 0, fp32 - fp16, -1.0)))
    changed = tmp_path / "run"
    shutil.copytree(patch_made.run, changed)
    read = json.loads((changed / RUN_FILE).read_text())
    read["choice"]["cycle_threshold"] = float(fp32[row] + fp16[row]) / 2
    (changed / RUN_FILE).write_text(json.dumps(read))
    lines: list[str] = []
    wanted = Wanted(fp16=True, target="tensorrt", auto_keep=3)
    with pytest.raises(GateRefused, match=r"no layer is to blame, .* change sides: .*, or leave --fp16 out") as refused:
        build(changed, tmp_path / "bundle", cache_folder=workshop.cache, wanted=wanted, reporter=Reporter(lines.append))
    assert "keep-float" not in str(refused.value) and not any(line.startswith("layer ") for line in lines)


def kept(built: Built) -> set[str]:
    how: Any = built.bundle.manifest.recipe["quantization"]
    return {name for name in how["files"]["model.int8.cpu.onnx"]["kept_float"] if CPU.takes(name)}


def test_layers_left_float_save_the_file(workshop: Workshop, fragile_run: Path, tmp_path: Path) -> None:
    """One by its name, the other because it is the worst of what is left."""
    wanted = Wanted(int8=True, keep_float=FRAGILE[:1], auto_keep=1)
    built = workshop.build(fragile_run, tmp_path / "bundle", wanted)
    assert kept(built) == set(FRAGILE)
    card = contents(built.bundle.path)["MODEL_CARD.md"].decode()
    assert all(f"--keep-float {name}" in card for name in FRAGILE)


def new_patients(root: Path, count: int) -> Path:
    """A corpus of patients that the runs have never met."""
    (make_sprsound(root, patients=count, part="inter") / "inter_test").rename(root / "train")
    return root


def test_other_calibration_data_give_other_ranges(workshop: Workshop, patch_made: Made, tmp_path: Path) -> None:
    other = new_patients(tmp_path / "other", 3)
    wanted = Wanted(int8=True, calibration_data=other, calibration_cycles=7, prefer="fp32")
    built = workshop.build(patch_made.run, tmp_path / "bundle", wanted)
    how: Any = built.bundle.manifest.recipe["quantization"]
    assert (how["calibration"]["cycles"], how["calibration"]["patients"]) == (7, 3)
    assert built.bundle.read("model.int8.cpu.onnx") != patch_made.built.bundle.read("model.int8.cpu.onnx")
    card = contents(built.bundle.path)["MODEL_CARD.md"].decode()
    assert (
        "--int8 --calibration-data DIR --calibration-cycles 7 --prefer fp32 --out" in card and "another corpus" in card
    )


def with_bias(data: bytes, name: str, index: int, change: float) -> bytes:
    model = onnx.load_model_from_string(data)
    (bias,) = [one for one in model.graph.initializer if one.name == name]
    values = numpy_helper.to_array(bias).copy()
    values[index] += change
    bias.CopyFrom(numpy_helper.from_array(values, name))
    result: bytes = model.SerializeToString()
    return result


@pytest.mark.parametrize(("change", "tolerance"), [(0.05, 0.02), (0.15, 0.05), (1.0, None)])
def test_the_tolerance_holds_for_the_worst_file_or_there_is_no_bundle(
    patch_made: Made, change: float, tolerance: float | None
) -> None:
    """`change` moves the logit of normal, in units of the least certain breath's margin."""
    data, rates, facts = patch_made.built.bundle.read("model.onnx"), Rates(1.0, 1.0), patch_made.facts
    fp32 = Served(FP32, data, np.empty((0, 1, 4), np.float32), rates, 0.0)
    logits = np.concatenate([run(open_session(data), one)[:, 0] for one in simulated_breaths(facts.front_end)])
    # so high a temperature that not all probabilities are at their end
    temperature = float(np.abs(logits[:, 1:].max(axis=1) - logits[:, 0]).min())
    other = replace(fp32, form=CONVERTED[0], data=with_bias(data, "head.bias", 0, change * temperature))
    facts = facts.model_copy(update={"choice": facts.choice.model_copy(update={"temperature": temperature})})
    lines: list[str] = []
    if tolerance is None:
        with pytest.raises(GateRefused, match=r"self-test: model\.int8\.cpu\.onnx is off fp32"):
            make_self_test([fp32, other], facts, Reporter(lines.append))
        return
    test = make_self_test([fp32, other], facts, Reporter(lines.append))
    assert test.tolerance == tolerance
    of = {"normal": 0, "abnormal": 0}
    for probability, label in zip(test.expected_probability, test.labels, strict=True):
        of["normal" if label == "normal" else "abnormal"] += probability >= facts.choice.cycle_threshold
    assert lines[0].startswith("warning: simulated") == (of["abnormal"] < 3)
    assert f"called abnormal {of['abnormal']} of 6 abnormal and {of['normal']} of 2 normal ones" in lines[0]
    deaf = facts.model_copy(update={"choice": facts.choice.model_copy(update={"cycle_threshold": 1.01})})
    make_self_test([fp32, other], deaf, Reporter(lines.append))
    assert any(line.startswith("warning: ") and "called abnormal 0 of 6 abnormal" in line for line in lines)
    assert ("widened" in lines[-1]) == (tolerance == 0.05)


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """The exit code of the command, run here."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


class TestBadInput:
    """One line that says what, where and what to do; exit code 2; nothing left behind."""

    @pytest.fixture
    def refuses(
        self,
        workshop: Workshop,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Callable[..., None]:
        def check(arguments: Sequence[str | Path], *fragments: str) -> None:
            monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(workshop.cache))
            before = {item: item.stat().st_mtime_ns for item in tmp_path.rglob("*")}
            code = export(monkeypatch, "build", *arguments)
            captured = capsys.readouterr()
            assert code == 2 and captured.out == ""
            *progress, error = captured.err.splitlines()
            assert error.startswith("respsam-export: error: ") and "error" not in "".join(progress)
            for fragment in fragments:
                assert fragment in error
            assert {item: item.stat().st_mtime_ns for item in tmp_path.rglob("*")} == before

        return check

    @pytest.fixture
    def run(self, patch_run: Path, tmp_path: Path) -> Path:
        """A copy that a test may spoil."""
        return Path(shutil.copytree(patch_run, tmp_path / "run"))

    def test_no_run(self, refuses: Callable[..., None], tmp_path: Path) -> None:
        refuses([tmp_path / "gone", "--out", tmp_path / "b"], f"{tmp_path}/gone: no run here", "trainer fit")

    def test_unfinished_run(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        member_folder(run, 0).mkdir()
        (run / RUN_FILE).rename(member_folder(run, 0) / CHECKPOINT_FILE)
        refuses([run, "--out", tmp_path / "b"], str(run), "not finished", "--resume")

    def test_facts_of_another_version(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        (run / RUN_FILE).write_text((run / RUN_FILE).read_text().replace('"seed"', '"sead"', 1))
        refuses([run, "--out", tmp_path / "b"], RUN_FILE, "se")

    def test_corrupt_weights(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        (run / WEIGHTS_FILE).write_bytes((run / WEIGHTS_FILE).read_bytes()[:1000])
        refuses([run, "--out", tmp_path / "b"], WEIGHTS_FILE, "not a readable checkpoint")

    def test_weights_of_another_model(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        with_weights(run, make_model(PATCH.model_copy(update={"depth": 1})))
        refuses([run, "--out", tmp_path / "b"], WEIGHTS_FILE, "does not fit the recipe")

    def test_nan_weights(self, refuses: Callable[..., None], patch_run: Path, tmp_path: Path) -> None:
        def spoil(model: Network) -> None:
            blocks(model)[1].mlp_in.weight[0, 0] = float("nan")

        run = changed_run(patch_run, tmp_path, spoil)
        refuses([run, "--out", tmp_path / "b"], "NaN", "blocks.1.mlp_in.weight")

    def test_damaged_reading(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        with (run / READINGS_FILE).open("a") as file:
            file.write('{"protocol": "windows"\n')
        refuses([run, "--out", tmp_path / "b"], f"{READINGS_FILE}:4", "remove the line")

    def test_out_holds_a_bundle(self, refuses: Callable[..., None], patch_made: Made) -> None:
        refuses([patch_made.run, "--out", patch_made.built.bundle.path], "exists", "--force")

    def test_force_replaces_nothing_but_a_bundle(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter").write_text("one")
        refuses([run, "--force", "--out", tmp_path / "thesis"], "is not a bundle")

    def test_out_below_a_file(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        refuses([run, "--out", tmp_path / "file" / "b"], f"{tmp_path}/file is not a folder")

    def test_corpus_that_has_gone(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        refuses([run, "--out", tmp_path / "b", "--data", tmp_path / "gone"], "gone", "--data")

    def test_corpus_without_recordings(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        refuses([run, "--out", tmp_path / "b", "--data", tmp_path / "empty"], "empty")

    def test_another_corpus(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        other = make_sprsound(tmp_path / "other", patients=2, recordings_per_patient=1)
        refuses([run, "--out", tmp_path / "b", "--data", other], "4 of the run's patients are not here", "--data")

    def test_unknown_architecture(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        facts = (run / RUN_FILE).read_text()
        (run / RUN_FILE).write_text(facts.replace('"architecture":"ast"', '"architecture":"convnext"'))
        refuses([run, "--out", tmp_path / "b"], "'ast'", "'mobilenet'", "train again")

    @pytest.mark.parametrize("option", [["--prefer", "int8"], ["--prefer", "int8", "--int8", "--target", "tensorrt"]])
    def test_int8_preferred_but_not_built_for_a_cpu(
        self, refuses: Callable[..., None], run: Path, tmp_path: Path, option: list[str]
    ) -> None:
        refuses([run, "--out", tmp_path / "b", *option], "--prefer int8 needs --int8")

    def test_fp16_for_a_cpu(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        refuses([run, "--out", tmp_path / "b", "--fp16"], "--fp16 is for TensorRT", "--target")

    def test_layer_that_is_not_there(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        arguments = [run, "--out", tmp_path / "b", "--int8", "--keep-float", "blocks.1.mlp_inn"]
        refuses(arguments, "--keep-float blocks.1.mlp_inn", "the nearest is blocks.1.mlp_in")

    def test_calibration_on_held_out_patients(
        self, refuses: Callable[..., None], workshop: Workshop, run: Path, tmp_path: Path
    ) -> None:
        arguments = [run, "--out", tmp_path / "b", "--int8", "--calibration-data", workshop.data]
        refuses(arguments, str(workshop.data), "was held out", "leave --calibration-data out")

    def test_calibration_on_one_patient(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        other = new_patients(tmp_path / "other", 1)
        refuses([run, "--out", tmp_path / "b", "--int8", "--calibration-data", other], str(other), "of 1 patients")

    def test_calibration_on_one_class(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        other = new_patients(tmp_path / "other", 2)
        for file in other.glob("train/*.json"):
            annotation = json.loads(file.read_text())
            for event in annotation["event_annotation"]:
                event["type"] = "Normal"
            file.write_text(json.dumps(annotation | {"record_annotation": "Normal"}))
        refuses([run, "--out", tmp_path / "b", "--int8", "--calibration-data", other], str(other), "and 1 classes")

    def test_calibration_data_without_int8(self, refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
        refuses([run, "--out", tmp_path / "b", "--calibration-data", tmp_path], "add --int8")


@pytest.mark.parametrize("int8", [True, False], ids=["a temporary file", "the bundle"])
def test_a_full_disk_leaves_nothing_behind(
    workshop: Workshop, patch_made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with largest_file(20_000), pytest.raises(RespSAMError, match=r"cannot be written \(File too large\)") as refused:
        workshop.build(patch_made.run, tmp_path / "bundle", Wanted(int8=int8))
    assert "free the disk" in str(refused.value) and refused.value.exit_code == 2
    assert [item.name for item in tmp_path.rglob("*")] == ["temporary"]


def test_a_model_with_foreign_operators_is_refused_by_the_device(patch_made: Made, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(patch_made.built.bundle.path, tmp_path / "bundle"))
    model = onnx.load(bundle / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Softmax").domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    old = hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    onnx.save(model, bundle / "model.onnx")
    new = hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text().replace(old, new))
    with pytest.raises(BundleError, match=r"model\.onnx does not load: .*com\.example") as refused:
        _ = Classifier(read_bundle(bundle)).session
    assert "\n" not in str(refused.value)


def test_force_replaces_a_bundle(workshop: Workshop, patch_made: Made, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(patch_made.built.bundle.path, out)
    built = build(patch_made.run, out, cache_folder=workshop.cache, force=True)
    assert [file.precision for file in built.bundle.manifest.files] == ["fp32"]
    assert set(contents(out)) == BOTH - {"model.int8.cpu.onnx"}
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_replaced_is_lost_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """Where the kernel exchanges two names at once, and where it takes two steps, of which the second fails."""
    old, made = tmp_path / "old", tmp_path / "beside" / "made"
    for folder, text in ((old, "old"), (made, "new")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
    if not at_once:
        monkeypatch.setattr("export.building.RENAME_EXCHANGE", 1 << 30)  # no kernel knows this
    exchange(made, old)
    assert (old / "file").read_text() == "new"
    kept = tmp_path / "beside" / ("made" if at_once else "replaced")
    assert (kept / "file").read_text() == "old"
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == "other":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr("export.building.RENAME_EXCHANGE", 1 << 30)
    kept.rename(tmp_path / "beside" / "gone")
    (tmp_path / "beside" / "other").mkdir()
    with pytest.raises(OSError):
        exchange(tmp_path / "beside" / "other", old)
    assert (old / "file").read_text() == "new"


def test_ast_base_at_a_reduced_depth(workshop: Workshop, tmp_path: Path) -> None:
    corpus = make_sprsound(tmp_path / "corpus", patients=3, seconds=5.0)
    make_run(tmp_path / "run", corpus, workshop.cache, BASE, gain=1.0, fitted=False)
    # no Score to lose with random weights
    wanted = Wanted(int8=True, target="both", largest_loss=1.0, prefer="fp32")
    fp32, *converted = workshop.build(tmp_path / "run", tmp_path / "bundle", wanted).served
    assert fp32.difference < 1e-4 and len(converted) == 2
    for one in converted:
        assert one.comparison is not None and one.comparison.relative_error < 0.1
        assert len(one.data) < 0.3 * len(fp32.data)


def manifest_of(made: Made, facts: RunFacts) -> Manifest:
    """The bundle's manifest had the run had other facts."""
    manifest = made.built.bundle.manifest
    return make_manifest(
        facts,
        name=None,
        parameters=1,
        files=manifest.files,
        self_test=manifest.self_test,
        readings=[],
        earlier=0,
        measured=manifest.metrics["export"],  # type: ignore[arg-type]
        quantization={},
    )


@pytest.mark.parametrize(
    ("parts", "split", "seen"),
    [
        (["train"], "official", {"train", "intra"}),
        (["intra"], "official", {"train", "intra"}),
        (["inter", "intra", "train"], "official", {"train", "intra", "inter"}),
        (["train"], "as-published", {"train", "test", "intra", "inter"}),
        ([""], "official", {""}),
    ],
)
def test_a_bundle_knows_whose_parts_it_has_met(patch_made: Made, parts: list[str], split: str, seen: set[str]) -> None:
    """`fit --part all`, or ICBHI as published with its two patients on both sides: no test part is unseen then."""
    facts = patch_made.facts.model_copy(update={"parts": parts, "split": split})
    assert set(manifest_of(patch_made, facts).seen_parts) == seen


def test_weights_that_are_not_the_runs_are_refused(patch_made: Made, tmp_path: Path) -> None:
    """A run that was going to be finished again, and was killed between its weights and its facts."""
    run = tmp_path / "run"
    shutil.copytree(patch_made.run, run)
    tensors, about = load_tensors(run / WEIGHTS_FILE)
    save_tensors(run / WEIGHTS_FILE, {name: tensor + 1 for name, tensor in tensors.items()}, about)
    with pytest.raises(RunError, match=rf"{WEIGHTS_FILE}: not the weights that run\.json is about; .* --resume"):
        load_model(run, read_facts(run))


@pytest.mark.parametrize(("maker", "credited"), [("mobilenet_made", True), ("patch_made", False)])
def test_the_card_says_where_the_weights_began(maker: str, credited: bool, request: pytest.FixtureRequest) -> None:
    """Another network's file of that name holds something else."""
    manifest = request.getfixturevalue(maker).built.bundle.manifest
    sizes = {file.path: 1 for file in manifest.files}
    begun = manifest.model_copy(update={"recipe": {**manifest.recipe, "init": "mn04_as_mAP_432.pt"}})
    assert "AudioSet" not in model_card(manifest, sizes)
    assert ("EfficientAT's mn04_as (MIT licence), which learnt AudioSet" in model_card(begun, sizes)) == credited


def test_a_file_that_the_weights_began_at_is_named_without_its_folder(patch_made: Made) -> None:
    recipe = patch_made.facts.recipe.model_copy(update={"init": "/home/me/mn04_as_mAP_432.pt", "init_sha256": "a" * 64})
    manifest = manifest_of(patch_made, patch_made.facts.model_copy(update={"recipe": recipe}))
    assert (manifest.recipe["init"], manifest.recipe["init_sha256"]) == ("mn04_as_mAP_432.pt", "a" * 64)
    assert "init_sha256" not in patch_made.built.bundle.manifest.recipe


def test_the_bundle_carries_how_far_healthy_people_may_move_the_threshold(patch_made: Made) -> None:
    assert patch_made.built.bundle.manifest.calibration is None
    allowed = CalibrationBounds(largest_shift=0.5, sensitivity_floor=0.875)
    choice = patch_made.facts.choice.model_copy(update={"calibration": allowed})
    manifest = manifest_of(patch_made, patch_made.facts.model_copy(update={"choice": choice}))
    assert manifest.calibration == allowed
    sizes = {file.path: 1 for file in manifest.files}
    assert "threshold by up to 0.50 in log-odds, so that at most 10% of them" in model_card(manifest, sizes)
    assert "do not change the site's threshold" in model_card(patch_made.built.bundle.manifest, sizes)


def test_the_card_says_what_a_verdict_is_made_of(patch_made: Made, mobilenet_made: Made) -> None:
    patch, mobilenet = (
        contents(made.built.bundle.path)["MODEL_CARD.md"].decode() for made in (patch_made, mobilenet_made)
    )
    assert "An Audio Spectrogram Transformer that gives" in patch and "A MobileNetV3 that gives" in mobilenet
    assert "class logits for each of 25 moments" in mobilenet and "the log of the mean odds" in mobilenet
    assert "moments" not in patch
    for card in (patch, mobilenet):
        assert "A site is flagged when its first 4 gradable cycles reach" in card


@pytest.mark.parametrize(
    ("prefer", "ratio", "chosen", "why"),
    [
        ("measured", 0.95, "fp32", "int8 takes 0.95 of fp32's time here; at most 0.9 makes int8 the default"),
        ("measured", 0.7, "int8", "int8 takes 0.70 of fp32's time here"),
        ("int8", 1.4, "int8", "as asked by --prefer"),
        ("fp32", 0.5, "fp32", "as asked by --prefer"),
    ],
)
def test_int8_is_a_cpus_default_where_it_is_faster(
    patch_made: Made, prefer: Any, ratio: float, chosen: str, why: str
) -> None:
    served = [
        replace(one, times_fp32=ratio) if one.form.precision == "int8" and one.for_cpu else one
        for one in patch_made.built.served
    ]
    lines: list[str] = []
    assert default_precision(served, Wanted(int8=True, prefer=prefer), Reporter(lines.append)) == chosen
    assert lines[0].startswith(f"a CPU runs {chosen} by default") and why in lines[0]
    assert default_precision(served[:1], Wanted(), Reporter(lines.append)) == "fp32" and len(lines) == 1


def test_times_are_of_rounds_in_turns(patch_made: Made) -> None:
    for one in patch_made.built.served:
        assert (one.milliseconds > 0) == (one.times_fp32 > 0) == one.for_cpu
    assert patch_made.built.served[0].times_fp32 == 1.0


def test_the_card_of_several_corpora_credits_each_and_opens_each(patch_made: Made) -> None:
    manifest = patch_made.built.bundle.manifest.model_copy(update={"corpus": "icbhi+kauh"})
    card = model_card(manifest, {file.path: 1 for file in manifest.files})
    assert "Rocha" in card and "Fraiwan" in card and "GPL-3.0" not in card
    assert "fit --corpus icbhi --data DIR --corpus kauh --data DIR --recipe" in card
