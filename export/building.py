"""`export build`: a finished run to a bundle that has been measured, tested and packed, or to nothing at all."""

import ctypes
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

from device.breath.simulator import breath
from device.bundle import ARCHIVE_SUFFIX, MANIFEST, Bundle, Manifest, ModelFile, SelfTest, pack, read_bundle
from device.labels import LABELS, NORMAL, Label
from device.model.classifier import Classifier, open_session, self_test
from device.model.judgement import abnormal_probability, pool
from device.signal import FloatArray, FrontEnd, windows
from export.gates import LARGEST_LOSS, LARGEST_PARITY, Comparison, compare, gate_patients, score
from export.manifest import make_manifest
from export.model_card import MODEL_CARD, model_card
from export.onnx_graph import parity, run, to_onnx
from export.quantize import CALIBRATION_CYCLES, CONVERTED, FP32, Form, Precision, draw_hash, layers, patient_balanced
from export.sensitivity import named, sensitivity, table
from firmware_config.errors import GateRefused, RespSAMError
from firmware_config.settings import load_settings
from trainer.choices import Protocol
from trainer.corpora import Corpus, Source
from trainer.corpora.audio_cache import AudioCache, open_corpora
from trainer.corpora.protocols import examples, inputs_of
from trainer.corpora.splits import only_patients
from trainer.evaluation.history import readings_of
from trainer.evaluation.validation import Validation
from trainer.metrics import Float64Array, Rates, too_few
from trainer.model.network import Ensemble, Network
from trainer.run.folder import Choice, RunFacts, load_model, read_facts
from trainer.training.experiment import open_run

PARITY_WINDOWS: Final = 13  # of validation patients, beside the simulated breaths
SENSITIVITY_WINDOWS: Final = 32
LATENCY_ROUNDS: Final = 30
LATENCY_SECONDS: Final = 5.0
WORTH_INT8: Final = 0.9  # of fp32's time: int8 that saves less is not worth its rounding
AT_FDCWD: Final = -100  # linux/fcntl.h
RENAME_EXCHANGE: Final = 2  # linux/fs.h
FEW: Final = 0.5  # of the simulated abnormal breaths
SELF_TEST_SEEDS: Final = tuple(range(8))
SELF_TEST_LABELS: Final[tuple[Label, ...]] = LABELS * 2
# Two machines hardly differ by 0.001 in fp32. int8 may need the second; what needs more is not the same model.
TOLERANCES: Final = (0.02, 0.05)
USABLE_SHARE: Final = 0.75  # of a tolerance, by any file on this machine; the rest is for another machine's rounding


class BuildError(RespSAMError):
    """A bundle that cannot be built from what was given."""


@dataclass(frozen=True)
class Wanted:
    """Which files the bundle holds beside fp32, and how they are made."""

    int8: bool = False
    fp16: bool = False
    target: Literal["cpu", "tensorrt", "both"] = "cpu"
    """What int8 and fp16 are for."""
    prefer: Literal["measured", "fp32", "int8"] = "measured"
    """What a CPU runs by default; 'measured' takes int8 where it is faster on this machine by a tenth."""
    calibration_data: Path | None = None
    """Another corpus of the same format; None takes the run's own training patients."""
    calibration_cycles: int = CALIBRATION_CYCLES
    keep_float: tuple[str, ...] = ()
    """Layers, or parts of the model, that are not converted."""
    auto_keep: int = 0
    """How many of the worst layers stay float when a file loses too much."""
    largest_loss: float = LARGEST_LOSS
    """Of Score, by any file; more is refused."""

    @property
    def forms(self) -> tuple[Form, ...]:
        """What is converted; BuildError when the options contradict each other."""
        targets = ("cpu", "tensorrt") if self.target == "both" else (self.target,)
        precisions = [name for name, asked in (("int8", self.int8), ("fp16", self.fp16)) if asked]
        forms = tuple(form for form in CONVERTED if form.precision in precisions and form.target in targets)
        if self.fp16 and self.target == "cpu":
            raise BuildError("--fp16 is for TensorRT; add --target tensorrt or both")
        if self.prefer == "int8" and not any((form.precision, form.target) == ("int8", "cpu") for form in forms):
            raise BuildError("--prefer int8 needs --int8 for a CPU, which builds that file")
        if not self.int8 and self.calibration_data is not None:
            raise BuildError("--calibration-data sets the ranges of --int8; add --int8 or leave it out")
        return forms


