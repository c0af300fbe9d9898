"""What the MQTT door costs a box, and what one mosquitto takes: python -m tests.bench.mqtt_load [BOXES] [MESSAGES]

For docs/performance.md. Messages go over TLS with a password, QoS 1, each box with its own connection.
"""

import sys
import time
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from device.mqtt import Connection, Sender
from device.store.outbox import Outbox
from device.store.recorder import Beginning, Store
from device.view.json_lines import stamped
from firmware_config.settings import Settings, load_settings
from tests.bench.console_load import processor_seconds
from tests.device.broker import Broker
from tests.device.storing import Certain, endless, judged

LISTENING_SECONDS: Final = 60.0
BREATH_SECONDS: Final = 4.0
STORED: Final = 2000
RUN: Final = "ab" * 16


def send(settings: Settings, box: int, text: str, messages: int) -> None:
    """One box that sends as fast as the broker acknowledges."""
    connection = Connection(settings.outputs, f"-{box}")
    sent = done = 0
    while done < messages:
        connection.step(0.1)
        done += len(connection.acknowledged)
        connection.acknowledged.clear()
        while connection.connected and sent < messages and len(connection.in_flight) < connection.window:
            connection.publish(f"respsam/box-{box}/cycle", text)
            sent += 1
    connection.close(goodbye=True)


def load(settings: Settings, broker: Broker, text: str, boxes: int, messages: int) -> str:
    """What the broker takes from so many boxes at once."""
    before, began = processor_seconds(broker.process), time.monotonic()
    workers = [Process(target=send, args=(settings, box, text, messages)) for box in range(boxes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds, cpu = time.monotonic() - began, processor_seconds(broker.process) - before
    total = boxes * messages
    return (
        f"{boxes} boxes: {total / seconds:.0f} messages/s; mosquitto's processor {1e6 * cpu / total:.0f} us a message"
    )


def listening(settings: Settings) -> str:
    """Processor time of the sender's thread while breaths come in real time."""
    store = Store(Beginning("a bench", True, "bundle-hash", "tiny", settings, run=RUN))
    with Sender(settings, print) as sender:
        time.sleep(5.0)
        clock = time.pthread_getcpuclockid(sender.thread.ident or 0)
        before, began = time.clock_gettime(clock), time.monotonic()
        for cycle in endless(judged(Certain(), 8.0)[0]):
            store.add(cycle)
            sender.look()
            time.sleep(BREATH_SECONDS)
            if time.monotonic() - began > LISTENING_SECONDS:
                break
        used, seconds = time.clock_gettime(clock) - before, time.monotonic() - began
    store.close()
    return f"sender: {3600 * used / seconds:.1f} s of processor an hour"


def storing(settings: Settings) -> str:
    """What a message adds to storing a cycle, and how fast a box catches up."""
    used = []
    for run in ("", RUN):
        store = Store(Beginning("a bench", True, "bundle-hash", "tiny", settings, run=run))
        began = time.process_time()
        for cycle in endless(judged(Certain(), 8.0)[0]):
            store.add(cycle)
            if cycle.number == STORED:
                break
        used.append((time.process_time() - began) / STORED)
        store.close()
    began, outbox = time.monotonic(), Outbox(settings.store.file)
    waiting, _ = outbox.count()
    with Sender(settings, print):
        while outbox.count()[0]:
            time.sleep(0.1)
    caught_up = waiting / (time.monotonic() - began)
    return (
        f"a message adds {1e6 * (used[1] - used[0]):.0f} us to a stored cycle; catching up: {caught_up:.0f} messages/s"
    )


def main(boxes: int, messages: int) -> None:
    """Print every figure."""
    with TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        settings = load_settings(
            environment=broker.environment, flags={"store.path": str(Path(folder) / "store" / "respsam.sqlite")}
        )
        text = stamped(judged(Certain(), 8.0)[0][0].as_json(), RUN)
        print(f"a cycle's message: {len(text)} bytes, and {len('respsam/box-1/cycle') + 7} of topic and header")
        for some in sorted({1, boxes}):
            print(load(settings, broker, text, some, messages), flush=True)
        print(storing(settings), flush=True)
        print(listening(settings), flush=True)
        broker.stop()


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:]] or (8, 5000))
