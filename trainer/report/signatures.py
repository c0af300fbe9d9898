"""The method's known ways of failing, recognised in the facts of a run and named with what helps.

Each function takes plain numbers and returns a Signature, or None where it does not show or the facts are unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from trainer.report.explain import Share

# AST fine-tuned on ICBHI with neither weighted sampling nor SAM: Sp 77.1, Se 42.0 (Bae et al. 2023, arXiv 2305.14032)
LOW_SENSITIVITY, HIGH_SPECIFICITY = 0.5, 0.75
LEAST_EPOCHS = 4  # fewer points are no curve
LEAST_RISES = 2  # one bump is no oscillation
CLIMBED_BACK = 0.5  # of what the loss gained in all; the noise of a plateau is far less, a random walk is more
RISEN = 1.15  # held-out loss over its own lowest; label smoothing and calibration alone move it by a few per cent
STILL_FALLING = 0.95  # training loss over what it was there
# Both: even attention on seams is about one per cent, where twice as much may be chance; on padding it may be half
TIMES_EVEN, MORE_THAN_EVEN = 1.5, 0.03


@dataclass(frozen=True)
class Signature:
    """One failure that shows."""

    name: str
    fact: str
    """What was read."""
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


def oscillating(losses: Sequence[float], whose: str) -> Signature | None:
    """Training loss by epoch climbs back again and again."""
    rises = [after - before for before, after in pairwise(losses) if after > before]
    gained = losses[0] - min(losses) if losses else 0.0
    if len(losses) < LEAST_EPOCHS or len(rises) < LEAST_RISES or sum(rises) <= CLIMBED_BACK * gained:
        return None
    return Signature(
        "oscillating loss",
        f"{whose}: in {len(losses)} epochs the training loss rose {len(rises)} times, by {sum(rises):.3f} in all, "
        f"and gained {gained:.3f}",
        "lower optimizer.learning_rate, lengthen warmup_epochs, or raise batch x accumulation; with SAM also lower rho",
    )


def sharp_minimum(
    training: Sequence[float], held_out: Sequence[float | None], whose: str, keep: Literal["best", "last"] = "best"
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
        f"{whose}: after epoch {lowest + 1} the training loss fell from {seen_there:.3f} to {seen_last:.3f}, the "
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
