import stat
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from firmware_config.settings import DEFAULTS, Layer, Settings, SettingsError, load_settings, read_toml


def write(folder: Path, text: str) -> Path:
    file = folder / "my.toml"
    file.write_text(text)
    return file


def refused(
    config: Path | None = None, environment: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(config, flags=flags, environment=environment or {})
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        section = isinstance(inner, type) and issubclass(inner, BaseModel)
        found |= keys(inner, f"{name}.") if section else {prefix + name}  # type: ignore[arg-type]
    return found


def test_defaults_and_models_hold_the_same_keys_and_only_the_file_holds_values() -> None:
    values = read_toml(DEFAULTS).values
    in_file = {f"{section}.{key}" for section, table in values.items() for key in table}  # type: ignore[attr-defined]
    assert in_file == keys(Settings)
    sections = [field.annotation for field in Settings.model_fields.values()]
    for section in sections:
        assert isinstance(section, type) and issubclass(section, BaseModel)
        for name, field in section.model_fields.items():
            assert field.is_required(), f"{name} has a default outside defaults.toml"
            assert field.description, f"{name} has no docstring"


def test_every_number_has_a_unit_and_a_range() -> None:
    for section in Settings.model_json_schema()["$defs"].values():
        for name, field in section["properties"].items():
            if field["type"] in ("integer", "number"):
                assert field["unit"] and "maximum" in field, name
                assert "minimum" in field or "exclusiveMinimum" in field, name


def test_defaults() -> None:
    settings = load_settings(environment={})
    assert (settings.demo.seed, settings.demo.seconds, settings.bundle.precision) == (7, 60.0, "auto")
    assert settings.bundle.chosen is None


def test_settings_are_frozen() -> None:
    settings = load_settings(environment={})
    with pytest.raises(ValidationError):
        settings.demo.seed = 8  # type: ignore[misc]


def test_precedence(tmp_path: Path) -> None:
    profile = Layer("profile clinic", {"demo": {"seed": 10}})
    passport = Layer("passport one", {"demo": {"seed": 20}})
    config = write(tmp_path, "[demo]\nseed = 30\n")
    environment = {"RESPSAM_DEMO__SEED": "40"}
    flags = {"demo.seed": 50}
    none = {"demo.seed": None}
    layers = [profile, passport]
    assert load_settings(config, flags, environment, layers).demo.seed == 50
    assert load_settings(config, none, environment, layers).demo.seed == 40
    assert load_settings(config, none, {}, layers).demo.seed == 30
    assert load_settings(None, none, {}, layers).demo.seed == 20
    assert load_settings(None, none, {}, [profile]).demo.seed == 10
    assert load_settings(None, none, {}).demo.seed == 7
    assert load_settings(config, flags, environment, layers).demo.seconds == 60.0


def test_the_environment_is_read_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESPSAM_DEMO__SEED", "41")
    assert load_settings().demo.seed == 41


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("RESPSAM_STORE__ENABLED", "0", False),
        ("RESPSAM_STORE__ENABLED", "true", True),
        ("RESPSAM_AUDIO__SAMPLE_RATE", "4000", 4000),
        ("RESPSAM_AUDIO__BLOCK_SECONDS", "0.5", 0.5),
        ("RESPSAM_AUDIO__DEVICE", "7", "7"),
        ("RESPSAM_AUDIO__DEVICE", "", ""),
    ],
)
def test_text_of_the_environment_becomes_the_type_of_the_setting(name: str, text: str, value: object) -> None:
    section, field = name.removeprefix("RESPSAM_").lower().split("__")
    settings = load_settings(environment={name: text})
    assert getattr(getattr(settings, section), field) == value


def test_other_variables_are_no_settings() -> None:
    assert load_settings(environment={"RESPSAM_DATA": "/somewhere", "PATH": "/bin"}) == load_settings(environment={})


def test_unknown_key_names_place_key_and_nearest(tmp_path: Path) -> None:
    config = write(tmp_path, "[quality]\nminimum_level_dbsf = -70.0\n")
    message = refused(config)
    assert str(config) in message
    assert "'quality.minimum_level_dbsf'" in message
    assert "'quality.minimum_level_dbfs'" in message
    assert "'bundle.precision'" in refused(write(tmp_path, "precision = 'int8'"))
    assert "'store'" in refused(write(tmp_path, "store = true")) and "[store]" in refused(tmp_path / "my.toml")
    assert "unknown setting 'recorder'" in refused(write(tmp_path, "[recorder]"))
    assert "'audio.device'" in refused(flags={"audio.devise": "x"})
    unknown = refused(environment={"RESPSAM_AUDIO_DEVICE": "x"})
    assert "environment" in unknown and "'RESPSAM_AUDIO_DEVICE'" in unknown and "'RESPSAM_AUDIO__DEVICE'" in unknown


