"""What turns a computer into this device: units, udev rules, ALSA's settings and more, put below a root folder.

Each file of `templates/` is named as its place below the root. `provision` keeps what was there before in `STATE`, and
`unprovision` restores it. A run that is killed is completed, or undone, by the next one.
"""

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import Final

from firmware_config.board import ROOT, board_name, check_board
from firmware_config.errors import RespSAMError
from firmware_config.files import write_atomically
from firmware_config.settings import WEB, Settings, load_settings, profile_names

TEMPLATES: Final = Path(__file__).with_name("templates")
STATE: Final = "var/lib/respsam-provision"  # root's own: the service can write below var/lib/respsam
RECORD: Final = f"{STATE}/record.json"
BEFORE: Final = f"{STATE}/before"
SETTINGS: Final = "etc/respsam/respsam.toml"
UNITS: Final = "etc/systemd/system"
STARTED_BY: Final = {".service": "multi-user.target.wants", ".timer": "timers.target.wants"}
PROGRAM: Final = Path("/usr/bin/respsam-device")  # of the Debian package
SERVICE: Final = "respsam.service"
POWER: Final = "respsam-power.service"
WIPE: Final = "respsam-wipe.timer"
UPDATE: Final = ("respsam-update.service", "respsam-update.timer")
# what a broker or a source of updates needs, and what everything else gets
NETWORK: Final = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
NO_NETWORK: Final = "PrivateNetwork=yes\nIPAddressDeny=any\nRestrictAddressFamilies=AF_UNIX"
FOLDER: Final = NO_NETWORK + '\nReadWritePaths="-{}"'
# The console's process runs at a lower priority, which the filter of system calls forbids otherwise.
CONSOLE: Final = """SystemCallFilter=setpriority
SocketBindDeny=any
SocketBindAllow=tcp:{}"""
THIS_MACHINE: Final = """IPAddressDeny=any
IPAddressAllow=localhost"""
HOMES: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # what the service does not see

# Of a file: its bytes, the target of a link, or None without one.
Content = bytes | Path | None


class ProvisionError(RespSAMError):
    """A root folder, a profile or an installation with which the device cannot be set up."""


@dataclass(frozen=True)
class Change:
    """One file below the root, before and after."""

    path: str
    before: Content
    after: Content

    def diff(self) -> str:
        """In unified form."""
        old = f"before/{self.path}" if self.before is not None else "/dev/null"
        new = f"after/{self.path}" if self.after is not None else "/dev/null"
        return "".join(difflib.unified_diff(_lines(self.before), _lines(self.after), old, new))


@dataclass(frozen=True)
class Plan:
    """The changes that provision or unprovision a root folder, and what is said about them."""

    root: Path
    changes: Sequence[Change]
    record: "Record"
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Record:
    """What was provisioned below a root: the hashes of everything that was ever written, by path, and new folders."""

    files: Mapping[str, list[str]] = field(default_factory=dict)
    folders: Sequence[str] = ()

    def with_files(self, root: Path, rendered: Mapping[str, Content]) -> "Record":
        """The same after these files were written, too."""
        files = {path: list(dict.fromkeys([*self.files.get(path, ()), _hash(rendered[path])])) for path in rendered}
        new = {
            str(folder) for path in [*rendered, RECORD] for folder in Path(path).parents if not (root / folder).exists()
        }
        return Record({**self.files, **files}, sorted({*self.folders, *new}))

    def is_edited(self, root: Path, path: str) -> bool:
        """Whether somebody else wrote the file that is there now."""
        content = _read(root / path)
        return content not in (None, _original(root, path)) and _hash(content) not in self.files.get(path, ())

    def change(self, root: Path) -> Change:
        """Of the record's own file."""
        after = json.dumps(asdict(self), indent=1).encode() if self.files else None
        return Change(RECORD, _read(root / RECORD), after)


def installed_program(root: Path = ROOT) -> Path:
    """The command that the service runs: of this installation, or in an image that of the package."""
    beside = Path(sys.executable).with_name(PROGRAM.name)
    return beside if root == ROOT and beside.exists() else PROGRAM


def default_profile(root: Path = ROOT) -> str:
    """The profile that the settings there name, else the one for this board, else `desktop`."""
    file = root / SETTINGS
    named = load_settings(file, environment={}).board.profile if file.exists() else ""
    if named:
        return named
    name = board_name(root).casefold()
    for profile in profile_names():
        model = load_settings(None, {"board.profile": profile}, {}).board.model.casefold()
        if model and model in name:
            return profile
    return "desktop"


