"""The site rule and the recordings protocol, on live-path results made by hand."""

import itertools

import numpy as np
import pytest

from device.bundle import Segmentation, SiteRule
from device.decision import Judgement
from device.labels import Label
from device.live import CycleResult
from device.quality import Quality
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.settings import load_settings
from tests.trainer.corpus_maker import make_sprsound
from trainer.audio_cache import with_audio
from trainer.corpora import Recording, load_corpus
from trainer.recordings import (
    RULES,
    UNHEARD,
    WORTH,
    Heard,
    fit_site_rule,
    gradable,
    hear,
    predicted_class,
    site_score,
)


def quality_of(reason: str) -> Quality:
    return Quality(-40.0, 0.0, 0.0, 0.0, 0.0, 0.0, reason)


def heard(label: str, probabilities: list[float], leading: Label = "crackle", refused: int = 0) -> Heard:
    """A recording whose cycles got these probabilities, and some that were not gradable."""
    judgements: list[Judgement | None] = [Judgement(p, p >= 0.5, leading) for p in probabilities]
    results = tuple(
        CycleResult(n, n, n + 1.0, "window", 0.0, quality_of("" if j else "too quiet"), j, 0.0, False, UNHEARD)
        for n, j in enumerate(judgements + [None] * refused, 1)
    )
    return Heard(Recording("r", None, "p", "d", "s", None, "", label, ()), results)


@pytest.mark.parametrize(("cycles", "spread", "pooling"), [((1, 7), 0.3, "kth"), ((7, 9), 2.0, "mean")])
def test_site_rule_is_the_best_of_all_by_brute_force(cycles: tuple[int, int], spread: float, pooling: str) -> None:
    """One loud cycle among quiet ones speaks for itself; where all are a little louder, only their mean tells."""
    random = np.random.default_rng(0)
    sessions = []
    for number in range(120):
        is_abnormal = number % 3 == 0
        log_odds = random.normal(-1.0, spread, random.integers(*cycles))
        log_odds[:1] += 3.0 if is_abnormal and pooling == "kth" else 0.0
        log_odds += 1.2 if is_abnormal and pooling == "mean" else 0.0
        sessions.append(heard("crackle" if is_abnormal else "normal", (1 / (1 + np.exp(-log_odds))).tolist()))
    rule = fit_site_rule(sessions, 0.3)
    abnormal = np.array([one.recording.label != "normal" for one in sessions])
    # in the order of preference; the k-th highest not below the cycle threshold
    best = dict.fromkeys(RULES, 0.0)
    for (way, k), threshold in itertools.product(best, np.linspace(0, 1, 251)):
        if way == "kth" and threshold < 0.3:
            continue
        tried = SiteRule(pooling=way, k=k, threshold=float(threshold), least_cycles=max(2, k))
        verdicts = np.array([one.decision(tried).verdict for one in sessions])
        sensitivity = float(np.mean(verdicts[abnormal] == "flagged"))
        specificity = float(np.mean(verdicts[~abnormal] == "nothing flagged"))
        if sensitivity >= specificity:
            best[way, k] = max(best[way, k], (sensitivity + specificity) / 2)
    chosen = rule.pooling, rule.k
    assert chosen == next(one for one, score in best.items() if score >= max(best.values()) - WORTH)
    assert site_score(sessions, rule) == pytest.approx(best[chosen], abs=0.01)
    assert rule.pooling == pooling


def test_listening_longer_does_not_flag_by_itself() -> None:
    rule = SiteRule(k=2, n=3, threshold=0.5, least_cycles=2)
    scattered = [0.6, 0.1, 0.1, 0.6, 0.1, 0.1, 0.6]
    assert heard("normal", scattered).decision(rule).verdict == "nothing flagged"
    assert heard("normal", [*scattered, 0.6]).decision(rule).verdict == "flagged"


def test_too_few_cycles_are_wrong_on_both_sides() -> None:
    rule = SiteRule(k=1, threshold=0.5, least_cycles=3)
    assert heard("normal", [0.1, 0.1]).decision(rule).verdict == "not enough"
    assert site_score([heard("normal", [0.1, 0.1]), heard("wheeze", [0.1, 0.1])], rule) == 0.0
    assert site_score([heard("normal", [0.1] * 3), heard("wheeze", [0.9])], rule) == 1.0


def test_bad_audio_is_no_clearance() -> None:
    rule = SiteRule(k=1, threshold=0.5, least_cycles=2)
    assert heard("normal", [0.1], refused=3).decision(rule).verdict == "poor quality"
    assert heard("normal", [0.9], refused=3).decision(rule).verdict == "flagged"


def test_predicted_class_is_the_union_of_the_flagged_cycles() -> None:
    rule = SiteRule(k=1, threshold=0.5, least_cycles=2)
    assert predicted_class(heard("both", [0.1, 0.2]).decision(rule)) == "normal"
    assert predicted_class(heard("both", [0.6, 0.2], "wheeze").decision(rule)) == "wheeze"
    mixed = heard("both", [0.6]).decision(rule)
    mixed.add(Judgement(0.9, True, "wheeze"))
    assert predicted_class(mixed) == "both"


class LevelModel:
    """Calls a cycle abnormal by how loud it is: enough to see that the live path hears the right samples."""

    fingerprint = "test"
    segmentation = Segmentation(method="windows")
    site_rule = SiteRule(k=1, threshold=0.5, least_cycles=2)

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def judge(self, samples: FloatArray) -> Judgement:
        """Probability is the RMS."""
        self.lengths.append(samples.size)
        return Judgement(float(np.std(samples)), False, "crackle")


def test_hear_runs_the_devices_live_path_and_leaves_poor_quality_apart(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    corpus = load_corpus("sprsound", make_sprsound(folder, patients=2, recordings_per_patient=1, seconds=9.0))
    corpus, cache = with_audio(corpus, folder / "cache")
    model = LevelModel()
    calls: list[tuple[int, int]] = []
    sessions = hear(
        gradable(corpus), cache, model, load_settings().quality, lambda done, total: calls.append((done, total))
    )
    assert [one.recording.name for one in sessions] == [recording.name for recording in gradable(corpus)]
    assert calls[-1] == (len(sessions), len(sessions))
    assert set(model.lengths) == {round(2.5 * SAMPLE_RATE)}
    # 9 s in 2.5 s windows every 1.25 s: six; the last quarter of a second is too short to judge
    assert all(len(one.results) == 6 for one in sessions)
