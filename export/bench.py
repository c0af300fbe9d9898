"""`export bench`: what one window costs on this machine, file by file, and against the usual pipeline of transformers.

Every contender is a process of its own, as on a device: it starts, answers once (the cold start), and then answers
whenever it is its turn; all see the same load because they take turns. The log-mel is always included.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from rich.table import Table

from device.bundle import Bundle, read_bundle
from device.model.classifier import Classifier
from device.runtime import disable_telemetry, own_font_list
from device.signal import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS, FloatArray, windows
from firmware_config.errors import RespSAMError
from trainer.tables import table as plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRANSFORMERS: Final = "transformers"
HF_FRAMES: Final = 1024
LEAST_ROUNDS: Final = 5
SENSOR_SECONDS: Final = 0.02
LEGEND: Final = (
    "one window of 8 s, log-mel included; ratio: to the first row, median of neighbouring rounds; start: process to "
    "first answer; MB: peak memory; RTF: p50 over 8 s; J: a window, by a Jetson's sensor (- where there is none)"
)
PACKAGES: Final = ("respsam", "onnxruntime", "numpy", "torch", TRANSFORMERS, "torchaudio")
SENSORS: Final = Path("/sys/bus/i2c/drivers/ina3221")
TOTAL: Final = ("VDD_IN", "POM_5V_IN", "5V_IN")  # a Jetson's rail for the whole module, by its generation


class BenchError(RespSAMError):
    """A contender that does not run."""


@dataclass(frozen=True)
class Timing:
    """What one contender took."""

    name: str
    """A model file of the bundle, or `transformers`."""
    rounds: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cold_start_s: float
    """From starting the process to its first answer."""
    peak_rss_mb: float
    """Of its process."""
    real_time_factor: float
    """p50 over the window's 8 s."""
    joule: float | None
    """A window, by a Jetson's own sensor; None where there is none."""
    times_slower: tuple[float, float, float]
    """Than the first contender: median, 5th and 95th percentile of the ratios of neighbouring rounds."""
    detail: dict[str, Any]
    """Precision, sizes and the like of the contender."""


def bench(
    bundle: Bundle,
    threads: int,
    seconds: float,
    against: str | None = None,
    busy: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Measure the files that a CPU runs, the bundle's default first, and `against` last, for `seconds` in all."""
    names = [file.path for file in bundle.manifest.files if file.target != "tensorrt"]
    names += [against] if against else []
    with ExitStack() as stack:
        contenders = []
        for name in names:
            busy(f"starting {name}")
            contenders.append(stack.enter_context(Contender(bundle.path, name, threads)))
        began, spent, joules = time.monotonic(), list[list[float]](), list[list[float]]()
        while len(spent) < LEAST_ROUNDS or time.monotonic() - began < seconds:
            busy(f"round {len(spent) + 1}, {max(0.0, seconds - (time.monotonic() - began)):.0f} s left")
            answers = [contender.answer() for contender in contenders]
            spent.append([answer[0] for answer in answers])
            joules.append([answer[1] for answer in answers])
        milliseconds, energies = 1000 * np.array(spent), np.array(joules)
        return [
            _timing(contender, milliseconds[:, i], milliseconds[:, 0], energies[:, i])
            for i, contender in enumerate(contenders)
        ]


def _timing(contender: "Contender", own: Any, first: Any, joules: Any) -> Timing:
    p50, p95, p99 = (float(value) for value in np.percentile(own, [50, 95, 99]))
    median, low, high = (float(value) for value in np.percentile(own / first, [50, 5, 95]))
    energy = float(joules.mean())
    return Timing(
        contender.name,
        len(own),
        round(p50, 3),
        round(p95, 3),
        round(p99, 3),
        round(contender.cold_start_seconds, 3),
        round(contender.peak_megabytes, 1),
        round(p50 / 1000 / WINDOW_SECONDS, 5),
        None if np.isnan(energy) else round(energy, 4),
        (round(median, 3), round(low, 3), round(high, 3)),
        contender.detail,
    )


class Contender:
    """A process that classifies the same window whenever it is asked to."""

    def __init__(self, bundle: Path, name: str, threads: int) -> None:
        """BenchError when it does not come to its first answer."""
        self.name = name
        threading = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "export.bench", str(bundle.resolve()), name, str(threads)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        own = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **threading}
        began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **own},
        )
        self.detail: dict[str, Any] = json.loads(self._read())
        self.cold_start_seconds = time.monotonic() - began

    def _read(self) -> str:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines() or [f"exit code {self.process.wait()}"]
            raise BenchError(f"{self.name}: does not run here: {said[-1][:200]}")
        return line

    def answer(self) -> tuple[float, float]:
        """Seconds and joules (NaN without a sensor) of one window."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        drawn = [watts()]
        # without a sensor nobody wakes up meanwhile
        while drawn[-1] >= 0 and not select([self.process.stdout], [], [], SENSOR_SECONDS)[0]:
            drawn.append(watts())
        seconds = float(self._read())
        return seconds, seconds * float(np.mean(drawn))

    @property
    def peak_megabytes(self) -> float:
        """The process' peak memory; NaN where /proc is missing."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def watts(sensors: Path = SENSORS) -> float:
    """What the whole module draws by a Jetson's INA3221; NaN where there is none."""
    for label in sorted(sensors.glob("*/hwmon/hwmon*/in*_label")):
        if label.read_text().strip() in TOTAL:
            channel = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = (
                int(label.with_name(f"{kind}{channel}_input").read_text()) / 1000 for kind in ("in", "curr")
            )
            return volts * amperes
    return float("nan")


