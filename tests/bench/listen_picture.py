"""Draws docs/listen.svg, the page of `listen --source demo`: `python -m tests.bench.listen_picture docs/listen.svg`."""

import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from device.capture.sources import DemoSource
from device.listening.live import Session
from device.model.opening import open_classifier
from device.view.terminal import LiveView
from firmware_config.settings import load_settings

SECONDS = 42.0


def main() -> None:
    """Hear the default demo with the shipped bundle as fast as possible, and draw the last page."""
    settings = load_settings(environment={})
    classifier = open_classifier(settings.bundle)
    source = DemoSource(settings.demo.seed, settings.demo.seconds, fast=True)
    session = Session(source, classifier, settings.quality, SECONDS)
    for _ in session.run():
        pass
    console = Console(record=True, width=112, height=30, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(LiveView(session, classifier.bundle.manifest.name, console).page())
    Path(sys.argv[1]).write_text(console.export_svg(title="respsam-device listen --source demo"), encoding="utf-8")


if __name__ == "__main__":
    main()
