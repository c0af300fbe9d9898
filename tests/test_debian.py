"""The Debian package in a Debian that boots: the service as its sandboxed user, on the virtual microphone.

It takes minutes and needs root, debootstrap and systemd-nspawn: `make soak` runs it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from device.breath.simulator import simulate
from device.bundle import read_bundle
from device.signal import SAMPLE_RATE
from export.signing import offer
from firmware_config.provisioning import SERVICE, SETTINGS, STATE
from tests.conftest import REPOSITORY
from tests.debian import Debian, debian
from tests.device.bundle_maker import make_bundle
from tests.device.test_slots import named
from tests.device.virtual_microphone import VirtualMicrophone, virtual_microphone

pytestmark = [
    pytest.mark.skipif(os.environ.get("RESPSAM_SOAK") != "1", reason="minutes: make soak"),
    pytest.mark.timeout(1500),
]
MICROPHONE = "/srv/mic"  # of the sound server's folder, inside
OFFERS = "/srv/offers"  # the folder that boxes poll
# the card that a box's own ALSA settings name, played by the sound server outside
CARD = f"""
pcm.!stethoscope {{ type pulse server "unix:{MICROPHONE}/native" device feed.monitor
    hint {{ show on description "virtual stethoscope" }} }}
"""
OLD, NEW = "0.1.0", "0.1.1"
NOT_OURS = ("/var/log/", "/var/cache/", "/var/lib/dpkg/", "/var/lib/systemd/", "/run/", "/tmp/", "/etc/.pwd.lock")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of the package, in one folder."""
    out = tmp_path_factory.mktemp("packages")
    for version in (OLD, NEW):
        subprocess.run([REPOSITORY / "packaging/build-deb", sys.executable, version, out], check=True)
    return out


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMicrophone]:
    with virtual_microphone(tmp_path_factory.mktemp("sound") / "mic") as microphone:
        microphone.folder.chmod(0o755)
        yield microphone


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for all boxes, in a folder."""
    folder = tmp_path_factory.mktemp("offers")
    bundle = read_bundle(make_bundle(tmp_path_factory.mktemp("bundle") / "next", changes=named("next")))
    folder.chmod(0o755)
    offer(bundle, folder, [])
    (folder / "reports").mkdir()
    (folder / "reports").chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def box(
    packages: Path, offers: Path, microphone: VirtualMicrophone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Debian]:
    binds = {packages: "/srv/packages", microphone.folder: MICROPHONE, offers: OFFERS}
    with debian(tmp_path_factory.mktemp("box"), binds) as box:
        yield box


def install(box: Debian, version: str, action: str = "--install") -> str:
    name = box.run("sh", "-c", f"ls /srv/packages/respsam_{version}_*.deb")
    return box.run("dpkg", "--force-unsafe-io", action, name)


def status(box: Debian) -> str:
    return box.show(SERVICE, "StatusText")


def journal(box: Debian) -> str:
    return box.run("journalctl", "-u", SERVICE, "--no-pager")


def files(box: Debian) -> set[str]:
    """Every path of the system that a package could leave behind."""
    found = box.run("find", "/", "-xdev", "-path", "/proc", "-prune", "-o", "-print").splitlines()
    return {path for path in found if not path.startswith(NOT_OURS)}


def sessions(box: Debian) -> list[dict[str, object]]:
    command = "XDG_STATE_HOME=/var/lib respsam-device sessions list --json"
    return [json.loads(line) for line in box.run("sh", "-c", command).splitlines() if line.startswith("{")]


def listens(box: Debian) -> bool:
    return status(box).startswith("listening to stethoscope")


# One box's life, in this order.


def test_an_installed_package_listens_as_its_own_user(box: Debian, microphone: VirtualMicrophone) -> None:
    box.first_files = files(box)
    (box.root / "etc/asound.conf").write_text(CARD)
    microphone.unplug()
    install(box, OLD)
    assert box.run("systemctl", "is-enabled", SERVICE) == "enabled"
    box.wait_for(lambda: box.show(SERVICE, "ActiveState") == "active", 60, "the service does not start")
    assert "listening goes on by itself" in status(box)  # no microphone yet: it waits, and says so
    microphone.replug()
    box.wait_for(lambda: listens(box), 30, "the microphone is not found")


def test_the_service_is_locked_up(box: Debian) -> None:
    process = box.show(SERVICE, "MainPID")
    state = dict(
        line.split(":\t", 1) for line in box.run("cat", f"/proc/{process}/status").splitlines() if ":\t" in line
    )
    assert state["Uid"].split() == [box.run("id", "-u", "respsam")] * 4
    assert (state["NoNewPrivs"], state["Seccomp"], int(state["CapBnd"], 16)) == ("1", "2", 0)
    inside = ("nsenter", "-t", process, "-m", "-n")
    assert box.run(*inside, "cat", "/proc/net/dev").count(":") == 1  # lo alone
    assert "No such file" in box.run(*inside, "ls", "/dev/kmsg", check=False, error=True)
    assert "Read-only file system" in box.run(*inside, "touch", "/etc/x", check=False, error=True)
    # a card that is plugged in later
    box.run("mknod", "-m", "660", "/dev/snd/controlC7", "c", "1", "3")
    assert "controlC7" in box.run(*inside, "ls", "/dev/snd")
    box.run("rm", "/dev/snd/controlC7")


def test_the_box_s_own_rules_are_read(box: Debian) -> None:
    said = box.run("udevadm", "test", "/sys/class/net/lo", check=False, error=True)
    assert "79-respsam.rules" in said
    assert not [line for line in said.splitlines() if "79-respsam.rules:" in line]  # an error has the line's number


def test_what_is_heard_is_stored(box: Debian, microphone: VirtualMicrophone, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "breaths.wav", 4 * simulate(4, 20.0).samples, SAMPLE_RATE)
    microphone.play(tmp_path / "breaths.wav").wait(60)
    box.wait_for(lambda: status(box).endswith(" breaths"), 15, "no breath")
    box.run("systemctl", "restart", SERVICE)
    box.wait_for(lambda: listens(box), 60, "it does not start again")
    assert any(int(str(row["cycles"])) > 2 for row in sessions(box))
    assert box.run("stat", "-c", "%U %a", "/var/lib/respsam") == "respsam 700"
    assert "session begins" in journal(box) and "Traceback" not in journal(box)


def test_an_unplugged_microphone_is_said_and_found_again(box: Debian, microphone: VirtualMicrophone) -> None:
    process = box.show(SERVICE, "MainPID")
    microphone.unplug()
    box.wait_for(lambda: "listening goes on by itself" in status(box), 10, "the loss is not said")
    time.sleep(35.0)  # longer than the watchdog waits
    microphone.replug()
    box.wait_for(lambda: listens(box), 10, "it is not found again")
    assert box.show(SERVICE, "MainPID") == process


def test_a_deaf_service_is_started_anew(box: Debian, microphone: VirtualMicrophone) -> None:
    process = box.show(SERVICE, "MainPID")
    microphone.freeze()
    try:
        box.wait_for(lambda: box.show(SERVICE, "MainPID") not in (process, "0"), 90, "systemd does not start it anew")
        assert "Watchdog timeout" in journal(box)
    finally:
        microphone.thaw()
    box.wait_for(lambda: listens(box), 60, "it does not listen again")


def test_the_timer_s_service_installs_the_bundle_that_is_offered(
    box: Debian, offers: Path, microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    before = (box.root / SETTINGS).read_text()
    (box.root / SETTINGS).write_text(f'{before}\n[bundle]\nupdates = "{OFFERS}"\n')
    process = box.show(SERVICE, "MainPID")
    box.run("respsam-device", "provision")
    assert box.run("systemctl", "is-active", "respsam-update.timer") == "active"
    box.wait_for(lambda: box.show(SERVICE, "MainPID") not in (process, "0") and listens(box), 60, "no new settings")
    process = box.show(SERVICE, "MainPID")
    box.run("systemctl", "start", "respsam-update.service")
    (report,) = (offers / "reports").glob("*.json")
    assert json.loads(report.read_text())["state"] == "on trial"
    soundfile.write(tmp_path / "breaths.wav", 4 * simulate(4, 60.0).samples, SAMPLE_RATE)
    microphone.play(tmp_path / "breaths.wav").wait(90)
    box.wait_for(lambda: 'bundle="next"' in journal(box), 30, "the running service does not take it")
    assert box.show(SERVICE, "MainPID") == process
    box.run("systemctl", "start", "respsam-update.service")
    assert json.loads(report.read_text())["state"] == "ready"
    (box.root / SETTINGS).write_text(before)
    box.run("respsam-device", "provision")
    assert box.show("respsam-update.timer", "LoadState") == "not-found"


def test_an_upgrade_keeps_the_history(box: Debian) -> None:
    before, process = len(sessions(box)), box.show(SERVICE, "MainPID")
    said = install(box, NEW)
    assert f"Unpacking respsam ({NEW}) over ({OLD})" in said
    box.wait_for(lambda: box.show(SERVICE, "MainPID") not in (process, "0") and listens(box), 60, "the old one runs")
    assert len(sessions(box)) > before >= 2
    assert box.run("systemctl", "is-enabled", SERVICE) == "enabled"


def test_a_package_that_is_half_installed_says_so_and_is_repaired(box: Debian) -> None:
    install(box, NEW, "--unpack")
    box.run("rm", "/usr/lib/respsam/firmware_config/templates/etc/systemd/system/respsam.service")
    said = box.run("dpkg", "--configure", "respsam", check=False, error=True)
    assert box.run("dpkg-query", "-W", "-f=${Status}", "respsam") == "install ok half-configured"
    errors = [line for line in said.splitlines() if line.startswith("respsam-device: error: ")]
    assert len(errors) == 1 and "missing, so this installation is incomplete; install it again" in errors[0]
    install(box, NEW)
    assert box.run("dpkg-query", "-W", "-f=${Status}", "respsam") == "install ok installed"
    box.wait_for(lambda: listens(box), 60, "it does not listen again")


def test_nothing_is_left_but_the_store(box: Debian) -> None:
    box.run("dpkg", "-r", "respsam")
    assert box.show(SERVICE, "LoadState") == "not-found"
    box.run("dpkg", "-P", "respsam")
    (box.root / "etc/asound.conf").unlink()
    left = files(box) - box.first_files
    assert {path for path in left if "__pycache__" not in path and not path.startswith("/var/lib/respsam")} <= {
        "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-",
    }  # fmt: skip
    assert "/var/lib/respsam/respsam.sqlite" in left and not [path for path in left if STATE in path]
    assert box.run("id", "-un", "respsam") == "respsam"  # who owns the store
