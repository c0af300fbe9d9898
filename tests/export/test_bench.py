import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from device.model.classifier import Classifier
from device.signal import windows
from export import bench
from export.cli import main
from tests.export.conftest import Made

SPEEDS = {"model.onnx": 14.0, "model.int8.cpu.onnx": 9.0, "transformers": 310.0}


def test_every_file_of_a_cpu_takes_its_turn(patch_made: Made, tmp_path: Path) -> None:
    bundle = patch_made.built.bundle
    said: list[str] = []
    timings = bench.bench(bundle, 1, 0.0, busy=said.append)
    assert [one.name for one in timings] == [file.path for file in bundle.manifest.files if file.target != "tensorrt"]
    for one in timings:
        assert one.rounds == bench.LEAST_ROUNDS
        assert 0 < one.p50_ms <= one.p95_ms <= one.p99_ms
        assert one.real_time_factor == pytest.approx(one.p50_ms / 8000, abs=1e-5)
        assert one.cold_start_s > 0
        assert one.peak_rss_mb > 20
        low, high = one.times_slower[1:]
        assert low <= one.times_slower[0] <= high
    assert timings[0].times_slower == (1.0, 1.0, 1.0)
    assert said[0] == f"starting {timings[0].name}"
    measured = bench.as_json(timings, bundle, 1)
    picture = bench.write(measured, timings, tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text())["contenders"][0]["name"] == timings[0].name
    assert measured["versions"]["onnxruntime"] and measured["machine"]["processor"]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_the_pictures_bars_grow_from_zero_on_the_left() -> None:
    timings = [bench.Timing(name, 5, p50, 1.2 * p50, p50, 1, 1, 1, None, (1, 1, 1), {}) for name, p50 in SPEEDS.items()]
    (axis,) = bench.picture_of(timings, "a title").axes
    bars = [bar for bar in axis.patches if isinstance(bar, Rectangle)]
    assert [bar.get_x() for bar in bars] == [0.0, 0.0, 0.0]
    assert [bar.get_width() for bar in bars] == list(SPEEDS.values())
    assert axis.get_xlim()[0] == 0.0 and axis.get_xlim()[1] > 1.2 * max(SPEEDS.values())
    assert [label.get_text() for label in axis.get_yticklabels()] == list(SPEEDS)
    assert axis.yaxis_inverted(), "the first contender is on top"


def test_against_transformers(
    patch_made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    bundle = str(patch_made.built.bundle.path)
    arguments = ["--threads", "2", "--seconds", "0", "--against", "transformers", "--json"]
    monkeypatch.setattr(sys, "argv", ["export", "bench", bundle, *arguments, "--out", str(tmp_path / "speed.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["threads"] == 2
    assert measured["contenders"][-1]["name"] == "transformers"
    assert measured["contenders"][-1]["detail"]["models"] == 1
    assert {item.name for item in tmp_path.iterdir()} == {"speed.json", "speed.svg"}


def test_what_is_measured_is_the_devices_own_answer(patch_made: Made) -> None:
    bundle = patch_made.built.bundle
    classify, detail = bench.ours(bundle, "model.int8.cpu.onnx", 1)
    expected = Classifier(bundle, "int8").logits(windows(bench.sound(), bundle.manifest.front_end))
    np.testing.assert_array_equal(np.asarray(classify(bench.sound())), expected)
    assert detail == {"precision": "int8"}


def test_the_usual_pipeline_is_as_large_as_the_bundles_model(patch_made: Made) -> None:
    pytest.importorskip("transformers")
    classify, detail = bench.theirs(patch_made.built.bundle, 1)
    (logits,) = np.asarray(classify(bench.sound()))
    assert logits.shape == (1, 4)
    assert detail["precision"] == "fp32"


def test_another_network_than_an_ast_is_compared_with_ast_base(patch_made: Made, mobilenet_made: Made) -> None:
    patch, mobilenet = (dict(made.built.bundle.manifest.architecture) for made in (patch_made, mobilenet_made))
    assert bench.usual_sizes(patch) == (patch, "the bundle's")
    sizes, origin = bench.usual_sizes(mobilenet)
    assert (sizes["dim"], sizes["depth"], sizes["mels"], origin) == (768, 12, 128, "AST base")
    assert "members" not in sizes


def test_a_contender_that_does_not_start_says_why(patch_made: Made) -> None:
    with pytest.raises(bench.BenchError, match=r"nothing\.onnx: does not run here: .*nothing\.onnx"):
        bench.Contender(patch_made.built.bundle.path, "nothing.onnx", 1)


def test_a_picture_that_cannot_be_written_is_one_line(patch_made: Made, tmp_path: Path) -> None:
    timing = bench.Timing("a", 5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, (1.0, 1.0, 1.0), {})
    measured = bench.as_json([timing], patch_made.built.bundle, 1)
    with pytest.raises(bench.BenchError, match="cannot be written"):
        bench.write(measured, [timing], tmp_path / "nowhere" / "speed.json")


def test_watts_of_a_jetsons_module(tmp_path: Path) -> None:
    assert np.isnan(bench.watts(tmp_path))
    channels = tmp_path / "1-0040" / "hwmon" / "hwmon3"
    channels.mkdir(parents=True)
    for channel, (label, millivolts, milliamperes) in enumerate(
        [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400)], 1
    ):
        (channels / f"in{channel}_label").write_text(f"{label}\n")
        (channels / f"in{channel}_input").write_text(f"{millivolts}\n")
        (channels / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    assert bench.watts(tmp_path) == pytest.approx(6.0)