def test_an_error_names_the_line_of_its_key(tmp_path: Path) -> None:
    text = "# a comment\n[audio]\nchannel = 0\n\n[demo]\nseed = 1\nsecons = 2.0\n[store]\nenabled = 1\n"
    config = write(tmp_path, text)
    assert refused(config).startswith(f"{config}, line 7: unknown setting 'demo.secons'")
    assert refused(write(tmp_path, text.replace("secons", "seconds"))).startswith(
        f"{config}, line 9: store.enabled = 1"
    )
    assert refused(write(tmp_path, "audio = { channel = 0, chanel = 1 }\n")).startswith(f"{config}, line 1: ")


def test_an_empty_section_is_harmless(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "[audio]\n"), environment={}) == load_settings(environment={})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[audio]\nsample_rate = '16000'", ["audio.sample_rate = '16000'", "integer"]),
        ("[audio]\nsample_rate = -1", ["audio.sample_rate = -1", "greater than or equal to 0"]),
        ("[audio]\nblock_seconds = nan", ["audio.block_seconds", "finite"]),
        ("[store]\nenabled = 1", ["store.enabled = 1", "boolean"]),
        ("[bundle]\nprecision = 'int4'", ["bundle.precision = 'int4'", "'auto', 'fp32', 'fp16' or 'int8'"]),
        ("[audio]\ndevice = ['a']", ["audio.device", "string"]),
        ("[audio.device]\nname = 'a'", ["audio.device.name", "'audio.device'"]),
    ],
)
def test_wrong_value_names_file_key_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    config = write(tmp_path, text)
    message = refused(config)
    for part in [str(config), *parts]:
        assert part in message


def test_wrong_value_in_the_environment_and_in_a_flag() -> None:
    message = refused(environment={"RESPSAM_DEMO__SEED": "seven"})
    assert "RESPSAM_DEMO__SEED = 'seven'" in message and "integer" in message
    assert refused(flags={"demo.seconds": 0.0}).startswith("command line: demo.seconds = 0.0")


def test_a_wrong_value_is_told_even_where_a_stronger_layer_hides_it(tmp_path: Path) -> None:
    config = write(tmp_path, "[demo]\nseed = 'x'\n")
    assert str(config) in refused(config, {"RESPSAM_DEMO__SEED": "3"})


def test_unreadable_files(tmp_path: Path) -> None:
    broken = refused(write(tmp_path, "[audio]\nchannel = \n"))
    assert str(tmp_path / "my.toml") in broken and "line 2" in broken
    assert "No such file" in refused(tmp_path / "absent.toml")
    assert "directory" in refused(tmp_path)
    (tmp_path / "my.toml").write_bytes(b"[audio]\ndevice = '\xff'\n")
    assert "UTF-8" in refused(tmp_path / "my.toml")


def test_fingerprint_follows_the_values_and_nothing_else(tmp_path: Path) -> None:
    plain = load_settings(environment={})
    assert plain.fingerprint() == load_settings(write(tmp_path, "[demo]\nseed = 7"), environment={}).fingerprint()
    assert plain.fingerprint() != load_settings(flags={"demo.seed": 8}, environment={}).fingerprint()
    assert len(plain.fingerprint()) == 64


def test_folders_follow_xdg_and_an_explicit_path_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(environment={})
    monkeypatch.setenv("HOME", "/home/nurse")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert settings.store.file == Path("/state/respsam/respsam.sqlite")
    assert settings.training.folder == Path("/home/nurse/.cache/respsam/audio")
    chosen = load_settings(
        flags={"store.path": "~/a.sqlite", "training.cache": "/b", "bundle.path": "~/c"}, environment={}
    )
    assert chosen.store.file == Path("/home/nurse/a.sqlite")
    assert chosen.training.folder == Path("/b")
    assert chosen.bundle.chosen == Path("/home/nurse/c")


def test_defaults_file_ships_readable() -> None:
    assert DEFAULTS.stat().st_mode & stat.S_IRUSR


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbf[audio]\nchannel = 1\n")  # as Windows' editors write it
    assert load_settings(file, environment={}).audio.channel == 1
