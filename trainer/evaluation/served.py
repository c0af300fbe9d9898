"""A model as it is served and read, torch's or a bundle's: its logits, and all that turns them into verdicts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from device.bundle import MANIFEST, BundleError, CalibrationBounds, Segmentation, SiteRule, read_bundle
from device.model.classifier import Classifier
from device.model.judgement import Judgement, judge, pool
from device.signal import WINDOW_SECONDS, FloatArray, FrontEnd, Span, windows
from trainer.metrics import Float64Array
from trainer.model.network import Ensemble, Network, predict
from trainer.run.folder import RUN_FILE, RunError, RunFacts, load_model, read_facts
from trainer.run.recipe import Recipe

STRETCH_CYCLES: Final = 6  # twelve seconds of a child, twenty of an adult
LEAST_CYCLES: Final = 2  # one breath is not an examination
UNFITTED: Final = SiteRule(threshold=0.0, stretch_cycles=STRETCH_CYCLES, least_cycles=LEAST_CYCLES)


@dataclass(frozen=True)
class ServedModel:
    """What the live path and every reading need of a model, and whom it has met."""

    name: str
    logits: Callable[[FloatArray], FloatArray]
    """(n, moments, 4) of model inputs (n, frames, mels)."""
    front_end: FrontEnd
    segmentation: Segmentation
    site_rule: SiteRule = UNFITTED
    temperature: float = 1.0
    threshold: float = 0.0
    calibration: CalibrationBounds | None = None
    fingerprint: str = "unbundled run"
    """sha256 of a bundle's manifest or of a run's facts."""
    trained_corpora: frozenset[str] = frozenset()
    trained_patients: frozenset[str] | None = frozenset()
    """Known for a run, `CORPUS/PATIENT`; a bundle does not carry patients' names."""
    seen_parts: tuple[str, ...] = ()
    """Parts of those corpora whose patients trained or tuned it, where the patients are not known."""

    def pooled(self, inputs: FloatArray) -> Float64Array:
        """Logits (n, 4), over all moments, of model inputs (n, frames, mels)."""
        return pool(self.logits(inputs))

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        """One cycle: all of the samples (n,) at 16 kHz, or the part `span` of them; the worst window speaks.

        As on the device, the windows of a long one run one by one: batching changes the last bits.
        """
        inputs = windows(samples, self.front_end)
        logits = np.concatenate([self.logits(inputs[i : i + 1]) for i in range(len(inputs))])
        return judge(logits, self.temperature, self.threshold, span)


def segmentation_for(recipe: Recipe) -> Segmentation:
    """Breath cycles, in the sound around them where the model has an answer for every moment."""
    return Segmentation(context_seconds=float(WINDOW_SECONDS) if recipe.model.moments > 1 else 0.0)


def of_network(
    network: Network | Ensemble, device: torch.device, recipe: Recipe, front_end: FrontEnd, temperature: float = 1.0
) -> ServedModel:
    """A network for which nothing has been chosen yet: the unfitted site rule, and every cycle is abnormal."""
    return ServedModel(
        "network",
        lambda inputs: predict(network, inputs, device),
        front_end,
        segmentation_for(recipe),
        temperature=temperature,
    )


def of_run(network: Network | Ensemble, facts: RunFacts, name: str, device: torch.device) -> ServedModel:
    """A run's model, or one of its members, with all that its held-out patients chose."""
    choice = facts.choice
    return ServedModel(
        name,
        lambda inputs: predict(network, inputs, device),
        facts.front_end,
        choice.segmentation,
        choice.site_rule,
        choice.temperature,
        choice.cycle_threshold,
        choice.calibration,
        facts.fingerprint,
        frozenset(source.name for source in facts.corpora),
        # those of a test part that chose, too
        frozenset(facts.patients).union(*facts.held_out),
    )


def of_classifier(classifier: Classifier) -> ServedModel:
    """One model file of a bundle."""
    manifest = classifier.bundle.manifest
    return ServedModel(
        manifest.name,
        classifier.logits,
        manifest.front_end,
        classifier.segmentation,
        classifier.site_rule,
        classifier.file.temperature,
        classifier.threshold,
        manifest.calibration,
        classifier.fingerprint,
        frozenset(manifest.corpus.split("+")),
        None,
        manifest.seen_parts,
    )


def open_served(path: Path, device: torch.device) -> ServedModel:
    """A run folder or a bundle; the error says what is missing."""
    if (path / RUN_FILE).is_file():
        facts = read_facts(path)
        return of_run(load_model(path, facts).to(device), facts, path.resolve().name, device)
    if path.is_file() or (path / MANIFEST).is_file():
        return of_classifier(Classifier(read_bundle(path), threads=torch.get_num_threads()))
    if not path.exists():
        raise BundleError(f"{path}: neither a run nor a bundle is here; check the path")
    read_facts(path)  # says whether it is an unfinished run
    raise RunError(f"{path}: neither a run nor a bundle")