@dataclass(frozen=True)
class Calibration:
    """The stretches that set the ranges of integers."""

    windows: FloatArray
    """Model inputs (n, frames, mels)."""
    facts: dict[str, Any]
    """For the manifest."""


@dataclass(frozen=True)
class Served:
    """One serving form of the model and what was measured of it."""

    form: Form
    data: bytes
    logits: FloatArray
    """Of the validation inputs, (m, moments, classes)."""
    rates: Rates
    """On the validation patients, at the run's temperature and threshold."""
    difference: float
    """Largest difference of a logit: fp32 from torch, the others from fp32."""
    comparison: Comparison | None = None
    """With fp32."""
    kept: tuple[str, ...] = ()
    """Layers with weights that are float in it, by the form's own choice or by --keep-float and --auto-keep."""
    milliseconds: float = float("nan")
    """One window on one thread here, for a CPU's files: the best of several rounds; never stored."""
    times_fp32: float = float("nan")
    """The same over fp32's, median of the rounds."""

    @property
    def for_cpu(self) -> bool:
        """Whether a CPU may run it on a device."""
        return self.form.target != "tensorrt"


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
    """Where the build reports its progress."""

    say: Callable[[str], None] = _silent
    """A line that stays, one a step."""
    busy: Callable[[str], None] = _silent
    """What is being done now, for a terminal."""


SILENT: Final = Reporter()
NOTHING_MORE: Final = Wanted()


def build(
    run_folder: Path,
    out: Path,
    *,
    cache_folder: Path | None = None,
    cache_gigabytes: float | None = None,
    wanted: Wanted = NOTHING_MORE,
    data: Sequence[Path] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Built:
    """Export, measure, quantize, test and pack a finished run into `out`, a folder or a file ending in .respsam.

    `data` is where its corpora are now, `cache_folder` where decoded audio is kept, up to `cache_gigabytes` (both by
    default as in the settings). Raises BuildError, QuantizeError, RunError, CorpusError or AudioError for what was
    given and GateRefused for what was measured; `out` is then as it was.
    """
    forms = wanted.forms
    check_place(out, force)
    defaults = load_settings().training
    cache_folder = cache_folder or defaults.folder
    facts = read_facts(run_folder)
    model = load_model(run_folder, facts)
    readings, earlier = readings_of(run_folder, facts)
    reporter.busy("reading the corpus")
    training, validation, cache = read_corpus(facts, data, cache_folder, reporter)
    cache.trim(cache_folder, cache_gigabytes or defaults.cache_gigabytes)
    held = Validation(validation, cache, facts.front_end)
    read = f"{len(held.labels)} {held.protocol} of {len(validation.patients)} patients"
    few = too_few(len(validation.patients))
    reporter.say(
        f"gates: {read} of {gate_patients(len(facts.held_out), len(facts.refit_epochs))}{f'; {few}' * bool(few)}"
    )
    calibration = calibrate(wanted, facts, training, cache, held.protocol, cache_folder, reporter)
    reporter.busy("exporting to ONNX")
    fp32 = export_fp32(model, facts, held, reporter)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model  # AST base is 350 MB, and calibration needs the room
    kept = named(wanted.keep_float, layers(fp32.data))
    served = [fp32]
    for form in forms:
        reporter.busy(f"converting to {form.path}")
        served.append(export_form(form, fp32, calibration.windows, held, facts, kept, wanted, reporter))
    test = make_self_test(served, facts, reporter)
    served = with_latency(served, held.inputs[:1])
    default = default_precision(served, wanted, reporter)
    served.sort(key=lambda one: not (one.for_cpu and one.form.precision == default))
    manifest = make_manifest(
        facts,
        name=name,
        parameters=parameters,
        files=tuple(model_file(one, facts.choice) for one in served),
        self_test=test,
        readings=readings,
        earlier=earlier,
        measured={"patients": len(validation.patients), **measured(served)},
        quantization=quantization(served, calibration),
    )
    reporter.busy("testing the bundle")
    write(manifest, served, out)
    return Built(read_bundle(out), tuple(served))


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
    facts: RunFacts, data: Sequence[Path], cache_folder: Path, reporter: Reporter
) -> tuple[Corpus, Corpus, AudioCache]:
    """The run's corpus, without and with only its first fold's patients, and the audio; CorpusError when it is another.

    That fold measures what the build changes. The other members have trained on it, so it is no measure of accuracy.
    The test part takes its place where it chose.
    """
    busy = reporter.busy
    opened = open_run(facts, data, cache_folder, lambda done, total: busy(f"reading audio {done}/{total}"))
    corpus = opened.training
    if opened.tested is not None:
        return corpus, opened.tested, opened.cache
    held_out = set(facts.held_out[0])
    return only_patients(corpus, set(facts.patients) - held_out), only_patients(corpus, held_out), opened.cache