def plan_provision(profile: str, program: Path, root: Path = ROOT) -> Plan:
    """What has to change to make the computer below `root` a device that runs `program`.

    Raises ProvisionError, BoardError for a profile for another board, and SettingsError. A root that is not this
    computer's, and has no board name, is an image for any board.
    """
    recorded = _recorded(root)
    is_ours = not (root / SETTINGS).exists() or (SETTINGS in recorded.files and not recorded.is_edited(root, SETTINGS))
    settings = _settings(profile, root / SETTINGS, is_ours)
    if root == ROOT or board_name(root):
        check_board(settings.board, root)
    _check_program(program, root)
    rendered = {path: content for path, content in render(settings, program).items() if is_ours or path != SETTINGS}
    gone = {path: _original(root, path) for path in recorded.files.keys() - rendered.keys() - {SETTINGS}}
    record = recorded.with_files(root, rendered)
    return Plan(root, _changes(root, {**gone, **rendered}), record, _edited(root, recorded))


def plan_unprovision(root: Path = ROOT) -> Plan:
    """What has to change to restore what was below `root` before; settings that somebody changed stay."""
    recorded = _recorded(root)
    stays = SETTINGS in recorded.files and recorded.is_edited(root, SETTINGS)
    wanted = {path: _original(root, path) for path in recorded.files if not (stays and path == SETTINGS)}
    notes = [f"{root / SETTINGS} was changed by hand and stays"] * stays
    return Plan(root, _changes(root, wanted), Record(), [*notes, *_edited(root, recorded)])


def render(settings: Settings, program: Path) -> dict[str, Content]:
    """Every file and link of a device with these settings, by its path below the root."""
    board = settings.board
    words = {
        "program": str(program),
        "profile": board.profile,
        "power_mode": board.power_mode,
        "clocks": "ExecStart=/usr/bin/jetson_clocks" if board.jetson_clocks else "",
        "journal_megabytes": f"{settings.log.journal_megabytes:.0f}",
        "source_access": _access(settings.bundle.updates),
        "doors": _doors(settings),
    }
    files = sorted(file for file in TEMPLATES.rglob("*") if file.is_file())
    rendered: dict[str, Content] = {
        str(file.relative_to(TEMPLATES)): Template(file.read_text()).substitute(words).encode() for file in files
    }
    if missing := {SETTINGS, *(f"{UNITS}/{unit}" for unit in (SERVICE, POWER, WIPE, *UPDATE))} - rendered.keys():
        raise ProvisionError(
            f"{TEMPLATES / min(missing)}: missing, so this installation is incomplete; install it again"
        )
    for unit in [*[POWER] * (not board.power_mode), *UPDATE * (not settings.bundle.updates)]:
        del rendered[f"{UNITS}/{unit}"]
    installed = [
        path for path, content in rendered.items() if isinstance(content, bytes) and b"\n[Install]\n" in content
    ]
    return rendered | {_link(Path(path)): Path(f"../{Path(path).name}") for path in installed}


def _link(unit: Path) -> str:
    """The place of the link that starts a unit with the system."""
    return str(unit.parent / STARTED_BY[unit.suffix] / unit.name)


def _access(updates: str) -> str:
    """What the unit of updates may reach, by the source; ProvisionError for a folder that is not absolute."""
    if WEB.match(updates):
        return NETWORK
    if updates and not Path(updates).is_absolute():
        raise ProvisionError(f"bundle.updates = {updates!r}: not absolute; give the whole path of the folder, or a URL")
    return FOLDER.format(updates.replace("%", "%%"))


def _doors(settings: Settings) -> str:
    """What the listening unit may reach: nothing, unless a door is configured, and then no more than the door needs."""
    console, broker = settings.console, settings.outputs.mqtt_host
    if not (console.serve or broker):
        return NO_NETWORK
    opened = [NETWORK]
    if console.serve:
        # port 0 is any free one
        opened.append(CONSOLE.format(console.port) if console.port else CONSOLE.replace("tcp:{}", "tcp"))
        if console.is_local and not broker:
            opened.append(THIS_MACHINE)
    return "\n".join(opened)


def apply(plan: Plan) -> None:
    """Make the changes; when one fails, undo those before it and raise ProvisionError."""
    root, before, record = plan.root, _recorded(plan.root), plan.record.change(plan.root)
    _check_writable(root, [change.path for change in [record, *plan.changes]])
    # a run that is killed is undone from the record, so it comes first and goes last
    changes = [record, *plan.changes] if plan.record.files else [*plan.changes, record]
    done: list[Change] = []
    try:
        for path in plan.record.files.keys() - before.files.keys():
            _write(root / BEFORE / path, _read(root / path))
        for change in changes:
            done.append(change)
            _write(root / change.path, change.after)
    except (OSError, RespSAMError) as error:
        for change in reversed(done):
            with suppress(OSError, RespSAMError):
                _write(root / change.path, change.before)
        _clear(root, plan.record if not before.files else Record())
        raise ProvisionError(f"{error}; nothing was changed") from error
    _clear(root, before if not plan.record.files else Record())


