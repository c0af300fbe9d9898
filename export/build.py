"""`export build`: a finished run to a bundle that has been measured, tested and packed, or to nothing at all."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from device.bundle import ARCHIVE_SUFFIX, MANIFEST, Bundle, Manifest, ModelFile, SelfTest, open_bundle, pack
from device.classifier import Classifier, open_session, self_test
from device.decision import abnormal_probability, leading_class
from device.labels import LABELS, NORMAL, Label
from device.signal import FloatArray, FrontEnd, windows
from device.simulator import breath
from export.manifest import make_manifest, read_readings
from export.model_card import MODEL_CARD, model_card
from export.onnx_graph import OPSET, parity, run, to_onnx
from export.quantize import CALIBRATION_WINDOWS, METHOD, draw_hash, patient_balanced, quantize
from firmware_config.errors import GateRefused, RespSAMError
from trainer.audio_cache import AudioCache, with_audio
from trainer.corpora import Corpus, load_corpus
from trainer.fit import Validation
from trainer.metrics import Float64Array, Rates, binary_rates, confusion
from trainer.model import AST, Ensemble
from trainer.protocols import examples, inputs_of, worst_window
from trainer.run import Choice, RunFacts, load_model, only_patients, read_facts

Precision = Literal["fp32", "int8"]
FILE_NAMES: Final[dict[Precision, str]] = {"fp32": "model.onnx", "int8": "model.int8.cpu.onnx"}

LARGEST_PARITY: Final = 1e-3  # logits
LARGEST_SCORE_SHIFT: Final = 0.01
PARITY_WINDOWS: Final = 13  # of validation patients, beside the simulated breaths
LATENCY_ROUNDS: Final = 30
SELF_TEST_SEEDS: Final = tuple(range(8))
SELF_TEST_LABELS: Final[tuple[Label, ...]] = LABELS * 2
# Two machines hardly differ by 0.001 in fp32. int8 may need the second; what needs more is not the same model.
TOLERANCES: Final = (0.02, 0.05)
USABLE_SHARE: Final = 0.75  # of a tolerance, by int8 on this machine; the rest is for another machine's rounding


class BuildError(RespSAMError):
    """A bundle that cannot be built from what was given."""


@dataclass(frozen=True)
class Served:
    """One serving form of the model and what was measured of it."""

    precision: Precision
    data: bytes
    session: Any
    rates: Rates
    """On the validation patients, at the run's temperature and threshold."""
    difference: float
    """Largest difference of a logit: fp32 from torch, int8 from fp32."""
    milliseconds: float = float("nan")
    """One window on one thread here; printed, never stored, because the same run gives the same bytes."""


@dataclass(frozen=True)
class Built:
    """A finished bundle, opened from its final place."""

    bundle: Bundle
    served: tuple[Served, ...]
    """The first is the bundle's default."""


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True)
class Reporter:
    """Who hears how the build goes."""

    say: Callable[[str], None] = _silent
    """A line that stays, one a step."""
    busy: Callable[[str], None] = _silent
    """What is being done now, for a terminal."""


SILENT = Reporter()


