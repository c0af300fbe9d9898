"""Installed bundles: whatever happens to an installation or a slot, the next start has a bundle."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from device.bundle import Bundle, BundleError, read_bundle
from device.slots import MOST_STARTS, STATE, Slots, SlotsError, State
from export.signing import sign_bundle
from firmware_config.trust import Trust, TrustError
from tests.device.bundle_maker import make_bundle
from tests.firmware_config.keys import key_pair

KILLS = 100 if os.environ.get("RESPSAM_SOAK") else 12
Bundles = dict[str, Bundle]


def named(name: str) -> Callable[[dict[str, Any]], None]:
    """A change that gives the bundle a name, and so a fingerprint of its own."""
    return lambda manifest: manifest.update(name=name)


def passes(_path: Path) -> None:
    """A health check that every bundle passes."""


def fails(path: Path) -> None:
    raise BundleError(f"{path}: it answers nonsense")


def dies(_path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore(_warning: str) -> None:
    """Nobody looks at the warnings."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: read_bundle(make_bundle(folder / name, changes=named(name))) for name in ("one", "two", "three")}


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "slots", Trust(tmp_path / "trust"))


def started(slots: Slots, check: Callable[[Path], None] = passes) -> str | None:
    """The name of the bundle that a start takes; None for the shipped one."""
    bundle = slots.settle(check, ignore)
    return None if bundle is None else bundle.manifest.name


