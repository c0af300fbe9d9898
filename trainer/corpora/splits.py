"""Patients for training and held-out patients; no patient is on both sides."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from firmware_config.errors import RespSAMError
from trainer.choices import HoldOut
from trainer.corpora.cycle import Corpus, Recording

Fold = tuple[Corpus, Corpus]
"""(training, held out)."""


class SplitError(RespSAMError):
    """A corpus that cannot be divided as asked, or a patient on both sides."""


FAMILIES: Final = {
    "littmann 3200": "Littmann 3200",
    "litt3200": "Littmann 3200",
    "littc2se": "Littmann Classic II SE",
    "littmann classic ii": "Littmann Classic II SE",
    "meditron": "Meditron",
    "akgc417l": "AKG C417L",
    "akg c417l": "AKG C417L",
    "yunting": "Yunting II",
}
"""A part of a stethoscope's name, and its family; corpora have several names for one stethoscope."""


def family(device: str) -> str:
    """The stethoscope behind a corpus's name for it, without its filter; an unknown name as it is."""
    return next((known for part, known in FAMILIES.items() if part in device.casefold()), device)


def maker(device: str) -> str:
    """As `family`, with all Littmanns as one."""
    return "Littmann" if "litt" in device.casefold() else family(device)


GROUPINGS: dict[str, Callable[[str], str]] = {"device": family, "maker": maker}


def families_of(corpus: Corpus, hold_out: HoldOut) -> list[str]:
    """What `hold_out` leaves out in turn of a corpus, by name."""
    return sorted({GROUPINGS[hold_out](recording.device) for recording in corpus.recordings})


def folds_of(corpus: Corpus, hold_out: HoldOut, count: int, seed: int) -> list[Fold]:
    """`patient_folds`, or one fold a family of stethoscopes with `device_folds`."""
    if hold_out == "patients":
        return patient_folds(corpus, count, seed)
    return device_folds(corpus, GROUPINGS[hold_out])


def patient_folds(corpus: Corpus, count: int, seed: int) -> list[Fold]:
    """`count` ways of holding patients out: (training, held out), no patient in both, each held out once.

    Stratified by corpus, class and device: a fold with only eighteen wheezes chose a threshold that missed wheezes.
    Raises SplitError when a side would lack normal or abnormal cycles.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    # a recording without cycles still has a patient
    rows = [
        (f"{recording.corpus} {label} {recording.device}", recording.patient)
        for recording in corpus.recordings
        for label in ([str(cycle.label) for cycle in recording.cycles] or ["none"])
    ]
    strata, patients = [stratum for stratum, _ in rows], np.array([patient for _, patient in rows])
    few = SplitError(
        f"{corpus.where}: too few patients ({len(corpus.patients)}) for {count} patient-wise folds: one side would "
        "lack normal or abnormal cycles; add patients or lower the recipe's folds"
    )
    folds = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class rarer than the folds: 'both' often is
            divided = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(strata, strata, patients))
    except ValueError as error:
        raise few from error
    for _, rows_held in divided:
        held = set(patients[rows_held].tolist())
        sides = only_patients(corpus, set(corpus.patients) - held), only_patients(corpus, held)
        if not all(_both_kinds(side) for side in sides):
            raise few
        folds.append(sides)
    return folds


def device_folds(corpus: Corpus, devices: Callable[[str], str] = family) -> list[Fold]:
    """Each family of stethoscopes held out in turn, in order of name.

    What its patients recorded with others does not train. `devices` names the family of a device. A family is passed
    over where a side would lack normal or abnormal cycles.
    Raises SplitError for a corpus of one family, or when none can be held out.
    """
    families = sorted({devices(recording.device) for recording in corpus.recordings})
    if len(families) < 2:
        raise SplitError(f"{corpus.where}: one device only ({families[0]}); hold patients out instead")
    folds = []
    for name in families:
        held = [recording for recording in corpus.recordings if devices(recording.device) == name]
        patients = {recording.patient for recording in held}
        training = [recording for recording in corpus.recordings if recording.patient not in patients]
        sides = _only(corpus, training), _only(corpus, held)
        if all(_both_kinds(side) for side in sides):
            folds.append(sides)
    if not folds:
        raise SplitError(
            f"{corpus.where}: without {families[0]} one side would lack normal or abnormal cycles, and so with every "
            "other device; hold patients out instead"
        )
    return folds


def refuse_shared_patients(training: Sequence[str], read: Sequence[str], where: str) -> None:
    """SplitError naming the patients that are on both sides."""
    both = sorted(set(training) & set(read))
    if both:
        shown = ", ".join(both[:3]) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
        raise SplitError(f"{where}: {len(both)} patients are in training and in what is read ({shown})")


def refuse_one_kind(corpus: Corpus) -> None:
    """SplitError unless the corpus has normal and abnormal cycles."""
    kinds = " or ".join(sorted({cycle.label for cycle in corpus.cycles}))
    if not _both_kinds(corpus):
        holds = f"every cycle is {kinds}" if kinds else "no cycle is annotated"
        raise SplitError(
            f"{corpus.where}: {holds}; learning takes normal and abnormal ones, choose another --data or --part"
        )


def only_patients(corpus: Corpus, patients: set[str]) -> Corpus:
    """The recordings of some patients."""
    return _only(corpus, [recording for recording in corpus.recordings if recording.patient in patients])


def _only(corpus: Corpus, recordings: Sequence[Recording]) -> Corpus:
    return dataclasses.replace(corpus, recordings=tuple(recordings), notes=())


def _both_kinds(corpus: Corpus) -> bool:
    return len({cycle.label != "normal" for cycle in corpus.cycles}) == 2
