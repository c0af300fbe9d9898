"""Provisioning renders a whole tree below a root folder, changes nothing twice, and restores what was there."""

import ctypes
import re
import shutil
import subprocess
from ctypes.util import find_library
from pathlib import Path

import pytest
from typer.testing import CliRunner

import firmware_config.provisioning
from device.cli import app
from firmware_config.board import BoardError
from firmware_config.files import write_atomically
from firmware_config.provisioning import (
    POWER,
    PROGRAM,
    RECORD,
    SERVICE,
    SETTINGS,
    UNITS,
    ProvisionError,
    apply,
    default_profile,
    plan_provision,
    plan_unprovision,
)
from firmware_config.settings import SettingsError, load_settings, profile_names
from tests.conftest import RunCli
from tests.full_disk import mounted

MOST_EXPOSED = 1.5
MOST_WRITES = 12  # one original that is kept, the record, ten files
UNIT = f"{UNITS}/{SERVICE}"
JOURNAL = "etc/systemd/journald.conf.d/respsam.conf"
Tree = dict[str, "bytes | str | None"]


def tree(root: Path) -> Tree:
    """Everything below a folder: files with their content, links with their target, folders."""

    def content(path: Path) -> "bytes | str | None":
        return str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(root)): content(path) for path in root.rglob("*")}


def provision(root: Path, profile: str = "desktop") -> None:
    apply(plan_provision(profile, PROGRAM, root))


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_renders_a_whole_tree_that_is_undone(tmp_path: Path, profile: str) -> None:
    provision(tmp_path, profile)
    made = tree(tmp_path)
    unit = (tmp_path / UNIT).read_text()
    assert f"ExecStart={PROGRAM} listen --config /{SETTINGS}" in unit and "WatchdogSec=" in unit
    assert made["etc/systemd/system/multi-user.target.wants/respsam.service"] == "../respsam.service"
    settings = load_settings(tmp_path / SETTINGS, environment={})
    assert settings.board.profile == profile and settings.audio.device == "stethoscope"
    assert f"SystemMaxUse={settings.log.journal_megabytes:.0f}M" in (tmp_path / JOURNAL).read_text()
    assert (f"{UNITS}/{POWER}" in made) == bool(settings.board.power_mode)
    assert made["etc/systemd/system/timers.target.wants/respsam-wipe.timer"] == "../respsam-wipe.timer"
    assert not [name for name in made if "respsam-update" in name]
    assert "etc/respsam/trust/README" in made
    assert "d /etc/respsam/trust 0755 root root" in (tmp_path / "etc/tmpfiles.d/respsam.conf").read_text()
    assert not [name for name, text in made.items() if isinstance(text, bytes) and b"${" in text]
    assert all((tmp_path / name).stat().st_mode & 0o444 == 0o444 for name in made if made[name] is not None)
    assert plan_provision(profile, PROGRAM, tmp_path).changes == []
    apply(plan_unprovision(tmp_path))
    assert tree(tmp_path) == {}


def test_the_service_finds_the_card_that_the_rules_name_in_the_alsa_settings(tmp_path: Path) -> None:
    provision(tmp_path)
    card = load_settings(tmp_path / SETTINGS, environment={}).audio.device
    assert f'ATTR{{id}}="{card}"' in (tmp_path / "etc/udev/rules.d/79-respsam.rules").read_text()
    name = find_library("asound")
    if name is None:
        pytest.skip("no libasound")
    alsa = ctypes.CDLL(name)
    top, text, node = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    file = str(tmp_path / "etc/alsa/conf.d/60-respsam.conf").encode()
    assert alsa.snd_config_top(ctypes.byref(top)) == 0
    assert alsa.snd_input_stdio_open(ctypes.byref(text), file, b"r") == 0
    assert alsa.snd_config_load(top, text) == 0
    assert alsa.snd_config_search(top, f"pcm.{card}.slave.pcm.card".encode(), ctypes.byref(node)) == 0


