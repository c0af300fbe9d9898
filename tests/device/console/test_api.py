"""The HTTP API keeps its OpenAPI document, for right and wrong requests, by Schemathesis; and without a login."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from device.console.accounts import Accounts
from device.console.visit import Visit
from device.store.exams import Exams
from device.store.recorder import Store
from tests.device.console.conftest import Served, console_settings, serve, summary_of
from tests.device.storing import Certain, beginning, judged, keep, settings_for
from tests.test_docs import script

DOCUMENT = Path("docs/console-api.json")
Operation = Any  # of Schemathesis, which has no type for it that is its own


def operations(document: dict[str, Any]) -> dict[str, Operation]:
    """Every operation by its name."""
    found: Any = schemathesis.openapi.from_dict(document).get_all_operations()
    return {one.ok().label: one.ok() for one in found}


def open_to_all(document: dict[str, Any]) -> dict[str, Any]:
    """The document where nobody logs in."""
    paths = {
        path: {method: {**operation, "security": []} for method, operation in methods.items()}
        for path, methods in document["paths"].items()
    }
    return {**document, "paths": paths, "security": []}


WITH_LOGIN = operations(json.loads(DOCUMENT.read_text()))
WITHOUT_LOGIN = operations(open_to_all(json.loads(DOCUMENT.read_text())))
TAKING = [label for label, found in WITHOUT_LOGIN.items() if found.body or found.path_parameters or found.query]
EXAMPLES = 12  # of each operation and each kind
EXAMPLES_WITH_TLS = 3  # each makes a connection or more of its own
MODEL = {"name": "m", "fingerprint": "ab" * 32, "cycle_threshold": 0.5, "site_threshold": 0.4, "stretch_cycles": 6}


def test_the_document_is_todays() -> None:
    written = script("console_api")
    assert json.loads(DOCUMENT.read_text()) == written.document(), "run: python docs/console_api.py"


def filled(folder: Path) -> Path:
    """A store with the session 1 and the exam 1, so that a number leads somewhere."""
    file = folder / "store.sqlite"
    store = Store(beginning(file, audio=True))
    keep(judged(Certain(), 12.0), store)
    store.close()
    visit = Visit("kid-1", 4.0, ("p1", "p3"), False, MODEL)
    visit.begin("p1")
    visit.end(summary_of(6), None)
    Exams(settings_for(file).store.file).save(visit.document())
    return file


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On this machine, without a login; no Chromium is found, which would take seconds for each PDF."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PATH", "")
        started = serve(folder, console_settings(), filled(folder))
        with started.line:
            yield started


@pytest.fixture(scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For others, with TLS and an account."""
    folder = tmp_path_factory.mktemp("api-tls")
    accounts = Accounts(folder / "accounts.json")
    accounts.set("anna", "admin", "admin-password")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PATH", "")
        where = console_settings(host="0.0.0.0", names="127.0.0.1", accounts=str(accounts.file))
        started = serve(folder, where, filled(folder))
        with started.line:
            yield started


def conforms(served: Served, operation: Operation, mode: GenerationMode, cookie: str = "") -> None:
    """Requests get the answers of the document, and none is an error of the server that the document does not name."""
    url = served.line.url.rstrip("/")
    headers = {"Origin": url, "Cookie": cookie}
    examples = EXAMPLES_WITH_TLS if cookie else EXAMPLES
    named = [not_a_server_error] if "503" in operation.definition.raw["responses"] else []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(base_url=url, headers=headers, verify=False, excluded_checks=named)

    check()


@pytest.mark.parametrize("label", WITHOUT_LOGIN)
def test_right_requests_get_the_answers_of_the_document(local: Served, label: str) -> None:
    conforms(local, WITHOUT_LOGIN[label], GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", TAKING)
def test_wrong_requests_are_refused(local: Served, label: str) -> None:
    conforms(local, WITHOUT_LOGIN[label], GenerationMode.NEGATIVE)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("label", WITH_LOGIN)
def test_with_tls_and_a_login_it_is_the_same(reachable: Served, label: str) -> None:
    entered = reachable.ask("POST", "/login", form="name=anna&password=admin-password")
    conforms(reachable, WITH_LOGIN[label], GenerationMode.POSITIVE, entered.headers["set-cookie"].split(";")[0])


@pytest.mark.parametrize("label", WITH_LOGIN)
def test_without_a_login_nothing_is_answered(reachable: Served, label: str) -> None:
    method, path = label.split()
    answer = reachable.ask(method, path.replace("{number}", "1").replace("{cycle}", "1"), {})
    assert answer.status == (303 if path.startswith("/exams/") else 401)
