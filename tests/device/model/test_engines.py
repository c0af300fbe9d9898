"""Engines on the device: built once, found again, rebuilt when damaged; and what runs where there is none."""

import ctypes
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.bundle import BundleError, read_bundle
from device.model.classifier import Classifier, fallback_providers
from device.model.engines import Gpu, build_engine, clear, open_engine, stored_engines
from device.model.opening import open_classifier
from device.model.tensorrt import Cuda, TensorRTEngine, TensorRTError, build_serialized, load_tensorrt
from device.signal import FRAMES, SAMPLE_RATE
from firmware_config.settings import load_settings
from tests.device.bundle_maker import MELS, make_bundle
from tests.device.conftest import Device
from tests.device.fake_gpu import GPU, FakeMachine, batches, older_tensorrt, random_windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("engine") / "bundle", moments=14)


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    """A GPU that runs the bundle's model; its engines are this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = FakeMachine((folder / "model.onnx").read_bytes())
    made.plug(monkeypatch)
    return made


def engines_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "respsam" / "engines"


def use_tensorrt(patch: pytest.MonkeyPatch, precision: str = "fp32") -> None:
    patch.setenv("RESPSAM_BUNDLE__ENGINE", "tensorrt")
    patch.setenv("RESPSAM_BUNDLE__PRECISION", precision)


# built, kept, found


def test_an_engine_is_built_once_and_answers_as_the_model_does(
    respsam_device: Device, gpu: FakeMachine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        answer = respsam_device("engine", "build", "--bundle", folder, "--precision", "fp32")
        assert (answer.code, gpu.builds) == (0, 1)
        assert re.fullmatch(
            rf"model.onnx in fp32 is ready \(0\.\d MB, TensorRT 10\.3\.0, {GPU}\); to run it set bundle.engine = "
            r"tensorrt and bundle.precision = fp32\n",
            answer.out,
        )
        assert answer.error == ""
    assert not list(engines_of(tmp_path).glob("*.part"))

    use_tensorrt(monkeypatch)
    classifier = open_classifier(load_settings(flags={"bundle.path": str(folder)}).bundle)
    gpu.cuda.calls.clear()
    windows = random_windows(19, MELS)
    np.testing.assert_allclose(classifier.logits(windows), Classifier(read_bundle(folder)).logits(windows), atol=1e-5)
    assert batches(gpu.cuda.calls) == [8, 8, 3]
    assert gpu.cuda.calls[:5] == ["use", "upload", "execute 8", "wait", "download"]
    assert classifier.fallback == "" and classifier.file.path == "model.onnx"
    demo = respsam_device("listen", "--source", "demo", "--fast", "--no-store", "--bundle", folder)
    assert (demo.code, demo.error) == (0, "")
    assert "fallback" not in demo.out and len(batches(gpu.cuda.calls)) > 10


def test_another_model_precision_tensorrt_or_gpu_is_another_engine(folder: Path, gpu: FakeMachine) -> None:
    model = (folder / "model.onnx").read_bytes()
    here, newer, other_gpu = gpu.here, FakeMachine(model, "11.0.0").here, FakeMachine(model).here
    other_gpu.cuda.name = "NVIDIA GeForce RTX 4090"
    keys = [
        here.key("a" * 64, "fp16"),
        here.key("b" * 64, "fp16"),
        here.key("a" * 64, "int8"),
        newer.key("a" * 64, "fp16"),
        other_gpu.key("a" * 64, "fp16"),
    ]
    assert len(set(keys)) == 5
    assert here.key("a" * 64, "fp16") == keys[0]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "no header"])
def test_a_damaged_engine_is_said_and_built_again(
    respsam_device: Device,
    gpu: FakeMachine,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    assert respsam_device("engine", "build", "--bundle", folder, "--precision", "fp32").code == 0
    (place,) = engines_of(tmp_path).glob("*.engine")
    whole = place.read_bytes()
    damaged = {
        "cut": whole[:-100],
        "changed": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
        "empty": b"",
        "no header": whole.partition(b"\n")[2],
    }
    place.write_bytes(damaged[damage])
    assert "damaged" in respsam_device("engine", "list").out

    use_tensorrt(monkeypatch)
    listened = respsam_device("listen", "--source", "demo", "--fast", "--no-store", "--bundle", folder)
    assert listened.code == 0
    (warning,) = listened.error.splitlines()
    assert "is damaged" in warning and "run 'respsam-device engine build'" in warning

    assert respsam_device("engine", "build", "--bundle", folder, "--precision", "fp32").code == 0
    assert gpu.builds == 2
    assert "damaged" not in respsam_device("engine", "list").out


def test_an_engine_that_no_longer_loads_is_built_again(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    bundle = read_bundle(folder)
    build_engine(bundle, "fp32", tmp_path, gpu.here)
    gpu.driver_changed = True
    with pytest.raises(TensorRTError, match="cannot load the engine"):
        open_engine(bundle, "fp32", tmp_path)
    build_engine(bundle, "fp32", tmp_path, gpu.here)
    assert gpu.builds == 2
    open_engine(bundle, "fp32", tmp_path)


def test_list_shows_what_is_kept_and_clear_removes_it(
    respsam_device: Device, gpu: FakeMachine, folder: Path, tmp_path: Path
) -> None:
    empty = respsam_device("engine", "list")
    assert (empty.code, empty.out, empty.error) == (0, "", "no engines are stored\n")
    assert respsam_device("engine", "clear").out == "0 engines removed, 0.0 MB freed\n"

    respsam_device("engine", "build", "--bundle", folder, "--precision", "fp32")
    listed = respsam_device("engine", "list").out
    for word in ("tiny", "model.onnx", "fp32", "10.3.0", GPU):
        assert word in listed
    ours = [place for place in engines_of(tmp_path).iterdir()]
    size = sum(place.stat().st_size for place in ours) / 1e6
    stranger = engines_of(tmp_path) / "notes.txt"
    stranger.write_text("not ours")
    assert respsam_device("engine", "clear").out == f"1 engines removed, {size:.1f} MB freed\n"
    assert list(engines_of(tmp_path).iterdir()) == [stranger]


def test_an_engine_with_wrong_answers_is_not_kept(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    wrong = make_bundle(tmp_path / "wrong", logits=(0.0, 3.0, 0.0, 0.0))
    liar = FakeMachine((wrong / "model.onnx").read_bytes())
    with pytest.raises(BundleError, match="self-test off by"):
        build_engine(read_bundle(folder), "fp32", tmp_path / "engines", liar.here)
    assert liar.builds == 1
    assert not list((tmp_path / "engines").glob("*.engine"))


def test_a_full_disk_leaves_no_half_an_engine(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(TensorRTError, match="cannot be written"):
        build_engine(read_bundle(folder), "fp32", blocked / "engines", gpu.here)


def test_progress_is_told_by_tensorrt_s_own_monitor(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    here = gpu.here
    build_engine(read_bundle(folder), "fp32", tmp_path, here, lambda *step: told.append(step))
    assert told
    assert all(0 <= done <= steps for _, done, steps in told)
    finished = {phase for phase, done, steps in told if done == steps}
    assert finished == {phase for phase, _, _ in told}


def test_an_interrupted_build_stops_and_keeps_nothing(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(read_bundle(folder), "fp32", tmp_path, gpu.here, interrupt)
    assert not list(tmp_path.iterdir())


# TensorRT of other versions


def test_from_version_11_on_fp16_needs_a_file_in_fp16(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    here = gpu.here
    with pytest.raises(BundleError, match=r"no fp16 file for TensorRT; build the bundle with .* --fp16 --target"):
        build_engine(read_bundle(folder), "fp16", tmp_path, here)


@pytest.mark.parametrize(
    ("precision", "flags"), [("fp32", []), ("fp16", ["flag FP16"]), ("int8", ["flag INT8", "flag FP16"])]
)
def test_before_version_11_precisions_are_flags(precision: str, flags: list[str]) -> None:
    record: list[str] = []
    shown: list[object] = []
    plan = build_serialized(
        older_tensorrt(record),
        b"model",
        precision,  # type: ignore[arg-type]
        timing_cache=b"of this GPU",
        progress=lambda *step: shown.append(step),
    )
    assert (plan.data, plan.timing_cache) == (b"engine", b"measured")
    assert [line for line in record if line.startswith("flag")] == flags
    assert "network 1" in record and "timings of this GPU" in record and shown == []
    assert "shapes ('windows', (1, 798, 32), (1, 798, 32), (8, 798, 32))" in record


def test_timings_of_another_gpu_are_left_out() -> None:
    record: list[str] = []
    build_serialized(older_tensorrt(record), b"model", "fp16", timing_cache=b"of another GPU")
    assert [line for line in record if line.startswith("timings")] == ["timings of another GPU", "timings "]


def test_a_refusal_names_the_node_also_where_only_its_number_is_known() -> None:
    with pytest.raises(TensorRTError) as caught:
        build_serialized(older_tensorrt([]), b"refused", "fp16")
    assert str(caught.value) == "TensorRT refuses node number 12: In node 12: UNSUPPORTED_NODE: Foo"


def test_a_tensorrt_that_does_not_start_says_why() -> None:
    older = older_tensorrt([])

    def nothing(log: Any) -> None:
        log.log(older.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    older.Builder = nothing  # type: ignore[attr-defined]
    with pytest.raises(TensorRTError, match="does not start: CUDA initialization failure with error: 35"):
        build_serialized(older, b"model", "fp16")


def test_an_engine_of_another_shape_or_version_does_not_load(gpu: FakeMachine) -> None:
    here = gpu.here
    with pytest.raises(TensorRTError, match="not \\(-1, \\(798, 64\\)\\)"):
        TensorRTEngine(here.tensorrt, here.cuda, bytes(2000), (FRAMES, 64), 4)
    with pytest.raises(TensorRTError, match="cannot load the engine: engine of another version"):
        TensorRTEngine(here.tensorrt, here.cuda, b"short", (FRAMES, MELS), 4)


# nothing to run it with


def test_without_tensorrt_one_line_says_so_the_cpu_listens_and_the_verdict_is_marked(
    respsam_device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    use_tensorrt(monkeypatch, "auto")
    answer = respsam_device("listen", "--source", "demo", "--fast", "--json", "--no-store", "--bundle", folder)
    assert answer.code == 0
    (warning,) = answer.error.splitlines()
    assert warning.startswith(
        "respsam-device: warning: fallback engine, ONNX Runtime on the CPU: TensorRT is not installed"
    )
    assert warning.endswith("see docs/jetson-checklist.md; verdicts are marked as not validated")
    summary = answer.objects[-1]
    assert any(why.startswith("fallback engine, ONNX Runtime on the CPU") for why in summary["not_validated"])

    refused = respsam_device("engine", "build", "--bundle", folder)
    assert refused.code == 2
    (line,) = refused.error.splitlines()
    assert line.startswith("respsam-device: error: TensorRT is not installed")


def test_screening_warns_once_and_marks_every_row(
    respsam_device: Device, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    use_tensorrt(monkeypatch, "auto")
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", simulate(number, 10.0).samples, SAMPLE_RATE)
    answer = respsam_device("screen", tmp_path, "--json", "--bundle", folder)
    assert answer.code == 0
    assert sum("fallback engine" in line for line in answer.error.splitlines()) == 1
    assert len(answer.objects) == 2
    assert all("fallback engine" in " ".join(row["not_validated"]) for row in answer.objects)


def test_the_fastest_provider_is_tried_and_the_one_that_runs_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This onnxruntime says that it has CUDA, and has not."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider", "CUDAExecutionProvider"]
    )
    assert [name for name, _ in fallback_providers(Path())] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    use_tensorrt(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime's own, about the provider
        classifier = open_classifier(load_settings(flags={"bundle.path": str(folder)}).bundle)
    assert classifier.fallback.startswith("fallback engine, ONNX Runtime on the CPU: TensorRT is not installed")


def test_a_cpu_that_was_asked_for_is_no_fallback(respsam_device: Device, folder: Path) -> None:
    answer = respsam_device("listen", "--source", "demo", "--fast", "--json", "--no-store", "--bundle", folder)
    assert (answer.code, answer.error) == (0, "")
    assert not any("engine" in why for why in answer.objects[-1]["not_validated"])


def test_fp16_on_a_cpu_is_refused(respsam_device: Device, folder: Path) -> None:
    answer = respsam_device("listen", "--source", "demo", "--bundle", folder, "--precision", "fp16")
    assert answer.code == 2
    assert "bundle.precision = 'fp16' is for TensorRT only; set bundle.engine = 'tensorrt'" in answer.error


def test_a_machine_without_a_gpu_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(TensorRTError, match="no GPU driver"):
            Cuda()
    else:
        pytest.skip("this machine has a GPU driver")


@pytest.mark.gpu
def test_on_a_real_gpu_the_engine_answers_as_the_cpu_does(folder: Path, tmp_path: Path) -> None:
    """Also the one test of `Cuda`; a step of docs/jetson-checklist.md."""
    try:
        gpu = Gpu(load_tensorrt(), Cuda())
    except TensorRTError as error:
        pytest.skip(str(error))
    bundle = read_bundle(folder)
    build_engine(bundle, "fp32", tmp_path, gpu)
    _, engine = open_engine(bundle, "fp32", tmp_path)
    windows = random_windows(11, MELS)
    np.testing.assert_allclose(engine.logits(windows), Classifier(bundle).logits(windows), atol=1e-2)
    assert [row["gpu"] for row in stored_engines(tmp_path)] == [gpu.name]
    assert clear(tmp_path)[0] == 1 and not os.listdir(tmp_path)


def test_the_first_line_of_an_engine_says_what_it_is(folder: Path, gpu: FakeMachine, tmp_path: Path) -> None:
    bundle = read_bundle(folder)
    kept = build_engine(bundle, "fp32", tmp_path, gpu.here)
    (place,) = tmp_path.glob("*.engine")
    with place.open("rb") as file:
        head = json.loads(file.readline())
    assert head["model_sha256"] == bundle.manifest.files[0].sha256
    assert (head["sha256"], head["gpu"], head["tensorrt"]) == (kept.sha256, GPU, "10.3.0")