def test_what_was_there_is_restored(tmp_path: Path) -> None:
    for name, text in ((JOURNAL, "[Journal]\nSystemMaxUse=1M\n"), ("etc/udev/rules.d/10-own.rules", "# mine\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / UNITS).mkdir()
    (tmp_path / UNIT).symlink_to("/dev/null")  # masked
    before = tree(tmp_path)
    provision(tmp_path, "jetson-agx-orin")
    provision(tmp_path, "raspberry-pi-5")  # another profile does not forget what was there first
    assert f"{UNITS}/{POWER}" not in tree(tmp_path)
    apply(plan_unprovision(tmp_path))
    assert tree(tmp_path) == before
    assert plan_unprovision(tmp_path).changes == []


def test_a_dry_run_shows_every_line_and_changes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["provision", "--profile", "desktop", "--root", str(tmp_path), "--dry-run"])
    assert done.exit_code == 0 and tree(tmp_path) == {}
    assert f"+++ after/{UNIT}" in done.output and "+WatchdogSec=30" in done.output
    assert f"{tmp_path}: 12 files to change" in done.output


def test_a_newer_package_changes_what_differs_and_shows_it(tmp_path: Path) -> None:
    provision(tmp_path)
    apply(plan_provision("desktop", Path("/opt/respsam/bin/respsam-device"), tmp_path))
    changes = plan_provision("desktop", PROGRAM, tmp_path).changes
    assert [change.path for change in changes] == [f"{UNITS}/respsam-wipe.service", UNIT]
    for change in changes:
        assert "-ExecStart=/opt/respsam/bin/respsam-device" in change.diff()
        assert f"+ExecStart={PROGRAM}" in change.diff()


def test_settings_are_somebody_s_own_from_their_first_change_on(tmp_path: Path) -> None:
    provision(tmp_path)
    own = (tmp_path / SETTINGS).read_text() + "journal_megabytes = 33.0\n"
    (tmp_path / SETTINGS).write_text(own)
    provision(tmp_path)
    assert (tmp_path / SETTINGS).read_text() == own
    assert "SystemMaxUse=33M" in (tmp_path / JOURNAL).read_text()
    with pytest.raises(ProvisionError, match=r"board\.profile is 'desktop' there, not 'raspberry-pi-5'"):
        plan_provision("raspberry-pi-5", PROGRAM, tmp_path)
    plan = plan_unprovision(tmp_path)
    apply(plan)
    assert tree(tmp_path).keys() == {"etc", "etc/respsam", SETTINGS}
    assert "was changed by hand and stays" in plan.notes[0]


def updating(root: Path, source: str) -> str:
    """Provision a root with settings that name a source of updates; the unit that polls it."""
    (root / SETTINGS).parent.mkdir(parents=True, exist_ok=True)
    (root / SETTINGS).write_text(f'board.profile = "desktop"\nbundle.updates = "{source}"\n')
    provision(root)
    return (root / UNITS / "respsam-update.service").read_text()


def test_a_source_of_updates_is_polled_by_a_timer_with_no_more_access_than_it_needs(tmp_path: Path) -> None:
    unit = updating(tmp_path, "/srv/all boxes/100%")
    assert f"ExecStart={PROGRAM} bundle poll --config /{SETTINGS}" in unit
    assert 'ReadWritePaths="-/srv/all boxes/100%%"\n' in unit and "PrivateNetwork=yes" in unit
    link = tmp_path / UNITS / "timers.target.wants/respsam-update.timer"
    assert link.resolve().is_file()
    unit = updating(tmp_path, "https://updates.example.org/respsam")
    assert "ReadWritePaths" not in unit and "PrivateNetwork" not in unit and "AF_INET" in unit
    (tmp_path / SETTINGS).write_text('board.profile = "desktop"\nbundle.updates = "boxes"\n')
    assert "bundle.updates = 'boxes': not absolute" in refused(tmp_path)
    (tmp_path / SETTINGS).write_text('board.profile = "desktop"\n')
    provision(tmp_path)
    assert not link.is_symlink() and not list((tmp_path / UNITS).glob("respsam-update*"))


def test_a_trusted_key_stays_when_the_service_goes(tmp_path: Path) -> None:
    provision(tmp_path)
    key = tmp_path / "etc/respsam/trust/0123456789abcdef.pem"
    key.touch()
    apply(plan_unprovision(tmp_path))
    assert [name for name, content in tree(tmp_path).items() if content is not None] == [str(key.relative_to(tmp_path))]


def test_a_unit_that_somebody_changed_is_named_before_it_goes(tmp_path: Path) -> None:
    provision(tmp_path)
    (tmp_path / UNIT).write_text("mine")
    plan = plan_provision("desktop", PROGRAM, tmp_path)
    assert "was changed by hand" in plan.notes[0] and "-mine" in plan.changes[0].diff()


def test_a_run_that_is_killed_is_completed_or_undone_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / JOURNAL).parent.mkdir(parents=True)
    (root / JOURNAL).write_text("before")
    (root / "var/lib").mkdir(parents=True)  # every system has it
    before = tree(root)
    for writes in range(MOST_WRITES + 1):
        left = [writes]

        def dies(path: Path, content: "str | bytes", left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt  # nothing after this line runs: no undoing
            left[0] -= 1
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(firmware_config.provisioning, "write_atomically", dies)
            try:
                provision(root)
            except KeyboardInterrupt:
                assert writes < MOST_WRITES
            else:
                assert writes == MOST_WRITES
        if writes % 2:
            provision(root)
            assert plan_provision("desktop", PROGRAM, root).changes == []
        apply(plan_unprovision(root))
        assert tree(root) == before


def refused(root: Path, profile: str = "desktop") -> str:
    """The one line of a refusal with exit code 2; nothing below the root has changed."""
    before = tree(root)
    with pytest.raises((ProvisionError, BoardError, SettingsError)) as error:
        apply(plan_provision(profile, PROGRAM, root))
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) == 1
    assert tree(root) == before
    return str(error.value)