def calibrate(
    wanted: Wanted,
    facts: RunFacts,
    training: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    cache_folder: Path,
    reporter: Reporter,
) -> Calibration:
    """Draw the calibration stretches; BuildError when they are one patient's or one class's, or measure the gates."""
    if not wanted.int8:
        return Calibration(np.empty((0, facts.recipe.model.frames, facts.front_end.mels), np.float32), {})
    root = wanted.calibration_data
    if root is not None:
        given = [Source(name, root) for name in dict.fromkeys(source.name for source in facts.corpora)]
        if len(given) > 1:
            raise BuildError(f"{root}: the run was trained on {facts.corpus}; --calibration-data is for one corpus")
        training, cache = open_corpora(
            given, cache_folder, part=facts.part, split=facts.split, lenient=facts.lenient, purpose="fit"
        )
        held_out = sorted(set(training.patients) & {name for fold in facts.held_out for name in fold})
        if held_out:
            raise BuildError(
                f"{root}: patient {held_out[0]} was held out to measure the model and cannot calibrate it "
                f"({len(held_out)} such); take them out, or leave --calibration-data out"
            )
    drawn = patient_balanced(examples(training, protocol, cache), wanted.calibration_cycles, facts.seed)
    patients, classes = len({one.patient for one in drawn}), len({one.label for one in drawn})
    if patients < 2 or classes < 2:
        raise BuildError(
            f"{training.where}: calibration on {len(drawn)} {protocol} of {patients} patients and {classes} classes; "
            "two of each are the least, give more by --calibration-cycles or --calibration-data"
        )
    origin = "training patients" if root is None else f"patients in {root}"
    reporter.say(f"int8: calibrated on {len(drawn)} {protocol} of {patients} {origin}")
    known = {"cycles": len(drawn), "patients": patients, "sha256": draw_hash(drawn), "other_data": root is not None}
    return Calibration(inputs_of(drawn, cache, facts.front_end)[0], known)


def export_fp32(model: Network | Ensemble, facts: RunFacts, held: Validation, reporter: Reporter) -> Served:
    """The fp32 file; GateRefused when it does not compute what torch does."""
    data = to_onnx(model)
    session = open_session(data)
    chosen = _spread(held.inputs, PARITY_WINDOWS)
    inputs = np.concatenate([*simulated_breaths(facts.front_end), chosen])
    difference = parity(model, session, inputs)
    found = (
        f"parity: fp32 is off torch by {difference:.1e} in the worst logit of {len(inputs)} windows, allowed "
        f"{LARGEST_PARITY:g}"
    )
    reporter.say(found)
    if not difference <= LARGEST_PARITY:  # so that NaN is refused too
        raise GateRefused(f"{found}; no bundle was made")
    logits = run(session, held.inputs)
    rates = score(logits, held, facts.choice.temperature, facts.choice.cycle_threshold)
    reporter.say(f"Score: fp32 {rates.score:.4f} on these {held.protocol}")
    return Served(FP32, data, logits, rates, difference)


def _spread(inputs: FloatArray, count: int) -> FloatArray:
    """Up to `count` of the inputs, from all over."""
    chosen = np.linspace(0, len(inputs) - 1, min(count, len(inputs))).round().astype(int)
    result: FloatArray = inputs[chosen]
    return result


