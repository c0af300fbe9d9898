"""What the device refuses to run, and that it says which part does not hold."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.breath.simulator import breath
from device.bundle import MANIFEST, BundleError, pack, read_bundle
from device.model.classifier import Classifier, self_test
from device.model.judgement import abnormal_probability, moments_of, pool
from device.model.opening import open_classifier
from device.signal import SAMPLE_RATE, SignalError, Span, split, window
from firmware_config.settings import load_settings
from tests.device.bundle_maker import FRONT_END, make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    packed = folder.with_suffix(".respsam")
    pack(folder, packed)
    return packed


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Classifier(read_bundle(path)).session  # noqa: B018
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_folder_and_its_archive_are_the_same_bundle(folder: Path, archive: Path, tmp_path: Path) -> None:
    unpacked, packed = read_bundle(folder), read_bundle(archive)
    assert unpacked.fingerprint == packed.fingerprint == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    samples = breath(1, "wheeze")
    assert Classifier(unpacked).judge(samples) == Classifier(packed).judge(samples)
    pack(folder, tmp_path / "again.respsam")
    assert (tmp_path / "again.respsam").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda manifest: manifest.update(schema_version=1),
            "of schema 1, this version reads schema 2; build it again with 'respsam-export build RUN --out BUNDLE'",
        ),
        (lambda manifest: manifest.pop("site_rule"), "site_rule: Field required"),
        (lambda manifest: manifest.update(colour="blue"), "colour: unknown key"),
        (lambda manifest: manifest["labels"].reverse(), "labels both, wheeze, crackle, normal are not"),
        (lambda manifest: manifest["front_end"].update(mels=0), "front_end.mels"),
        (
            lambda manifest: manifest.update(schema_version=3),
            "of schema 3, this version reads schema 2; update this program",
        ),
        (lambda manifest: manifest["site_rule"].update(least_cycles=9), "least_cycles 9 is more than stretch_cycles 6"),
        (lambda manifest: manifest["files"][0].update(path="../model.onnx"), "files.0.path"),
        (lambda manifest: manifest["files"][0].update(sha256="0" * 64), "model.onnx has sha256"),
        (lambda manifest: manifest.update(files=[]), "files"),
        # the hashes hold, the model takes 32 bands
        (lambda manifest: manifest["front_end"].update(mels=64), "(batch, 798, 64)"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    assert named in refused(make_bundle(tmp_path / "bundle", changes=change))


def test_a_changed_missing_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    changed = make_bundle(tmp_path / "changed")
    model = changed / "model.int8.cpu.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    message = refused(changed)
    assert "model.int8.cpu.onnx has sha256" in message
    assert "changed or damaged" in message

    missing = make_bundle(tmp_path / "missing")
    (missing / "model.onnx").unlink()
    assert "model.onnx is missing" in refused(missing)

    def other_hash(manifest: dict[str, Any]) -> None:
        manifest["files"][0]["sha256"] = hashlib.sha256(b"no model").hexdigest()

    foreign = make_bundle(tmp_path / "foreign", changes=other_hash)
    (foreign / "model.onnx").write_bytes(b"no model")
    assert "model.onnx does not load" in refused(foreign)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "no bundle here" in refused(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "manifest.json is missing" in refused(empty)
    (empty / MANIFEST).write_text("{")
    assert "Invalid JSON" in refused(empty)
    text = tmp_path / "text.respsam"
    text.write_text("not a zip")
    assert "manifest.json cannot be read" in refused(text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_whole(data: st.DataObject, archive: Path, tmp_path_factory: Any) -> None:
    content = bytearray(archive.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.mktemp("damaged") / "tiny.respsam"
    damaged.write_bytes(content)
    try:
        opened = read_bundle(damaged)
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        assert opened.fingerprint == read_bundle(archive).fingerprint


def test_the_settings_choose_the_file(folder: Path) -> None:
    def precision(wanted: str) -> str:
        settings = load_settings(environment={}).bundle
        settings = settings.model_copy(update={"path": str(folder), "precision": wanted})
        return open_classifier(settings).file.precision

    assert (precision("auto"), precision("fp32"), precision("int8")) == ("fp32", "fp32", "int8")


def test_a_precision_that_the_bundle_does_not_have_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", changes=lambda manifest: manifest["files"].pop())
    with pytest.raises(BundleError, match=r"no int8 file for a CPU \(there: fp32\)"):
        Classifier(read_bundle(path), "int8")


def test_the_classifier_computes_the_graph_and_the_worst_window_speaks(folder: Path) -> None:
    classifier = Classifier(read_bundle(folder))
    samples = np.concatenate([breath(seed, "normal" if seed < 3 else "both") for seed in range(5)])
    assert samples.size > 8 * SAMPLE_RATE
    logits = classifier.logits(np.stack([window(part, FRONT_END) for part in split(samples)]))
    probabilities = abnormal_probability(pool(logits), classifier.file.temperature)
    assert np.ptp(probabilities) > 0.01
    assert classifier.judge(samples).probability == pytest.approx(float(probabilities.max()), abs=1e-6)


def test_a_cycle_in_its_context_is_judged_by_its_own_moments(tmp_path: Path) -> None:
    classifier = Classifier(read_bundle(make_bundle(tmp_path / "bundle", moments=14)))
    assert self_test(classifier) <= 1e-3
    samples = np.concatenate([breath(0, "normal"), breath(1, "both")])
    (logits,) = classifier.logits(window(samples, FRONT_END)[None])
    spans: tuple[Span | None, ...] = (None, (0, 48_000), (48_000, 96_000))
    for span in spans:
        own = pool(logits if span is None else logits[moments_of(span, 14)])[None]
        expected = float(abnormal_probability(own, classifier.file.temperature)[0])
        assert classifier.judge(samples, span).probability == pytest.approx(expected, abs=1e-9)
    assert len({classifier.judge(samples, span).probability for span in spans}) == 3
    with pytest.raises(SignalError, match="does not lie in a window"):
        classifier.judge(samples, (48_000, 96_001))


def test_a_model_without_moments_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle")
    model = onnx.load(path / "model.onnx")
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    (path / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][0]["sha256"] = hashlib.sha256((path / "model.onnx").read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))
    refused(path)


def test_the_self_test_holds_for_the_bundle_and_not_for_another_answer(folder: Path, tmp_path: Path) -> None:
    assert self_test(Classifier(read_bundle(folder))) <= 1e-3
    expected = json.loads((folder / MANIFEST).read_text())["self_test"]["expected_probability"]

    def shift(manifest: dict[str, Any]) -> None:
        manifest["self_test"]["expected_probability"] = [expected[0] + 0.01, *expected[1:]]

    with pytest.raises(BundleError, match=r"self-test off by 0\.0100"):
        self_test(Classifier(read_bundle(make_bundle(tmp_path / "shifted", changes=shift))))


def test_an_answer_that_is_no_number_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As half precision gives when attention overflows; below every threshold, it would be health."""
    classifier = Classifier(read_bundle(folder))
    half = np.array([[np.nan, 0.0, 0.0, 0.0]], np.float32)
    monkeypatch.setattr(Classifier, "logits", lambda self, inputs: np.tile(half, (len(inputs), 1, 1)))
    with pytest.raises(BundleError, match="self-test off by nan"):
        self_test(classifier)
    with pytest.raises(BundleError, match="answers NaN"):
        classifier.judge(breath(0, "normal"))


@pytest.mark.parametrize("names", [("mine/",), ("mine/", "__MACOSX/mine/._")])
def test_a_bundle_zipped_with_its_folder_by_a_mac_is_opened(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = make_bundle(tmp_path / "mine")
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for item in sorted(folder.iterdir()):
            for number, name in enumerate(names):
                packed.writestr(f"{name}{item.name}", b"" if number else item.read_bytes())
    opened = read_bundle(archive)
    assert opened.fingerprint == read_bundle(folder).fingerprint
    assert opened.read("model.onnx") == (folder / "model.onnx").read_bytes()
