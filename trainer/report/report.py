"""`report.html` of a run: one file that needs no network, with pictures, patients' sound, and what to mend."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from device.labels import LABELS
from device.runtime import own_font_list
from device.signal import SAMPLE_RATE, WINDOW_SAMPLES, FloatArray, FrontEnd, level, log_mel, split, windows
from firmware_config.errors import RespSAMError
from firmware_config.files import write_atomically
from trainer.choices import Protocol
from trainer.corpora import Corpus
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.describe import describe
from trainer.corpora.protocols import FLATTERED, LIES
from trainer.evaluation.history import latest, readings_of
from trainer.evaluation.outcome import Outcome, load_outcome
from trainer.metrics import (
    CALIBRATION_BINS,
    NO_VERDICT,
    Float64Array,
    IntArray,
    binary_rates,
    calibration_error,
    confusion,
    operating_curve,
)
from trainer.model.network import Ensemble, Network
from trainer.reading import Reading
from trainer.report.explain import Shares, attention_shares, mean_shares
from trainer.report.sharpness import Sharpness, sharpness
from trainer.report.signatures import (
    Signature,
    attention_on,
    clustered,
    deaf,
    few_patients,
    never_named,
    oscillating,
    sharp_minimum,
    stopped_early,
    worse_than_confounder,
)
from trainer.run.folder import REPORT_FILE, RunFacts, load_model, outcome_file, read_facts, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE: Final = "report.html"
MISTAKES: Final = 6  # of each kind; a sound is some fifty kilobytes
SUBSET: Final = 32  # held-out windows a member, for sharpness and attention
EVEN_ODDS: Final = 0.5
LOUDNESS: Final = 0.1  # RMS of what is played: recordings are too quiet to be heard as they are
INK: Final = "#010203"  # stands for the page's own text colour, which matplotlib cannot know
COLOURS: Final = ("#3f83c8", "#d9822b", "#3a9d5d", "#a765c4", "#c2504b", "#7f8894")
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "respsam",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "font.size": 9.0,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


class ReportError(RespSAMError):
    """A report that cannot be made: its run's judgements or recordings are not here."""


@dataclass(frozen=True)
class Picture:
    """One chart as inline SVG, and what stands under it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Mistake:
    """One stretch of a held-out patient that was judged wrongly, with its picture and its sound."""

    recording: str
    patient: str
    start_seconds: float
    end_seconds: float
    true: str
    predicted: str
    probability: float
    about: str
    """Stethoscope, site, age."""
    spectrogram: str
    sound: str
    """Both data: URIs."""


def write_report(folder: Path, corpus: Corpus, cache: AudioCache, device: torch.device) -> Path:
    """Write `report.html` into a finished run's folder; `corpus` is what it was trained on, `cache` has its audio.

    Raises RunError where the folder holds no finished run or no judgements of held-out patients, ReportError where
    `cache` is another corpus's or the file cannot be written.
    """
    facts = read_facts(folder)
    model = load_model(folder, facts).to(device)
    models: list[Network] = list(model.members) if isinstance(model, Ensemble) else [model]  # type: ignore[arg-type]
    outcomes = {protocol: load_outcome(outcome_file(folder, protocol)) for protocol in facts.choice.readings}
    protocol = cast(Protocol, facts.choice.threshold.protocol)
    outcome = outcomes[protocol]
    absent = sorted(set(outcome.recordings) - set(cache.lengths))
    if absent:
        raise ReportError(f"{corpus.where}: {absent[0]} of the run is not here; give --data the run's own corpus")
    histories = [read_metrics(folder, number) for number in range(len(facts.held_out))]
    readings, earlier = readings_of(folder, facts)
    # a model of all patients has met everybody whom a member has not
    refitted = bool(facts.refit_epochs)
    everybody = [[patient for names in facts.held_out for patient in names]]
    chosen = subsets(outcome, everybody * len(models) if refitted else facts.held_out)
    shares = mean_shares(
        [
            attention_shares(one, [split(cut)[0] for cut in _cuts(outcome, rows, cache)], facts.front_end, device)
            for one, rows in zip(models, chosen, strict=True)
            if len(rows)
        ]
    )
    sharp = [
        _sharpness(one, outcome, rows, cache, facts.front_end, device)
        for one, rows in zip(models, chosen, strict=True)
        if len(rows)
    ]
    context = {
        "name": folder.resolve().name,
        "facts": facts,
        "whose": f"THE TEST PART: {FLATTERED}" if facts.recipe.data.choose_on == "test" else "held-out patients",
        "flattered": facts.recipe.data.choose_on == "test",
        "protocol": protocol,
        "lies": LIES,
        "held_out": list(facts.choice.readings.values()),
        "readings": readings,
        "earlier": earlier,
        "times_read": max((one.times_read for one in latest(readings)), default=0),
        "signatures": list(signatures(outcome, histories, readings, shares, facts)),
        "shares": asdict(shares),
        "subset": len(np.unique(np.concatenate(chosen))),
        "by_whom": "by the models of all patients, who have met them"
        if refitted
        else "each by the member that never met its patient",
        "curves": curves(histories, facts.choice.epochs),
        "confusions": [(name, confusion(one.true, one.predicted).tolist()) for name, one in outcomes.items()],
        "labels": LABELS,
        "roc": roc(outcomes),
        "reliability": reliability(outcomes),
        "sharpness": sharpness_picture(sharp),
        "mistakes": mistakes(outcome, cache, facts.front_end),
        "description": describe(corpus),
        "recipe": {**facts.recipe.model_dump(mode="json"), "front_end": facts.front_end.model_dump()},
    }
    write_atomically(folder / REPORT_FILE, render(context))
    return folder / REPORT_FILE


def render(context: dict[str, Any]) -> str:
    """The page; everything but our own SVG is escaped, because names come from files."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("trainer.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.from_string(source).render(context)