def in_a_child(work: Callable[[], object]) -> int:
    """Run in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_start_without_slots_makes_none(slots: Slots) -> None:
    assert started(slots) is None
    assert not slots.folder.exists()


def test_two_slots_take_turns_and_the_one_before_stays(slots: Slots, bundles: Bundles) -> None:
    for name in bundles:
        state = slots.install(bundles[name], passes)
        assert state.current is not None and not state.current.proven
        assert started(slots) == name
    state = slots.state()
    assert {kept.name for kept in state.slots.values()} == {"two", "three"}
    assert slots.roll_back(passes).current == state.slots[state.other or "a"]
    assert started(slots) == "two"
    assert bundles["three"].fingerprint in slots.state().failed  # an update does not install it again
    assert not [path for path in slots.folder.iterdir() if path.suffix == ".part"]


def test_the_active_bundle_installed_again_costs_no_slot(slots: Slots, bundles: Bundles) -> None:
    for name in ("one", "two", "two"):
        slots.install(bundles[name], passes)
        started(slots)
    assert {kept.name for kept in slots.state().slots.values()} == {"one", "two"}


def test_a_bundle_that_never_started_makes_room_and_not_the_one_that_works(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots) == "one"
    slots.install(bundles["two"], passes)
    slots.install(bundles["three"], passes)
    assert {kept.name for kept in slots.state().slots.values()} == {"one", "three"}


def test_a_bundle_that_fails_its_check_is_not_installed(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    before = slots.state()
    with pytest.raises(BundleError, match="nonsense"):
        slots.install(bundles["two"], fails)
    assert slots.state() == before
    assert sorted(path.name for path in slots.folder.iterdir()) == ["a", STATE]


def test_a_start_that_fails_returns_to_the_bundle_before(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots) == "one"
    slots.install(bundles["two"], passes)
    warnings: list[str] = []
    settled = slots.settle(fails, warnings.append)
    assert settled is not None and settled.manifest.name == "one"
    assert "two" in warnings[0] and "nonsense; back to slot a, one" in warnings[0]
    assert list(slots.state().failed) == [bundles["two"].fingerprint]


def test_starts_that_are_killed_count_and_then_the_bundle_before_returns(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots) == "one"
    slots.install(bundles["two"], passes)
    for _ in range(MOST_STARTS):
        assert os.WTERMSIG(in_a_child(lambda: slots.settle(dies, ignore))) == signal.SIGKILL
    assert started(slots, dies) == "one"
    assert "3 starts in a row ended" in next(iter(slots.state().failed.values()))


def test_a_first_bundle_that_fails_leaves_the_shipped_one(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots, fails) is None
    assert slots.state().active is None


def test_a_slot_that_is_damaged_on_the_disk_is_left_for_the_other(slots: Slots, bundles: Bundles) -> None:
    for name in ("one", "two"):
        slots.install(bundles[name], passes)
        assert started(slots) == name
    model = slots.path("b") / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    warnings: list[str] = []
    settled = slots.settle(passes, warnings.append)
    assert settled is not None and settled.manifest.name == "one"
    assert "model.onnx has sha256" in warnings[0]
    with pytest.raises(BundleError, match="sha256"):
        slots.activate("b", passes)
    (slots.path("a") / "manifest.json").unlink()
    assert started(slots) is None


def test_a_damaged_state_is_said_and_the_shipped_bundle_is_used(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    for content in (b"", b"{", b'{"active": "b"}', b'{"active": "c"}'):
        (slots.folder / STATE).write_bytes(content)
        warnings: list[str] = []
        assert slots.settle(passes, warnings.append) is None
        assert STATE in warnings[0]
        with pytest.raises(SlotsError):
            slots.install(bundles["two"], passes)


def test_an_empty_slot_and_nothing_to_roll_back_to_are_refused(slots: Slots, bundles: Bundles) -> None:
    with pytest.raises(SlotsError, match="nothing to roll back to"):
        slots.roll_back(passes)
    with pytest.raises(SlotsError, match="slot b is empty"):
        slots.activate("b", passes)
    slots.install(bundles["one"], passes)
    assert slots.roll_back(passes).active is None


def test_a_box_with_keys_takes_signed_bundles_in_their_order(
    slots: Slots, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path, "key")
    key = slots.trust.add(public)
    signed = {}
    for at, name in enumerate(bundles, 1):
        with pytest.raises(TrustError, match="not signed"):
            slots.install(bundles[name], passes)
        signed[name] = read_bundle(make_bundle(tmp_path / name, changes=named(name)))
        monkeypatch.setattr(time, "time", partial(float, 1000 * at))
        sign_bundle(signed[name], private)
    monkeypatch.undo()
    slots.install(signed["two"], passes)
    assert started(slots) is not None
    with pytest.raises(TrustError, match="older than the newest ever installed"):
        slots.install(signed["one"], passes)
    slots.install(signed["three"], passes)
    slots.roll_back(passes)  # older, but on this box already
    with pytest.raises(TrustError, match="older than the newest"):
        slots.install(signed["two"], passes)
    card = signed["three"].path / "MODEL_CARD.md"
    card.write_text("written later")
    with pytest.raises(TrustError, match=r"MODEL_CARD\.md: not as signed"):
        slots.install(signed["three"], passes)
    slots.trust.remove(key.fingerprint)
    before = slots.state()
    warnings: list[str] = []
    assert slots.settle(passes, warnings.append) is None
    assert "revoked" in warnings[0]
    assert slots.state() == before  # trust may return


def test_a_revoked_key_moves_nothing_also_when_the_other_slot_is_damaged(
    slots: Slots, bundles: Bundles, tmp_path: Path
) -> None:
    private, public = key_pair(tmp_path, "key")
    key = slots.trust.add(public)
    for name in ("one", "two"):
        bundle = read_bundle(make_bundle(tmp_path / name, changes=named(name)))
        sign_bundle(bundle, private)
        slots.install(bundle, passes)
        assert started(slots) is not None
    before = slots.state()
    assert before.other is not None
    (slots.path(before.other) / "manifest.json").unlink()
    slots.trust.remove(key.fingerprint)
    warnings: list[str] = []
    assert slots.settle(passes, warnings.append) is None
    assert "revoked" in warnings[0] and len(warnings) == 2
    assert slots.state() == before


def test_a_folder_that_cannot_be_written_keeps_what_works(slots: Slots, bundles: Bundles) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    slots.install(bundles["one"], passes)
    slots.folder.chmod(0o500)
    try:
        assert started(slots) == "one"
    finally:
        slots.folder.chmod(0o700)


def kill_at(event: int) -> None:
    """Kill this process before its so-many-th access to files."""
    seen = 0

    def hook(name: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name == "open" or name.startswith(("os.", "shutil.", "fcntl.")):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def whole(slots: Slots, names: set[str]) -> State:
    """The next start has one of these bundles, unharmed, and the state is as it says."""
    assert started(slots) in names
    state = slots.state()
    for slot in state.slots:
        slots.open(slot, state)
    return state


def test_an_installation_that_is_killed_at_any_access_to_files_leaves_a_bundle(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots) == "one"
    finished = False
    for event in range(1, 500):

        def work(event: int = event) -> None:
            kill_at(event)
            slots.install(bundles["two"], passes)

        finished = in_a_child(work) == 0
        whole(slots, {"one", "two"})
        slots.activate(slots.state().holds(bundles["one"].fingerprint), passes)
        assert started(slots) == "one"
        if finished:
            break
    assert finished and event > 20


def test_installations_that_are_killed_at_any_moment_leave_a_bundle(slots: Slots, bundles: Bundles) -> None:
    slots.install(bundles["one"], passes)
    assert started(slots) == "one"  # while the only one is on trial, the shipped bundle may be what a kill leaves
    began = time.monotonic()
    slots.install(bundles["two"], passes)
    seconds = time.monotonic() - began
    names, draw = set(bundles), random.Random(7)
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            for _ in range(9):
                for name in bundles:
                    slots.install(bundles[name], passes)
                    slots.settle(passes, ignore)
            os._exit(0)
        time.sleep(draw.uniform(0.0, 4.0 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        whole(slots, names)