def test_a_unit_folder_that_is_read_only(tmp_path: Path) -> None:
    with mounted(tmp_path / "root", 1_000_000):
        units = tmp_path / "root" / UNITS
        units.mkdir(parents=True)
        subprocess.run(["mount", "--bind", units, units], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", units], check=True)
            assert "cannot be written to; run it as root, and mount the disk writable" in refused(tmp_path / "root")
        finally:
            subprocess.run(["umount", units], check=True)


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: "str | bytes") -> None:
        if path.name == SERVICE:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr(firmware_config.provisioning, "write_atomically", full)
    assert "No space left on device" in refused(tmp_path)


def test_a_link_that_leaves_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/etc").symlink_to(tmp_path / "elsewhere")
    assert "a link that leaves" in refused(tmp_path / "root")
    assert not list((tmp_path / "elsewhere").iterdir())


def board(root: Path, name: str) -> None:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_text(f"{name}\0")


def test_a_profile_for_another_board(tmp_path: Path) -> None:
    board(tmp_path, "Raspberry Pi 5 Model B Rev 1.0")
    assert "is for a board with 'Orin Nano' in its name" in refused(tmp_path, "jetson-orin-nano")
    assert "no profile is called 'raspbery'" in refused(tmp_path, "raspbery")


def test_a_refusal_is_one_line_with_exit_code_2(tmp_path: Path, run_cli: RunCli) -> None:
    board(tmp_path, "Raspberry Pi 5 Model B Rev 1.0")
    done = run_cli("device", "provision", "--profile", "desktop", "--root", tmp_path / "proc/device-tree/model")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    done = run_cli("device", "provision", "--profile", "jetson-orin-nano", "--root", tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("", "desktop"),
    ],
)
def test_the_board_s_name_chooses_the_profile(tmp_path: Path, name: str, profile: str) -> None:
    board(tmp_path, name)
    assert default_profile(tmp_path) == profile


def test_a_board_stays_what_it_was_provisioned_as(tmp_path: Path) -> None:
    provision(tmp_path, "jetson-agx-orin")
    assert default_profile(tmp_path) == "jetson-agx-orin"


def test_a_package_that_is_half_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProvisionError, match=r"half installed; 'dpkg --configure -a'"):
        plan_provision("desktop", tmp_path / "gone")
    templates = tmp_path / "templates"
    shutil.copytree(firmware_config.provisioning.TEMPLATES, templates)
    (templates / UNIT).unlink()
    monkeypatch.setattr(firmware_config.provisioning, "TEMPLATES", templates)
    (tmp_path / "root").mkdir()
    assert "missing, so this installation is incomplete; install it again" in refused(tmp_path / "root")


def test_a_program_that_the_service_would_not_see() -> None:
    program = Path("/tmp/respsam-device-of-a-test")
    program.touch(mode=0o755)
    try:
        with pytest.raises(ProvisionError, match="the service does not see /tmp"):
            plan_provision("desktop", program)
    finally:
        program.unlink()


def test_a_record_that_is_damaged(tmp_path: Path) -> None:
    provision(tmp_path)
    (tmp_path / RECORD).write_text("{")
    assert "cannot be read" in refused(tmp_path)


# systemd's own opinion


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units of a Jetson with programs that exist here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    (tmp_path / SETTINGS).parent.mkdir(parents=True)
    (tmp_path / SETTINGS).write_text('board.profile = "jetson-orin-nano"\nbundle.updates = "/srv/respsam"\n')
    apply(plan_provision("jetson-orin-nano", Path("/bin/true"), tmp_path))
    return tmp_path / UNITS