def subsets(outcome: Outcome, held_out: Sequence[Sequence[str]]) -> list[IntArray]:
    """By member, up to SUBSET rows of the patients it never met, half of them abnormal; the same ones every time."""
    random = np.random.default_rng(0)
    patients = np.array(outcome.patients)
    chosen = []
    for names in held_out:
        its = np.isin(patients, list(names))
        sides = [np.flatnonzero(its & side) for side in (outcome.true > 0, outcome.true == 0)]
        picked = [random.choice(side, min(len(side), SUBSET // 2), replace=False) for side in sides]
        chosen.append(np.sort(np.concatenate(picked)))
    return chosen


def _cuts(outcome: Outcome, rows: IntArray, cache: AudioCache) -> list[FloatArray]:
    return [cache.cut(outcome.recordings[i], outcome.start_seconds[i], outcome.end_seconds[i]) for i in rows]


def _sharpness(
    member: Network, outcome: Outcome, rows: IntArray, cache: AudioCache, front_end: FrontEnd, device: torch.device
) -> Sharpness:
    inputs = np.stack([windows(samples, front_end)[0] for samples in _cuts(outcome, rows, cache)])
    inputs_there, labels = torch.from_numpy(inputs).to(device), torch.from_numpy(outcome.true[rows]).to(device)
    return sharpness(member, inputs_there, labels, member.config.windows_at_once)


def signatures(
    outcome: Outcome,
    histories: Sequence[Sequence[dict[str, Any]]],
    readings: Sequence[Reading],
    shares: Shares,
    facts: RunFacts,
) -> Iterator[Signature]:
    """The failures that show in a run; `outcome` is of its held-out patients."""
    rates = binary_rates(confusion(outcome.true, (outcome.probability >= EVEN_ODDS).astype(np.int64)))
    found = [deaf(rates.sensitivity, rates.specificity, "on held-out patients at probability 0.5")]
    for reading in readings:
        read = reading.binary
        found.append(deaf(read.sensitivity.value, read.specificity.value, f"on {reading.part}, {reading.protocol}"))
    held_out = facts.choice.readings.values()
    for where, reading in (
        *((f"{one.protocol} of held-out patients", one) for one in held_out),
        *((f"{one.protocol} of {one.corpus} {one.part}", one) for one in latest(readings)),
    ):
        alone = {name: value.value for name, value in reading.confounders.items()}
        found.append(worse_than_confounder(reading.auroc.value, alone, where))
        found.append(few_patients(reading.patients, where))
        found.append(never_named(np.array(reading.confusion.counts), where))
    found.append(stopped_early([*facts.epochs_done, *facts.refit_epochs], facts.recipe.optimizer.epochs))
    found.append(clustered(outcome.probability, facts.choice.cycle_threshold, "of held-out patients"))
    for number, history in enumerate(histories, 1):
        losses = [row["loss"] for row in history]
        found.append(oscillating(losses, f"member {number}"))
        unseen = [row.get("held_out_loss") for row in history]
        found.append(sharp_minimum(losses, unseen, f"member {number}", facts.recipe.data.keep))
    found += [attention_on("seams", shares.seams), attention_on("silence", shares.silence)]
    facts_of: dict[tuple[str, str], list[str]] = {}
    for one in filter(None, found):
        facts_of.setdefault((one.name, one.remedy), []).append(one.fact)
    for (name, remedy), seen in facts_of.items():
        yield Signature(name, "; ".join(seen), remedy)


# --- pictures


def _chart(draw: Any, caption: str, width: float = 4.4, height: float = 3.1) -> Picture:
    """`draw` an axes; text stays text and takes the page's colour, light or dark."""
    own_font_list()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure: Figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        text = BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue().decode()
    body = svg[svg.index("</metadata>") + len("</metadata>") :].replace(INK, "currentColor")
    label = caption.split(";")[0].replace("&", "and").replace('"', "'").replace("<", "under ")
    return Picture(
        f'<svg viewBox="0 0 {width * 72:g} {height * 72:g}" role="img" aria-label="{label}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}',
        caption,
    )


def curves(histories: Sequence[Sequence[dict[str, Any]]], best: Sequence[int]) -> list[Picture]:
    """By epoch and member; none where a run kept no metrics."""
    from matplotlib.ticker import MaxNLocator

    kinds = (
        (("loss",), "training loss; with the recipe's smoothing and mixing"),
        (("held_out_loss",), "held-out loss"),
        (("sensitivity", "specificity"), "held-out Se (solid) and Sp (dashed) at the epoch's own best threshold"),
        (("score",), "held-out Score; dot: the kept epoch"),
        (("auroc",), "held-out AUROC"),
    )

    def draw(axis: "Axes", keys: Sequence[str]) -> None:
        for number, history in enumerate(histories):
            for key, style in zip(keys, ("-", "--"), strict=False):
                rows = [row for row in history if row.get(key) is not None]
                epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
                colour = COLOURS[number % len(COLOURS)]
                label = f"member {number + 1}" if style == "-" else None
                axis.plot(epochs, values, f".{style}", color=colour, label=label, linewidth=1.5, markersize=4)
                at = [(e, v) for e, v in zip(epochs, values, strict=True) if e == best[number]]
                axis.plot(*zip(*at, strict=True), "o", color=colour, markersize=5) if at else None
        axis.set_xlabel("epoch")
        axis.set_xlim(0.5, max((row["epoch"] for history in histories for row in history), default=1) + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(histories) > 1:
            axis.legend(fontsize=8)

    return [
        _chart(lambda axis, keys=keys: draw(axis, keys), caption)
        for keys, caption in kinds
        if any(row.get(keys[0]) is not None for history in histories for row in history)
    ]


def roc(outcomes: Mapping[Protocol, Outcome]) -> Picture:
    """Sensitivity over false alarms, the chosen threshold marked."""

    def draw(axis: "Axes") -> None:
        axis.plot([0, 1], [0, 1], ":", color=INK, alpha=0.5, linewidth=1)
        for colour, (protocol, one) in zip(COLOURS, outcomes.items(), strict=False):
            abnormal = one.true > 0
            if abnormal.any() and not abnormal.all():
                _, sensitivity, specificity = operating_curve(abnormal, one.probability).T
                axis.plot(1 - specificity, sensitivity, color=colour, label=protocol, linewidth=1.5)
            rates = binary_rates(confusion(one.true, one.predicted))
            axis.plot(1 - rates.specificity, rates.sensitivity, "o", color=colour, markersize=6)
        axis.set(xlabel="1 - Sp (false alarms)", ylabel="Se", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.legend(fontsize=8, loc="lower right")

    return _chart(draw, "ROC of any abnormal class; dot: where the chosen threshold stands")


def reliability(outcomes: Mapping[Protocol, Outcome]) -> Picture:
    """Share of abnormal over the probability that was given."""

    def draw(axis: "Axes") -> None:
        axis.plot([0, 1], [0, 1], ":", color=INK, alpha=0.5, linewidth=1)
        for colour, (protocol, one) in zip(COLOURS, outcomes.items(), strict=False):
            abnormal = (one.true > 0).astype(np.float64)
            bins = np.minimum((one.probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
            counts = np.bincount(bins, minlength=CALIBRATION_BINS)
            there = counts > 0
            given = np.bincount(bins, one.probability, CALIBRATION_BINS)[there] / counts[there]
            share = np.bincount(bins, abnormal, CALIBRATION_BINS)[there] / counts[there]
            error = calibration_error(one.true > 0, one.probability)
            axis.plot(given, share, color=colour, linewidth=1, alpha=0.6)
            sizes = 6 + 90 * counts[there] / counts.max()
            axis.scatter(given, share, sizes, color=colour, label=f"{protocol}, ECE {error:.3f}", alpha=0.85)
        axis.set(xlabel="probability given", ylabel="share abnormal", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axis.legend(fontsize=8, markerscale=0.7)

    return _chart(draw, f"reliability in {CALIBRATION_BINS} bins; a dot's size is the bin's share of all")


def sharpness_picture(read: Sequence[Sharpness]) -> Picture:
    """Mean of the members' losses over the radius."""

    def draw(axis: "Axes") -> None:
        for colour, way in zip(COLOURS, ("random", "adversarial"), strict=False):
            losses: Float64Array = np.mean([getattr(one, way) for one in read], axis=0)
            axis.plot(read[0].radii, losses, "o-", color=colour, label=way, linewidth=1.5, markersize=4)
        axis.set(xlabel="radius, share of each filter's norm", ylabel="cross-entropy")
        axis.ticklabel_format(useOffset=False)
        axis.legend(fontsize=8)

    return _chart(draw, "loss with the weights moved; the steeper, the sharper the minimum")


# --- mistakes


def mistakes(outcome: Outcome, cache: AudioCache, front_end: FrontEnd) -> dict[str, list[Mistake]]:
    """The most confident misses and false alarms, at most one of a recording."""
    missed = (outcome.true > 0) & (outcome.predicted == 0)
    alarmed = (outcome.true == 0) & (outcome.predicted > 0) & (outcome.predicted < NO_VERDICT)
    return {
        "Missed": [_mistake(outcome, row, cache, front_end) for row in _worst(outcome, missed, 1.0)],
        "False alarms": [_mistake(outcome, row, cache, front_end) for row in _worst(outcome, alarmed, -1.0)],
    }


def _worst(outcome: Outcome, wrong: Any, sign: float) -> list[int]:
    rows = np.flatnonzero(wrong)
    by_recording: dict[str, int] = {}
    for row in rows[np.argsort(sign * outcome.probability[rows], kind="stable")]:
        by_recording.setdefault(outcome.recordings[row], int(row))
    return list(by_recording.values())[:MISTAKES]


def _mistake(outcome: Outcome, row: int, cache: AudioCache, front_end: FrontEnd) -> Mistake:
    samples = _cuts(outcome, np.array([row]), cache)[0][:WINDOW_SAMPLES]
    levelled = level(samples, front_end.level or LOUDNESS)
    age = float(outcome.confounders["age"][row])
    about = [outcome.devices[row], outcome.sites[row], "" if np.isnan(age) else f"{age:g} years"]
    return Mistake(
        outcome.recordings[row],
        outcome.patients[row],
        float(outcome.start_seconds[row]),
        float(outcome.end_seconds[row]),
        LABELS[outcome.true[row]],
        LABELS[outcome.predicted[row]],
        float(outcome.probability[row]),
        ", ".join(filter(None, about)),
        _data_uri("image/png", _spectrogram(levelled, front_end)),
        _data_uri("audio/flac", _flac(level(samples, LOUDNESS))),
    )


def _spectrogram(samples: FloatArray, front_end: FrontEnd) -> bytes:
    """The stretch's own log-mel, not padded, as PNG: low tones at the bottom, one pixel a frame and band."""
    own_font_list()
    from matplotlib.image import imsave

    picture = BytesIO()
    log_mels = log_mel(samples, front_end)
    low, high = np.percentile(log_mels, [2, 99.8])
    imsave(picture, log_mels.T, vmin=low, vmax=high, cmap="magma", origin="lower", format="png")
    return picture.getvalue()


def _flac(samples: FloatArray) -> bytes:
    import soundfile

    sound = BytesIO()
    soundfile.write(sound, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return sound.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
