"""The door to an MQTT 5 broker: a thread sends what waits in the store's outbox, and a retained status with a will.

Listening never waits for it: it only writes to its own store. A message is removed when the broker has acknowledged it.
After a failure a new connection is made and begins with the oldest message, so order is kept, and a message may come
twice (QoS 1). The broker publishes the will when the connection breaks.
"""

import fcntl
import json
import random
import select
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO

from device.store.database import StoreError
from device.store.database_file import Identity, file_identity, make_private, side_file
from device.store.outbox import Outbox
from device.store.sessions import Warn
from device.view.json_lines import dated
from firmware_config.command_line import counted, one_line
from firmware_config.errors import RespSAMError
from firmware_config.settings import OutputSettings, Settings, is_loopback

WINDOW: Final = 16  # messages without an acknowledgement; every broker takes so many
STEP_SECONDS: Final = 0.5  # how late a message may be sent
LOOK_SECONDS: Final = 5.0  # how late one of another process, as of the console's exam
ANSWER_SECONDS: Final = 20.0  # for the broker to accept a connection, or to acknowledge a message
KEEP_ALIVE_SECONDS: Final = 30  # after 1.5 times so long without a sign the broker publishes the last will
PAUSE_SECONDS: Final = (1.0, 300.0)  # between two connections: the first, and the longest
STEADY_SECONDS: Final = 60.0  # a connection that was kept so long begins with the first pause again
PARTING_SECONDS: Final = 2.0  # at the end, for what still waits
VANISHED: Final = "the connection was lost without a goodbye"
REFUSED_FROM: Final = 0x80  # MQTT 5, 2.4: reason codes from here on are failures


class BrokerError(RespSAMError):
    """The broker cannot be reached, refuses this box, or does not answer."""


def _paho_client(settings: OutputSettings, suffix: str) -> Any:
    """A client with TLS and password; BrokerError when a file for them is missing or wrong."""
    try:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise BrokerError("MQTT needs paho-mqtt: pip install 'respsam[mqtt]'") from error
    client = Client(CallbackAPIVersion.VERSION2, f"respsam-{settings.box}{suffix}", protocol=MQTTv5)
    if settings.mqtt_tls:
        client.tls_set_context(_tls(settings))
    elif not is_loopback(settings.mqtt_host):
        raise BrokerError("outputs.mqtt_tls = false is for a broker on this machine alone; set it to true")
    if settings.mqtt_user:
        client.username_pw_set(settings.mqtt_user, _password(settings.file("mqtt_password_file")))
    return client


def _tls(settings: OutputSettings) -> ssl.SSLContext:
    key, file = "mqtt_ca", settings.file("mqtt_ca")
    try:
        context = ssl.create_default_context(cafile=file)
        key, file = "mqtt_certificate", settings.file("mqtt_certificate")
        if file is not None:
            context.load_cert_chain(file, password="")  # without it OpenSSL asks for one
    except OSError as error:  # also ssl.SSLError
        raise BrokerError(f"{file}: no certificate ({error.strerror or error}); check outputs.{key}") from error
    return context


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise BrokerError(f"{file}: cannot be read ({reason}); check outputs.mqtt_password_file") from error


