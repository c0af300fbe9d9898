"""The live path from source to decision: gaps, silence, short sound, early ends; every sample accounted for."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from device.breath.quality import assess as judge_quality
from device.breath.simulator import simulate
from device.bundle import BundleError, SiteRule, read_bundle
from device.capture.blocks import Block, paced
from device.capture.process import CaptureError
from device.capture.sources import DemoSource
from device.capture.timeline import Entry
from device.listening.cycle import CycleResult
from device.listening.live import Session, stopped_by_signals
from device.listening.respiratory_rate import respiratory_rate
from device.model.classifier import Classifier
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE, FloatArray, Span
from device.view.terminal import LiveView, PlainView
from firmware_config.settings import load_settings
from tests.device.bundle_maker import make_bundle

QUALITY = load_settings(environment={}).quality
CLEAR = judge_quality(np.sin(np.arange(16_000)).astype(np.float32), QUALITY)
RULE = SiteRule(threshold=0.5, stretch_cycles=10, least_cycles=3)


class Sound:
    """Blocks as given."""

    name, demo, highest_hz = "test", False, None

    def __init__(self, blocks: Sequence[Block], live: bool = False) -> None:
        self._blocks, self.live = blocks, live

    def blocks(self) -> Iterator[Block]:
        yield from self._blocks


class Unplugged(Sound):
    """Sound whose microphone goes at the end."""

    def blocks(self) -> Iterator[Block]:
        yield from self._blocks
        raise CaptureError("the microphone has gone")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(read_bundle(make_bundle(tmp_path_factory.mktemp("live") / "bundle")))


def blocks_of(samples: FloatArray) -> list[Block]:
    return list(paced(samples, fast=True))


def finished(session: Session) -> tuple[list[CycleResult], list[Entry]]:
    happened = list(session.run())
    return [one for one in happened if isinstance(one, CycleResult)], [
        one for one in happened if isinstance(one, Entry)
    ]


def in_samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def test_no_cycle_crosses_a_gap_and_the_account_balances_to_the_sample(classifier: Classifier) -> None:
    before, after = simulate(1, 21.37).samples, simulate(2, 17.11).samples
    lost = 23_456
    first, *rest = blocks_of(after)
    sound = [*blocks_of(before), Block(first.samples, lost, "overflow", "our queue was full"), *rest]
    session = Session(Sound(sound), classifier, QUALITY)
    results, entries = finished(session)

    gap = (before.size, before.size + lost)
    spans = [(in_samples(one.start_seconds), in_samples(one.end_seconds)) for one in results]
    assert all(end <= gap[0] or start >= gap[1] for start, end in spans)
    assert any(end <= gap[0] for _, end in spans)
    assert any(start >= gap[1] for start, _ in spans)
    assert [(one.kind, one.sample, one.missing_samples) for one in entries] == [
        ("start", 0, 0),
        ("overflow", before.size + lost, lost),
        ("end", before.size + lost + after.size, 0),
    ]
    assert (session.timeline.heard, session.timeline.missing) == (before.size + after.size, lost)

    judged = np.zeros(session.timeline.position, bool)
    for start, end in spans:
        judged[start:end] = True
    summary = session.summary
    assert summary.heard_samples == before.size + after.size
    assert summary.missing_samples == lost
    assert summary.gradable_samples == np.count_nonzero(judged)


def test_cycles_after_a_gap_are_those_of_the_sound_alone(classifier: Classifier) -> None:
    before, after = simulate(1, 9.0).samples, simulate(2, 20.0).samples
    first, *rest = blocks_of(after)
    together = Session(Sound([*blocks_of(before), Block(first.samples, 160), *rest]), classifier, QUALITY)
    alone = Session(Sound(blocks_of(after)), classifier, QUALITY)
    shift = (before.size + 160) / SAMPLE_RATE
    late = [one for one in finished(together)[0] if one.start_seconds >= shift]
    expected = finished(alone)[0]
    assert [one.start_seconds - shift for one in late] == pytest.approx([one.start_seconds for one in expected])
    assert [one.judgement for one in late] == [one.judgement for one in expected]


def test_a_note_of_the_driver_is_a_gap_even_when_nothing_is_known_to_be_lost(classifier: Classifier) -> None:
    samples = simulate(1, 10.0).samples
    sound = blocks_of(samples)
    sound[50] = Block(sound[50].samples, 0, "overflow", "the driver overflowed")
    results, entries = finished(Session(Sound(sound), classifier, QUALITY))
    at = 50 * 1600
    assert [(one.sample, one.note) for one in entries if one.kind == "overflow"] == [(at, "the driver overflowed")]
    assert not any(in_samples(one.start_seconds) < at < in_samples(one.end_seconds) for one in results)


def test_silence_is_poor_quality_and_never_classified(classifier: Classifier) -> None:
    session = Session(Sound(blocks_of(np.zeros(160_000, np.float32))), classifier, QUALITY)
    results, _ = finished(session)
    assert results
    assert all(one.judgement is None and not one.flagged for one in results)
    assert session.summary.verdict == "poor quality"
    assert session.summary.probability is None
    assert session.summary.gradable_samples == 0
    assert "too quiet" in session.summary.reasons[0]
    assert results[0].as_json()["class"] is None


@pytest.mark.parametrize(("seconds", "cycles"), [(0.0, 0), (0.5, 0), (2.0, 1)])
def test_too_little_sound_is_not_enough(classifier: Classifier, seconds: float, cycles: int) -> None:
    samples = simulate(1, 5.0).samples[: in_samples(seconds)]
    session = Session(Sound(blocks_of(samples)), classifier, QUALITY)
    results, _ = finished(session)
    assert (len(results), session.summary.verdict) == (cycles, "not enough")
    assert "listen longer" in session.summary.reasons[0]


def test_a_site_is_flagged_by_its_rule(tmp_path: Path) -> None:
    sound = blocks_of(simulate(1, 40.0).samples)

    def verdict(logits: tuple[float, ...], threshold: float) -> str:
        rule = SiteRule(threshold=threshold, stretch_cycles=6, least_cycles=2)
        bundle = read_bundle(make_bundle(tmp_path / f"{logits[0]}-{threshold}", logits=logits, site_rule=rule))
        session = Session(Sound(sound), Classifier(bundle), QUALITY)
        finished(session)
        return session.summary.verdict

    assert verdict((0.0, 9.0, 0.0, 0.0), 0.5) == "flagged"
    assert verdict((0.0, 9.0, 0.0, 0.0), 0.995) == "nothing flagged"
    assert verdict((9.0, 0.0, 0.0, 0.0), 0.5) == "nothing flagged"


def test_a_session_ends_after_exactly_so_much_sound(classifier: Classifier) -> None:
    session = Session(Sound(blocks_of(simulate(1, 20.0).samples)), classifier, QUALITY, seconds=7.05)
    _, entries = finished(session)
    assert session.timeline.position == in_samples(7.05)
    assert entries[-1].note == "7.05 s are over"


def test_stopping_judges_what_was_heard_and_closes_the_timeline(classifier: Classifier) -> None:
    session = Session(Sound(blocks_of(simulate(1, 60.0).samples)), classifier, QUALITY)
    happened = []
    for one in session.run():
        happened.append(one)
        if isinstance(one, CycleResult) and one.number == 3:
            session.stop("enough")
    last_cycle, end = happened[-2:]
    assert isinstance(end, Entry)
    assert (end.kind, end.note) == ("end", "enough")
    assert isinstance(last_cycle, CycleResult)
    assert 0 <= end.seconds - last_cycle.end_seconds < 60 / 20 + 0.5, "a breath at most"
    assert end.seconds < 12


def test_a_microphone_that_goes_leaves_its_account_before_the_error(classifier: Classifier) -> None:
    session = Session(Unplugged(blocks_of(simulate(1, 6.2).samples)), classifier, QUALITY)
    happened: list[CycleResult | Entry] = []
    with pytest.raises(CaptureError):
        happened.extend(session.run())
    assert isinstance(happened[-1], Entry)
    assert happened[-1].note == "the microphone has gone"
    assert session.summary.seconds["heard"] == pytest.approx(6.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_session_at_the_next_block(classifier: Classifier, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    class Signalled(Sound):
        def blocks(self) -> Iterator[Block]:
            for count, block in enumerate(self._blocks, 1):
                if count == 40:
                    os.kill(os.getpid(), number)
                yield block

    session = Session(Signalled(blocks_of(simulate(1, 20.0).samples)), classifier, QUALITY)
    with stopped_by_signals(session) as came:
        _, entries = finished(session)
    assert came == [number]
    assert (entries[-1].sample, entries[-1].note) == (40 * 1600, f"stopped by {number.name}")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_plain_lines_say_when_a_stretch_is_complete(classifier: Classifier) -> None:
    session, out = Session(DemoSource(7, 60.0, fast=True), classifier, QUALITY), StringIO()
    with PlainView(session, out) as view:
        for happened in session.run():
            view.show(happened)
    lines = out.getvalue().splitlines()
    first, *others = [line for line in lines if "complete" in line]
    wanted = session.decision.rule.stretch_cycles
    assert (
        f"complete: {session.summary.verdict.upper()}; " in first and lines.index(first) == 1 + wanted
    )  # after "listening to" and its cycles
    flagged = session.summary.stretches_flagged
    assert len(others) == session.summary.stretches - 1 > 0
    assert others[-1].endswith(f"is complete; {flagged} of {session.summary.stretches} stretches flagged")


def test_what_the_demo_says_of_itself(classifier: Classifier) -> None:
    session = Session(DemoSource(7, 10.0, fast=True), classifier, QUALITY)
    results, entries = finished(session)
    assert all(one.demo and one.as_json()["demo"] for one in results)
    assert all(one.as_json(session.source.demo)["demo"] for one in entries)
    assert session.summary.as_json()["demo"]


def test_verdicts_do_not_see_the_truth(classifier: Classifier) -> None:
    demo = DemoSource(7, 20.0, fast=True)
    told = Session(demo, classifier, QUALITY)
    untold = Session(Sound(blocks_of(simulate(7, 20.0).samples)), classifier, QUALITY)
    assert [one.judgement for one in finished(told)[0]] == [one.judgement for one in finished(untold)[0]]


def test_a_loss_is_told_when_it_begins_and_summed_when_it_ends(classifier: Classifier) -> None:
    first, *rest = blocks_of(simulate(1, 6.0).samples)
    nothing = first.samples[:0]
    away = [Block(nothing, 0, "lost", "no sound"), Block(nothing, 8000), Block(nothing, 8000)]
    session = Session(
        Sound([first, *away, Block(rest[0].samples, 123, "back", "again"), *rest[1:]]), classifier, QUALITY
    )
    shown = []
    for happened in session.run():
        if isinstance(happened, Entry):
            shown.append((happened, session.lost_seconds))
    entries, at = [entry for entry, _ in shown], first.samples.size
    assert [since for _, since in shown] == [None, at / SAMPLE_RATE, at / SAMPLE_RATE, None]
    assert [(one.kind, one.sample, one.missing_samples) for one in entries[1:-1]] == [
        ("lost", at, 0),
        ("back", at + 16_123, 16_123),
    ]
    assert (session.timeline.heard, session.timeline.missing) == (96_000, 16_123)


def test_the_page_of_a_lost_microphone_shows_neither_level_nor_rhythm(classifier: Classifier) -> None:
    first, *_ = blocks_of(simulate(1, 6.0).samples)
    nothing = first.samples[:0]
    away = [Block(nothing, 0, "lost", "the plug"), Block(nothing, 8000), Block(first.samples, 0, "back", "again")]
    session = Session(Sound([first, *away]), classifier, QUALITY)
    console = Console(file=StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    view, pages = LiveView(session, "tiny", console), {}
    for happened in session.run():
        with console.capture() as captured:
            console.print(view.page())
        pages[happened.kind] = captured.get()
    assert "NO SOUND since 00:00.1" in pages["lost"] and "dBFS" not in pages["lost"]
    assert "NO SOUND" not in pages["end"] and "dBFS" in pages["end"]


class Breaking:
    """A model that says the given probability until it has judged so many cycles, and then breaks."""

    def __init__(self, classifier: Classifier, probability: float, cycles: int) -> None:
        self.fingerprint, self.segmentation, self.site_rule = "f", classifier.segmentation, RULE
        self.left, self.answer = cycles, Judgement(probability, probability >= RULE.threshold, "normal")

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        self.left -= 1
        if self.left < 0:
            raise BundleError("the model answers NaN: do not use it")
        return self.answer


@pytest.mark.parametrize(("probability", "verdict"), [(0.1, "not enough"), (0.9, "flagged")])
@pytest.mark.parametrize("cycles", [5, 8])
def test_what_a_model_had_judged_before_it_broke_clears_nobody(
    classifier: Classifier, probability: float, verdict: str, cycles: int
) -> None:
    session = Session(Sound(blocks_of(simulate(1, 30.0).samples)), Breaking(classifier, probability, cycles), QUALITY)
    happened = []
    with pytest.raises(BundleError, match="answers NaN"):
        for one in session.run():
            happened.append(one)
    assert session.summary.gradable == cycles > RULE.least_cycles
    assert session.summary.verdict == verdict
    assert ("the model answers NaN: do not use it" in session.summary.reasons) == (verdict != "flagged")
    assert isinstance(happened[-1], Entry)
    assert (happened[-1].kind, happened[-1].note) == ("end", "the model answers NaN: do not use it")
    assert session.timeline.heard + session.timeline.dropped == session.timeline.position


def test_a_word_about_the_sound_breaks_no_cycle(classifier: Classifier) -> None:
    sound = blocks_of(simulate(1, 20.0).samples)
    told = [Block(one.samples, 0, "clip", "overloaded") if n == 77 else one for n, one in enumerate(sound)]
    with_word, without = (Session(Sound(blocks), classifier, QUALITY) for blocks in (told, sound))
    results, entries = finished(with_word)
    assert results == finished(without)[0]
    assert [one.kind for one in entries] == ["start", "clip", "end"]


def test_what_is_judged_lies_on_the_grid_of_24_bits(classifier: Classifier) -> None:
    results, _ = finished(Session(Sound(blocks_of(simulate(1, 9.0).samples)), classifier, QUALITY))
    for result in results:
        scaled = result.samples.astype(np.float64) * 2**23
        assert np.array_equal(scaled, np.round(scaled))


class Slow(Classifier):
    """A model that takes longer than a breath: a loaded board."""

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        time.sleep(0.4)
        return super().judge(samples, span)


class Clocked(Sound):
    """Sound that comes in at ten times the pace of a clock, whether or not it is taken."""

    def blocks(self) -> Iterator[Block]:
        began = time.monotonic()
        for number, block in enumerate(self._blocks, 1):
            late = 10 * (time.monotonic() - began) - number / 10
            time.sleep(max(0.0, -late / 10))
            yield replace(block, waiting_seconds=max(0.0, late))


def test_a_program_that_was_stopped_does_not_call_its_model_slow(classifier: Classifier) -> None:
    session = Session(Clocked(blocks_of(simulate(1, 60.0).samples), live=True), classifier, QUALITY)
    entries: list[Entry] = []
    stopped = False
    for happened in session.run():
        if isinstance(happened, CycleResult) and not stopped:
            stopped = True
            time.sleep(4.0)  # of forty seconds of sound
        entries += [happened] if isinstance(happened, Entry) and happened.kind == "dropped" else []
    assert entries and all("while this program was stopped" in one.note for one in entries)


def test_a_model_slower_than_breathing_drops_the_oldest_cycles_and_counts_them(tmp_path: Path) -> None:
    sound = blocks_of(simulate(1, 60.0).samples)
    slow = Slow(read_bundle(make_bundle(tmp_path / "bundle")))
    session = Session(Clocked(sound, live=True), slow, QUALITY)
    results, entries = finished(session)
    dropped = [one for one in entries if one.kind == "dropped"]
    assert len(dropped) == session.summary.dropped > 0
    assert results, "the youngest cycles are judged"
    assert "slower than the breathing" in dropped[0].note
    timeline = session.timeline
    assert timeline.heard + timeline.dropped == 60 * SAMPLE_RATE, "no sample is lost"
    assert timeline.missing == 0
    assert session.summary.dropped_samples > 0
    # what is dropped is unheard: it can not be gradable as well
    assert session.summary.gradable_samples <= session.summary.heard_samples


def test_a_recording_waits_for_a_slow_model(tmp_path: Path) -> None:
    sound = blocks_of(simulate(1, 12.0).samples)
    slow = Slow(read_bundle(make_bundle(tmp_path / "bundle")))
    session = Session(Clocked(sound, live=False), slow, QUALITY)
    finished(session)
    assert (session.summary.dropped, session.timeline.dropped) == (0, 0)


@pytest.mark.parametrize("seed", [7, 1, 4])
@pytest.mark.parametrize("per_minute", [12, 20, 30, 60, 80])
def test_the_respiratory_rate_is_that_of_the_simulated_breathing(
    classifier: Classifier, per_minute: float, seed: int
) -> None:
    """The autocorrelation alone says half of it for these seeds at 20 a minute, and for most at 60."""
    sound = simulate(seed, 30.0, breaths_per_minute=per_minute).samples
    session = Session(Sound(blocks_of(sound)), classifier, QUALITY)
    finished(session)
    rate = session.summary.breaths_per_minute
    assert rate == pytest.approx(per_minute, rel=0.15)
    assert session.summary.as_json()["breaths_per_minute"] == pytest.approx(rate, abs=0.05)


def breaths(*onsets: float, period: float = 0.0, kind: str = "breath") -> list[CycleResult]:
    nothing, rhythm = np.empty(0, np.float32), 0.6 if period else 0.0
    spans = [(in_samples(at), in_samples(at + 0.8)) for at in onsets]
    return [
        CycleResult(1, start, end, kind, rhythm, CLEAR, None, False, nothing, period_seconds=period)
        for start, end in spans
    ]


def test_a_respiratory_rate_that_nobody_can_be_sure_of_is_not_said() -> None:
    steady, scattered = (0, 2, 4, 6, 8, 10), (0, 1, 4, 5.2, 9.2, 10, 13)
    assert respiratory_rate(breaths(*steady)) == 30.0
    assert respiratory_rate(breaths(*steady, period=4.0)) == 30.0, "an octave below"
    assert respiratory_rate(breaths(*scattered)) is None
    assert respiratory_rate(breaths(*scattered, period=6.0)) is None
    assert respiratory_rate(breaths(*steady, period=3.0)) is None, "no octave"
    assert respiratory_rate(breaths(0, 2, 4)) is None, "two intervals"
    assert respiratory_rate(breaths(0, 9, 18, 27, 36)) is None, "breaths were missed between them"
    assert respiratory_rate(breaths(*steady, kind="window")) is None
    assert respiratory_rate(breaths(*steady, kind="window", period=5.0)) == 12.0, "a strong rhythm of no breaths"
    varied = [*breaths(0, 2, kind="window", period=5.0), *breaths(4, 6, kind="window", period=2.5)]
    assert respiratory_rate(varied) is None


def test_a_rate_that_is_unsure_is_called_so(classifier: Classifier) -> None:
    session = Session(Sound([]), classifier, QUALITY)
    console = Console(file=StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    pages = []
    for latest in ([], breaths(0, 1, 4, 5.2, 9.2), breaths(0, 2, 4, 6, 8)):
        session.latest.clear()
        session.latest.extend(latest)
        with console.capture() as captured:
            console.print(LiveView(session, "tiny", console).page())
        pages.append(captured.get())
    said = ("no rhythm, windows of 2.5 s", "breathing rate unsure", "30 breaths a minute")
    assert [word in page for word, page in zip(said, pages, strict=True)] == [True] * 3


def test_the_page_says_how_many_good_breaths_are_wanted_and_then_counts_stretches(tmp_path: Path) -> None:
    rule = SiteRule(threshold=0.5, stretch_cycles=3, least_cycles=2)
    model = Classifier(read_bundle(make_bundle(tmp_path / "bundle", logits=(9.0, 0.0, 0.0, 0.0), site_rule=rule)))
    session = Session(Sound(blocks_of(simulate(1, 20.0).samples)), model, QUALITY)
    console = Console(file=StringIO(), force_terminal=True, width=110, height=30, color_system=None)
    view, pages = LiveView(session, "tiny", console), []
    for happened in session.run():
        if isinstance(happened, CycleResult):
            with console.capture() as captured:
                console.print(view.page())
            pages.append(captured.get())
    assert "so far: NOT ENOUGH" in pages[0] and "2 more good breaths" in pages[0]
    assert "1 more good breath " in pages[1] and "NOTHING FLAGGED" not in pages[1]
    assert "complete: NOTHING FLAGGED" in pages[2]
    assert "3 breaths together" in pages[2] and "stretch 2: 3 more good breaths; 0 of 1 stretches flagged" in pages[2]
    summary = session.summary
    assert (summary.stretches, summary.stretches_flagged) == (summary.gradable // 3, 0)
    shown = summary.as_json()
    assert (shown["stretches"], shown["stretches_flagged"]) == (summary.stretches, 0)


def test_no_cycle_keeps_more_sound_than_its_own(classifier: Classifier) -> None:
    results, _ = finished(Session(Sound(blocks_of(simulate(1, 20.0).samples)), classifier, QUALITY))
    assert len(results) > 3
    assert all(one.samples.base is None and one.without_samples().samples.base is None for one in results)
    assert {one.without_samples().samples.size for one in results} == {0}


def test_noise_has_no_respiratory_rate(classifier: Classifier) -> None:
    hiss = (0.01 * np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE)).astype(np.float32)
    session = Session(Sound(blocks_of(hiss)), classifier, QUALITY)
    finished(session)
    assert session.summary.breaths_per_minute is None


def test_what_is_not_validated_may_become_known_while_it_listens(classifier: Classifier) -> None:
    known: list[str] = []
    sound = Sound(blocks_of(simulate(1, 6.0).samples))
    session = Session(sound, classifier, QUALITY, not_validated=lambda: tuple(known))
    assert session.summary.not_validated == ()
    known.append("sound up to 2000 Hz only")
    finished(session)
    assert session.summary.as_json()["not_validated"] == ["sound up to 2000 Hz only"]