def build(
    run_folder: Path,
    out: Path,
    *,
    cache_folder: Path,
    int8: bool = False,
    prefer: Precision = "fp32",
    data: Path | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Built:
    """Export, measure, quantize, test and pack a finished run into `out`, a folder or a file ending in .respsam.

    `data` is where its corpus is now, `cache_folder` where decoded audio is kept. Raises BuildError, RunError,
    CorpusError or AudioError for what was given and GateRefused for what was measured; `out` is then as it was.
    """
    if prefer == "int8" and not int8:
        raise BuildError("--prefer int8 needs --int8, which builds that file")
    check_place(out, force)
    facts = read_facts(run_folder)
    model = load_model(run_folder, facts)
    readings = read_readings(run_folder)
    reporter.busy("reading the corpus")
    training, validation, cache = read_corpus(facts, data, cache_folder, reporter)
    held = Validation(validation, cache, facts.front_end)
    reporter.say(f"gates: {len(held.labels)} {held.protocol} of {len(validation.patients)} patients of the first fold")
    reporter.busy("exporting to ONNX")
    served = [export_fp32(model, facts, held, reporter)]
    how: dict[str, Any] = {}
    if int8:
        reporter.busy("calibrating int8")
        quantized, how = export_int8(served[0], facts, training, held, cache, reporter)
        served.append(quantized)
    test = make_self_test(served, facts, reporter)
    served = with_latency(served, held.inputs[:1])
    if prefer == "int8":
        served.reverse()
    manifest = make_manifest(
        facts,
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        files=tuple(model_file(one, facts.choice) for one in served),
        self_test=test,
        readings=readings,
        measured=measured(served),
        int8=how,
    )
    reporter.busy("testing the bundle")
    write(manifest, served, out)
    return Built(open_bundle(out), tuple(served))


def check_place(out: Path, force: bool) -> None:
    """BuildError unless a bundle may be made at `out`; `force` replaces a bundle, never anything else."""
    if not out.exists():
        ancestor = next(folder for folder in out.absolute().parents if folder.exists())
        if not (ancestor.is_dir() and os.access(ancestor, os.W_OK)):
            raise BuildError(f"{out}: {ancestor} is not a folder that can be written; choose another --out")
        return
    if not ((out / MANIFEST).is_file() or (out.is_file() and out.suffix == ARCHIVE_SUFFIX)):
        raise BuildError(f"{out}: exists and is not a bundle; choose another --out")
    if not force:
        raise BuildError(f"{out}: exists; choose another --out or replace it by --force")


def read_corpus(
    facts: RunFacts, data: Path | None, cache_folder: Path, reporter: Reporter
) -> tuple[Corpus, Corpus, AudioCache]:
    """The run's corpus, without and with only its first fold's patients, and the audio; BuildError when it is another.

    That fold measures what the build changes. The other members have trained on it, so it says nothing of accuracy.
    """
    root = data or Path(facts.data)
    if not root.exists():
        raise BuildError(f"{root}: no corpus here, and the gates need the run's; say where it is with --data")
    # The whole part, as `trainer fit` read it, so that its audio cache is found again.
    corpus = load_corpus(facts.corpus, root, part=facts.part, split=facts.split, lenient=facts.lenient, purpose="fit")
    missing = sorted(set(facts.patients) - set(corpus.patients))
    if missing:
        raise BuildError(
            f"{root}: {len(missing)} of the run's patients are not here, {missing[0]} for one; give --data the corpus "
            "that the run was trained on"
        )
    corpus, cache = with_audio(
        corpus,
        cache_folder,
        lenient=facts.lenient,
        progress=lambda done, total: reporter.busy(f"reading audio {done}/{total}"),
    )
    held_out = set(facts.held_out[0])
    return only_patients(corpus, set(facts.patients) - held_out), only_patients(corpus, held_out), cache


def export_fp32(model: AST | Ensemble, facts: RunFacts, held: Validation, reporter: Reporter) -> Served:
    """The fp32 file; GateRefused when it does not compute what torch does."""
    data = to_onnx(model)
    session = open_session(data)
    chosen = np.linspace(0, len(held.inputs) - 1, min(PARITY_WINDOWS, len(held.inputs))).round().astype(int)
    difference = parity(model, session, np.concatenate([*simulated_breaths(facts.front_end), held.inputs[chosen]]))
    found = f"parity: fp32 is off torch by {difference:.1e} in the worst logit, allowed {LARGEST_PARITY:g}"
    reporter.say(found)
    if not difference <= LARGEST_PARITY:  # so that NaN is refused too
        raise GateRefused(f"{found}; no bundle was made")
    rates = score(run(session, held.inputs), held, facts.choice)
    reporter.say(f"Score: fp32 {rates.score:.4f} on these {held.protocol}")
    return Served("fp32", data, session, rates, difference)


def export_int8(
    fp32: Served, facts: RunFacts, training: Corpus, held: Validation, cache: AudioCache, reporter: Reporter
) -> tuple[Served, dict[str, Any]]:
    """The int8 file and how it was made; GateRefused when it moves the Score at unchanged temperature and threshold."""
    drawn = patient_balanced(examples(training, held.protocol, cache), CALIBRATION_WINDOWS, facts.seed)
    patients = len({one.patient for one in drawn})
    reporter.say(f"int8: calibrated on {len(drawn)} {held.protocol} of {patients} training patients")
    data = quantize(fp32.data, inputs_of(drawn, cache, facts.front_end)[0])
    session = open_session(data)
    logits = run(session, held.inputs)
    rates = score(logits, held, facts.choice)
    shift = abs(rates.score - fp32.rates.score)
    found = (
        f"Score: fp32 {fp32.rates.score:.4f}, int8 {rates.score:.4f}, moved by {shift:.4f}, allowed "
        f"{LARGEST_SCORE_SHIFT:g}, at unchanged temperature and threshold"
    )
    reporter.say(found)
    if not shift <= LARGEST_SCORE_SHIFT:
        raise GateRefused(f"{found} (parity of fp32: {fp32.difference:.1e}); no bundle was made, leave --int8 out")
    difference = float(np.abs(logits - run(fp32.session, held.inputs)).max())
    how = {
        "method": METHOD,
        "calibration_windows": len(drawn),
        "calibration_patients": patients,
        "calibration_sha256": draw_hash(drawn),
    }
    return Served("int8", data, session, rates, difference), how


def score(logits: FloatArray, held: Validation, choice: Choice) -> Rates:
    """Binary rates of the validation inputs' logits (m, classes) at the run's temperature and threshold."""
    worst, probability = worst_window(logits, abnormal_probability(logits, choice.temperature), held.owner)
    predicted = np.where(probability >= choice.cycle_threshold, leading_class(worst), NORMAL)
    return binary_rates(confusion(held.labels, predicted))


def simulated_breaths(front_end: FrontEnd) -> list[FloatArray]:
    """Model inputs (1, FRAMES, mels) of the self-test's breaths."""
    return [
        windows(breath(seed, label), front_end) for seed, label in zip(SELF_TEST_SEEDS, SELF_TEST_LABELS, strict=True)
    ]


def make_self_test(served: Sequence[Served], facts: RunFacts, reporter: Reporter) -> SelfTest:
    """Probabilities by fp32 (the first), and a tolerance that every file keeps; GateRefused when int8 cannot."""
    inputs = simulated_breaths(facts.front_end)
    expected, *others = [_probabilities(one.session, inputs, facts.choice.temperature) for one in served]
    deviation = max((float(np.abs(other - expected).max()) for other in others), default=0.0)
    found = f"self-test: int8 is off fp32 by {deviation:.4f} in probability on simulated breaths"
    tolerance = next((allowed for allowed in TOLERANCES if deviation <= USABLE_SHARE * allowed), None)
    if tolerance is None:
        raise GateRefused(f"{found}, allowed {USABLE_SHARE * TOLERANCES[-1]:g}; no bundle was made, leave --int8 out")
    if others:
        reporter.say(f"{found}, tolerance {tolerance}{' (widened for int8)' if tolerance > TOLERANCES[0] else ''}")
    return SelfTest(
        seeds=SELF_TEST_SEEDS,
        labels=SELF_TEST_LABELS,
        expected_probability=tuple(round(float(probability), 6) for probability in expected),
        tolerance=tolerance,
    )


def _probabilities(session: Any, inputs: Sequence[FloatArray], temperature: float) -> Float64Array:
    return np.array([abnormal_probability(run(session, one), temperature).max() for one in inputs])


def with_latency(served: Sequence[Served], window: FloatArray) -> list[Served]:
    """The same with the best time of one window (1, FRAMES, mels), taken in turns so that all meet the same load."""
    best = [float("inf")] * len(served)
    for _ in range(LATENCY_ROUNDS):
        for index, one in enumerate(served):
            began = time.perf_counter()
            run(one.session, window)
            best[index] = min(best[index], time.perf_counter() - began)
    return [replace(one, milliseconds=1000 * seconds) for one, seconds in zip(served, best, strict=True)]


def model_file(one: Served, choice: Choice) -> ModelFile:
    """The manifest's entry of a serving form."""
    return ModelFile(
        path=FILE_NAMES[one.precision],
        sha256=sha256(one.data).hexdigest(),
        precision=one.precision,
        target="cpu" if one.precision == "int8" else "any",
        opset=OPSET,
        temperature=choice.temperature,
        threshold=choice.cycle_threshold,
    )


def measured(served: Sequence[Served]) -> dict[str, float]:
    """What the gates read, for the manifest."""
    (parity_of_fp32,) = [one.difference for one in served if one.precision == "fp32"]
    scores = {f"score_{one.precision}": round(one.rates.score, 4) for one in served}
    return {"parity": float(f"{parity_of_fp32:.1e}"), **dict(sorted(scores.items()))}


def write(manifest: Manifest, served: Sequence[Served], out: Path) -> None:
    """Write beside `out`, open and self-test every file there as a device would, then rename over `out`.

    BuildError when the disk does not take it; nothing half-written is left.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _folder_beside(out) as beside:
            made = beside / "bundle"
            _write_folder(manifest, served, made)
            if out.suffix == ARCHIVE_SUFFIX:
                made = beside / "packed"
                pack(beside / "bundle", made)
            bundle = open_bundle(made)
            for one in served:
                self_test(Classifier(bundle, one.precision))
            if out.exists():
                out.rename(beside / "replaced")
            made.rename(out)
    except OSError as error:
        raise BuildError(
            f"{out}: cannot be written ({error.strerror}); choose another --out or free the disk"
        ) from error


def _write_folder(manifest: Manifest, served: Sequence[Served], folder: Path) -> None:
    folder.mkdir()
    for file, one in zip(manifest.files, served, strict=True):
        (folder / file.path).write_bytes(one.data)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    sizes = {file.path: len(one.data) for file, one in zip(manifest.files, served, strict=True)}
    (folder / MODEL_CARD).write_text(model_card(manifest, sizes), encoding="utf-8")


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A hidden folder on the same disk, gone at the end whatever happens."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.part")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
