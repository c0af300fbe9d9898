"""What the console knows of a session and of an exam, and what it orders."""

import json

from device.bundle import SiteRule
from device.console.archive import stretches
from device.console.line import Message
from device.signal import SAMPLE_RATE
from device.store.outbox import Outbox
from tests.device.console.conftest import Served, summary_of


def ordered(served: Served, what: str) -> Message:
    """The next order of this kind; a stop of the test before may still come."""
    while (order := served.orders.get(timeout=10))["do"] != what:
        pass
    return order


def begin_exam(served: Served, *sites: str, advance: bool = False) -> None:
    answer = served.ask("POST", "/api/exam", {"age": 4, "subject": "kid-1", "sites": sites, "advance": advance})
    assert answer.status == 204, answer.text
    ordered(served, "stop")


def listen_at(served: Served, site: str) -> int:
    """Order a site; returns the number of the order."""
    assert served.ask("POST", "/api/exam/site", {"site": site}).status == 204
    order = ordered(served, "listen")
    assert (order["age"], order["site"]) == (4.0, site)
    return int(order["number"])


def test_an_exam_from_its_start_to_its_report(served: Served) -> None:
    begin_exam(served, "p1", "p3")
    assert served.ask("POST", "/api/exam", {"age": 4, "sites": ["p1"]}).status == 409
    assert served.ask("POST", "/api/listen", {"age": 4}).status == 409

    first = listen_at(served, "p1")
    served.begin(first, "p1", session=1)
    served.sound(8.0)
    for number in range(1, 7):
        served.cycle(number)
    # the stretch is complete: one stop is ordered
    ordered(served, "stop")
    served.end(first, summary_of(6))
    state = served.state(lambda state: state["exam"] and not state["exam"]["listening"])
    assert state["exam"]["sites"]["p1"]["verdict"] == "flagged"
    assert (state["exam"]["next"], state["exam"]["verdict"]) == ("p3", "flagged")

    second = listen_at(served, "p3")
    assert served.ask("POST", "/api/exam/site", {"site": "p1"}).status == 409
    served.begin(second, "p3")
    served.cycle(1, summary=summary_of(1))
    served.state(lambda state: state["summary"])
    assert served.ask("POST", "/api/exam/finish", {}).status == 204
    # the exam waits for the session's last summary: a site that ends early is judged on what it has
    assert not served.state(lambda state: True)["exam"]["finished"]
    served.end(second, summary_of(2, "flagged"))
    state = served.state(lambda state: state["exam"]["finished"])
    assert state["exam"]["sites"]["p3"]["verdict"] == "flagged"

    report = served.ask("GET", f"/exams/{state['exam']['id']}/report").text
    assert "left posterior (p1)" in report and "kid-1" in report and "4 years" in report
    assert report.count("data:image/png;base64,") == 3
    assert "This is a screening aid, not a diagnosis" in report and "DEMO" in report
    # what a model or a microphone is called is text, never markup
    assert "&lt;model&gt;" in report and "<b>crackles" not in report

    listed = served.ask("GET", "/api/history").json["exams"]
    assert [(row["subject"], row["verdict"]) for row in listed] == [("kid-1", "flagged")]
    path = f"/api/exams/{listed[0]['id']}"
    assert served.ask("POST", f"{path}/subject", {"subject": "kid-2"}).status == 204
    assert "kid-2" in served.ask("GET", f"/exams/{listed[0]['id']}/report").text

    assert served.store is not None
    (waiting,) = Outbox(served.store).next(0, 10)  # for a broker, without the subject and the age
    message = json.loads(waiting.message)
    assert message["type"] == "exam" and message["verdict"] == "flagged" and list(message["sites"]) == ["p1", "p3"]
    assert "kid" not in waiting.message and "age" not in message


def test_the_order_of_a_session_that_ends_late_does_not_end_a_site(served: Served) -> None:
    served.state(lambda state: not state["exam"] or state["exam"]["finished"])
    served.begin(0)
    begin_exam(served, "Tc")
    order = listen_at(served, "Tc")
    served.end(0, summary_of(3))
    served.begin(order, "Tc")
    state = served.state(lambda state: state["running"])
    assert state["exam"]["listening"] == "Tc"
    assert served.ask("POST", "/api/exam/finish", {}).status == 204
    served.end(order, summary_of(0))
    served.state(lambda state: state["exam"]["finished"])


def test_a_site_that_failed_says_why_and_can_be_tried_again(served: Served) -> None:
    begin_exam(served, "p2")
    order = listen_at(served, "p2")
    served.line.send("failed", order=order, error="no microphone; plug one in")
    state = served.state(lambda state: state["error"])
    assert state["error"] == "no microphone; plug one in"
    assert (state["exam"]["listening"], state["exam"]["next"]) == ("", "p2")
    order = listen_at(served, "p2")
    served.begin(order, "p2")
    assert served.state(lambda state: state["running"])["error"] == ""
    assert served.ask("POST", "/api/exam/finish", {}).status == 204
    served.end(order, summary_of(0))
    served.state(lambda state: state["exam"]["finished"])


def test_an_age_that_the_model_does_not_know_is_said_first(served: Served) -> None:
    assert served.ask("GET", "/api/doubts?age=4").json == []
    (doubt,) = served.ask("GET", "/api/doubts?age=119").json
    assert doubt.startswith("age 119, the model knows")
    assert served.ask("GET", "/api/doubts?age=old").status == 400


def test_an_exam_in_which_nothing_was_heard_is_not_stored(served: Served) -> None:
    before = len(served.ask("GET", "/api/history").json["exams"])
    begin_exam(served, "p1")
    assert served.ask("POST", "/api/exam/finish", {}).status == 204
    assert len(served.ask("GET", "/api/history").json["exams"]) == before


def test_stretches_are_judged_by_the_rule_of_a_site() -> None:
    rule = SiteRule(threshold=0.5, stretch_cycles=2, least_cycles=1)
    probabilities = [0.9, None, 0.8, 0.1, 0.2, None, None, 0.9]
    cycles = [
        {
            "number": number,
            "start_sample": 3 * number * SAMPLE_RATE,
            "end_sample": 3 * (number + 1) * SAMPLE_RATE,
            "kind": "breath",
            "probability": probability,
        }
        for number, probability in enumerate(probabilities)
    ]
    assert stretches(cycles, rule) == [
        {"start": 0.0, "end": 9.0, "verdict": "flagged", "rate": None, "first": 0, "last": 2},
        {"start": 9.0, "end": 15.0, "verdict": "nothing flagged", "rate": None, "first": 3, "last": 4},
        {"start": 15.0, "end": 24.0, "verdict": "poor quality", "rate": None, "first": 5, "last": 7},
    ]
    assert stretches([], rule) == []
    (longer,) = stretches(cycles, rule.model_copy(update={"stretch_cycles": 5}))
    assert longer["rate"] == 20.0
