"""What the pages know: the running session and the exam, kept for browsers that come later, and sent to all of them."""

import asyncio
import base64
import json
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from device.breath.quality import level_dbfs
from device.bundle import Manifest
from device.console.chest import SITES, plans_as_json
from device.console.guide import REFUSED, Guide, OrderError
from device.console.line import RECORDED, SOUND, Message, unpacked_sound
from device.console.picture import COLUMNS_PER_SECOND, Stream, outline, palette, png
from device.console.visit import ADVANCE_SECONDS, Visit
from device.signal import FloatArray, hertz_ticks
from device.store.database import StoreError
from device.store.exams import Exams, checked_subject
from device.verdict.circumstances import Circumstances
from device.verdict.population import Subject, not_validated
from device.verdict.summary import Summary

KEPT_SECONDS: Final = 40  # of the picture, for browsers that come later and for the evidence
MOST_CYCLES: Final = 40  # that a browser gets when it comes
MOST_ENTRIES: Final = 20
MOST_WAITING: Final = 300  # messages for one browser; one that reads more slowly gets a fresh state instead


class Client:
    """One browser; what it does not read in time is dropped, and it then gets the whole state anew."""

    def __init__(self, role: str, sound: bool) -> None:
        self.role, self.sound = role, sound
        self.waiting: asyncio.Queue[str | bytes] = asyncio.Queue(MOST_WAITING)
        self.behind = False

    def put(self, message: str | bytes) -> None:
        """Queue a message; returns at once."""
        try:
            self.waiting.put_nowait(message)
        except asyncio.QueueFull:
            self.behind = True


