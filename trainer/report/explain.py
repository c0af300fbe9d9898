"""`trainer explain`: where in a window a model looks, and how much of that on seams and on silence.

There are two readings, because each misses something. An AST's rollout shows where its attention lies whatever it
decides, a MobileNet's moments what each adds to the pooled odds; the gradient-weighted forms show only what speaks for
one class. Neither is the whole of a model: convolutions mix neighbours, and residual paths go round attention.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from device.capture.recording import scan
from device.labels import LABELS
from device.listening.cycle import CycleResult
from device.listening.live import Session
from device.model.judgement import Judgement, judge
from device.model.occlusion import FLAT, SCALE
from device.runtime import own_font_list
from device.signal import (
    FRAME_SAMPLES,
    FRAMES,
    HOP_SAMPLES,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    FloatArray,
    FrontEnd,
    hertz_ticks,
    repetition,
    resample,
    split,
    window,
)
from firmware_config.errors import RespSAMError
from firmware_config.settings import QualitySettings
from trainer.evaluation.recordings import CachedSource
from trainer.evaluation.served import of_run
from trainer.metrics import BoolArray, Float64Array, IntArray
from trainer.model.config import ModelConfig
from trainer.model.network import AST, Ensemble, Network, pool_moments
from trainer.run.folder import load_model, read_facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SILENCE_DB: Final = -20.0  # below a window's mean power; on SPRSound one frame in twenty, a pause, no quiet breath
ATTENTION: Final = (
    16  # attention weights are kept twice, with their gradients: so many times the memory of a plain pass
)


class ExplainError(RespSAMError):
    """A recording in which nothing can be explained, or a picture that cannot be written."""


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """What each token of the last block draws from each of the first: (batch, tokens, tokens), rows sum to 1.

    Abnar & Zuidema 2020, arXiv 2005.00928: a block passes on half of itself and half of what its heads, on average,
    attend to. `weights` are (batch, heads, tokens, tokens) of every block.
    """
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)
    joint = identity.expand(len(weights[0]), -1, -1)
    for block in weights:
        joint = (0.5 * block.detach().mean(dim=1) + 0.5 * identity) @ joint
    return joint


def gradient_weighted(evidence: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """As `rollout`, but only attention that raises the `evidence` (batch,); rows sum to anything, 0 is possible.

    Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6: R += mean over heads of (gradient x weights)+ @ R. The
    identity that R begins with is left out all along: it is no attention, and next to it float32 loses what is.
    """
    gradients = torch.autograd.grad(evidence.sum(), list(weights))
    relevance = torch.zeros_like(weights[0][:, 0])
    for block, gradient in zip(weights, gradients, strict=True):
        raising = (gradient * block.detach()).clamp(min=0).mean(dim=1)
        relevance = relevance + raising + raising @ relevance
    return relevance.detach()


def evidence_of(member: Network, windows: Tensor, classes: IntArray) -> tuple[Float64Array, Float64Array]:
    """Where one network looks, and what speaks for `classes` (batch,): grids (batch, rows, columns) that sum to 1."""
    chosen = torch.from_numpy(classes)
    if isinstance(member, AST):
        logits, weights = member.attended(windows)
        evidence = logits[torch.arange(len(windows)), chosen]
        return over_grid(rollout(weights), member.config), over_grid(
            gradient_weighted(evidence, weights), member.config
        )
    features = member.features(windows)
    logits = member.classified(features)
    evidence = pool_moments(logits)[torch.arange(len(windows)), chosen]
    # of several windows at once: each one's evidence depends on its own features alone
    (slope,) = torch.autograd.grad(evidence.sum(), features)
    activation = (slope.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).clamp(min=0)
    abnormal = (logits[..., 1:] - logits[..., :1]).logsumexp(dim=-1)
    return _shares(abnormal.softmax(dim=1).unsqueeze(1)), _shares(activation)


def _shares(grid: Tensor) -> Float64Array:
    """A grid (batch, rows, columns) as shares of its sum; even where it is 0 all over."""
    values = grid.detach().double().cpu().numpy()
    total = values.sum(axis=(1, 2), keepdims=True)
    even = np.full_like(values, 1.0 / values[0].size)
    return np.asarray(np.divide(values, total, out=even, where=total > 0))


def over_grid(tokens: Tensor, config: ModelConfig) -> Float64Array:
    """What the head's pooled tokens draw from each place of the spectrogram: (batch, rows, columns), each sums to 1.

    Even where nothing is drawn at all.
    """
    pooled = tokens[:, 2:] if config.pooling == "mean" else tokens[:, :2]
    drawn = pooled.mean(dim=1)[:, 2:].double().cpu().numpy()
    return _shares(torch.from_numpy(drawn.reshape(-1, *config.grid)))


def per_frame(grid: Float64Array, frames: int) -> Float64Array:
    """Attention (rows, columns) as (frames,), same sum: a column's is spread evenly over the frames it stands for."""
    column = np.arange(frames) * grid.shape[1] // frames
    return np.asarray((grid.sum(axis=0) / np.bincount(column, minlength=grid.shape[1]))[column])


