"""The computer that this is, compared with what its profile expects."""

import os
import re
from pathlib import Path
from typing import Final

from firmware_config.errors import RespSAMError
from firmware_config.settings import BoardSettings

ROOT: Final = Path("/")
MODE: Final = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")  # in /etc/nvpmodel.conf


class BoardError(RespSAMError):
    """A profile for another board."""


def read_text(file: Path) -> str:
    """A file of the kernel as text; empty if it is not there, or its sensor is switched off."""
    try:
        return file.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def board_name(root: Path = ROOT) -> str:
    """The board's own name; empty on a PC."""
    return read_text(root / "proc/device-tree/model")


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone, with the zone's number in its name; without those that give none."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        millidegrees = read_text(zone / "temp")
        if millidegrees.lstrip("-").isdecimal():
            number = zone.name.removeprefix("thermal_zone")
            found[f"{read_text(zone / 'type')} {number}".strip()] = int(millidegrees) / 1000
    return found


def power_modes(root: Path = ROOT) -> dict[str, int]:
    """A Jetson's power modes: their numbers by name; empty elsewhere."""
    return {name: int(number) for number, name in MODE.findall(read_text(root / "etc/nvpmodel.conf"))}


def power_mode(root: Path = ROOT) -> str:
    """The name of a Jetson's present power mode, else its number; empty elsewhere."""
    # as in "pmode:0002"
    number = read_text(root / "var/lib/nvpmodel/status").rpartition(":")[2]
    names = {at: name for name, at in power_modes(root).items()}
    return names.get(int(number), number) if number.isdecimal() else number


def check_board(board: BoardSettings, root: Path = ROOT) -> None:
    """BoardError when the profile is for another board, or names a power mode that this one does not have."""
    name = board_name(root)
    if board.model.casefold() not in name.casefold():
        raise BoardError(
            f"profile {board.profile or 'of the settings'}: it is for a board with {board.model!r} in its name, this "
            f"is {repr(name) if name else 'a computer without a board name'}; set board.profile to another one"
        )
    modes = power_modes(root)
    if board.power_mode and modes and board.power_mode not in modes:
        raise BoardError(
            f"board.power_mode: this board has no power mode {board.power_mode!r}; it has {', '.join(modes)}"
        )


def shortcomings(board: BoardSettings, root: Path = ROOT) -> list[str]:
    """What the board lacks of what the profile expects, one phrase each; empty if nothing."""
    cores, memory, mode = os.cpu_count() or 1, _memory_gigabytes(root), power_mode(root)
    few = [f"{cores} cores, {board.cores} expected"] * (cores < board.cores)
    little = [f"{memory:.1f} GB of memory, {board.memory_gigabytes:g} expected"]
    set_mode = f"power mode {mode or 'unknown'}, {board.power_mode} expected: 'sudo nvpmodel -m NUMBER'"
    numbers = power_modes(root)
    if board.power_mode in numbers:
        set_mode = set_mode.replace("NUMBER", str(numbers[board.power_mode]))
    return [
        *few,
        *(little if 0 < memory < board.memory_gigabytes else []),
        *([set_mode] if board.power_mode and mode != board.power_mode else []),
    ]


def _memory_gigabytes(root: Path) -> float:
    """In 1e9 bytes; 0 if the kernel does not say."""
    found = re.search(r"MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo"))
    return int(found[1]) * 1024 / 1e9 if found else 0.0
