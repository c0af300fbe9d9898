"""The guided work of the settings page: a calibration on healthy colleagues, or the self-test, step by step.

It lives in the process that serves the pages; the session's process listens for it. `device.healthy` and
`device.capture.stethoscope` have the steps, as for the terminal's commands; they take 50 MB and are loaded on demand.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from device.bundle import SiteRule
from device.console.checkup import CheckError, check
from device.console.line import Message
from device.signal import FloatArray
from device.verdict.summary import Summary
from firmware_config.command_line import one_line
from firmware_config.errors import RespSAMError
from firmware_config.passports import PassportError, PassportFile, new_file, recognise
from firmware_config.settings import Settings

if TYPE_CHECKING:
    from device.capture.stethoscope import SelfTest
    from device.console.hub import Hub
    from device.healthy import Colleagues, Proposal

REFUSED: Final = "that is not possible now: "
SIMULATED: Final = (
    "this console plays no microphone; start it without --source to measure or to calibrate a stethoscope"
)
SILENT: Final = "listening has not begun yet; press Listen on the live page"
LEFT: Final = "it was left, because somebody began to listen; begin again"


class OrderError(RespSAMError):
    """An order that does not fit what is running."""


class Guide:
    """One work at a time for all browsers: a browser that closes leaves it as it is, and another one goes on."""

    def __init__(self, hub: "Hub", settings: Settings, rule: SiteRule) -> None:
        """`rule` is the bundle's own, without a calibration."""
        self._hub, self._settings, self._rule = hub, settings, rule
        self._colleagues: Colleagues | None = None
        self._self_test: SelfTest | None = None
        self._proposal: Proposal | None = None
        self._result: Message | None = None  # of the self-test
        self._seconds = self._recorded_seconds = self._until = 0.0
        self._order = 0  # of the recording that runs
        self._known: PassportFile | None = None
        self._unknown = SILENT
        self._check: Message | None = None
        self._checking: asyncio.Task[None] | None = None
        self._check_listens = False
        self.note = self.error = ""

    # what is known

    def look(self) -> None:
        """Recognise the stethoscope of the running or the last session."""
        self._known, self._unknown = None, SIMULATED if self._hub.session else SILENT
        if self._input is not None:
            self._unknown = ""
            try:
                self._known = recognise(self._input, self._settings.audio.passport)
            except RespSAMError as error:
                self._unknown = str(error)

    @property
    def _input(self) -> str | None:
        """The microphone's name, empty until it opens; None without a microphone."""
        session = self._hub.session
        return None if session is None else session["input"]

    @property
    def active(self) -> bool:
        """Whether a calibration or a self-test has begun."""
        return self._colleagues is not None or self._self_test is not None

    def state(self) -> Message:
        """For the pages."""
        left = max(0.0, self._until - time.monotonic()) if self._order else None
        return {
            "stethoscope": self._stethoscope(),
            "calibration": self._calibration_state(),
            "self_test": self._self_test_state(),
            "recording": bool(self._order),
            "seconds_left": left,
            "note": self.note,
            "error": self.error,
            "check": self._check,
            "checking": self._checking is not None,
        }

    def _stethoscope(self) -> Message:
        found = self._known
        state: Message = {"input": self._input, "problem": self._unknown, "passport": None}
        if found is None:
            return state
        passport, fingerprint = found.passport, self._hub.model["fingerprint"]
        in_force = passport.calibration(fingerprint)
        usable = in_force is not None and in_force.bundle_threshold == self._rule.threshold
        return {
            **state,
            "passport": {
                "name": passport.name,
                "key": found.key,
                # a second passport would match this stethoscope as well as the first one does
                "measured_as": _name_for(found) if found.own else "",
                "connection": passport.connection.text,
                "measured": None if passport.measured is None else passport.measured.model_dump(),
                "calibrations": [
                    {**one.model_dump(), "this_bundle": one.bundle == fingerprint} for one in passport.calibrations
                ],
                "in_force": in_force.name if in_force is not None and usable else "",
                "undo": "" if in_force is None else in_force.name,
            },
        }

    def _calibration_state(self) -> Message | None:
        made = self._colleagues
        if made is None:
            return None
        people, waiting = made.draft.people, made.waiting
        persons = list(dict.fromkeys(person for person, _ in made.asked))
        sites = list(dict.fromkeys(site for _, site in made.asked))
        return {
            "persons": persons,
            "sites": sites,
            "breaths": {person: {site: one.breaths for site, one in found.items()} for person, found in people.items()},
            "next": waiting[0] if waiting else None,
            "seconds": self._seconds,
            "sensitivity_floor": made.sensitivity_floor,
            "proposal": None if self._proposal is None else self._proposal.as_json(),
        }

    def _self_test_state(self) -> Message | None:
        test = self._self_test
        if test is None:
            return None
        return {
            "name": test.name,
            "file": str(test.file),
            "steps": [{"what": step.what, "seconds": step.share * self._seconds} for step in test.steps],
            "facts": test.facts,
            "result": self._result,
        }

    # orders of the browsers

    def begin_calibration(self, people: int, sites: Sequence[str], seconds: float, restart: bool) -> None:
        """Begin a calibration, or go on with an interrupted one; a running session ends."""
        from device.healthy import Colleagues, Uncalibrated

        self._check_free()
        self.look()
        if self._known is None:
            reason = self._unknown or "this stethoscope has no passport; make one with the self-test first"
            raise OrderError(f"{REFUSED}{reason}")
        base = Uncalibrated(self._hub.model["fingerprint"], self._rule, self._hub.manifest.calibration)
        made = Colleagues(self._known, base, people, sites, restart=restart)
        self._begin(seconds)
        self._colleagues = made
        if there := len(made.asked) - len(made.waiting):
            self.note = f"{there} of {len(made.asked)} sites are there already: an interrupted calibration goes on"

    def begin_self_test(self, name: str, seconds: float, replace: bool) -> None:
        """Begin the self-test of a stethoscope for a new passport, or for the one of this name with `replace`."""
        from device.capture.stethoscope import SelfTest

        self._check_free()
        self.look()
        if self._input is None:
            raise OrderError(f"{REFUSED}{self._unknown}")
        test, known = SelfTest(name, replace=replace), self._known
        if known is not None and known.own and known.file != test.file:
            # two passports that match equally well would stop the next session
            raise OrderError(f"{REFUSED}this stethoscope has the passport {known.key}; measure it again as that one")
        self._begin(seconds)
        self._self_test = test

    def _check_free(self) -> None:
        self._hub.check_no_exam()
        if self.active:
            raise OrderError(f"{REFUSED}somebody has begun already; go on with that, or leave it")
        self._check_not_listening()

    def _check_not_listening(self) -> None:
        if self._check_listens:
            raise OrderError(f"{REFUSED}the check of the box listens to the microphone; wait some seconds")

    def _begin(self, seconds: float) -> None:
        self._seconds, self.note, self.error = seconds, "", ""
        self._proposal = self._result = None
        self._hub.give("stop")

    def record(self) -> None:
        """Listen at the next site, or record the next step."""
        if self._order:
            raise OrderError(f"{REFUSED}it records already")
        self._check_not_listening()
        if self._colleagues is not None and self._colleagues.waiting:
            do, seconds, key = "calibrate", self._seconds, self._colleagues.passport.key
        elif self._self_test is not None and self._self_test.step is not None:
            do, seconds, key = "record", self._self_test.step.share * self._seconds, ""
        else:
            raise OrderError(f"{REFUSED}there is nothing left to record")
        self.note = self.error = ""
        self._proposal = None
        self._recorded_seconds, self._until = seconds, time.monotonic() + seconds
        self._order = self._hub.give(do, seconds=seconds, passport=key)

    def propose(self) -> None:
        """Compute what the calibration would change; CalibrationError when these people cannot give one."""
        if self._colleagues is None or self._order:
            raise OrderError(f"{REFUSED}no calibration waits for its result")
        self.note = self.error = ""
        self._proposal = self._colleagues.propose()

    def save(self) -> None:
        """Write the passport with the calibration, or with what the self-test measured; FileError if that fails."""
        if self._colleagues is not None and self._proposal is not None:
            self._colleagues.save(self._proposal)
            self.note = f"calibration {self._proposal.calibration.name} is saved; every later session is under it"
        elif self._self_test is not None and self._self_test.step is None:
            measured = self._self_test.save()
            self.note = f"the passport of {self._self_test.name} is saved: {measured}"
        else:
            raise OrderError(f"{REFUSED}there is nothing to save")
        self._end()

    def forget(self, person: str) -> None:
        """Record one colleague again."""
        if self._colleagues is None or self._order:
            raise OrderError(f"{REFUSED}no calibration waits")
        self._colleagues.draft.forget(person)
        self._proposal, self.error = None, ""

    def discard(self) -> None:
        """Write nothing and forget everything so far."""
        if self._colleagues is not None:
            self._colleagues.draft.discard()
        self._leave("discarded; nothing is changed")

    def leave(self) -> None:
        """Leave it for later: a calibration goes on where it was."""
        kept = "the sites so far are kept; begin the calibration again to go on"
        self._leave(kept if self._colleagues is not None else "the self-test is left; nothing is changed")

    def _leave(self, note: str) -> None:
        if not self.active:
            raise OrderError(f"{REFUSED}nothing has begun")
        if self._order:
            self._hub.give("stop")
        self._end()
        self.note, self.error = note, ""

    def _end(self) -> None:
        self._colleagues = self._self_test = self._proposal = None
        self._order = 0
        self.look()

    def undo(self, name: str) -> None:
        """Remove the calibration of this name, which must be the last one. FileError if that fails."""
        from device.healthy import undo_calibration

        self._hub.check_no_exam()
        self.look()
        fingerprint = self._hub.model["fingerprint"]
        last = None if self._known is None else self._known.passport.calibration(fingerprint)
        if self._known is None or last is None or last.name != name or self.active:
            raise OrderError(f"{REFUSED}{name} is not the last calibration of this stethoscope, or one is being made")
        _, now = undo_calibration(self._known, fingerprint)
        self.note = f"{name} is removed; from the next session on: {now.name if now else 'the threshold of the bundle'}"
        self.error = ""
        self.look()

    def begin_check(self) -> None:
        """Let `doctor` check the box; not the microphone while a session listens to it."""
        if self._checking is not None:
            raise OrderError(f"{REFUSED}it is being checked already")
        self._check_listens = not (self._hub.running and self._input is not None)
        self._checking = asyncio.create_task(self._check_box(self._check_listens))

    async def _check_box(self, microphone: bool) -> None:
        findings, error = list[dict[str, Any]](), ""
        try:
            async for finding in check(self._settings, microphone):
                findings.append(finding)
                # the microphone comes first
                self._check_listens &= finding["check"] != "permissions"
                self._check = {"at": time.time(), "microphone": microphone, "findings": findings, "error": ""}
                self._hub.send_state()
        except (CheckError, OSError, ValueError) as failure:
            error = one_line(str(failure))
        finally:
            self._checking, self._check_listens = None, False
        self._check = {"at": time.time(), "microphone": microphone, "findings": findings, "error": error}
        self._hub.send_state()

    # what happens

    def step_aside(self) -> None:
        """Patients come first: somebody wants to listen. OrderError while it records."""
        self._check_not_listening()
        if self._order:
            raise OrderError(f"{REFUSED}the settings page records at this moment; wait, or stop it there")
        if self.active:
            self._leave(LEFT)

    def began(self, order: int) -> None:
        """A session has begun: the microphone is open."""
        self.look()
        if order == self._order:
            self._until = time.monotonic() + self._recorded_seconds

    def ended(self, order: int, summary: Summary | None, error: str) -> None:
        """A session has ended, with its summary or an error."""
        if not self._order or order != self._order:
            return
        self._order, made = 0, self._colleagues
        if error or made is None or summary is None:
            self.error = error or "it was stopped; listen again"
            return
        if self._known is None or self._known.key != made.passport.key:
            self.error = f"this is not the stethoscope that is calibrated ({made.passport.key}); plug that one in"
            return
        person, site = made.waiting[0]
        try:
            if not made.take(summary):
                why = "; ".join(summary.reasons) or summary.verdict
                self.error = f"{person}, {site}: no verdict ({why}); listen again"
        except RespSAMError as failure:
            self.error = str(failure)

    def recorded(self, order: int, samples: FloatArray) -> None:
        """A step of the self-test was recorded; empty when it was stopped."""
        if not self._order or order != self._order or self._self_test is None:
            return
        self._order = 0
        session = self._hub.session
        try:
            if session is not None and self._self_test.device not in ("", session["source"]):
                self.error = f"this is not {self._self_test.device}; plug it in and record this step again"
            elif samples.size and session is not None:
                self._self_test.add(session["source"], samples)
                self._finish_self_test(self._self_test)
            else:
                self.error = "it was stopped; record this step again"
        except RespSAMError as failure:
            self.error = str(failure)

    def _finish_self_test(self, test: "SelfTest") -> None:
        if test.step is None:
            made = test.passport()
            facts = made.model_dump(include={"name", "match", "measured", "gain_db"})
            self._result = {"passport": facts, "drift": test.drift()}


def _name_for(found: PassportFile) -> str:
    """The name under which a stethoscope is measured again into the same file."""
    name = found.passport.name
    try:
        return name if new_file(name, replace=True) == found.file else found.key
    except PassportError:  # a name of other letters, in a file that was written by hand
        return found.key