def on_seam(size: int, front_end: FrontEnd) -> BoolArray:
    """Which frames (frames,) hold samples of a cross-fade, or of both sides of a hard seam."""
    period, seam = repetition(size, front_end)
    starts = np.arange(front_end.frames) * HOP_SAMPLES
    joints = np.arange(period, WINDOW_SAMPLES, period)[:, None]
    return np.asarray(((starts < joints + seam) & (starts + FRAME_SAMPLES > joints)).any(axis=0))


def silent(normalised: FloatArray, front_end: FrontEnd) -> BoolArray:
    """Which frames of a window (frames, mels) lie 20 dB or more below its mean power: pauses.

    Frames that the front end added to the 8 s hold no sound either, however bright they are.
    """
    power = np.exp(normalised.astype(np.float64) * 2.0 * front_end.std + front_end.mean).sum(axis=1)
    below: BoolArray = np.asarray(power <= power[:FRAMES].mean() * 10 ** (SILENCE_DB / 10))
    below[FRAMES:] = True
    return below


@dataclass(frozen=True)
class Share:
    """Of a window's attention: what lies on some frames, beside what even attention would have there."""

    even: float
    rollout: float
    gradient: float


@dataclass(frozen=True)
class Shares:
    """Attention on what is not breath."""

    seams: Share
    silence: Share


def times_even(grid: Float64Array) -> Float64Array:
    """A grid that sums to 1, as multiples of what even attention has in each place."""
    return np.asarray(grid * grid.size)


def is_flat(grid: Float64Array) -> bool:
    """Whether a grid points at nothing: everywhere within FLAT of even attention."""
    return bool(np.abs(times_even(grid) - 1.0).max() <= FLAT)


@dataclass(frozen=True)
class Attended:
    """One window, the model's logits, and where its attention lies."""

    window: FloatArray
    """(frames, mels), normalised."""
    logits: FloatArray
    """(classes,)."""
    rollout: Float64Array
    """(rows, columns), an AST's rollout or a MobileNet's moments; sums to 1."""
    gradient: Float64Array
    """The same, of what speaks for the class that was asked."""
    seams: BoolArray
    """(frames,)."""
    silence: BoolArray
    """(frames,)."""

    @property
    def flat(self) -> dict[str, bool]:
        """By the way of reading attention, whether it points at nothing."""
        return {"rollout": is_flat(self.rollout), "gradient": is_flat(self.gradient)}

    @property
    def shares(self) -> Shares:
        """Of this window."""
        count = len(self.window)
        ways = (np.full(count, 1.0 / count), per_frame(self.rollout, count), per_frame(self.gradient, count))
        return Shares(*(Share(*(float(way[frames].sum()) for way in ways)) for frames in (self.seams, self.silence)))


