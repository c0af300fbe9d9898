"""Judge a stored session again: every result must be identical, bit for bit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device.capture.recording import AudioError
from device.model.classifier import Classifier
from device.model.opening import bundle_of, open_classifier
from device.store.audio import AudioStore
from device.store.database import KEPT, UNSTORED, StoreError
from device.store.sessions import Row, Warn, cycle_span, no_warning, read_session, sound_is_its_own
from device.verdict.site import SiteDecision
from firmware_config.settings import Layer, load_settings

NOT_GRADED, DAMAGED = "not graded", "whose audio is damaged"


@dataclass(frozen=True)
class ReplayDifference:
    """A result that differs: that of a cycle, or with number None that of the site."""

    number: int | None
    stored: tuple[float | None, str | None]
    """Probability, and class or verdict."""
    replayed: tuple[float | None, str | None]

    def __str__(self) -> str:
        what = "site" if self.number is None else f"cycle {self.number}"
        stored, replayed = (f"{probability!r} {word}" for probability, word in (self.stored, self.replayed))
        return f"{what} differs: stored {stored}, replayed {replayed}"


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    session: int
    demo: bool
    bundle: str
    other_bundle: bool
    """Whether another bundle than the session's was used, by `anyway`."""
    replayed: int
    identical: int
    """Cycles with identical probability and class."""
    differing: tuple[ReplayDifference, ...]
    left_out: dict[str, tuple[int, ...]]
    """Reasons why cycles could not be compared, with the cycles' numbers."""
    verdict: str | None
    """The site's verdict, decided again; None if cycles are missing or the session had no verdict."""

    @property
    def exact(self) -> bool:
        """Whether all stored results are identical."""
        return not self.differing and DAMAGED not in self.left_out

    def as_json(self) -> dict[str, Any]:
        """The object of `replay --json`."""
        return {"type": "replay", **asdict(self), "exact": self.exact}

    def lines(self) -> list[str]:
        """The lines of `replay`."""
        other = f"; COMPARED WITH ANOTHER BUNDLE ({self.bundle[:12]})" if self.other_bundle else ""
        lines = [f"session {self.session}: {self.identical} of {self.replayed} replayed cycles identical{other}"]
        lines += [f"  {difference}" for difference in self.differing]
        lines += [f"  {len(which)} cycles {why}: {', '.join(map(str, which))}" for why, which in self.left_out.items()]
        lines.append(f"verdict: {self.verdict or 'not decided again, as cycles or the end are missing'}")
        return [f"DEMO {line}" if self.demo else line for line in lines]


def replay(
    file: Path,
    number: int,
    bundle: Path | None = None,
    *,
    anyway: bool = False,
    warn: Warn = no_warning,
    key: bytes | None = None,
) -> Replay:
    """Judge a session's stored audio again, one cycle at a time, with its own settings; nothing is written.

    Probabilities, classes and the site's verdict must be equal, without a tolerance. Raises StoreError when no audio
    is stored or `key` does not open it, and when the bundle is not the session's, unless `anyway`.
    """
    session = read_session(file, number, warn)
    if not session["cycles"]:
        raise StoreError(f"{file}: session {number} ended before its first cycle; there is nothing to replay")
    if not sound_is_its_own(file, number):
        raise StoreError(f"{AudioStore(file).folder / str(number)}: the sound of another session, not of this {number}")
    if all(cycle["audio"] != KEPT for cycle in session["cycles"]):
        raise StoreError(f"{file}: no audio of session {number} is stored; set store.audio before listening")
    classifier = own_classifier(number, session["settings"], session["bundle"], bundle)
    other = classifier.fingerprint != session["bundle"]
    if other and not anyway:
        raise StoreError(
            f"{classifier.bundle.path}: is bundle {classifier.fingerprint}, session {number} needs "
            f"{session['bundle']} ({session['bundle_name']}); give that one with --bundle, or compare with --anyway"
        )
    rule = classifier.site_rule
    if session["calibration"] and not other:
        rule = rule.model_copy(update={"threshold": session["site_threshold"]})
    audio, decision, replayed = AudioStore(file, key=key), SiteDecision(rule), 0
    differing: list[ReplayDifference] = []
    left_out: dict[str, tuple[int, ...]] = {}
    for cycle in session["cycles"]:
        why, at = _unreplayable(cycle, audio), cycle["number"]
        if cycle["probability"] is None:
            decision.refuse(cycle["reason"])
        elif not why:
            try:
                judgement = classifier.judge(audio.read(number, at), cycle_span(cycle))
            except AudioError:
                why = DAMAGED
            else:
                replayed += 1
                decision.add(judgement)
                stored, answer = (cycle["probability"], cycle["class"]), (judgement.probability, judgement.label)
                differing += [ReplayDifference(at, stored, answer)] * (stored != answer)
        if why:
            left_out[why] = (*left_out.get(why, ()), at)
    identical, verdict = replayed - len(differing), None
    unstored = any(entry["kind"] == UNSTORED for entry in session["timeline"])
    # before schema 3 another rule decided about sites
    decided = session["verdict"] and session["stretches"] is not None
    if decided and not unstored and not left_out.keys() - {NOT_GRADED}:
        decision.end()
        verdict = decision.verdict
        before, now = (session["probability"], session["verdict"]), (decision.probability, verdict)
        differing += [ReplayDifference(None, before, now)] * (before != now)
    return Replay(
        number,
        session["demo"],
        classifier.fingerprint,
        other,
        replayed,
        identical,
        tuple(differing),
        left_out,
        verdict,
    )


def own_classifier(
    number: int, settings: Row, fingerprint: str, bundle: Path | None = None, *, on_cpu: bool = False
) -> Classifier:
    """The model of a session by its own settings: `bundle`, else the one here with its fingerprint, else another.

    `on_cpu` takes one thread of the CPU whatever the settings say. Raises BundleError, TrustError and SettingsError.
    """
    # settings that are newer than the session have their defaults
    own = load_settings(environment={}, layers=[Layer(f"session {number}", settings)]).bundle
    found = bundle or bundle_of(own, fingerprint)
    changes: Row = {} if found is None else {"path": str(found)}
    if on_cpu:
        changes |= {"engine": "cpu", "threads": 1, "precision": "auto" if own.engine == "tensorrt" else own.precision}
    return open_classifier(own.model_copy(update=changes))


def _unreplayable(cycle: Row, audio: AudioStore) -> str:
    """Why a cycle cannot be compared; '' if it can."""
    if cycle["probability"] is None:
        return NOT_GRADED
    if not cycle["audio"]:
        return "whose audio was never kept"
    gone = cycle["audio"] != KEPT or not audio.path(cycle["session"], cycle["number"]).is_file()
    return "whose audio is gone" if gone else ""
