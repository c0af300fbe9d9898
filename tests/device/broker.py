"""A real mosquitto on loopback, with TLS and a password, and a reader of what it gets."""

import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device.console.certificate import make_certificate

USER, PASSWORD = "box", "correct horse"
# Debian keeps it outside of a user's path
PROGRAM = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def has_mosquitto() -> bool:
    """Whether there is a broker to start."""
    return PROGRAM is not None


class Message(NamedTuple):
    topic: str
    value: dict[str, Any]
    retained: bool


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Until it is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    """A port of loopback that nobody uses, and that no connection gets while the broker is away."""
    while True:
        port = random.randrange(20_000, 30_000)  # below those that the system gives
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port


class Broker:
    """Started and stopped by tests; retained messages and the reader's session survive a stop."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.certificate, key = folder / "broker.pem", folder / "broker.key"
        make_certificate(self.certificate, key, ["localhost", "127.0.0.1"])
        (folder / "password").write_text(f"{PASSWORD}\n")
        passwords = folder / "passwords"
        subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, USER, PASSWORD], check=True)
        self.configuration = folder / "mosquitto.conf"
        self.configuration.write_text(
            f"listener {self.port} 127.0.0.1\ncertfile {self.certificate}\nkeyfile {key}\npassword_file {passwords}\n"
            f"allow_anonymous false\npersistence true\npersistence_location {folder}/\nmax_queued_messages 100000\n"
            + "user root\n"
            * (os.getuid() == 0)
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a box that sends here."""
        values = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "CA": str(self.certificate),
            "USER": USER,
            "PASSWORD_FILE": str(self.folder / "password"),
            "BOX": "box-1",
        }
        return {f"RESPSAM_OUTPUTS__MQTT_{name}": value for name, value in values.items()}

    @property
    def process(self) -> int:
        """The number of its process while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        log = (self.folder / "mosquitto.log").open("ab")
        command = [str(PROGRAM), "-c", str(self.configuration)]
        self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0


class Reader:
    """Everything that the broker gets below `respsam/`, in order, also from while it was away."""

    def __init__(self, broker: Broker, name: str = "reader") -> None:
        self.messages: list[Message] = []
        self._subscribed = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
        client.tls_set(str(broker.certificate))
        client.username_pw_set(USER, PASSWORD)
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._subscribe
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._take
        lasting = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        lasting.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", broker.port, clean_start=False, properties=lasting)
        client.loop_start()
        self._client = client
        assert self._subscribed.wait(10.0)

    def _subscribe(self, client: Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        client.subscribe("respsam/#", qos=1)

    def _take(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self.messages.append(Message(message.topic, json.loads(message.payload), message.retain))

    def of(self, *types: str) -> list[dict[str, Any]]:
        """The messages of these types."""
        return [message.value for message in list(self.messages) if message.value["type"] in types]

    @property
    def status(self) -> dict[str, Any]:
        """The latest status; empty before the first."""
        return (self.of("status") or [{}])[-1]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