def export_form(
    form: Form,
    fp32: Served,
    calibration: FloatArray,
    held: Validation,
    facts: RunFacts,
    keep_float: Sequence[str],
    wanted: Wanted,
    reporter: Reporter,
) -> Served:
    """A converted file; GateRefused when it loses too much Score, with or without refitting."""
    every, convert = layers(fp32.data), form.converter(fp32.data, calibration)
    converted = [name for name in every if form.converts(name)]
    at = facts.choice.temperature, facts.choice.cycle_threshold

    def attempt(kept: Sequence[str]) -> tuple[Served, Comparison]:
        data = convert(kept)
        logits = run(open_session(data, exact_integers=form.target == "tensorrt"), held.inputs)
        comparison = compare(fp32.logits, logits, held, *at)
        reporter.say(f"{form.path}: {comparison}" + (f"; float: {', '.join(kept)}" if kept else ""))
        difference = float(np.abs(logits - fp32.logits).max())
        rates = score(logits, held, *at)
        left = tuple(name for name in every if name in kept or not form.converts(name))
        return Served(form, data, logits, rates, difference, comparison, left), comparison

    kept = [name for name in converted if name in keep_float]
    served, comparison = attempt(kept)
    if not comparison.lost <= wanted.largest_loss and not comparison.near:  # so that NaN is refused too
        left = [name for name in converted if name not in kept]
        reporter.busy(f"{form.path}: {len(left)} layers one by one")
        ranked = sensitivity(
            convert, converted, left, open_session(fp32.data), _spread(held.inputs, SENSITIVITY_WINDOWS)
        )
        for line in table(ranked):
            reporter.say(line)
        if wanted.auto_keep:
            worst = {name for name, _ in ranked[: wanted.auto_keep]}
            served, comparison = attempt([name for name in converted if name in worst.union(kept)])
    if not comparison.lost <= wanted.largest_loss:
        raise GateRefused(
            f"{form.path}: loses {comparison.lost:.4f} of Score, allowed {wanted.largest_loss:g}; no bundle was made; "
            f"{_remedy(comparison)}, or leave --{form.precision} out"
        )
    return served


def _remedy(comparison: Comparison) -> str:
    """What helps a file that loses too much."""
    if comparison.near:
        return (
            f"no layer is to blame, the logits are fp32's but for rounding, and {comparison.turned}: train further, so "
            "that fewer scores lie at the threshold"
        )
    return "leave the worst layers float by --keep-float LAYER or --auto-keep N"


def simulated_breaths(front_end: FrontEnd) -> list[FloatArray]:
    """Model inputs (1, frames, mels) of the self-test's breaths."""
    return [
        windows(breath(seed, label), front_end) for seed, label in zip(SELF_TEST_SEEDS, SELF_TEST_LABELS, strict=True)
    ]


def make_self_test(served: Sequence[Served], facts: RunFacts, reporter: Reporter) -> SelfTest:
    """Probabilities by fp32 (the first), and a tolerance that every file keeps; GateRefused when one cannot."""
    inputs = simulated_breaths(facts.front_end)
    expected, *others = [_probabilities(one, inputs, facts.choice.temperature) for one in served]
    # no gate, because a simulator is no chest; but a model that misses its sounds may miss other stethoscopes', too
    called = expected >= facts.choice.cycle_threshold
    ill = np.array([LABELS.index(label) != NORMAL for label in SELF_TEST_LABELS])
    found, few = (called & ill).sum(), (called & ill).sum() < FEW * ill.sum()
    reporter.say(
        f"{'warning: ' if few else ''}simulated breaths, which nobody trained on: called abnormal {found} of "
        f"{ill.sum()} abnormal and {(called & ~ill).sum()} of {(~ill).sum()} normal ones"
        f"{'; it may miss those of other stethoscopes, too: read it on some' * bool(few)}"
    )
    deviations = [float(np.abs(other - expected).max()) for other in others]
    tolerance = TOLERANCES[0]
    for one, deviation in zip(served[1:], deviations, strict=True):
        found = f"self-test: {one.form.path} is off fp32 by {deviation:.4f} in probability on simulated breaths"
        needed = next((allowed for allowed in TOLERANCES if deviation <= USABLE_SHARE * allowed), None)
        if needed is None:
            allowed = USABLE_SHARE * TOLERANCES[-1]
            raise GateRefused(f"{found}, allowed {allowed:g}; no bundle was made, leave --{one.form.precision} out")
        reporter.say(f"{found}, tolerance {needed}{' (widened)' if needed > TOLERANCES[0] else ''}")
        tolerance = max(tolerance, needed)
    return SelfTest(
        seeds=SELF_TEST_SEEDS,
        labels=SELF_TEST_LABELS,
        expected_probability=tuple(round(float(probability), 6) for probability in expected),
        tolerance=tolerance,
    )


def _probabilities(served: Served, inputs: Sequence[FloatArray], temperature: float) -> Float64Array:
    session = open_session(served.data, exact_integers=not served.for_cpu)
    return np.array([abnormal_probability(pool(run(session, one)), temperature).max() for one in inputs])