@pytest.mark.parametrize("source", ["/srv/respsam", "https://updates.example.org/respsam"])
@pytest.mark.parametrize(("unit", "most_exposed"), [("respsam-wipe.service", 1.5), ("respsam-update.service", 3.0)])
def test_the_helpers_are_locked_up_too(tmp_path: Path, unit: str, most_exposed: float, source: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    updating(tmp_path, source)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most_exposed * 10:.0f}"]
    done = subprocess.run([*command, str(tmp_path / UNITS / unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("unit", [SERVICE, POWER, "respsam-wipe.timer", "respsam-update.timer"])
def test_systemd_finds_no_fault(units: Path, unit: str) -> None:
    (units / POWER).write_text((units / POWER).read_text().replace("/usr/sbin/nvpmodel -m", "/bin/echo -m"))
    command = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(units / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_is_found(units: Path) -> None:
    (units / SERVICE).write_text((units / SERVICE).read_text().replace("/bin/true", "/nowhere"))
    command = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(units / SERVICE)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_service_is_locked_up_and_the_page_says_how_far(units: Path, repository: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}"]
    done = subprocess.run([*command, str(units / SERVICE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"Overall exposure level for respsam.service: ([\d.]+)", done.stdout)
    assert found and float(found[1]) <= MOST_EXPOSED
    assert f"exposure of {found[1]}" in (repository / "docs/security.md").read_text()


@pytest.mark.parametrize(
    ("console", "opened", "closed"),
    [
        ("", ["PrivateNetwork=yes", "IPAddressDeny=any"], ["AF_INET", "SocketBind"]),
        ("serve = true\nport = 8800", ["IPAddressAllow=localhost", "SocketBindAllow=tcp:8800"], ["PrivateNetwork"]),
        ('serve = true\nhost = "0.0.0.0"', ["SocketBindAllow=tcp:8765"], ["PrivateNetwork", "IPAddressAllow"]),
    ],
)
def test_the_network_is_open_only_as_far_as_the_console_needs(
    tmp_path: Path, console: str, opened: list[str], closed: list[str]
) -> None:
    (tmp_path / SETTINGS).parent.mkdir(parents=True)
    (tmp_path / SETTINGS).write_text(f'board.profile = "desktop"\n[console]\n{console}\n')
    apply(plan_provision("desktop", Path("/bin/true"), tmp_path))
    unit = (tmp_path / UNIT).read_text()
    assert all(line in unit.splitlines() for line in opened)
    assert not any(word in unit for word in closed)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}"]
    done = subprocess.run([*command, str(tmp_path / UNIT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    command = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(tmp_path / UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_has_the_network_where_a_broker_is_set_and_the_page_says_how_far(
    units: Path, repository: Path
) -> None:
    assert "PrivateNetwork=yes\nIPAddressDeny=any" in (units / SERVICE).read_text()
    root = units.parents[2]
    (root / SETTINGS).write_text((root / SETTINGS).read_text() + 'outputs.mqtt_host = "broker.example.org"\n')
    apply(plan_provision("jetson-orin-nano", Path("/bin/true"), root))
    unit = (units / SERVICE).read_text()
    assert "PrivateNetwork" not in unit and "AF_INET " in unit
    test_systemd_finds_no_fault(units, SERVICE)
    test_the_service_is_locked_up_and_the_page_says_how_far(units, repository)


@pytest.mark.parametrize("mode", ["MODE_15W", "15W"])
def test_the_power_mode_is_found_by_its_name(tmp_path: Path, mode: str, units: Path) -> None:
    """The unit's own sed, on what JetPack's file looks like."""
    line = next(line for line in (units / POWER).read_text().splitlines() if line.startswith("ExecStart="))
    script = line.split("'")[1].replace("$$", "$").replace("\\\\1", "\\1").replace("15W", mode)
    script = script.replace("/usr/sbin/nvpmodel", "/bin/echo").replace("/etc/nvpmodel.conf", str(tmp_path / "conf"))
    (tmp_path / "conf").write_text(
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        f"< POWER_MODEL ID=1 NAME={mode} >\n< POWER_MODEL ID=2 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n"
    )
    done = subprocess.run(["/bin/sh", "-ec", script], capture_output=True, text=True, check=True)
    assert done.stdout == "-m 1\n"


def test_an_image_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without users gets no user; one with users gets them by systemd's own command."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(firmware_config.provisioning, "_command", lambda *words: ran.append(words))
    firmware_config.provisioning.activate(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").touch()
    firmware_config.provisioning.activate(tmp_path)
    firmware_config.provisioning.stop(tmp_path)
    firmware_config.provisioning.reload(tmp_path)
    assert ran == [("systemd-sysusers", f"--root={tmp_path}")]


def test_a_command_that_fails_is_one_line() -> None:
    with pytest.raises(ProvisionError, match="'sh -c echo why >&2; exit 3' fails: why; repair it"):
        firmware_config.provisioning._command("sh", "-c", "echo why >&2; exit 3")
    with pytest.raises(ProvisionError, match="nowhere: cannot be run"):
        firmware_config.provisioning._command("nowhere")