def activate(root: Path = ROOT, restart: bool = True) -> None:
    """Make the system below `root` use what was provisioned; this running one also starts the service."""
    if (root / "etc/passwd").exists():
        _command("systemd-sysusers", f"--root={root}")
    if _runs(root):
        _command("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/respsam.conf")
        reload(root)
        _command("systemctl", "restart" if restart else "start", "--no-block", SERVICE, *_timers(root))


def stop(root: Path = ROOT) -> None:
    """Stop the units of this running system, before they go."""
    if _runs(root) and (root / UNITS / SERVICE).exists():
        _command("systemctl", "stop", SERVICE, *_timers(root))


def reload(root: Path = ROOT) -> None:
    """Make this running system read the files anew."""
    if _runs(root):
        _command("systemctl", "daemon-reload")
        _command("systemctl", "try-restart", "systemd-journald.service")
        if Path("/run/udev/control").exists():  # a container has no udevd that runs
            _command("udevadm", "control", "--reload")


def _timers(root: Path) -> list[str]:
    return [timer for timer in (WIPE, UPDATE[1]) if (root / UNITS / timer).exists()]


def _runs(root: Path) -> bool:
    return root == ROOT and Path("/run/systemd/system").is_dir()


def _command(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ProvisionError(f"{words[0]}: cannot be run ({error.strerror}); this needs systemd") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ProvisionError(f"'{' '.join(words)}' fails: {last}; repair it and run the command again")


def _settings(profile: str, file: Path, is_ours: bool) -> Settings:
    """The settings of the device; ProvisionError if somebody's own settings name another profile."""
    if is_ours:
        return load_settings(None, {"board.profile": profile}, {})
    settings = load_settings(file, environment={})
    if (named := settings.board.profile) != profile:
        raise ProvisionError(
            f"{file}: board.profile is {named!r} there, not {profile!r}; change one of the two, the other is --profile"
        )
    return settings


def _check_program(program: Path, root: Path) -> None:
    """ProvisionError when the service could not run the program; an image gets its program later."""
    if root != ROOT:
        return
    if not os.access(program, os.X_OK):
        raise ProvisionError(
            f"{program}: not there, so the package is half installed; 'dpkg --configure -a' or install it again"
        )
    if home := next((home for home in HOMES if program.resolve().is_relative_to(home)), ""):
        raise ProvisionError(f"{program}: the service does not see {home}; install the Debian package, or into /opt")


def _check_writable(root: Path, paths: Iterable[str]) -> None:
    """ProvisionError before the first change if one of them would fail or leave the root."""
    whole = root.resolve()
    for path in paths:
        folder = (root / path).parent
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        if not folder.resolve().is_relative_to(whole) and folder.resolve() not in whole.parents:
            raise ProvisionError(f"{folder}: a link that leaves {root}; make it a folder, or choose another --root")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ProvisionError(
                f"{folder}: cannot be written to; run it as root, and mount the disk writable; nothing was changed"
            )


def _recorded(root: Path) -> Record:
    file = root / RECORD
    try:
        return Record(**json.loads(file.read_text())) if file.exists() else Record()
    except (OSError, ValueError, TypeError) as error:
        raise ProvisionError(f"{file}: cannot be read ({error}); restore it from a backup, or remove it") from error


def _changes(root: Path, wanted: Mapping[str, Content]) -> list[Change]:
    changes = [Change(path, _read(root / path), content) for path, content in sorted(wanted.items())]
    return [change for change in changes if change.before != change.after]


def _edited(root: Path, recorded: Record) -> list[str]:
    """A note for every file that somebody changed and that is written over now."""
    files = (path for path in recorded.files if path != SETTINGS and recorded.is_edited(root, path))
    return [f"{root / path} was changed by hand; the diff shows what goes (a drop-in would stay)" for path in files]


def _original(root: Path, path: str) -> Content:
    return _read(root / BEFORE / path)


def _read(path: Path) -> Content:
    if path.is_symlink():
        return Path(os.readlink(path))
    return path.read_bytes() if path.exists() else None


def _write(path: Path, content: Content) -> None:
    """A reader sees the old file or the new one; FileError or OSError."""
    if content is None:
        path.unlink(missing_ok=True)
    elif isinstance(content, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(content)
    else:
        mode = path.stat().st_mode if path.exists() else 0o644
        write_atomically(path, content)
        path.chmod(mode)  # not what the umask left


def _clear(root: Path, record: Record) -> None:
    """Remove what provisioning needs for itself, once nothing is provisioned, and the folders that it made."""
    if not (root / RECORD).exists():
        shutil.rmtree(root / STATE, ignore_errors=True)
    for folder in sorted(record.folders, reverse=True):
        with suppress(OSError):  # not empty: somebody uses it
            (root / folder).rmdir()


def _hash(content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else os.fsencode(content or "")).hexdigest()


def _lines(content: Content) -> list[str]:
    text = f"link to {content}\n" if isinstance(content, Path) else (content or b"").decode(errors="replace")
    return text.splitlines(keepends=True)
