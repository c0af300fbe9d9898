"""What `fit` chooses at its end on patients that no member met."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device.labels import Label
from device.signal import SAMPLE_RATE
from tests.trainer.evaluation.test_recordings import shown
from tests.trainer.sounds import cache_of
from trainer.corpora import Cycle, Recording
from trainer.corpora.audio_cache import AudioCache
from trainer.evaluation.recordings import Heard
from trainer.evaluation.served import UNFITTED
from trainer.metrics import binary_rates, confusion
from trainer.training.thresholds import choose_thresholds
from trainer.training.train import FitError

Session = tuple[str, str, Sequence[tuple[Label, float]]]
"""Stethoscope, label of the recording, and of each annotated cycle its label and what the screen said of it."""


def heard_of(folder: Path, sessions: Sequence[Session]) -> tuple[list[Heard], AudioCache]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE)
    made = []
    for number, (device, label, cycles) in enumerate(sessions):
        name = f"r{number}"
        own = tuple(Cycle(name, 2.0 * n, 2.0 * n + 2.0, kind, name, device, "") for n, (kind, _) in enumerate(cycles))
        results = tuple(shown(2.0 * n, 2.0 * n + 2.0, probability) for n, (_, probability) in enumerate(cycles))
        made.append(Heard(Recording(name, None, name, device, "", None, "", label, own), results))
    return made, cache_of(folder, {one.recording.name: noise for one in made})


def drawn(seed: int) -> list[Session]:
    """Few recordings of a Meditron, on which everything looks worse, and many of a Littmann."""
    random = np.random.default_rng(seed)
    sessions: list[Session] = []
    for number in range(40):
        device = "Meditron" if number < 12 else "Littmann 3200"
        label: Label = "crackle" if number % 2 else "normal"
        shift = 0.25 * (device == "Meditron")
        cycles: Sequence[tuple[Label, float]] = [
            (label, float(np.clip(random.normal(0.25 + 0.35 * (label != "normal") + shift, 0.15), 0.01, 0.99)))
            for _ in range(6)
        ]
        sessions.append((device, label, cycles))
    return sessions


@pytest.mark.parametrize("seed", range(3))
def test_both_thresholds_have_a_sensitivity_not_below_the_specificity_over_makers(tmp_path: Path, seed: int) -> None:
    heard, cache = heard_of(tmp_path, drawn(seed))
    chosen = choose_thresholds(heard, cache)
    assert chosen.protocol == "live" and set(chosen.outcomes) == {"live", "recordings"}
    assert chosen.site_curve is not None and chosen.calibration is not None
    for protocol, curve, threshold in (
        ("live", chosen.cycle_curve, chosen.cycle_threshold),
        ("recordings", chosen.site_curve, chosen.site_rule.threshold),
    ):
        outcome = chosen.outcomes[protocol]  # type: ignore[index]
        called = outcome.probability >= threshold
        assert ((outcome.predicted > 0) == called).all(), "read at the chosen threshold"
        rates = [
            binary_rates(confusion(outcome.true[rows], called[rows].astype(np.int64)))
            for maker in ("Meditron", "Littmann 3200")
            for rows in [np.array(outcome.devices) == maker]
        ]
        sensitivity = float(np.mean([one.sensitivity for one in rates]))
        specificity = float(np.mean([one.specificity for one in rates]))
        assert sensitivity >= specificity
        best = max(se + sp for _, se, sp in curve if se >= sp)
        assert sensitivity + specificity == pytest.approx(best)


def test_a_few_recordings_of_one_maker_move_the_threshold_as_much_as_many_of_another(tmp_path: Path) -> None:
    heard, cache = heard_of(tmp_path, drawn(0))
    alone = choose_thresholds([one for one in heard if one.recording.device == "Littmann 3200"], cache)
    assert choose_thresholds(heard, cache).cycle_threshold > alone.cycle_threshold + 0.02


def test_recordings_of_one_kind_leave_the_rule_to_the_cycles(tmp_path: Path) -> None:
    heard, cache = heard_of(tmp_path, [("Meditron", "both", [("normal", 0.2), ("crackle", 0.8)])] * 3)
    chosen = choose_thresholds(heard, cache)
    assert chosen.cycle_threshold == pytest.approx(0.5)
    assert (chosen.site_curve, chosen.calibration, list(chosen.outcomes)) == (None, None, ["live"])
    assert chosen.site_rule == UNFITTED.model_copy(update={"threshold": chosen.cycle_threshold})


def test_without_annotated_cycles_the_sites_threshold_serves_cycles_too(tmp_path: Path) -> None:
    heard, cache = heard_of(tmp_path, drawn(1))
    bare = [replace(one, recording=replace(one.recording, cycles=())) for one in heard]
    chosen = choose_thresholds(bare, cache)
    assert (chosen.protocol, list(chosen.outcomes)) == ("recordings", ["recordings"])
    assert chosen.cycle_threshold == chosen.site_rule.threshold
    with pytest.raises(FitError, match="normal or abnormal only; add patients"):
        choose_thresholds([one for one in bare if one.recording.label == "normal"], cache)
