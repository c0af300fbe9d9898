"""`export verify`: is a bundle whole, and how accurate is each of its model files on a corpus?"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from device.bundle import MANIFEST, Bundle, BundleError, ModelFile, read_bundle
from device.model.classifier import Classifier, self_test
from device.signal import FloatArray
from export.gates import LARGEST_LOSS, agreement, relative_error
from firmware_config.errors import GateRefused
from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora import Corpus, CorpusError
from trainer.corpora.audio_cache import AudioCache
from trainer.evaluation.compare import rates_shift
from trainer.evaluation.evaluate import outcome_on, reading
from trainer.evaluation.outcome import Outcome
from trainer.evaluation.served import ServedModel, of_classifier
from trainer.metrics import Interval, too_few
from trainer.reading import Reading
from trainer.tables import table
from trainer.view import say_too_few


@dataclass(frozen=True)
class Verified:
    """One model file and its readings; `agreement` to `score_shift` are against the first file, fp32."""

    file: ModelFile
    self_test: float
    """Largest deviation from the manifest's expected probabilities on simulated breaths."""
    reading: Reading
    agreement: float
    """Share of windows whose likeliest class is the same."""
    relative_error: float
    """Length of the difference of all moments' logits over the length of fp32's."""
    score_shift: Interval
    """Its binary Score minus fp32's, paired by patient; NaN where the corpus has one class only."""

    @property
    def problem(self) -> str:
        """What does not hold, '' when all does; one window of a small corpus may be LARGEST_LOSS, and is no proof."""
        if not np.isfinite(self.relative_error):
            return "answers NaN or infinity"
        lost, least, most = -self.score_shift.value, -self.score_shift.high, -self.score_shift.low
        if lost > LARGEST_LOSS and least > 0:
            few = too_few(self.reading.patients)
            return (
                f"loses {lost:.4f} [{least:.4f}, {most:.4f}] of Score against fp32 here, {LARGEST_LOSS:g} is allowed"
                f"{f' ({few})' * bool(few)}"
            )
        return ""

    def as_json(self) -> dict[str, Any]:
        """One entry of `files` of `export verify --json`."""
        file = self.file.model_dump(include={"path", "precision", "target", "sha256"})
        found = {name: getattr(self, name) for name in ("self_test", "agreement", "relative_error")}
        shift = {"score_shift": self.score_shift.as_json(), "problem": self.problem or None}
        return {**file, **found, "reading": self.reading.as_json(), **shift}


def open_whole(path: Path) -> Bundle:
    """A bundle whose schema and hashes hold, else GateRefused; BundleError where there is no bundle at all."""
    if not path.exists() or (path.is_dir() and not (path / MANIFEST).is_file()):
        return read_bundle(path)  # says what is missing
    try:
        return read_bundle(path)
    except BundleError as error:
        raise GateRefused(str(error)) from error


def verify(
    bundle: Bundle,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    busy: Callable[[str], None] = lambda line: None,
) -> list[Verified]:
    """Self-test, accuracy and parity of every model file, fp32 first; GateRefused when one fails the self-test.

    Files for TensorRT run on ONNX Runtime too: the same integers, the same answers up to rounding.
    """
    verified: list[Verified] = []
    fp32: tuple[FloatArray, Outcome] | None = None
    for file in sorted(bundle.manifest.files, key=lambda file: file.precision != "fp32"):
        busy(f"{file.path}: {protocol} of {corpus.name}")
        classifier = Classifier(bundle, threads=torch.get_num_threads(), file=file)
        try:
            deviation = self_test(classifier)
        except BundleError as error:
            raise GateRefused(f"{file.path}: {error}") from error
        form, kept = _recording(of_classifier(classifier))
        outcome = outcome_on(form, corpus, cache, protocol, quality)
        if not kept:
            raise CorpusError(f"{corpus.where}: nothing in it can be judged; give another --part or --data")
        found = np.concatenate(kept)
        fp32 = fp32 or (found, outcome)
        # a gate asks for the interval of the fewest patients, too: where it errs, it refuses
        shift = rates_shift(outcome.patients, outcome.true, fp32[1].predicted, outcome.predicted, least=1).score
        read = reading(outcome, protocol, form, corpus)
        verified.append(
            Verified(file, deviation, read, agreement(found, fp32[0]), relative_error(found, fp32[0]), shift)
        )
    return verified


def _recording(served: ServedModel) -> tuple[ServedModel, list[FloatArray]]:
    """The same model, and the list that its logits are kept in, so that nothing is computed twice."""
    kept: list[FloatArray] = []

    def logits(inputs: FloatArray) -> FloatArray:
        kept.append(served.logits(inputs))
        return kept[-1]

    return replace(served, logits=logits), kept


def require(verified: list[Verified], bundle: Bundle) -> None:
    """Raise GateRefused with what is wrong."""
    problems = [f"{one.file.path} {one.problem}" for one in verified if one.problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GateRefused(f"{bundle.path}: {problems[0]}{more}; do not use it, build the bundle again")


def as_json(verified: list[Verified], bundle: Bundle) -> dict[str, Any]:
    """What `export verify --json` prints."""
    return {
        "bundle": bundle.fingerprint,
        "holds": not any(one.problem for one in verified),
        "allowed": {"self_test": bundle.manifest.self_test.tolerance, "score_shift": -LARGEST_LOSS},
        "files": [one.as_json() for one in verified],
    }


def show(verified: list[Verified], bundle: Bundle, console: Console) -> None:
    """What was read, and one row a model file; 80 columns."""
    rows = (
        (
            one.file.path,
            *(f"{value:.4f}" for value in (one.agreement, one.relative_error)),
            one.reading.binary.sensitivity.alone(),
            one.reading.binary.specificity.alone(),
            str(one.reading.binary.score),
            f"{one.score_shift.value:+.4f}",
            "no" if one.problem else "yes",
        )
        for one in verified
    )
    headings = ("file", "top-1", "error", "Se", "Sp", "Score [95 %]", "shift", "holds")
    read, allowed = verified[0].reading, bundle.manifest.self_test.tolerance
    worst = max(one.self_test for one in verified)
    console.print(
        f"{bundle.manifest.name} {bundle.fingerprint[:12]}: schema and hashes hold; {read.n} {read.protocol} of "
        f"{read.patients} patients, {read.corpus} {read.part}",
        soft_wrap=True,
        markup=False,
    )
    console.print(table(*headings, rows=rows))
    console.print(
        "against fp32: top-1, share of the windows with the same likeliest class; error, relative, of the logits; "
        f"shift, of Score. Self-test: off by {worst:.4f} in probability, {allowed:g} is allowed",
        soft_wrap=True,
    )
    say_too_few(read.patients, console)
