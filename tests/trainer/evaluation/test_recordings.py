"""The site rule and the live and recordings protocols, on live-path results made by hand and on a made corpus."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from device.breath.quality import Quality
from device.breath.simulator import simulate
from device.bundle import Segmentation, SiteRule
from device.labels import Label
from device.listening.cycle import CycleResult
from device.model.judgement import Judgement
from device.model.judgement import judge as judged
from device.signal import SAMPLE_RATE, FloatArray, FrontEnd, Span, windows
from device.verdict.site import together
from firmware_config.settings import load_settings
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.sounds import cache_of
from tests.trainer.toy_fit import AST, RECIPE
from trainer.corpora import Cycle, Recording, load_corpus
from trainer.corpora.audio_cache import with_audio
from trainer.evaluation.outcome import of_shown, share_not_met
from trainer.evaluation.recordings import (
    NO_SAMPLES,
    SENSITIVITY_FLOOR,
    Heard,
    calibration_of,
    fit_site_rule,
    gradable,
    hear,
    listen_longer,
    predicted_class,
    rejudged,
    voices,
)
from trainer.evaluation.served import LEAST_CYCLES, STRETCH_CYCLES, UNFITTED, of_network, segmentation_for
from trainer.metrics import NO_VERDICT
from trainer.model.network import network
from trainer.run.recipe import with_changes

RULE = SiteRule(threshold=0.5, stretch_cycles=6, least_cycles=2)


def quality_of(reason: str) -> Quality:
    return Quality(-40.0, 0.0, 0.0, 0.0, 0.0, 0.0, reason)


def shown(start: float, end: float, probability: float | None, leading: Label = "crackle") -> CycleResult:
    """One cycle on the screen; without a probability it was not gradable."""
    judgement = None if probability is None else Judgement(probability, probability >= 0.5, leading)
    reason = quality_of("too quiet" if judgement is None else "")
    return CycleResult(
        1, round(start * SAMPLE_RATE), round(end * SAMPLE_RATE), "window", 0.0, reason, judgement, False, NO_SAMPLES
    )


def heard(
    label: str, probabilities: Sequence[float], leading: Label = "crackle", refused: int = 0, device: str = "d"
) -> Heard:
    """A recording whose cycles got these probabilities, and some that were not gradable."""
    every = [*probabilities, *[None] * refused]
    results = tuple(shown(float(n), n + 1.0, one, leading) for n, one in enumerate(every))
    return Heard(Recording("r", None, "p", device, "s", None, "", label, ()), results)


# --- the site rule


def sessions_of(seed: int, count: int = 90) -> list[Heard]:
    """Recordings of three stethoscopes of two makers, one of which hears everything louder."""
    random, made = np.random.default_rng(seed), []
    for number in range(count):
        abnormal = bool(random.random() < 0.4)
        device = ("Littmann 3200", "LittC2SE", "Meditron")[number % 3 if number < 45 else 0]
        log_odds = random.normal(-1.0 + 1.5 * abnormal + 1.5 * (device == "Meditron"), 1.0, random.integers(1, 9))
        made.append(heard("wheeze" if abnormal else "normal", expit(log_odds).tolist(), device=device))
    return made


@pytest.mark.parametrize("seed", range(3))
def test_the_site_rules_threshold_is_the_best_by_brute_force_every_maker_alike(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.recordings.LEAST_PATIENTS", 1)
    sessions = sessions_of(seed)
    rule, curve = fit_site_rule(sessions)
    assert (rule.stretch_cycles, rule.least_cycles) == (STRETCH_CYCLES, LEAST_CYCLES)

    def rates(threshold: float) -> tuple[float, float]:
        tried = rule.model_copy(update={"threshold": threshold})
        found: dict[tuple[str, bool], list[bool]] = {}
        for one in sessions:
            verdict, abnormal = one.decision(tried).verdict, one.recording.label != "normal"
            right = verdict == ("flagged" if abnormal else "nothing flagged")
            found.setdefault((one.recording.device[:4], abnormal), []).append(right)
        sensitivity, specificity = (
            float(np.mean([np.mean(rows) for (_, kind), rows in found.items() if kind == wanted]))
            for wanted in (True, False)
        )
        return sensitivity, specificity

    tried = [rates(float(threshold)) for threshold in np.linspace(0.0, 1.0, 101)]
    best = max(se + sp for se, sp in tried if se >= sp)
    chosen = rates(rule.threshold)
    assert chosen[0] >= chosen[1] and sum(chosen) >= best - 1e-9
    at = int(np.abs(curve[:, 0] - rule.threshold).argmin())
    assert curve[at, 1:] == pytest.approx(chosen)


def test_a_rule_takes_the_first_stretch_and_its_cycles_together() -> None:
    first = [0.6, 0.1, 0.2, 0.6, 0.1, 0.1]
    decided = heard("normal", [*first, *[0.99] * 12]).decision(RULE)
    assert decided.verdict == "nothing flagged" and decided.probability == pytest.approx(together(np.array(first)))
    assert heard("normal", [0.9] * 6 + [0.01] * 20).decision(RULE).verdict == "flagged"


def test_too_few_cycles_are_wrong_on_both_sides() -> None:
    rule = RULE.model_copy(update={"least_cycles": 3})
    assert heard("normal", [0.1, 0.1]).decision(rule).verdict == "not enough"
    few = [heard("normal", [0.1]), heard("wheeze", [0.9])]
    _, curve = fit_site_rule([*few, heard("normal", [0.1] * 3), heard("wheeze", [0.9] * 3)])
    assert curve[:, 1].max() == curve[:, 2].max() == 0.5


def test_bad_audio_is_no_clearance() -> None:
    assert heard("normal", [0.1], refused=3).decision(RULE).verdict == "poor quality"
    assert heard("normal", [0.9, 0.9], refused=3).decision(RULE).verdict == "flagged"


def test_predicted_class_is_the_union_of_the_flagged_cycles() -> None:
    assert predicted_class(heard("both", [0.1, 0.2]).decision(RULE)) == "normal"
    assert predicted_class(heard("both", [0.9, 0.2], "wheeze").decision(RULE)) == "wheeze"
    mixed = heard("both", [0.6]).decision(UNFITTED)
    mixed.add(Judgement(0.9, True, "wheeze"))
    assert predicted_class(mixed) == "both"


def test_rejudged_cycles_are_the_same_at_another_threshold() -> None:
    one = heard("both", [0.2, 0.4, 0.6], refused=1)
    again = rejudged(one, 0.4)
    assert [result.flagged for result in again.results] == [False, True, True, False]
    assert [result.judgement and result.judgement.probability for result in again.results] == [0.2, 0.4, 0.6, None]
    assert [result.flagged for result in one.results] == [False, False, True, False], "the first is as it was"


# --- how far healthy people may raise it


def test_a_calibration_never_goes_below_the_floor() -> None:
    for seed in range(5):
        rule, curve = fit_site_rule(sessions_of(seed))
        calibration = calibration_of(rule, curve)
        raised = float(expit(logit(rule.threshold) + calibration.largest_shift))
        reached = curve[np.searchsorted(curve[:, 0], raised - 1e-4), 1]
        assert calibration.sensitivity_floor == SENSITIVITY_FLOOR
        assert calibration.largest_shift == 0.0 or reached >= SENSITIVITY_FLOOR
        higher = curve[curve[:, 0] > raised + 1e-4]
        assert (higher[:, 1] < SENSITIVITY_FLOOR).all(), "it is the largest"


def test_a_rule_below_the_floor_is_not_raised_at_all() -> None:
    rule = RULE.model_copy(update={"threshold": 0.4})
    curve = np.array([[0.0, 1.0, 0.0], [0.4, 0.7, 0.6], [0.6, 0.5, 0.8], [1.0, 0.0, 1.0]])
    assert calibration_of(rule, curve).largest_shift == 0.0
    curve[1:3, 1] = 0.8, SENSITIVITY_FLOOR
    assert calibration_of(rule, curve).largest_shift == pytest.approx(logit(0.6) - logit(0.4), abs=1e-4)


# --- the live protocol


def test_an_annotated_cycle_meets_what_overlaps_it_most_by_half_of_the_shorter() -> None:
    cycle = Cycle("r", 2.0, 4.0, "crackle", "p", "d", "s")
    near, nearer, far = shown(1.0, 3.2, 0.2), shown(2.9, 6.0, 0.3), shown(3.5, 5.0, 0.4)

    def met(*results: CycleResult) -> CycleResult | None:
        return Heard(heard("crackle", []).recording, results).shown_for(cycle)

    assert met(near, nearer, far) == near and met(nearer, far) == nearer
    assert met(far) is None, "half a second of one and a half"
    assert met(shown(3.8, 4.1, 0.5)) == shown(3.8, 4.1, 0.5), "of the shorter: 0.2 of 0.3 s"
    assert met(replace(near, judgement=None), nearer) == nearer, "what was not gradable judged nothing"
    assert met(shown(0.0, 20.0, 0.1)) is not None


def test_an_unmet_abnormal_cycle_is_missed_and_an_unmet_normal_one_left_out(tmp_path: Path) -> None:
    cycles = (
        Cycle("r", 0.0, 2.0, "normal", "p", "d", "s"),
        Cycle("r", 2.0, 4.0, "wheeze", "p", "d", "s"),
        Cycle("r", 4.0, 6.0, "normal", "p", "d", "s"),
        Cycle("r", 6.0, 8.0, "both", "p", "d", "s"),
    )
    recording = Recording("r", None, "p", "Meditron", "s", 4.0, "", "both", cycles, corpus="c")
    results = (shown(0.1, 2.1, 0.2), shown(2.2, 4.2, 0.7, "wheeze"), shown(4.1, 5.9, None), shown(6.0, 8.0, None))
    cache = cache_of(tmp_path, {"r": 0.1 * np.random.default_rng(0).standard_normal(8 * SAMPLE_RATE)})
    outcome = of_shown([Heard(recording, results)], cache)
    assert outcome.true.tolist() == [0, 2, 3] and outcome.predicted.tolist() == [0, 2, NO_VERDICT]
    assert outcome.probability.tolist() == [0.2, 0.7, 0.0]
    assert outcome.start_seconds.tolist() == [0.0, 2.0, 6.0] and outcome.devices == ["Meditron"] * 3
    corpus = load_corpus("sprsound", make_sprsound(tmp_path / "corpus", patients=1, recordings_per_patient=1))
    poor = replace(recording, name="poor", label="poor quality")
    assert share_not_met(outcome, replace(corpus, recordings=(recording, poor))) == pytest.approx(0.5)


# --- through the live path


class LevelModel:
    """Calls a cycle abnormal by how loud it is: enough to see that the live path hears the right samples."""

    fingerprint = "test"
    segmentation = Segmentation(method="windows")
    site_rule = RULE

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        """Probability is the RMS."""
        self.lengths.append(samples.size)
        return Judgement(float(np.std(samples)), False, "crackle")


def test_hear_runs_the_devices_live_path_and_leaves_poor_quality_apart(tmp_path: Path) -> None:
    corpus = load_corpus("sprsound", make_sprsound(tmp_path / "c", patients=2, recordings_per_patient=1, seconds=9.0))
    corpus, cache = with_audio(corpus, tmp_path / "cache")
    model = LevelModel()
    calls: list[tuple[int, int]] = []
    sessions = hear(
        gradable(corpus), cache, model, load_settings().quality, lambda done, total: calls.append((done, total))
    )
    assert [one.recording.name for one in sessions] == [recording.name for recording in gradable(corpus)]
    assert calls[-1] == (len(sessions), len(sessions))
    # 9 s in windows of 2.5 s that do not overlap
    for one in sessions:
        spans = [(result.start_seconds, result.end_seconds) for result in one.results]
        assert spans[:3] == [(0.0, 2.5), (2.5, 5.0), (5.0, 7.5)]
    judged_ones = [one for session in sessions for one in session.results if one.judgement is not None]
    assert [round((one.end_seconds - one.start_seconds) * SAMPLE_RATE) for one in judged_ones] == model.lengths
    assert all(result.samples.size == 0 for one in sessions for result in one.results)


class Constant(LevelModel):
    """Finds every breath as likely to be abnormal as every other."""

    segmentation = Segmentation()

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        return Judgement(self.probability, self.probability >= 0.5, "crackle")


@pytest.mark.parametrize("probability", [0.49, 0.51])
def test_a_verdict_does_not_depend_on_how_long_one_listens(
    tmp_path: Path, probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.recordings.JOINED_SECONDS", (12.0, 24.0))
    people = [("ill", "wheeze"), ("ill", "normal"), ("calm", "normal")]
    sounds, recordings = {}, []
    for seed, (patient, label) in enumerate(people):
        name = f"{patient} {label}"
        sounds[name] = simulate(seed, 14.0).samples
        recordings.append(Recording(name, None, patient, "d", "s", None, "", label, ()))
    calls: list[tuple[int, int]] = []
    found = listen_longer(
        recordings,
        cache_of(tmp_path, sounds),
        Constant(probability),
        load_settings().quality,
        lambda done, total: calls.append((done, total)),
    )
    assert [one.seconds for one in found] == [12.0, 24.0] and calls[-1] == (6, 6)
    # the ill person's normal recording is a person of its own: normal sound alone
    assert {(one.abnormal, one.normal) for one in found} == {(1, 2)}
    flagged = probability > 0.5
    assert {(one.abnormal_flagged, one.normal_flagged) for one in found} == {(1 * flagged, 2 * flagged)}


def test_a_run_judges_a_breath_as_a_bundle_does_by_the_moments_in_its_span() -> None:
    assert segmentation_for(RECIPE).context_seconds == 8.0
    assert segmentation_for(with_changes(RECIPE, {"model": AST})) == Segmentation()
    torch.manual_seed(0)
    model, front_end = network(RECIPE.model), FrontEnd(mels=32, mean=-8.0, std=3.0)
    torch.nn.init.normal_(model.head.weight)
    served = replace(of_network(model, torch.device("cpu"), RECIPE, front_end, 1.7), threshold=0.4)
    samples = simulate(1, 8.0).samples
    logits = served.logits(windows(samples, front_end))
    assert logits.shape == (1, 25, 4)
    for span in (None, (32_000, 64_000), (100, 101)):
        assert served.judge(samples, span) == judged(logits, 1.7, 0.4, span)
    assert served.judge(samples, (32_000, 64_000)) != served.judge(samples)


def test_a_stethoscope_of_few_patients_has_no_vote_of_its_own() -> None:
    devices = ["Yunting II"] * 12 + ["Meditron"] * 10 + ["AKGC417L"] * 9
    patients = [f"p{number}" for number in range(len(devices))]
    assert voices(devices, patients) == ["Yunting II"] * 12 + ["Meditron"] * 10 + ["Yunting II"] * 9
    assert voices(["Litt3200"] * 40, ["one"] * 40) == ["Littmann"] * 40
