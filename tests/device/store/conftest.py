"""What the tests of the store share: a demo that was judged, and the file that it goes into."""

from pathlib import Path

import pytest

from device.bundle import read_bundle
from device.model.classifier import Classifier
from tests.device.bundle_maker import make_bundle
from tests.device.storing import Judged, judged


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged(Classifier(read_bundle(make_bundle(tmp_path_factory.mktemp("store") / "bundle"))))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite"
