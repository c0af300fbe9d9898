"""What the console answers to whom, by real requests: hosts, origins, logins, roles, and requests made to hurt."""

import base64
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.console.accounts import FAILURES, AccountError, Accounts
from device.console.addresses import ConsoleError, bound_socket
from device.console.settings_page import ACTIONS
from tests.device.conftest import Device, one_error
from tests.device.console.conftest import Served, console_settings, serve

PASSWORDS = {"vera": "viewer-password", "emil": "examiner-password", "anna": "admin-password"}
ROLES = {"vera": "viewer", "emil": "examiner", "anna": "admin"}


def handshake(served: Served, *, origin: str, cookie: str = "") -> bytes:
    """The first line that answers a WebSocket's request."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        "GET /live HTTP/1.1",
        f"Host: 127.0.0.1:{served.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"Origin: {origin}",
        f"Cookie: {cookie}",
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain:
        plain.sendall("\r\n".join([*lines, "", ""]).encode())
        return plain.recv(4096).split(b"\r\n")[0]


# on this machine


def test_the_pages_forbid_scripts_of_others(served: Served) -> None:
    answer = served.ask("GET", "/")
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe-inline" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


@pytest.mark.parametrize("page", ["live", "exam", "history", "session", "login"])
def test_no_page_has_a_script_or_a_style_in_it(page: str) -> None:
    text = Path("device/console/static", f"{page}.html").read_text()
    assert "<style" not in text and "style=" not in text and " onclick" not in text
    assert text.count("<script") == 1 and f'src="/static/{page}.js"' in text
    assert "http://" not in text and "https://" not in text


def test_all_pages_together_are_light() -> None:
    assert sum(file.stat().st_size for file in Path("device/console/static").iterdir()) < 300_000


def test_another_name_is_not_answered(served: Served) -> None:
    # a site that points its own name to 127.0.0.1 would otherwise read everything
    assert served.ask("GET", "/api/state", host=f"evil.example:{served.port}").status == 421
    assert served.ask("GET", "/api/state", host=f"localhost:{served.port}").status == 200


def test_a_page_of_another_site_changes_nothing(served: Served) -> None:
    assert served.ask("POST", "/api/stop", {}, origin="https://evil.example").status == 403
    assert served.ask("POST", "/api/stop", {}, origin=None).status == 403
    assert served.ask("DELETE", "/api/sessions/1", origin="null").status == 403
    assert served.ask("POST", "/api/stop", {}).status == 204


def test_a_websocket_of_another_site_does_not_open(served: Served) -> None:
    assert b"403" in handshake(served, origin="https://evil.example")
    assert b"101" in handshake(served, origin=f"http://127.0.0.1:{served.port}")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../process.py",
        "/static/%2e%2e/process.py",
        "/static//etc/passwd",
        "/sessions/..%2f..",
        "/exams/../report",
        "/api/sessions/1%00",
        "/api/sessions/99999999999999999999999999",
        f"/api/sessions/{'9' * 5000}",
        "/api/sessions/77/cycles/1/sound.wav",
        "/api/sessions/77/cycles/1/evidence",
        "/api/sessions/77/cycles?first=-1&last=2",
        "/api/sessions/77/cycles?first=1&last=99999999999999999999",
        "/exams/77/report",
        "/exams/77/report.pdf",
    ],
)
def test_an_id_is_no_path(served: Served, path: str) -> None:
    answer = served.ask("GET", path)
    assert answer.status in (400, 404, 414)
    assert answer.text.count("\n") <= 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/listen", {"age": "four"}, "age is a number of years from 0 to 120"),
        ("/api/listen", {"age": True}, "age is a number"),
        ("/api/listen", {"age": 1e9}, "age is a number"),
        ("/api/listen", [], "no JSON object"),
        ("/api/exam", {"age": 4, "sites": "p1"}, "sites is a list of texts"),
        ("/api/exam", {"age": 4, "sites": ["p1", "p9"]}, "known sites, each once, not p9"),
        ("/api/exam", {"age": 4, "sites": []}, "not none"),
        ("/api/exam", {"age": 4, "sites": ["p1"], "subject": "Anna Meier"}, "it is never a name"),
        ("/api/exam", {"age": 4, "sites": ["\ud800\n"]}, "sites is a list of texts"),
        ("/api/exam", {"age": 4, "sites": ["p1"], "advance": "yes"}, "advance is true or false"),
        ("/api/exam/site", {}, "site is a text"),
        ("/api/exam/site", {"site": "p1"}, "no exam is running"),
        ("/api/exam/finish", {}, "no exam is running"),
        ("/api/sessions/77/subject", {"subject": "kid-1"}, "there is no session 77"),
        ("/api/sessions/77/cycles/1/opinion", {"opinion": "agree"}, "session 77 has no cycle 1"),
        ("/api/sessions/77/cycles/1/opinion", {"opinion": "perhaps"}, "an opinion is agree or disagree"),
    ],
)
def test_a_wrong_request_is_one_line(served: Served, path: str, body: object, words: str) -> None:
    answer = served.ask("POST", path, body)
    assert answer.status in (400, 404, 409)
    assert words in answer.text and answer.text.count("\n") == 1


def test_a_request_has_a_size(served: Served) -> None:
    assert served.ask("POST", "/api/listen", {"age": "x" * 70_000}).status == 413


# where others reach it


def test_it_does_not_start_for_others_without_accounts(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="has no accounts: add one with 'respsam-device account NAME'"):
        bound_socket(console_settings(host="0.0.0.0", accounts=str(tmp_path / "accounts.json")))


def test_it_does_not_start_for_others_with_a_broken_certificate(tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.json"
    Accounts(accounts).set("anna", "admin", PASSWORDS["anna"])
    (tmp_path / "broken.pem").write_text("no certificate")
    broken = {"certificate": str(tmp_path / "broken.pem"), "key": str(tmp_path / "broken.pem")}
    with pytest.raises(ConsoleError, match=r"needs TLS, but .*broken.pem are no certificate and key"):
        bound_socket(console_settings(host="0.0.0.0", accounts=str(accounts), **broken))


def test_an_account_needs_a_long_password_and_its_file_is_private(
    respsam_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setenv("RESPSAM_CONSOLE__ACCOUNTS", str(tmp_path / "accounts.json"))
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert "use at least 10" in one_error(respsam_device("account", "anna"))
    monkeypatch.setattr("sys.stdin", io.StringIO("long enough for anna\n"))
    assert respsam_device("account", "anna", "--role", "admin").code == 0
    assert stat.S_IMODE((tmp_path / "accounts.json").stat().st_mode) == 0o600
    assert "long enough" not in (tmp_path / "accounts.json").read_text()
    accounts = Accounts(tmp_path / "accounts.json")
    assert accounts.role("anna", "long enough for anna") == "admin"
    assert accounts.role("anna", "wrong") is accounts.role("nobody", "wrong") is None


def test_a_broken_file_of_accounts_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "accounts.json").write_text("{")
    with pytest.raises(AccountError, match="repair or remove the file"):
        Accounts(tmp_path / "accounts.json")


@pytest.fixture(scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A console for others: on every address, with TLS and three accounts."""
    folder = tmp_path_factory.mktemp("reachable")
    accounts = Accounts(folder / "accounts.json")
    for name, password in PASSWORDS.items():
        accounts.set(name, ROLES[name], password)  # type: ignore[arg-type]
    settings = console_settings(host="0.0.0.0", names="127.0.0.1 box.ward", accounts=str(accounts.file))
    started = serve(folder, settings, folder / "store.sqlite")
    with started.line:
        yield started


