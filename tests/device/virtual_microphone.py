"""A microphone with no hardware: a private PulseAudio whose null sink PortAudio hears as the ALSA device `virtmic`."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

import pytest

NAME = "virtmic"  # records the sink `feed`
DEFAULT = "anymic"  # records whatever the server's default source is
# without norewinds the first 12-67 ms are lost
SINK = ("rate=48000", "channels=1", "format=s16le", "norewinds=1")
STARTS_WITHIN_SECONDS = 20.0


class VirtualMicrophone:
    """What is played into it comes out of the microphone in real time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, os.environ["PATH"]
        self.callers: list[socket.socket] = []
        self.environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "rt"),
            "PULSE_RUNTIME_PATH": str(folder / "rt" / "pulse"),
            "PULSE_STATE_PATH": str(folder / "state"),
            "PULSE_COOKIE": str(folder / "cookie"),
            "PULSE_CLIENTCONFIG": str(folder / "client.conf"),
            "PULSE_SERVER": f"unix:{folder}/native",
            "ALSA_CONFIG_PATH": str(folder / "asound.conf"),
        }
        (folder / "rt").mkdir(mode=0o700, parents=True)
        (folder / "state").mkdir()
        (folder / "client.conf").write_text("autospawn = no\n")
        (folder / "mic.pa").write_text(
            f"load-module module-native-protocol-unix socket={folder}/native auth-anonymous=1\n"
            f"load-module module-null-sink sink_name=feed {' '.join(SINK)}\n"
        )
        # pcm.!default must exist: without it `import sounddevice` aborts the process
        (folder / "asound.conf").write_text(
            "".join(
                f'pcm.{pcm} {{ type pulse server "unix:{folder}/native" {device} '
                'hint { show on description "virtual stethoscope" } }\n'
                for pcm, device in ((NAME, "device feed.monitor"), ("!default", "device feed.monitor"), (DEFAULT, ""))
            )
        )
        self.start()

    def start(self) -> None:
        """Start the sound server with the microphone in it."""
        options = "--daemonize=no --exit-idle-time=-1 --use-pid-file=no --realtime=no --high-priority=no"
        self._server = subprocess.Popen(
            ["pulseaudio", "-n", "-F", str(self.folder / "mic.pa"), *options.split(), "--log-target=stderr"],
            env=self._all(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + STARTS_WITHIN_SECONDS
        while self._pactl("info").returncode != 0:
            if time.monotonic() > until or self._server.poll() is not None:
                pytest.skip("no virtual microphone: pulseaudio does not come up here")
            time.sleep(0.05)

    def play(self, file: Path, sink: str = "feed") -> "subprocess.Popen[bytes]":
        """Play a wav or flac file into it, in real time."""
        return subprocess.Popen(["paplay", f"--device={sink}", str(file)], env=self._all())

    def unplug(self) -> None:
        """Take the device away."""
        modules = self._pactl("list", "short", "modules").stdout.decode().splitlines()
        (feed,) = [line.split("\t")[0] for line in modules if "sink_name=feed" in line]
        self._pactl("unload-module", feed).check_returncode()

    def replug(self, sink: str = "feed") -> None:
        """Bring it back, or plug in another one."""
        self._pactl("load-module", "module-null-sink", f"sink_name={sink}", *SINK).check_returncode()

    def mute(self, muted: bool) -> None:
        """The switch on the cable."""
        self._pactl("set-source-mute", "feed.monitor", str(int(muted))).check_returncode()

    def suspend(self, suspended: bool) -> None:
        """The device sleeps: no sound, and nothing that says so."""
        self._pactl("suspend-sink", "feed", str(int(suspended))).check_returncode()

    def make_default(self, sink: str) -> None:
        """The system's default input changes."""
        self._pactl("set-default-source", f"{sink}.monitor").check_returncode()

    def freeze(self) -> None:
        """The sound server hangs, and with it every call to it."""
        self._server.send_signal(signal.SIGSTOP)

    def fill(self) -> None:
        """So many call a frozen sound server that it refuses the next one."""
        with suppress(BlockingIOError):
            while True:
                self.callers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                self.callers[-1].connect(f"{self.folder}/native")

    def thaw(self) -> None:
        """It goes on, without those who called meanwhile."""
        for caller in self.callers:
            caller.close()
        self._server.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """The sound server dies on the spot."""
        self._server.kill()
        self._server.wait(timeout=10)

    def stop(self) -> None:
        """For good."""
        self.thaw()
        self._server.terminate()
        self._server.wait(timeout=10)

    def _pactl(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(["pactl", *arguments], env=self._all(), capture_output=True, check=False)

    def _all(self) -> dict[str, str]:
        return {**os.environ, "PATH": self._path, **self.environment}


@contextmanager
def virtual_microphone(folder: Path) -> Iterator[VirtualMicrophone]:
    """One in an empty folder; skips the test where the machine has no PulseAudio or PortAudio."""
    missing = [tool for tool in ("pulseaudio", "pactl", "paplay") if shutil.which(tool) is None]
    missing += [] if find_library("portaudio") else ["PortAudio"]
    if missing:
        pytest.skip(f"no virtual microphone: {', '.join(missing)} not installed")
    microphone = VirtualMicrophone(folder)
    try:
        microphone.wait()
        yield microphone
    finally:
        microphone.stop()
