"""How well poor recordings are recognised, at what price in good ones, and the fit of the limit that matters most.

A recording is refused when most of its segments are not gradable, or it has none. The price is read separately for
abnormal and normal good recordings: a wheeze resembles speech, a crackle a knock, and a screening aid that refuses the
sick is worse than none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from device.breath.quality import QualityMeasures, assess, measure, reason
from device.breath.segmenter import Weights
from device.breath.simulator import simulate
from device.bundle import Segmentation
from firmware_config.settings import QualitySettings
from trainer.breaths.segmentation import cut, intersections
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import POOR_QUALITY, Corpus, Recording

PRICE: Final = (
    0.04  # largest share of good recordings, abnormal or normal, that the fitted limit may cost; 0.05 is promised
)
HIGHEST_LIMIT, STEP = 0.8, 0.01
SIMULATIONS: Final = 5
Group = Literal["poor quality", "abnormal", "normal"]


@dataclass(frozen=True)
class Heard:
    """One recording's segments as they are judged: what was measured, clarity, SNR."""

    group: Group
    segments: tuple[tuple[QualityMeasures, float | None, float | None], ...]

    def refused(self, settings: QualitySettings) -> bool:
        """Whether most of it is not gradable."""
        refused = sum(bool(reason(*segment, settings=settings)) for segment in self.segments)
        return 2 * refused > len(self.segments) or not self.segments


def group_of(recording: Recording) -> Group:
    """By the annotators' verdict on the recording."""
    if recording.label == POOR_QUALITY:
        return "poor quality"
    return "normal" if recording.label == "normal" else "abnormal"


def hear(
    recordings: Sequence[Recording], cache: AudioCache, segmentation: Segmentation, weights: Weights | None = None
) -> list[Heard]:
    """Segments of every recording, measured."""
    return [
        Heard(
            group_of(recording),
            tuple(
                (measure(segment.samples), segment.clarity, segment.snr_db)
                for segment in cut(cache[recording.name], segmentation, weights)
            ),
        )
        for recording in recordings
    ]


def shares(outcomes: Iterable[tuple[Group, bool]]) -> dict[Group, float]:
    """Share refused of each group that has recordings: of the poor it is the sensitivity, of the others the price."""
    by_group: dict[Group, list[bool]] = {}
    for group, refused in outcomes:
        by_group.setdefault(group, []).append(refused)
    return {group: round(float(np.mean(refused)), 4) for group, refused in sorted(by_group.items())}


def refused_shares(heard: Sequence[Heard], settings: QualitySettings) -> dict[Group, float]:
    """`shares` at these settings."""
    return shares((one.group, one.refused(settings)) for one in heard)


def fit_clarity(heard: Sequence[Heard], settings: QualitySettings, price: float = PRICE) -> QualitySettings:
    """The highest `minimum_clarity` at which no more than `price` of abnormal, or of normal, recordings is refused."""
    good = [one for one in heard if one.group != POOR_QUALITY]
    for limit in np.arange(HIGHEST_LIMIT, 0.0, -STEP):
        tried = settings.model_copy(update={"minimum_clarity": round(float(limit), 3)})
        if max(refused_shares(good, tried).values()) <= price:
            return tried
    return settings.model_copy(update={"minimum_clarity": 0.0})


def simulated(settings: QualitySettings) -> dict[str, float]:
    """Share of segments refused of simulated breathing, clean and with the simulator's faults; of contact noise, those
    that hold at least half of a contact."""
    sounds = {
        "clean normal": {"abnormal_share": 0.0},
        "clean abnormal": {"abnormal_share": 1.0},
        "contact noise": {"contacts_per_minute": 20.0},
        "loud heart": {"heart_rate": 120.0},
        "overloaded": {"level_dbfs": -1.0},
        "too quiet": {"level_dbfs": -90.0},
    }
    refused = {}
    for name, changes in sounds.items():
        outcomes = []
        for seed in range(SIMULATIONS):
            heard = simulate(seed, 60.0, **changes)  # type: ignore[arg-type]
            for segment in cut(heard.samples, Segmentation()):
                span = [(segment.start_seconds, segment.end_seconds)]
                shared = intersections(span, heard.contacts)[0][0] / [end - start for start, end in heard.contacts]
                if not heard.contacts or shared.max() >= 0.5:
                    outcomes.append(not assess(segment.samples, settings, segment.clarity, segment.snr_db).gradable)
        refused[name] = round(float(np.mean(outcomes)), 3)
    return refused


def compare(
    detectors: Sequence[tuple[Corpus, Weights | None]], cache: AudioCache, settings: QualitySettings
) -> dict[str, Any]:
    """Shares refused as set, with the limit fitted on the other folds, and of simulated sound."""
    heard = [hear(held_out.recordings, cache, Segmentation(), weights) for held_out, weights in detectors]
    together = [one for fold in heard for one in fold]
    readings: dict[str, Any] = {"as set": refused_shares(together, settings), "simulator": simulated(settings)}
    if len(heard) > 1:
        outcomes = []
        for fold in heard:
            fitted = fit_clarity([one for other in heard if other is not fold for one in other], settings)
            outcomes += [(one.group, one.refused(fitted)) for one in fold]
        readings["cross-validated"] = shares(outcomes)
        readings["fitted limit"] = fit_clarity(together, settings).minimum_clarity
    return readings
