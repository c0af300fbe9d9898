"""The known failures of a run, recognised in its numbers and named with a remedy.

Each function takes plain numbers and returns a Signature, or None where the failure does not show or a number is
unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from scipy.special import logit

from device.labels import LABELS
from trainer.metrics import FEW_PATIENTS, Float64Array, IntArray, too_few
from trainer.report.explain import Share

# AST fine-tuned on ICBHI with neither weighted sampling nor SAM: Sp 77.1, Se 42.0 (Bae et al. 2023, arXiv 2305.14032)
LOW_SENSITIVITY: Final = 0.5
HIGH_SPECIFICITY: Final = 0.75
LEAST_EPOCHS: Final = 4  # fewer points are no curve
LEAST_RISES: Final = 2  # one bump is no oscillation
CLIMBED_BACK: Final = 0.5  # of what the loss gained in all; the noise of a plateau is far less, a random walk is more
RISEN: Final = 1.15  # held-out loss over its lowest; label smoothing and calibration alone move it by a few per cent
STILL_FALLING: Final = 0.95  # training loss over what it was there
# Both: even attention on seams is about one per cent, where twice as much may be chance; on padding it may be half
TIMES_EVEN: Final = 1.5
MORE_THAN_EVEN: Final = 0.03
AT_THRESHOLD: Final = 0.04  # log-odds; 0.01 of a probability of 0.5
TINY: Final = 1e-9  # probabilities nearer to 0 or 1 have no log-odds that mean anything
CLUSTERED: Final = 0.1  # of all scores; of the default model's, one in a hundred lies so near


@dataclass(frozen=True)
class Signature:
    """One failure that shows."""

    name: str
    fact: str
    """The numbers that show it."""
    remedy: str


def deaf(sensitivity: float, specificity: float, where: str) -> Signature | None:
    """The model calls nearly everything normal."""
    if not (sensitivity < LOW_SENSITIVITY and specificity > HIGH_SPECIFICITY):
        return None
    return Signature(
        "high specificity, low sensitivity",
        f"Se {sensitivity:.3f} at Sp {specificity:.3f} {where}",
        "the rare classes are not learned: balance the draws (data.balance = 'binary' or 'class'), then try "
        "optimizer.rho around the paper's 0.05",
    )


def worse_than_confounder(auroc: float, confounders: Mapping[str, float], where: str) -> Signature | None:
    """A confounder alone separates normal from abnormal better than the model does."""
    better = {name: value for name, value in confounders.items() if value > auroc}
    if not better:
        return None
    return Signature(
        "worse than a confounder alone",
        f"{where}: AUROC {auroc:.3f}, {', '.join(f'{name} alone {value:.3f}' for name, value in better.items())}",
        "train longer or on more patients; a score below that of one number shows no learnt sound. Compare normal and "
        "abnormal examples of the same kind: --protocol windows, live or recordings hides an event's length, a corpus "
        "with both at every age hides the age",
    )


def stopped_early(epochs_done: Sequence[int], planned: int) -> Signature | None:
    """A model did fewer epochs than its schedule has."""
    if not any(done < planned for done in epochs_done):
        return None
    return Signature(
        "stopped early",
        f"{' / '.join(map(str, epochs_done))} of {planned} epochs",
        "go on with --resume and more --minutes; the low learning rates at the end of the schedule gain most",
    )


def few_patients(patients: int, where: str) -> Signature | None:
    """The scores rest on too few patients."""
    if not too_few(patients):
        return None
    fact = f"{where}: {patients} patients, {FEW_PATIENTS} are the least for any claim"
    return Signature("too few patients", fact, "add patients; more recordings of the same patients do not help")


def clustered(probability: Float64Array, threshold: float, where: str) -> Signature | None:
    """The threshold lies in the middle of a cluster of scores: another rounding, another stethoscope turn many."""
    odds = logit(np.clip(np.append(probability, threshold), TINY, 1 - TINY))
    near = float(np.mean(np.abs(odds[:-1] - odds[-1]) <= AT_THRESHOLD)) if len(probability) else 0.0
    if near <= CLUSTERED:
        return None
    return Signature(
        "threshold in a cluster of scores",
        f"{near:.0%} of the probabilities {where} lie within {AT_THRESHOLD:g} log-odds of their threshold, "
        f"{threshold:.3f}",
        "train further, until normal and abnormal scores separate; until then a small change of the sound or of the "
        "rounding (int8) changes many calls",
    )


def never_named(matrix: IntArray, where: str) -> Signature | None:
    """A class of the truth (rows) that no prediction (columns) has."""
    absent = [name for row, name in enumerate(LABELS) if matrix[row].sum() and not matrix[:, row].sum()]
    if not absent:
        return None
    counts = ", ".join(f"{matrix[LABELS.index(name)].sum()} are {name}" for name in absent)
    return Signature(
        f"never named: {', '.join(absent)}",
        f"{where}: {counts}, and none is called so",
        "balance the draws by class (data.balance = 'class'), or report abnormal against normal alone (binary)",
    )


def oscillating(losses: Sequence[float], model: str) -> Signature | None:
    """Training loss by epoch climbs back again and again."""
    rises = [after - before for before, after in pairwise(losses) if after > before]
    gained = losses[0] - min(losses) if losses else 0.0
    if len(losses) < LEAST_EPOCHS or len(rises) < LEAST_RISES or sum(rises) <= CLIMBED_BACK * gained:
        return None
    return Signature(
        "oscillating loss",
        f"{model}: in {len(losses)} epochs the training loss rose {len(rises)} times, by {sum(rises):.3f} in all, "
        f"and gained {gained:.3f}",
        "lower optimizer.learning_rate, lengthen warmup_epochs, or raise batch x accumulation; with SAM also lower rho",
    )


def sharp_minimum(
    training: Sequence[float], held_out: Sequence[float | None], model: str, keep: Literal["best", "last"] = "best"
) -> Signature | None:
    """Loss of unseen patients rises while that of the training patients falls; by shape, as only one is smoothed."""
    known = [(seen, unseen) for seen, unseen in zip(training, held_out, strict=False) if unseen is not None]
    if len(known) < LEAST_EPOCHS:
        return None
    lowest = min(range(len(known)), key=lambda epoch: known[epoch][1])
    (seen_there, unseen_there), (seen_last, unseen_last) = known[lowest], known[-1]
    if not (unseen_last > RISEN * unseen_there and seen_last < STILL_FALLING * seen_there):
        return None
    return Signature(
        "good training, poor validation (a sharp minimum)",
        f"{model}: after epoch {lowest + 1} the training loss fell from {seen_there:.3f} to {seen_last:.3f}, the "
        f"held-out loss rose from {unseen_there:.3f} to {unseen_last:.3f}",
        "raise optimizer.rho (SAM looks for flat minima), dropout or augmentation, or train fewer epochs; the kept "
        + ("weights are the best epoch's, not the last's" if keep == "best" else "weights are the last epoch's"),
    )


def attention_on(place: str, share: Share) -> Signature | None:
    """Much more attention on `place` ('seams' or 'silence') than even attention would put there, in both readings."""
    least = min(share.rollout, share.gradient)
    if not (least > TIMES_EVEN * share.even and least > share.even + MORE_THAN_EVEN):
        return None
    remedies = {
        "seams": "use front_end.seam = 'crossfade' and augmentation.cyclic_shift, so that a seam tells nothing",
        "silence": "crop closer to the breath (data.crop_seconds), use padding = 'cyclic' instead of zeros, or lay "
        "background under the crops (augmentation.background_share)",
    }
    return Signature(
        f"attention on {place}",
        f"{100 * share.rollout:.1f} % of the attention by rollout, {100 * share.gradient:.1f} % gradient-weighted; "
        f"even attention would have {100 * share.even:.1f} % there",
        remedies[place],
    )
