"""`respsam-device bundle` and `trust`: parse arguments and print."""

import json
import platform
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from firmware_config.command_line import ConfigOption, show_warning
from firmware_config.errors import GateRefused

if TYPE_CHECKING:
    from device.slots import Slot, Slots, State
    from firmware_config.settings import BundleSettings

PROGRAM: Final = "respsam-device"
LATEST_EVENTS: Final = 5

bundle = typer.Typer(help="Install, list and change the bundle that listens.", rich_markup_mode=None)
trust = typer.Typer(help="The keys that have to sign a bundle; without any, none has to.", rich_markup_mode=None)

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@bundle.command("install")
def bundle_install(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="Bundle folder, .respsam file, or its URL.")],
    config: ConfigOption = None,
) -> None:
    """Check a bundle, put it in the free slot and use it; exit code 3 when its health check fails.

    A session that runs changes between two stretches; no sound is lost.
    """
    from device.updates import install

    _show_active(install(source, _settings(config), _warn))


@bundle.command("list")
def bundle_list(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """List the slots, and what happened to them."""
    from device.model.opening import open_slots

    slots = open_slots(_settings(config))
    state = slots.state()
    rows = [_row(slot, slots, state) for slot in state.slots]
    if json_output:
        typer.echo(
            json.dumps({"active": state.active, "slots": rows, **state.model_dump(include={"failed", "events"})})
        )
        return
    for row in rows:
        words = (row["state"], row["name"], row["fingerprint"][:12], f"installed {_time(row['installed_at'])}")
        signed = f"signed {_time(row['signed_at'])}" if row["signed_at"] else "not signed"
        typer.echo("  ".join([f"slot {row['slot']}", *words, signed]))
    if state.active is None:
        typer.echo("the shipped bundle is in use")
    for event in state.events[-LATEST_EVENTS:]:
        typer.echo(f"{_time(event.at)}  {event.what}")


@bundle.command("activate")
def bundle_activate(
    slot: Annotated[
        Literal["a", "b", "shipped"], typer.Argument(help="A slot, or the shipped bundle.", metavar="SLOT")
    ],
    config: ConfigOption = None,
) -> None:
    """Use the bundle of a slot; exit code 3 when its health check fails."""
    from device.updates import activate

    _show_active(activate(None if slot == "shipped" else slot, _settings(config), _warn))


@bundle.command("rollback")
def bundle_rollback(config: ConfigOption = None) -> None:
    """Return to the bundle before the active one; `poll` does not install the active one again."""
    from device.updates import roll_back

    _show_active(roll_back(_settings(config), _warn))


@bundle.command("poll")
def bundle_poll(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|URL", help="Where rollout.json is; else bundle.updates of the settings.")
    ] = "",
    box: Annotated[
        str, typer.Option("--box", metavar="NAME", help="Of this box in the rings; else its host name.")
    ] = "",
    config: ConfigOption = None,
) -> int:
    """Install what a shared folder or URL offers, if it is this box's turn; exit code 3 where it failed."""
    from device.updates import poll

    name = box or platform.node()
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise typer.BadParameter(f"{name!r} is no name of letters, digits, '.', '_' and '-'", param_hint="--box")
    settings = _settings(config)
    if not (source := source or settings.updates):
        raise typer.BadParameter("no folder or URL; give one or set bundle.updates", param_hint="FOLDER|URL")
    polled = poll(source, settings, name, _warn)
    typer.echo(polled.line)
    return GateRefused.exit_code if polled.report.state == "failed" else 0


@trust.command("add")
def trust_add(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Public Ed25519 key (PEM).")], config: ConfigOption = None
) -> None:
    """Trust a public key: from now on a bundle has to be signed by a trusted key."""
    from device.model.opening import trust_of

    settings = _settings(config)
    trusted = trust_of(settings)
    added = trusted.add(key)
    typer.echo(f"key {added.fingerprint} is trusted, in {trusted.folder}")
    _warn_of_refused_slots(settings)


@trust.command("list")
def trust_list(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """List the trusted and revoked keys."""
    from device.model.opening import trust_of

    for key in trust_of(_settings(config)).keys:
        state = "revoked" if key.revoked else "trusted"
        typer.echo(
            json.dumps({"key": key.fingerprint, "state": state}) if json_output else f"{key.fingerprint}  {state}"
        )


@trust.command("remove")
def trust_remove(
    key: Annotated[str, typer.Argument(metavar="FINGERPRINT", help="As `trust list` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Revoke a key for good: what it has signed is refused from now on, installed bundles too."""
    from device.model.opening import trust_of

    settings = _settings(config)
    revoked = trust_of(settings).remove(key)
    typer.echo(f"key {revoked.fingerprint} is revoked")
    _warn_of_refused_slots(settings)


def _warn_of_refused_slots(settings: "BundleSettings") -> None:
    from device.model.opening import open_slots

    slots = open_slots(settings)
    state = slots.state()
    for slot in state.slots:
        if refused := _refusal(slot, slots, state):
            _warn(f"slot {slot} will not be used: {refused}")


def _row(slot: "Slot", slots: "Slots", state: "State") -> dict[str, Any]:
    kept = state.slots[slot]
    words = ("active" if slot == state.active else "kept") + " on trial" * (not kept.proven)
    refused = _refusal(slot, slots, state)
    return {"slot": slot, "state": f"{words}, refused: {refused}" if refused else words, **kept.model_dump()}


def _refusal(slot: "Slot", slots: "Slots", state: "State") -> str:
    """Why a slot cannot be used; empty if it can."""
    from device.bundle import BundleError
    from firmware_config.trust import TrustError

    try:
        slots.open(slot, state)
    except (BundleError, TrustError) as error:
        return str(error)
    return ""


def _show_active(state: "State") -> None:
    current = state.current
    trial = "; it is on trial until its next start" if current is not None and not current.proven else ""
    typer.echo(f"{state.named(state.active)} is active{trial}")


def _settings(config: Path | None) -> "BundleSettings":
    from firmware_config.settings import load_settings

    return load_settings(config).bundle


def _warn(message: str) -> None:
    show_warning(PROGRAM, "device", message)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
