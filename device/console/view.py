"""The view that sends a session to the console: sound, cycles as found and as judged, events, the summary."""

from dataclasses import asdict

from device.breath.segmenter import Segment
from device.capture.blocks import Source
from device.capture.microphone import NAMELESS, MicrophoneSource
from device.capture.timeline import Entry
from device.console.line import Line
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.service import Service
from device.signal import SAMPLE_RATE, FloatArray
from device.verdict.summary import Summary
from device.view.view import View


def input_name(source: Source) -> str | None:
    """The microphone's name, empty until it opens; None for what is no microphone."""
    if not isinstance(source, MicrophoneSource):
        return None
    return "" if source.name == NAMELESS else source.name


class ConsoleView(View):
    """Sends everything and waits for nothing."""

    def __init__(self, service: Service, line: Line, order: int, purpose: str) -> None:
        """`order` is the number of the order that this session answers, 0 for none; `purpose` is its `do`."""
        self.service, self.line, self.order, self.purpose = service, line, order, purpose

    def __enter__(self) -> "ConsoleView":
        service = self.service
        self.line.send(
            "begin",
            order=self.order,
            purpose=self.purpose,
            session=service.stored_as,
            source=service.source.name,
            demo=service.source.demo,
            input=input_name(service.source),
            site_threshold=service.classifier.site_rule.threshold,
            age=service.subject.age_years,
            site=service.subject.site,
            not_validated=service.not_validated(),
        )
        return self

    def sound(self, start_sample: int, samples: FloatArray) -> None:
        """Send a block of sound."""
        if samples.size:
            self.line.sound(start_sample, samples)

    def found(self, segment: Segment) -> None:
        """Send where a cycle lies, before its verdict."""
        phase = None if segment.phase is None else round(segment.phase / SAMPLE_RATE, 3)
        start, end = round(segment.start_seconds, 3), round(segment.end_seconds, 3)
        self.line.send("found", start=start, end=end, phase=phase, kind=segment.kind)

    def show(self, item: CycleResult | Entry) -> None:
        """Send a timeline entry, or a cycle with the summary so far and the figures for Prometheus."""
        if isinstance(item, Entry):
            self.line.send("timeline", **item.as_json(self.service.source.demo))
        else:
            summary = asdict(self.service.session.summary)
            self.line.send("cycle", **item.as_json(), summary=summary)
            seconds = None if item.judgement is None else item.inference_seconds
            self.line.send("figures", inference_seconds=seconds, waiting=self.service.session.waiting_cycles)

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Send the summary."""
        self.line.send("end", order=self.order, summary=asdict(summary))