class Hub:
    """Runs in one thread, that of the event loop."""

    def __init__(self, manifest: Manifest, model: Message, exams: Exams, order: Callable[[Message], None]) -> None:
        self.manifest, self.model, self.exams, self._order = manifest, model, exams, order
        front_end = manifest.front_end.model_copy(update={"floor": 1.2e-7})  # quiet sound shows, too
        self._stream, self._picture_of = Stream(front_end), front_end
        self._clients: set[Client] = set()
        self._blocks: deque[bytes] = deque(maxlen=KEPT_SECONDS * 10)
        self._columns = np.zeros((KEPT_SECONDS * COLUMNS_PER_SECOND, front_end.mels), np.uint8)
        self._columns_end = 0
        self._number = self._site_order = 0
        self._advancing: asyncio.TimerHandle | None = None
        self.session: Message | None = None
        self.running = False
        self.error = ""
        self._lost: float | None = None
        self.summary: Summary | None = None
        self._cycles: deque[Message] = deque(maxlen=MOST_CYCLES)
        self._entries: deque[Message] = deque(maxlen=MOST_ENTRIES)
        self.visit: Visit | None = None
        self.guide: Guide

    # from the session's process

    def take(self, message: bytes) -> None:
        """Take one message of the session's process."""
        if message[:1] == SOUND:
            self._sound(*unpacked_sound(message))
            return
        if message[:1] == RECORDED:
            self._recorded(*unpacked_sound(message))
            return
        event = json.loads(message)
        kind = event.get("type")
        if kind in ("begin", "cycle", "end", "failed", "timeline", "found"):
            getattr(self, f"_{kind}")(event)

    def _sound(self, start_sample: int, samples: FloatArray) -> None:
        self._lost = None
        first, columns = self._stream.add(start_sample, samples)
        places = (first + np.arange(len(columns))) % len(self._columns)
        self._columns[places] = columns
        self._columns_end = first + len(columns)
        outlined = np.round(np.clip(outline(samples), -1.0, 1.0) * 32767).astype("<i2")
        head = struct.pack("<ddHHf", start_sample, first, len(columns), len(outlined), level_dbfs(samples))
        block = head + outlined.tobytes() + columns.tobytes()
        self._blocks.append(block)
        self._send(block)

    def _begin(self, event: Message) -> None:
        self.session, self.running, self.error = {**event, "began": time.time()}, True, ""
        self.summary = self._lost = None
        self._cycles.clear()
        self._entries.clear()
        self._blocks.clear()
        self._stream, self._columns_end = Stream(self._picture_of), 0
        # a calibration may have changed it
        self.model = {**self.model, "site_threshold": event.get("site_threshold", self.model["site_threshold"])}
        if self.visit is not None and self.visit.listening and event["order"] == self._site_order:
            self.visit.sites[self.visit.listening].threshold = self.model["site_threshold"]
        self.guide.began(event["order"])
        self.send_state()

    def _recorded(self, order: int, samples: FloatArray) -> None:
        self.running = False
        self.guide.recorded(order, samples)
        self.send_state()

    def _found(self, event: Message) -> None:
        self._tell(event)

    def _timeline(self, event: Message) -> None:
        if event["kind"] == "lost" and self._lost is None:
            self._lost = event["seconds"]
        self._entries.append(event)
        self._tell(event)

    def _cycle(self, event: Message) -> None:
        self.summary = _summary(event.pop("summary"))
        self._cycles.append(event)
        self._tell({**event, "summary": self.summary.as_json()})
        visit = self.visit
        if visit is not None and visit.listening and self.session and self.session["order"] == self._site_order:
            visit.add(event, self.summary, self._picture(event))
            if self.summary.stretches and self.running:
                self.running = False  # one stop is enough
                self.give("stop")
            self._send_exam()

    def _end(self, event: Message) -> None:
        self.summary = _summary(event["summary"])
        self._close_session(event["order"])

    def _failed(self, event: Message) -> None:
        self.error = event["error"]
        self._close_session(event["order"])

    def _close_session(self, order: int) -> None:
        self.running = False
        self.guide.ended(order, self.summary, self.error)
        if self.visit is not None and self.visit.listening and order == self._site_order:
            self._end_site()
            if self.visit.finishing:
                self._finish()
            elif self.visit.advance and not self.error and self.visit.next_site:
                self._advancing = asyncio.get_running_loop().call_later(ADVANCE_SECONDS, self._advance)
        self.send_state()

    def _end_site(self) -> None:
        assert self.visit is not None
        began = self.session is not None and self.session["order"] == self._site_order
        self.visit.end(self.summary if began else None, self.session["session"] if self.session and began else None)
        self._save()

    def _picture(self, cycle: Message) -> bytes:
        """PNG of a cycle; empty if its sound is no longer here."""
        first, last = (round(cycle[name] * COLUMNS_PER_SECOND) for name in ("start", "end"))
        if first < self._columns_end - len(self._columns) or last > self._columns_end + 3:
            return b""
        return png(self._columns[np.arange(first, last) % len(self._columns)], scale=2)

    # from the browsers

    def listen(self, age_years: float | None) -> None:
        """Begin a session without an exam."""
        self.check_no_exam()
        self.guide.step_aside()
        self.give("listen", age_years)

    def stop(self) -> None:
        """End the running session."""
        self._cancel_advance()
        self.give("stop")

    def begin_exam(self, subject: str, age_years: float | None, required: tuple[str, ...], advance: bool) -> None:
        """Begin an exam; the first session begins with `begin_site`."""
        self.check_no_exam()
        unknown = [code for code in required if code not in SITES]
        if unknown or not required or len(set(required)) != len(required):
            raise OrderError(f"an exam needs known sites, each once, not {', '.join(unknown or required) or 'none'}")
        subject = checked_subject(subject)
        self.guide.step_aside()
        self.visit = Visit(subject, age_years, required, advance, self.model)
        self.give("stop")
        self.send_state()

    def begin_site(self, code: str) -> None:
        """Listen at a site of the exam."""
        visit = self._running_visit()
        if code not in visit.required:
            raise OrderError(f"{code} is not a site of this exam")
        if visit.listening or visit.finishing:
            raise OrderError(f"{REFUSED}it listens at {visit.listening}; finish that site first")
        self.guide.step_aside()
        self._cancel_advance()
        visit.begin(code)
        self._site_order = self.give("listen", visit.age_years, code, visit.required.index(code))
        self._send_exam()

    def finish_exam(self) -> None:
        """End the exam with what it has."""
        visit = self._running_visit()
        self._cancel_advance()
        visit.finishing = True
        if visit.listening:
            self.give("stop")  # the session's last summary decides, not the one so far
        else:
            self._finish()
        self.send_state()

    def _finish(self) -> None:
        assert self.visit is not None
        self.visit.finished = True
        self._save()

    def doubts(self, age_years: float | None) -> tuple[str, ...]:
        """Why the model is not validated for a patient of this age."""
        return not_validated(self.manifest, Subject(age_years, live=True))

    def check_no_exam(self) -> None:
        """OrderError while an exam runs."""
        if self.visit is not None and not self.visit.finished:
            raise OrderError(f"{REFUSED}an exam is running; finish it first")

    def _running_visit(self) -> Visit:
        if self.visit is None or self.visit.finished:
            raise OrderError(f"{REFUSED}no exam is running")
        return self.visit

    def give(self, do: str, age: float | None = None, site: str | None = None, place: int = 0, **more: Any) -> int:
        """Send an order to the session's process; returns its number."""
        # the clock that all processes share: a console that was started again must not begin at 1
        self._number = max(self._number + 1, time.monotonic_ns() // 1000)
        self._order({"do": do, "number": self._number, "age": age, "site": site, "place": place, **more})
        return self._number

    @property
    def _seconds_to_advance(self) -> float | None:
        timer = self._advancing
        return None if timer is None else timer.when() - asyncio.get_running_loop().time()

    def _advance(self) -> None:
        self._advancing = None
        if self.visit is None or self.visit.finished or self.visit.listening or not self.visit.next_site:
            return
        try:
            self.begin_site(self.visit.next_site)
        except OrderError as error:
            self.error = str(error)
            self.send_state()

    def _cancel_advance(self) -> None:
        if self._advancing is not None:
            self._advancing.cancel()
            self._advancing = None

    def _save(self) -> None:
        visit = self.visit
        assert visit is not None
        if visit.exam.summaries:
            try:
                visit.id = self.exams.save(visit.document())
                if visit.finished:
                    self.exams.send(visit.exam.as_json())
            except StoreError as error:
                self.error = str(error)

    # to the browsers

    def connect(self, client: Client) -> None:
        """A browser comes: it gets the state, the last seconds of the picture, and everything from now on."""
        self._clients.add(client)
        self._refresh(client)

    def disconnect(self, client: Client) -> None:
        """A browser goes."""
        self._clients.discard(client)

    @property
    def clients(self) -> int:
        """How many browsers look."""
        return len(self._clients)

    def state(self) -> Message:
        """Everything but the sound."""
        visit = self.visit
        return {
            "type": "state",
            "session": self.session,
            "running": self.running,
            "error": self.error,
            "summary": None if self.summary is None else self.summary.as_json(),
            "cycles": list(self._cycles),
            "timeline": list(self._entries),
            "exam": None if visit is None else visit.state(),
            "guide": self.guide.state(),
            "lost": self._lost,
            "advance_seconds": self._seconds_to_advance,
            "plans": plans_as_json(),
            "model": self.model,
            "picture": {
                "mels": self._picture_of.mels,
                "ticks": hertz_ticks(self._picture_of),
                "palette": base64.b64encode(palette().tobytes()).decode(),
            },
        }

    def _refresh(self, client: Client) -> None:
        while not client.waiting.empty():
            client.waiting.get_nowait()
        client.behind = False
        client.put(json.dumps({**self.state(), "role": client.role}))
        for block in list(self._blocks)[-(MOST_WAITING - 50) :] * client.sound:
            client.put(block)

    def caught_up(self, client: Client) -> None:
        """The browser reads again after it was too slow."""
        if client.behind:
            self._refresh(client)

    def _send(self, message: str | bytes) -> None:
        for client in self._clients:
            if client.sound or isinstance(message, str):
                client.put(message)

    def _tell(self, event: Message) -> None:
        self._send(json.dumps(event))

    def send_state(self) -> None:
        """Send everything but the sound to every browser."""
        state = self.state()
        for client in self._clients:
            client.put(json.dumps({**state, "role": client.role}))

    def _send_exam(self) -> None:
        assert self.visit is not None
        self._tell({"type": "exam", "exam": self.visit.state()})


def _summary(fields: Message) -> Summary:
    """A summary from its fields; JSON has made lists of its tuples."""
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Summary(**{**values, "circumstances": Circumstances(**values["circumstances"])})
