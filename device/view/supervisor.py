"""What systemd learns of a session that it supervises (sd_notify(3)): ready, alive, a status in words, stopping.

The watchdog is fed by the sound's way through the program, not by a timer: it is fed after a block, so a stuck model,
store or view starves it. An absent microphone does not, because a restart would not plug it in; one that is present and
gives no sound for longer than `RECOVERY_SECONDS` does.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

from device.capture.microphone import MicrophoneSource
from device.capture.process import clock
from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.listening.live import Session
from device.verdict.summary import Summary
from device.view.view import View
from firmware_config.command_line import counted, one_line
from firmware_config.safe_mode import SERVICE

RECOVERY_SECONDS: Final = 20.0  # sound is back within 5 s of a device's return; a slow sound server takes longer
STATUS_SECONDS: Final = 5.0  # between two statuses


class Door(Protocol):
    """A way out for results, which also gets the status."""

    trouble: str
    """Why nothing goes out now; empty while it works."""

    def tell(self, words: str) -> None:
        """Take what the box does now; returns at once."""

    def look(self) -> None:
        """Something new is stored; returns at once."""


class Supervisor:
    """Reports to the socket that the environment names, and to a door; does nothing without both."""

    def __init__(self, environment: Mapping[str, str] = os.environ, door: Door | None = None) -> None:
        self._address, self.door = environment.get(SERVICE, ""), door
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # systemd asks for twice the pace that it needs
        self._pause = int(microseconds) / 4e6 if ours and microseconds.isdecimal() else STATUS_SECONDS
        self._next = 0.0

    def idle(self, doing: str) -> None:
        """Feed the watchdog while no session runs, by somebody who is not stuck; `doing` is the status."""
        if self._due():
            self._send("WATCHDOG=1", f"STATUS={doing}")
            self._tell(doing)

    def stop(self, why: str) -> None:
        """The program ends."""
        self._send("STOPPING=1", f"STATUS={why}")
        self._tell(why)

    def _due(self) -> bool:
        due = (now := clock()) >= self._next
        self._next = now + self._pause if due else self._next
        return due

    def _tell(self, words: str) -> None:
        if self.door is not None:
            self.door.tell(words)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # an address that begins with @ is an abstract one
        address = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)  # a supervisor that does not read must not stop us
            out.sendto("\n".join(lines).encode(), address)


class SupervisorView(Supervisor, View):
    """Reports one session."""

    def __init__(
        self,
        session: Session,
        environment: Mapping[str, str] = os.environ,
        door: Door | None = None,
        *,
        last: bool = True,
    ) -> None:
        """`last`: the program ends with this session."""
        super().__init__(environment, door)
        self.session, self._last, self._trouble = session, last, ""
        if self._address or door:
            session.after_block = self.feed

    def __enter__(self) -> "SupervisorView":
        self._send("READY=1", f"STATUS={self.status()}")
        self._tell(self.doing())
        return self

    def show(self, item: CycleResult | Entry) -> None:
        """Say at once that the microphone is lost or back, and that the last session ends."""
        if self.door is not None:
            self.door.look()
        if isinstance(item, CycleResult) or item.kind not in ("lost", "back", "end"):
            return
        self._trouble = one_line(item.note) if item.kind == "lost" else ""
        if item.kind == "end" and self._last and not self.session.hands_over:
            self.stop(one_line(item.note))
        else:
            self._send(f"STATUS={self.status()}")
            self._tell(self.doing())

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Nothing to systemd, which learns of no verdict; the summary is stored now."""
        if self.door is not None:
            self.door.look()

    def feed(self) -> None:
        """Feed the watchdog, unless a microphone that is present has been silent for too long."""
        if not self._due():
            return
        alive = self._silent_seconds <= RECOVERY_SECONDS
        self._send(*["WATCHDOG=1"] * alive, f"STATUS={self.status()}")
        self._tell(self.doing())

    def status(self) -> str:
        """What `systemctl status` shows; nothing of the patient."""
        door = f"; {self.door.trouble}" if self.door and self.door.trouble else ""
        if (silent := self._silent_seconds) > RECOVERY_SECONDS:
            return f"the microphone has given no sound for {silent:.0f} s: {self._trouble or 'restart'}{door}"
        return (self._trouble or f"{self.doing()}, {counted(self.session.cycles, 'breath')}") + door

    def doing(self) -> str:
        """What the box does, in words that change only with it; nothing of the patient, as a recording's name."""
        if self._silent_seconds > RECOVERY_SECONDS:
            return f"the microphone gives no sound: {self._trouble or 'restart'}"
        source = self.session.source
        name = (source.name or "a microphone") if source.live or source.demo else "a recording"
        mode = "SAFE MODE, " if self.session.circumstances.safe_mode else ""
        return self._trouble or f"{mode}listening to {name}"

    @property
    def _silent_seconds(self) -> float:
        source = self.session.source
        return source.silent_seconds if isinstance(source, MicrophoneSource) else 0.0