def _in_words(error: OSError) -> str:
    """Why a connection failed, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); check outputs.mqtt_ca and mqtt_host"
    if isinstance(error, ssl.SSLError):
        return f"no TLS ({error.reason or error}); check outputs.mqtt_port and mqtt_tls"
    if isinstance(error, TimeoutError):
        return "no answer; check outputs.mqtt_host, mqtt_port and the network"
    return f"{error.strerror or error}; check outputs.mqtt_host, mqtt_port and the network"


class LostError(BrokerError):
    """A connection that worked has ended; the next one may work."""


class Connection:
    """One connection to the broker, driven by `step`; every failure is a BrokerError."""

    def __init__(self, settings: OutputSettings, suffix: str = "", will: tuple[str, str] | None = None) -> None:
        """Connect; `suffix` makes another client of this box, `will` is a topic and its text."""
        self._client = _paho_client(settings, suffix)
        self._client.on_connect, self._client.on_publish = self._on_connect, self._on_publish
        self._client.on_disconnect = self._on_disconnect
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)
        self.connected, self.window = False, WINDOW
        self.in_flight: dict[int, int] = {}
        """The caller's numbers of messages without an acknowledgement, by those of the protocol."""
        self.acknowledged: list[int] = []
        self._refusal, self._answered_at = "", time.monotonic()
        try:
            self._client.connect(settings.mqtt_host, settings.mqtt_port, KEEP_ALIVE_SECONDS)
        except OSError as error:
            raise BrokerError(_in_words(error)) from error
        except ValueError as error:  # a host's name that no resolver takes
            raise BrokerError(f"{error}; check outputs.mqtt_host") from error

    def step(self, seconds: float) -> None:
        """Send and receive for up to so long."""
        try:
            works = self._move_packets(seconds)
        except OSError as error:
            raise BrokerError(_in_words(error)) from error
        if self._refusal:
            raise BrokerError(self._refusal)
        if not works:
            if self.connected:
                raise LostError("it closed the connection")
            raise BrokerError("it closed the connection before an answer; check user, password and certificate")
        waits = self.in_flight or not self.connected
        if waits and time.monotonic() - self._answered_at > ANSWER_SECONDS:
            raise BrokerError(f"no answer for {ANSWER_SECONDS:.0f} s")

    def _move_packets(self, seconds: float) -> bool:
        """Wait for packets and move them; False at the connection's end.

        paho's own loop opens a port on this machine, which the service may not.
        """
        client = self._client
        if (open_socket := client.socket()) is None:
            return False
        buffered = isinstance(open_socket, ssl.SSLSocket) and open_socket.pending() > 0
        writing = [open_socket] * client.want_write()
        readable, writable, _ = select.select([open_socket], writing, [], 0.0 if buffered else seconds)
        codes = [client.loop_read()] if readable or buffered else []
        codes += [client.loop_write()] if writable else []
        return not any([*codes, client.loop_misc()])

    def publish(self, topic: str, text: str, number: int = 0, retain: bool = False) -> None:
        """Send a message; its number appears in `acknowledged` later."""
        if not self.in_flight:
            self._answered_at = time.monotonic()
        self.in_flight[self._client.publish(topic, text, qos=1, retain=retain).mid] = number

    def close(self, *, goodbye: bool = False) -> None:
        """End it; without a goodbye the broker publishes the last will."""
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.reasoncodes import ReasonCode

        reason = "Normal disconnection" if goodbye else "Disconnect with will message"
        with suppress(OSError):
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, reason))

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"it refuses this box ({reason}); check outputs.mqtt_user and mqtt_password_file"
            return
        self.connected, self._answered_at = True, time.monotonic()
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))

    def _on_publish(self, _client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        self._answered_at = time.monotonic()
        if reason.value >= REFUSED_FROM:
            self._refusal = f"it refuses messages ({reason}); let this box write below its topics"
            return
        self.acknowledged.append(self.in_flight.pop(number, 0))

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server and not self._refusal:
            twice = "; does another box have the same outputs.mqtt_box?" * (str(reason) == "Session taken over")
            self._refusal = f"it ends the connection ({reason}){twice}"


class Sender:
    """Sends from a thread of its own, until closed; of several processes with one store only the first one sends."""

    def __init__(self, settings: Settings, warn: Warn) -> None:
        self._settings, self._store, self._warn = settings.outputs, settings.store, warn
        self._place = f"MQTT: {settings.outputs.mqtt_host}:{settings.outputs.mqtt_port}"
        self._outbox = Outbox(settings.store.file)
        self.trouble = ""
        """Why nothing is sent now; empty while it works."""
        self._said: set[str] = set()
        self._about: dict[str, str | None] = {"words": "starting", "bundle": None, "bundle_name": None}
        self._published: dict[str, str | None] = {}
        self._file: Identity | None = None  # of the store, since this connection or since it is there
        self._sent = 0  # number of the last message of this connection
        self._unsent = -1  # messages that were ever dropped; -1 before they were counted
        self._new, self._ending, self._until = threading.Event(), threading.Event(), 0.0
        self._look_at = 0.0
        self.thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def __enter__(self) -> "Sender":
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._until = time.monotonic() + PARTING_SECONDS
        self._ending.set()
        # nobody waits for a broker that is away
        self.thread.join(PARTING_SECONDS / 10 if self.trouble else 2 * PARTING_SECONDS)

    def use(self, bundle: str, bundle_name: str) -> None:
        """The model in use, for the status."""
        self._about = {**self._about, "bundle": bundle, "bundle_name": bundle_name}

    def tell(self, words: str) -> None:
        """What the box does now, for the status; returns at once."""
        if words != self._about["words"]:
            self._about = {**self._about, "words": words}

    def look(self) -> None:
        """Something new may be in the store; returns at once."""
        self._new.set()

    def add(self, value: Mapping[str, Any], run: str) -> None:
        """Send what belongs to no stored session, as an exam; only warns where it cannot be stored."""
        try:
            self._outbox.put(value, run, self._settings.mqtt_waiting)
        except StoreError as error:
            self._warn(f"{error}; the message is not sent")
        self.look()

    def _run(self) -> None:
        pause, longest = PAUSE_SECONDS
        lock = self._lock()
        while lock is not None and not self._ending.is_set():
            began = time.monotonic()
            try:
                self._keep_connected()
            except LostError as error:
                self._fail(str(error), quiet=True)
            except RespSAMError as error:
                self._fail(str(error))
            except Exception as error:  # a fault of paho or of ours must not end the sending for good
                self._fail(f"{type(error).__name__}: {one_line(str(error))}")
            if time.monotonic() - began > STEADY_SECONDS:
                pause = PAUSE_SECONDS[0]
            # not all boxes at once, when a broker is back
            self._ending.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    def _lock(self) -> TextIO | None:
        """Wait until no other process sends from this store; None at the end."""
        file = side_file(self._store.file, "-outbox.lock")
        while not self._ending.is_set():
            try:
                make_private(self._store.file, own_folder=not self._store.path)
                file.touch(0o600)
                lock = file.open()
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                lock.close()
            except OSError as error:
                self._fail(f"{file}: {error.strerror}; check the disk or set store.path")
            self._ending.wait(LOOK_SECONDS)
        return None

    def _keep_connected(self) -> None:
        """Connect, and send until the end or a BrokerError."""
        connection = Connection(self._settings, will=(self._topic("status"), self._status(VANISHED, online=False)))
        self._sent, self._look_at, self._published = 0, 0.0, {}
        self._file = file_identity(self._store.file)
        finished = False
        try:
            while not finished:
                connection.step(STEP_SECONDS)
                idle = connection.connected and self._exchange(connection)
                finished = self._ending.is_set() and (idle or time.monotonic() > self._until)
            if connection.connected:
                self._say_goodbye(connection)
        finally:
            connection.close(goodbye=finished)

    def _exchange(self, connection: Connection) -> bool:
        """Publish what is new, and remove what was acknowledged; whether nothing is left to do."""
        if self._about != self._published:
            self._count()
            self._published = about = self._about
            connection.publish(self._topic("status"), self._status(str(about["words"])), retain=True)
        now = file_identity(self._store.file)
        if self._file is not None and now != self._file:
            raise LostError("the store was replaced, and with it the numbers of the messages")
        self._file = now
        try:
            self._remove_acknowledged(connection)
            more = self._send_waiting(connection)
        except StoreError as error:  # as while another program locks the file
            self._fail(str(error))
            return False
        if more or connection.in_flight:
            return False
        self._recover()
        return True

    def _remove_acknowledged(self, connection: Connection) -> None:
        if numbers := [number for number in connection.acknowledged if number]:
            self._outbox.remove(numbers)
        connection.acknowledged.clear()

    def _send_waiting(self, connection: Connection) -> bool:
        """Send as much as may be without an acknowledgement; whether more may wait."""
        free = connection.window - len(connection.in_flight)
        if free <= 0 or not (self._new.is_set() or time.monotonic() >= self._look_at):
            return self._new.is_set()
        self._new.clear()
        waiting = self._outbox.next(self._sent, free)
        for one in waiting:
            connection.publish(self._topic(json.loads(one.message)["type"]), one.message, one.number)
            self._sent = one.number
        self._look_at = time.monotonic() + LOOK_SECONDS
        if len(waiting) == free:
            self._new.set()
        return self._new.is_set()

    def _say_goodbye(self, connection: Connection) -> None:
        connection.publish(self._topic("status"), self._status(str(self._about["words"]), online=False), retain=True)
        until = time.monotonic() + PARTING_SECONDS / 2
        while connection.in_flight and time.monotonic() < until:
            connection.step(STEP_SECONDS / 5)

    def _topic(self, kind: str) -> str:
        return f"{self._settings.mqtt_prefix}/{self._settings.box}/{kind}"

    def _status(self, words: str, online: bool = True) -> str:
        known = {"box": self._settings.box, "online": online, "version": version("respsam")}
        return dated({"type": "status", **self._about, **known, "words": words, "unsent": max(0, self._unsent)})

    def _count(self) -> int:
        """The number of messages that wait; says how many were dropped since it looked last."""
        with suppress(StoreError):
            waiting, unsent = self._outbox.count()
            if 0 <= self._unsent < unsent:
                lost = counted(unsent - self._unsent, "message")
                self._warn(f"{self._place}: {lost} removed unsent, because too many waited (outputs.mqtt_waiting)")
            self._unsent = unsent
            return waiting
        return 0

    def _fail(self, words: str, quiet: bool = False) -> None:
        """Say a reason once, until it works again; a quiet one only where there was trouble before."""
        quiet = quiet and not self.trouble
        self.trouble = f"{self._place}: {words}"
        if words not in self._said and not quiet:
            self._said.add(words)
            self._warn(f"{self.trouble}; listening goes on, and {counted(self._count(), 'message')} so far wait")

    def _recover(self) -> None:
        if self._said:
            self._warn(f"{self._place}: connected, and everything is sent")
        self._said.clear()
        self.trouble = ""


def sender_of(settings: Settings, warn: Warn) -> AbstractContextManager[Sender | None]:
    """The sender that the settings ask for; None without a broker, or where nothing is stored."""
    if settings.outputs.mqtt_host and not settings.store.enabled:
        warn("nothing is stored, so nothing is sent by MQTT; set store.enabled, or leave --no-store out")
    wanted = settings.outputs.mqtt_host and settings.store.enabled
    return Sender(settings, warn) if wanted else nullcontext()


def check_broker(settings: OutputSettings) -> None:
    """Connect as the box would; BrokerError when that fails."""
    connection = Connection(settings, "-doctor")
    try:
        until = time.monotonic() + ANSWER_SECONDS / 2
        while not connection.connected:
            connection.step(STEP_SECONDS)
            if time.monotonic() > until:
                raise BrokerError("no answer")
    finally:
        connection.close(goodbye=True)
