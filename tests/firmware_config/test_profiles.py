"""The shipped profiles, and a board compared with what its profile expects."""

from pathlib import Path

import pytest

from firmware_config.board import BoardError, board_name, check_board, power_mode, power_modes, shortcomings
from firmware_config.settings import Settings, SettingsError, load, load_settings, profile_names

NVPMODEL = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"


def with_profile(name: str, **flags: object) -> Settings:
    return load_settings(flags={"board.profile": name, **flags}, environment={})


def computer(root: Path, model: str = "", mode: str = "", memory_kilobytes: int = 64_000_000) -> Path:
    files = {
        "proc/device-tree/model": f"{model}\0",
        "proc/meminfo": f"MemTotal:       {memory_kilobytes} kB\nMemFree: 1 kB\n",
        "etc/nvpmodel.conf": NVPMODEL if mode else "",
        "var/lib/nvpmodel/status": mode,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_four_profiles_are_there_and_valid() -> None:
    assert profile_names() == ["desktop", "jetson-agx-orin", "jetson-orin-nano", "raspberry-pi-5"]
    for name in profile_names():
        settings = with_profile(name)
        assert settings.board.profile == name
        assert settings.board.real_time_factor < load_settings(environment={}).board.real_time_factor
        # a model that nobody validated on that engine is no default
        assert (settings.bundle.engine, settings.bundle.precision) == ("cpu", "auto")
    assert with_profile("jetson-orin-nano").store.file == Path("/var/lib/respsam/respsam.sqlite")
    assert with_profile("jetson-orin-nano").board.power_mode == "15W"


def test_a_profile_is_named_by_flag_environment_or_file_and_each_hides_the_weaker(tmp_path: Path) -> None:
    file = tmp_path / "respsam.toml"
    file.write_text('[board]\nprofile = "raspberry-pi-5"\n[log]\njournal_megabytes = 7.0\n')
    loaded = load(file, environment={})
    assert loaded.settings.board.model == "Raspberry Pi 5"
    assert loaded.settings.log.journal_megabytes == 7.0
    assert loaded.origin("board.model") == "profile raspberry-pi-5"
    assert loaded.origin("log.journal_megabytes") == f"file {file}, line 4"
    environment = {"RESPSAM_BOARD__PROFILE": "jetson-agx-orin"}
    assert load_settings(file, environment=environment).board.model == "AGX Orin"
    assert load_settings(file, {"board.profile": "desktop"}, environment).board.model == ""
    assert load_settings(file, {"board.profile": ""}, environment).board.cores == 1


def test_an_own_profile_is_a_file(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[board]\ncores = 3\n")
    assert with_profile(str(own)).board.cores == 3
    own.write_text("[board]\nkores = 3\n")
    with pytest.raises(
        SettingsError, match=r"own\.toml, line 2: unknown setting 'board\.kores'; nearest: 'board\.cores'"
    ):
        with_profile(str(own))


def test_an_unknown_profile_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        SettingsError, match="no profile is called 'jetson-nano'; nearest: 'jetson-orin-nano', others: "
    ):
        with_profile("jetson-nano")


def test_a_profile_for_another_board_is_refused(tmp_path: Path) -> None:
    pi = computer(tmp_path / "pi", "Raspberry Pi 5 Model B Rev 1.0")
    assert board_name(pi) == "Raspberry Pi 5 Model B Rev 1.0"
    check_board(with_profile("raspberry-pi-5").board, pi)
    check_board(with_profile("desktop").board, pi)
    with pytest.raises(BoardError, match=r"'Orin Nano' in its name, this is 'Raspberry Pi 5 Model B Rev 1\.0'"):
        check_board(with_profile("jetson-orin-nano").board, pi)
    with pytest.raises(BoardError, match="this is a computer without a board name"):
        check_board(with_profile("jetson-orin-nano").board, computer(tmp_path / "pc"))


def test_a_jetsons_power_mode_by_its_name(tmp_path: Path) -> None:
    nano = computer(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit Super", "pmode:0002")
    assert power_modes(nano) == {"15W": 0, "MAXN_SUPER": 2}
    assert power_mode(nano) == "MAXN_SUPER"
    board = with_profile("jetson-orin-nano", **{"board.cores": 1}).board
    check_board(board, nano)
    assert shortcomings(board, nano) == ["power mode MAXN_SUPER, 15W expected: 'sudo nvpmodel -m 0'"]
    with pytest.raises(BoardError, match="no power mode '15 W'; it has 15W, MAXN_SUPER"):
        check_board(board.model_copy(update={"power_mode": "15 W"}), nano)


def test_what_a_board_lacks(tmp_path: Path) -> None:
    small = computer(tmp_path, "Raspberry Pi 5", memory_kilobytes=1_000_000)
    board = with_profile("raspberry-pi-5", **{"board.cores": 1000}).board
    cores, memory = shortcomings(board, small)
    assert cores.endswith("cores, 1000 expected")
    assert memory == "1.0 GB of memory, 1.8 expected"
