"""A Debian that boots: made by debootstrap once, and run by systemd-nspawn with its own systemd."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.full_disk import mounted

SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,udev,dbus,python3,libportaudio2,libasound2-plugins,libasound2-data"
KEPT = REPOSITORY / "build" / f"{SUITE}.tar"  # debootstrap takes minutes
ROOT_BYTES = 2_500_000_000
BOOTS_WITHIN_SECONDS = 90.0


class Debian:
    """A running container; `run` runs a command inside of it as root."""

    def __init__(self, root: Path, binds: dict[Path, str]) -> None:
        self.root = root
        self._log = (root.parent / "boot.log").open("wb")
        options = [f"--bind={outside}:{inside}" for outside, inside in binds.items()]
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", "--boot", "--console=pipe", *options],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.leader = 0
        self.first_files: set[str] = set()

    def wait(self) -> None:
        """Until its systemd has started everything; skips the test where no container may run."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        until = time.monotonic() + BOOTS_WITHIN_SECONDS
        while time.monotonic() < until:
            if self._nspawn.poll() is not None:
                said = (self.root.parent / "boot.log").read_text(errors="replace").strip()
                pytest.skip(f"no container here: {said.splitlines()[-1:] or self._nspawn.returncode}")
            found = children.read_text().split()
            self.leader = int(found[0]) if found else 0
            if self.leader and self.run("systemctl", "is-system-running", check=False) in ("running", "degraded"):
                return
            time.sleep(0.3)
        raise AssertionError("the container does not come up")

    def run(self, *command: str, check: bool = True, error: bool = False) -> str:
        """What a command prints; with `error` also what it says on stderr."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if error or check else subprocess.DEVNULL,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-P", what, unit)

    def wait_for(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Until it holds."""
        until = time.monotonic() + seconds
        while not holds():
            journal = self.run("journalctl", "-u", "respsam.service", "-n", "20", "--no-pager", check=False)
            assert time.monotonic() < until, f"{otherwise}\n{journal}"
            time.sleep(0.3)

    def stop(self) -> None:
        """Pull the plug."""
        self._nspawn.terminate()
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._log.close()


def unpack(root: Path) -> None:
    """A fresh Debian in an empty folder; skips the test where none can be made."""
    missing = [tool for tool in ("debootstrap", "systemd-nspawn", "nsenter") if shutil.which(tool) is None]
    if missing or os.geteuid():
        pytest.skip(f"no Debian: {', '.join(missing) or 'root'} needed")
    if not KEPT.exists():
        made = root.parent / "made"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no Debian: debootstrap says {done.stdout.strip().splitlines()[-1:]}")
        shutil.rmtree(made / "var/cache/apt/archives", ignore_errors=True)
        KEPT.parent.mkdir(exist_ok=True)
        subprocess.run(["tar", "-C", made, "-cf", f"{KEPT}.part", "."], check=True)
        os.replace(f"{KEPT}.part", KEPT)
        shutil.rmtree(made)
    subprocess.run(["tar", "-C", root, "-xf", KEPT], check=True)


@contextmanager
def debian(folder: Path, binds: dict[Path, str]) -> Iterator[Debian]:
    """A Debian that has booted, on a disk in memory."""
    with mounted(folder / "debian", ROOT_BYTES):
        unpack(folder / "debian")
        running = Debian(folder / "debian", binds)
        try:
            running.wait()
            yield running
        finally:
            running.stop()