def login(served: Served, name: str, password: str | None = None) -> tuple[str, str]:
    """The cookie that a login gives, and where it leads."""
    answer = served.ask("POST", "/login", form=f"name={name}&password={password or PASSWORDS[name]}")
    assert answer.status == 303
    return answer.headers.get("set-cookie", ""), answer.headers["location"]


def test_nothing_is_shown_without_a_login(reachable: Served) -> None:
    assert reachable.line.url.startswith("https://127.0.0.1:")
    page = reachable.ask("GET", "/history")
    assert (page.status, page.headers["location"]) == (303, "/login")
    assert reachable.ask("GET", "/api/history").status == 401
    assert reachable.ask("GET", "/login").status == reachable.ask("GET", "/static/console.css").status == 200


def test_roles_may_look_examine_and_delete(reachable: Served) -> None:
    cookies = {name: login(reachable, name)[0] for name in PASSWORDS}
    for cookie in cookies.values():
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" in cookie

    def status(name: str, method: str, path: str) -> int:
        return reachable.ask(method, path, {}, cookie=cookies[name].split(";")[0]).status

    assert [status(name, "GET", "/api/history") for name in PASSWORDS] == [200, 200, 200]
    assert [status(name, "POST", "/api/stop") for name in PASSWORDS] == [403, 204, 204]
    assert [status(name, "DELETE", "/api/exams/5") for name in PASSWORDS] == [403, 403, 404]
    # an examiner sees the settings and lets the box be checked, an admin changes
    assert [status(name, "GET", "/api/settings") for name in PASSWORDS] == [200, 200, 200]
    assert status("vera", "POST", "/api/settings/check") == 403
    assert [status(name, "POST", "/api/settings/undo") for name in PASSWORDS] == [403, 403, 400]
    for action in ("calibration", "self-test", "forget", *ACTIONS):
        assert status("emil", "POST", f"/api/settings/{action}") == 403
        assert status("anna", "POST", f"/api/settings/{action}") in (400, 409)
    assert status("vera", "POST", "/logout") == 303
    assert status("vera", "GET", "/api/history") == 401


def test_guessing_a_password_has_to_wait(reachable: Served) -> None:
    began = time.monotonic()
    places = [login(reachable, "mallory", f"guess-{number}")[1] for number in range(FAILURES + 2)]
    assert places[:FAILURES] == ["/login?wrong=1"] * FAILURES
    assert all(place.startswith("/login?wait=") for place in places[FAILURES:])
    assert time.monotonic() - began < 60.0