def attend(
    model: Network | Ensemble,
    stretches: Sequence[FloatArray],
    front_end: FrontEnd,
    device: torch.device,
    classes: IntArray | None = None,
) -> list[Attended]:
    """Samples (n <= WINDOW_SAMPLES,) each, with the attention that speaks for `classes`, else for the likeliest.

    The attention of an ensemble is the mean of its members'.
    """
    members: list[Any] = list(model.members) if isinstance(model, Ensemble) else [model]
    found: list[Attended] = []
    at_once = max(1, model.config.windows_at_once // ATTENTION)
    for start in range(0, len(stretches), at_once):
        batch = stretches[start : start + at_once]
        inputs = np.stack([window(samples, front_end) for samples in batch])
        windows = torch.from_numpy(inputs).to(device)
        with torch.no_grad():
            logits = pool_moments(model(windows)).float().cpu().numpy()
        wanted = logits.argmax(axis=1) if classes is None else classes[start : start + at_once]
        looked, spoke = zip(*(evidence_of(member, windows, wanted) for member in members), strict=True)
        found += [
            Attended(*one, on_seam(samples.size, front_end), silent(one[0], front_end))
            for one, samples in zip(
                zip(inputs, logits, np.mean(looked, axis=0), np.mean(spoke, axis=0), strict=True), batch, strict=True
            )
        ]
    return found


def attention_shares(
    model: Network | Ensemble, stretches: Sequence[FloatArray], front_end: FrontEnd, device: torch.device
) -> Shares:
    """The mean over many windows, as the failure signatures read it."""
    return mean_shares([one.shares for one in attend(model, stretches, front_end, device)])


def mean_shares(every: Sequence[Shares]) -> Shares:
    """Entry by entry."""

    def mean(shares: Sequence[Share]) -> Share:
        return Share(*np.mean([[one.even, one.rollout, one.gradient] for one in shares], axis=0).tolist())

    return Shares(mean([one.seams for one in every]), mean([one.silence for one in every]))


@dataclass(frozen=True)
class Explanation:
    """What `trainer explain` prints and draws."""

    file: str
    start_seconds: float
    end_seconds: float
    not_gradable: str
    """Why the device would not judge this stretch; '' if it would."""
    judgement: Judgement
    threshold: float
    attended: Attended
    front_end: FrontEnd
    notes: tuple[str, ...] = ()
    """What is odd about the recording."""

    @property
    def in_words(self) -> str:
        """A few lines."""
        verdict = self.judgement
        lines = [
            f"{self.file} {self.start_seconds:.2f}-{self.end_seconds:.2f} s: {verdict.label}, probability "
            f"{verdict.probability:.3f} (threshold {self.threshold:.3f})"
        ]
        if self.not_gradable:
            lines.append(f"not gradable ({self.not_gradable}): the device would not judge it")
        lines += [
            f"on {place}: {100 * share['rollout']:.1f} % of the attention by rollout, {100 * share['gradient']:.1f} % "
            f"gradient-weighted; even attention would have {100 * share['even']:.1f} % there"
            for place, share in asdict(self.attended.shares).items()
        ]
        lines += [
            f"{name} is flat: nowhere more than {FLAT:.0%} from even attention; it points at nothing"
            for name, flat in zip(("rollout", "gradient-weighted attention"), self.attended.flat.values(), strict=True)
            if flat
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """One object; shares of the attention, 0-1."""
        return {
            "file": self.file,
            "start": round(self.start_seconds, 3),
            "end": round(self.end_seconds, 3),
            "not_gradable": self.not_gradable,
            "class": self.judgement.label,
            "probability": round(self.judgement.probability, 6),
            "threshold": round(self.threshold, 6),
            "attention": {
                place: {way: round(value, 4) for way, value in share.items()}
                for place, share in asdict(self.attended.shares).items()
            },
            "flat": self.attended.flat,
        }


def explain(
    run: Path, file: Path, device: torch.device, quality: QualitySettings, at_seconds: float | None = None
) -> Explanation:
    """The stretch of a recording that the run finds most suspicious, or the one at `at_seconds`, cut as the run cuts.

    Raises ExplainError when there is none, RunError and AudioError for what cannot be read.
    """
    facts = read_facts(run)
    model, choice = load_model(run, facts).to(device), facts.choice
    served = of_run(model, facts, run.name, device)
    recorded = scan(file)
    samples = resample(recorded.samples(), recorded.header.sample_rate)
    session = Session(CachedSource(file.name, samples), served, quality)
    results = [one for one in session.run() if isinstance(one, CycleResult)]
    one = _chosen(results, file, samples.size / SAMPLE_RATE, at_seconds)
    parts = split(one.samples)
    logits = served.logits(np.stack([window(part, facts.front_end) for part in parts]))
    verdicts = [judge(row[None], choice.temperature, choice.cycle_threshold, one.span) for row in logits]
    worst = int(np.argmax([verdict.probability for verdict in verdicts]))
    asked = np.array([LABELS.index(verdicts[worst].label)])
    return Explanation(
        file.name,
        one.start_seconds,
        one.end_seconds,
        one.quality.reason,
        verdicts[worst],
        choice.cycle_threshold,
        attend(model, [parts[worst]], facts.front_end, device, asked)[0],
        facts.front_end,
        tuple(map(str, recorded.remarks)),
    )


def _chosen(results: Sequence[CycleResult], file: Path, seconds: float, at_seconds: float | None) -> CycleResult:
    if at_seconds is not None:
        there = [one for one in results if one.start_seconds <= at_seconds <= one.end_seconds]
        if not there:
            raise ExplainError(
                f"{file}: nothing was cut at {at_seconds:g} s of its {seconds:.1f} s; choose another --at"
            )
        return min(there, key=lambda one: abs(one.start_seconds + one.end_seconds - 2 * at_seconds))
    judged = [(one.judgement.probability, -one.number, one) for one in results if one.judgement is not None]
    if not judged:
        why = ", ".join(sorted({one.quality.reason for one in results})) or "no breath in it"
        raise ExplainError(
            f"{file}: nothing in its {seconds:.1f} s is gradable ({why}); name a place with --at SECONDS"
        )
    return max(judged)[-1]


def draw(explanation: Explanation, out: Path) -> None:
    """Write `picture_of` as PNG or SVG by the name's ending; ExplainError when it cannot be written."""
    if out.suffix not in (".png", ".svg"):
        raise ExplainError(f"{out}: a picture is .png or .svg; name it so")
    picture = BytesIO()
    picture_of(explanation).savefig(picture, format=out.suffix[1:], dpi=130)
    try:
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise ExplainError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def picture_of(explanation: Explanation) -> "Figure":
    """The spectrogram, both attentions over it in colours of one scale for all pictures, seams and silence marked."""
    own_font_list()
    from matplotlib.figure import Figure

    attended, verdict = explanation.attended, explanation.judgement
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(
        f"{explanation.file}\n{explanation.start_seconds:.2f}-{explanation.end_seconds:.2f} s: {verdict.label}, "
        f"probability {verdict.probability:.3f} (threshold {explanation.threshold:.3f})"
    )
    axes = figure.subplots(3, 1, sharex=True)
    seconds = attended.window.shape[0] * HOP_SAMPLES / SAMPLE_RATE
    titles = (
        "log-mel window; dashed: seams of the repetition, grey bars: silence",
        "where the model looks (AST: attention rollout; MobileNet: share of the odds by moment)",
        f"what speaks for '{verdict.label}' (gradient-weighted)",
    )
    overlays = (None, attended.rollout, attended.gradient)
    hertz, shares = zip(*hertz_ticks(explanation.front_end), strict=True)
    for axis, title, overlay in zip(axes, titles, overlays, strict=True):
        _draw_window(axis, attended, seconds, overlay)
        axis.set_title(title + ": flat" * (overlay is not None and is_flat(overlay)), loc="left", fontsize=10)
        # from the centre of the first band to that of the last
        axis.set_yticks([0.5 + share * (explanation.front_end.mels - 1) for share in shares], map(str, hertz))
        axis.set_ylabel("Hz")
    axes[-1].set_xlabel("s of the window")
    axes[-1].set_xlim(0, seconds)
    return figure


def _draw_window(axis: "Axes", attended: Attended, seconds: float, overlay: Float64Array | None) -> None:
    """The log-mel of a window, grey below an overlay, with its seams and its silence."""
    place: Any = {"origin": "lower", "aspect": "auto", "extent": (0.0, seconds, 0.0, float(attended.window.shape[1]))}
    axis.imshow(attended.window.T, cmap="magma" if overlay is None else "gray", **place)
    if overlay is not None:
        times = times_even(overlay)
        share = np.clip(times / SCALE, 0.0, 1.0)
        shown = axis.imshow(times, cmap="inferno", vmin=0.0, vmax=SCALE, alpha=0.25 + 0.6 * share, **place)
        axis.figure.colorbar(shown, ax=axis, label="times even attention", pad=0.01, extend="max")
    frame = HOP_SAMPLES / SAMPLE_RATE
    for first, last in runs(attended.seams):
        axis.axvline((first + last) / 2 * frame, color="cyan", linestyle="--", linewidth=1)
    for first, last in runs(attended.silence):
        axis.axvspan(first * frame, last * frame, 0.94, 1.0, color="lightgrey")


def runs(frames: BoolArray) -> list[tuple[int, int]]:
    """First and one past the last of every stretch of true frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