def with_latency(served: Sequence[Served], window: FloatArray) -> list[Served]:
    """fp32 first: the same with the times of one window (1, frames, mels), in turns so that all meet the same load."""
    sessions = [open_session(one.data) for one in served if one.for_cpu]
    spent: list[list[float]] = []
    end = time.perf_counter() + LATENCY_SECONDS
    while len(spent) <= LATENCY_ROUNDS and (len(spent) < 2 or time.perf_counter() < end):
        spent.append([_seconds(session, window) for session in sessions])
    seconds = np.array(spent[1:])  # the first round warms up
    best, ratios = seconds.min(axis=0), np.median(seconds / seconds[:, :1], axis=0)
    measured = iter(zip(best, ratios, strict=True))
    return [_timed(one, *next(measured)) if one.for_cpu else one for one in served]


def _seconds(session: Any, window: FloatArray) -> float:
    began = time.perf_counter()
    run(session, window)
    return time.perf_counter() - began


def _timed(one: Served, seconds: float, ratio: float) -> Served:
    return replace(one, milliseconds=1000 * float(seconds), times_fp32=float(ratio))


def default_precision(served: Sequence[Served], wanted: Wanted, reporter: Reporter) -> Precision:
    """What a CPU runs by default, and why, said where there is a choice."""
    ratio = next((one.times_fp32 for one in served if one.for_cpu and one.form.precision == "int8"), None)
    if ratio is None:
        return "fp32"
    chosen: Precision = "int8" if ratio <= WORTH_INT8 else "fp32"
    why = f"at most {WORTH_INT8:g} makes int8 the default"
    if wanted.prefer != "measured":
        chosen, why = wanted.prefer, "as asked by --prefer"
    reporter.say(f"a CPU runs {chosen} by default: int8 takes {ratio:.2f} of fp32's time here; {why}")
    return chosen


def model_file(one: Served, choice: Choice) -> ModelFile:
    """The manifest's entry of a serving form; temperature and threshold are the run's for all."""
    return ModelFile(
        path=one.form.path,
        sha256=sha256(one.data).hexdigest(),
        precision=one.form.precision,
        target=one.form.target,
        opset=one.form.opset,
        temperature=choice.temperature,
        threshold=choice.cycle_threshold,
    )


def measured(served: Sequence[Served]) -> dict[str, Any]:
    """What the gates read, for the manifest."""
    parities = (one.difference for one in served if one.form == FP32)
    return {
        "parity": float(f"{next(parities):.1e}"),
        "files": {
            one.form.path: {"score": round(one.rates.score, 4), **(one.comparison.as_json() if one.comparison else {})}
            for one in served
        },
    }


def quantization(served: Sequence[Served], calibration: Calibration) -> dict[str, Any]:
    """How the converted files were made, for the manifest."""
    files = {
        one.form.path: {"method": one.form.method, "kept_float": list(one.kept)} for one in served if one.form != FP32
    }
    return {"calibration": calibration.facts, "files": files} if files else {}


def write(manifest: Manifest, served: Sequence[Served], out: Path) -> None:
    """Write beside `out`, open and self-test every CPU's file there as a device would, then put it in place of `out`.

    BuildError when the disk does not take it; nothing half-written is left, and what was there stays.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _folder_beside(out) as beside:
            made = beside / "bundle"
            _write_folder(manifest, served, made)
            if out.suffix == ARCHIVE_SUFFIX:
                made = beside / "packed"
                pack(beside / "bundle", made)
            bundle = read_bundle(made)
            for one in served:
                if one.for_cpu and one.form.precision != "fp16":
                    self_test(Classifier(bundle, one.form.precision))
            exchange(made, out) if out.exists() else made.rename(out)
    except OSError as error:
        raise BuildError(
            f"{out}: cannot be written ({error.strerror}); choose another --out or free the disk"
        ) from error


def exchange(made: Path, out: Path) -> None:
    """Let two paths of one disk change places: at once where the kernel can, so that a kill leaves the old or the new.

    OSError, with everything where it was, when it cannot be done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    paths = AT_FDCWD, os.fsencode(made.absolute()), AT_FDCWD, os.fsencode(out.absolute())
    if getattr(libc, "renameat2", lambda *_: -1)(*paths, RENAME_EXCHANGE) == 0:
        return
    aside = made.with_name("replaced")  # not every file system can
    out.rename(aside)
    try:
        made.rename(out)
    except OSError:
        aside.rename(out)
        raise


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