def sound() -> FloatArray:
    """The window for every contender: 8 s of seeded noise at 16 kHz, which leaves nothing to pad."""
    return (0.1 * np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)).astype(np.float32)


def ours(bundle: Bundle, name: str, threads: int) -> tuple[Callable[[FloatArray], object], dict[str, Any]]:
    """The device's own path from samples to logits."""
    file = {file.path: file for file in bundle.manifest.files}[name]
    classifier = Classifier(bundle, threads=threads, file=file)
    front_end = bundle.manifest.front_end
    return lambda samples: classifier.logits(windows(samples, front_end)), {"precision": file.precision}


def theirs(bundle: Bundle, threads: int) -> tuple[Callable[[FloatArray], object], dict[str, Any]]:
    """transformers' extractor to 1024 frames and an AST in fp32 torch, with random weights and patches of 16 every 10.

    As wide and deep as the bundle's AST, once for each of its members; AST base where the bundle is another network.
    """
    import torch

    disable_telemetry()
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.set_num_threads(threads)
    sizes, sizes_of = usual_sizes(cast(dict[str, Any], bundle.manifest.architecture))
    mels, members = int(sizes["mels"]), int(sizes.get("members", 1))
    config = ASTConfig(  # type: ignore[call-arg]
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=round(sizes["dim"] * sizes["mlp_ratio"]),
        num_mel_bins=mels,
        max_length=HF_FRAMES,
        num_labels=len(bundle.manifest.labels),
    )
    model = ASTForAudioClassification(config).eval()  # type: ignore[no-untyped-call]
    extractor = ASTFeatureExtractor(num_mel_bins=mels, max_length=HF_FRAMES)  # type: ignore[no-untyped-call]

    def classify(samples: FloatArray) -> object:
        with torch.inference_mode():
            inputs = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            return [model(**inputs).logits.numpy() for _ in range(members)]

    fbank = "torchaudio" if find_spec("torchaudio") else "its own numpy"
    attention = config._attn_implementation
    found = {"precision": "fp32", "attention": attention, "log-mel": fbank, "models": members, "sizes": sizes_of}
    return classify, found


def usual_sizes(architecture: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Sizes of the AST that a bundle's model is compared with, and where they come from."""
    from trainer.model.config import ModelConfig

    base = ModelConfig()
    if architecture["architecture"] == base.architecture:
        return architecture, "the bundle's"
    return base.model_dump(), "AST base"


def serve(bundle: Path, name: str, threads: int) -> None:
    """Answer once, then once for every line on stdin with the seconds it took."""
    opened = read_bundle(bundle)
    classify, detail = theirs(opened, threads) if name == TRANSFORMERS else ours(opened, name, threads)
    samples = sound()
    classify(samples)
    print(json.dumps(detail), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        classify(samples)
        print(time.perf_counter() - began, flush=True)


def table(timings: Sequence[Timing]) -> Table:
    """One row a contender in 80 columns."""
    rows = (
        (
            one.name,
            *(f"{value:.1f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)),
            f"{one.times_slower[0]:.2f}",
            f"{one.cold_start_s:.2f}",
            f"{one.peak_rss_mb:.0f}",
            f"{one.real_time_factor:.4f}",
            "-" if one.joule is None else f"{one.joule:.3f}",
        )
        for one in timings
    )
    made = plain("", "p50 ms", "p95", "p99", "ratio", "start s", "MB", "RTF", "J", rows=rows)
    made.caption, made.caption_justify = LEGEND, "left"
    return made


def picture_of(timings: Sequence[Timing], title: str) -> "Figure":
    """One bar a contender from 0 to its median, with a line to its 95th percentile."""
    own_font_list()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.6 + 0.45 * len(timings)), layout="constrained")
    axis = figure.subplots()
    medians = [one.p50_ms for one in timings]
    late = [[0.0] * len(timings), [one.p95_ms - one.p50_ms for one in timings]]
    bars = axis.barh(range(len(timings)), medians, xerr=late, color="tab:blue", ecolor="tab:gray", capsize=3)
    axis.bar_label(bars, [f"{one.p50_ms:.1f} ms, ratio {one.times_slower[0]:.2f}" for one in timings], padding=4)
    axis.set_yticks(range(len(timings)), [one.name for one in timings])
    axis.set_ylim(len(timings) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.6 * max(one.p95_ms for one in timings))
    axis.set_xlabel("ms a window of 8 s: median, line to the 95th percentile")
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def write(measured: dict[str, Any], timings: Sequence[Timing], out: Path) -> Path:
    """The measurement as JSON to `out`, and a picture of it beside, whose path is returned; BenchError if it cannot."""
    picture, drawn = out.with_suffix(".svg"), BytesIO()
    title = f"{measured['name']}, {measured['threads']} threads\n{measured['machine']['processor']}"
    picture_of(timings, title).savefig(drawn, format="svg", metadata={"Date": None})
    try:
        out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        picture.write_bytes(drawn.getvalue())
    except OSError as error:
        raise BenchError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return picture


def as_json(timings: Sequence[Timing], bundle: Bundle, threads: int) -> dict[str, Any]:
    """What `export bench --json` prints."""
    return {
        "bundle": bundle.fingerprint,
        "name": bundle.manifest.name,
        "architecture": bundle.manifest.architecture,
        "threads": threads,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "contenders": [asdict(one) for one in timings],
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the CPU as its maker writes it."""
    lines = information.read_text().splitlines() if information.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
