"""What systemd learns of a session that it supervises (sd_notify(3)): ready, alive, a status in words, stopping.

The watchdog is fed by the sound's way through the program, not by a timer: it is fed after a block, so a stuck model,
store or view starves it. An absent microphone does not, because a restart would not plug it in; one that is present and
gives no sound for longer than `RECOVERY_SECONDS` does.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

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


class Supervisor:
    """Reports to the socket that the environment names; does nothing without one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get(SERVICE, "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # systemd asks for twice the pace that it needs
        self._pause = int(microseconds) / 4e6 if ours and microseconds.isdecimal() else STATUS_SECONDS
        self._next = 0.0

    def idle(self) -> None:
        """Feed the watchdog between two sessions, when somebody waits for orders and is not stuck."""
        if self._due():
            self._send("WATCHDOG=1", "STATUS=not listening: stopped in the console")

    def _due(self) -> bool:
        due = (now := clock()) >= self._next
        self._next = now + self._pause if due else self._next
        return due

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

    def __init__(self, session: Session, environment: Mapping[str, str] = os.environ, *, last: bool = True) -> None:
        """`last`: the program ends with this session."""
        super().__init__(environment)
        self.session, self._last, self._trouble = session, last, ""
        if self._address:
            session.after_block = self.feed

    def __enter__(self) -> "SupervisorView":
        self._send("READY=1", f"STATUS={self.status()}")
        return self

    def show(self, item: CycleResult | Entry) -> None:
        """Say at once that the microphone is lost or back, and that the last session ends."""
        if isinstance(item, CycleResult) or item.kind not in ("lost", "back", "end"):
            return
        self._trouble = one_line(item.note) if item.kind == "lost" else ""
        if item.kind == "end" and self._last and not self.session.hands_over:
            self._send("STOPPING=1", f"STATUS={one_line(item.note)}")
        else:
            self._send(f"STATUS={self.status()}")

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Nothing: systemd learns of no verdict."""

    def feed(self) -> None:
        """Feed the watchdog, unless a microphone that is present has been silent for too long."""
        if not self._due():
            return
        alive = self._silent_seconds <= RECOVERY_SECONDS
        self._send(*["WATCHDOG=1"] * alive, f"STATUS={self.status()}")

    def status(self) -> str:
        """What `systemctl status` shows; nothing of the patient."""
        if (silent := self._silent_seconds) > RECOVERY_SECONDS:
            return f"the microphone has given no sound for {silent:.0f} s: {self._trouble or 'restart'}"
        source = self.session.source.name or "a microphone"
        return self._trouble or f"listening to {source}, {counted(self.session.cycles, 'breath')}"

    @property
    def _silent_seconds(self) -> float:
        source = self.session.source
        return source.silent_seconds if isinstance(source, MicrophoneSource) else 0.0
