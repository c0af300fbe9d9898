"""The report of a small run: what it says, that names are escaped, and that a real browser opens it offline."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import RunCli
from tests.export.run_maker import MOBILENET, make_run
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Corpus, Source
from trainer.corpora.audio_cache import AudioCache, open_corpora
from trainer.evaluation.evaluate import reading
from trainer.evaluation.history import log_reading
from trainer.evaluation.outcome import Outcome, read_stretches, save_outcome
from trainer.evaluation.served import open_served
from trainer.metrics import NO_VERDICT, Interval, binary_rates, confusion
from trainer.report.explain import Share, Shares
from trainer.report.report import ReportError, curves, mistakes, signatures, subsets, write_report
from trainer.run.folder import METRICS_FILE, RUN_FILE, RunError, RunFacts, member_folder, outcome_file

CPU = torch.device("cpu")
SECTIONS = ("signatures", "readings", "curves", "confusion", "roc", "reliability", "sharpness", "mistakes", "data")
EVEN = Share(0.02, 0.02, 0.02)
NASTY = '<script>alert("x")</script>'


@dataclasses.dataclass(frozen=True)
class Made:
    folder: Path
    facts: RunFacts
    corpus: Corpus
    cache: AudioCache
    outcome: Outcome

    def write(self) -> str:
        return write_report(self.folder, self.corpus, self.cache, CPU).read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two members of ten epochs; a patient and a recording have a nasty name, and the test part has been read."""
    root = tmp_path_factory.mktemp("reported")
    data = make_sprsound(root / "corpus")
    folder = root / "run"
    facts = make_run(folder, data, root / "cache", MOBILENET, members=2)
    corpus, cache = open_corpora([Source("sprsound", data)], root / "cache", part="train")
    subject = open_served(folder, CPU)
    held = {name for names in facts.held_out for name in names}
    judged = dataclasses.replace(corpus, recordings=tuple(one for one in corpus.recordings if one.patient in held))
    outcome = read_stretches(judged, cache, subject, "windows")
    worst = int(np.argmin(np.where(outcome.true > 0, outcome.probability, 2.0)))
    outcome.predicted[worst], outcome.probability[worst] = 0, 0.0
    outcome.recordings[worst], outcome.devices[worst] = f"{NASTY}.wav", NASTY
    alike = judged.recordings[0].name
    cache.lengths[f"{NASTY}.wav"], cache.files[f"{NASTY}.wav"] = cache.lengths[alike], cache.files[alike]
    save_outcome(outcome_file(folder, "windows"), outcome)
    for number in range(2):
        member_folder(folder, number).mkdir()
        rows = [
            {"epoch": e, "loss": 1.6 / e, "held_out_loss": 1.0 + 0.1 * abs(e - 3), "score": 0.7, "auroc": 0.8}
            | {"sensitivity": 0.8, "specificity": 0.6, "seconds": 1.0}
            for e in range(1, 6)
        ]
        (member_folder(folder, number) / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    log_reading(folder, reading(outcome, "windows", subject, judged))
    return Made(folder, facts, corpus, cache, outcome)


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return made.write()


def test_every_section_says_on_whom_it_was_read(page: str) -> None:
    for name in (*SECTIONS, "recipe", "versions"):
        assert f'id="{name}"' in page
    assert "holds patients' sound" in page.replace("&#39;", "'")
    assert page.count("held-out patients") >= 6
    assert "a little too good" in page


def test_what_was_read_stands_in_it(made: Made, page: str) -> None:
    counts = confusion(made.outcome.true, made.outcome.predicted)
    cells = re.findall(r"<td[^>]*%\)\">(\d+)</td>", page)
    assert [int(cell) for cell in cells] == counts.flatten().tolist()
    score = made.facts.choice.readings["windows"].binary.score
    assert np.isnan(score.low), "the made corpus has too few patients for an interval"
    assert f"<td>{score.value:.3f}</td>" in page and " to nan" not in page and "nan to" not in page
    assert "are the least for any claim" in page and "of 6 epochs" in page
    assert made.facts.recipe_name in page and made.facts.fingerprint in page
    assert "seen in training" in page
    assert "good training, poor validation" in page, "the made metrics show it"


def test_the_models_auroc_stands_beside_that_of_its_confounders(made: Made, page: str) -> None:
    read = made.facts.choice.readings["windows"]
    row = "".join(f"<td>{one.alone()}</td>" for one in (read.auroc, *read.confounders.values()))
    assert f"<td>windows</td>{row}" in re.sub(r"\s+", "", page)


def test_one_epoch_is_a_whole_number_on_its_axis() -> None:
    rows: list[dict[str, Any]] = [{"epoch": 1, "loss": 1.0}]
    (picture,) = curves([rows], [1])
    assert re.findall(r">([\d.]+)</text>", picture.svg)[0] == "1"


def test_names_are_escaped(page: str) -> None:
    assert NASTY not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") >= 2
    assert "<script" not in page


def test_nothing_is_fetched_by_name(page: str) -> None:
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]+\"", page.replace("xlink:href", "xlink-href"))
    assert "url(http" not in page and "@import" not in page
    assert "default-src 'none'" in page.replace("&#39;", "'")
    assert len(page) < 3_000_000


def test_the_same_run_gives_the_same_page(made: Made, page: str) -> None:
    assert made.write() == page


def test_a_real_browser_opens_it_without_a_network(made: Made, page: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine; the report was not looked at in a browser")
    playwright = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((made.folder / "report.html").as_uri())
        tab.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.duration > 0)", timeout=60_000)
        sounds = tab.eval_on_selector_all("audio", "all => all.map(a => [a.duration, a.error])")
        pictures = tab.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
        seen = tab.eval_on_selector_all("section[id], div[id]", "all => all.map(e => [e.id, e.offsetHeight])")
        charts = tab.eval_on_selector_all("svg", "all => all.map(s => s.getBoundingClientRect().height)")
        tab.set_viewport_size({"width": 400, "height": 800})
        width = tab.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert len(sounds) == page.count("<audio") > 0
    assert all(duration == pytest.approx(2.5, abs=0.1) and error is None for duration, error in sounds)
    assert all(one > 0 for one in pictures)
    assert {name for name, height in seen if height > 20} >= set(SECTIONS)
    assert len(charts) >= 8 and all(height > 100 for height in charts)
    assert width <= 400, "the page itself does not scroll sideways on a telephone"


def test_the_worst_mistakes_are_the_most_confident_ones(made: Made) -> None:
    found = mistakes(made.outcome, made.cache, made.facts.front_end)
    missed, alarms = found["Missed"], found["False alarms"]
    assert missed[0].recording == f"{NASTY}.wav" and missed[0].probability == 0.0
    assert [one.probability for one in missed] == sorted(one.probability for one in missed)
    assert [one.probability for one in alarms] == sorted((one.probability for one in alarms), reverse=True)
    assert all(one.true != "normal" and one.predicted == "normal" for one in missed)
    assert all(one.true == "normal" and one.predicted != "normal" for one in alarms)
    for them in (missed, alarms):
        assert len({one.recording for one in them}) == len(them) <= 6


def test_each_member_is_measured_on_patients_it_never_met(made: Made) -> None:
    chosen = subsets(made.outcome, made.facts.held_out)
    for rows, names in zip(chosen, made.facts.held_out, strict=True):
        assert {made.outcome.patients[row] for row in rows} <= set(names)
        assert 0 < len(rows) <= 32
    assert all(np.array_equal(a, b) for a, b in zip(chosen, subsets(made.outcome, made.facts.held_out), strict=True))


def test_signatures_of_a_run_and_none(made: Made) -> None:
    quiet = dataclasses.replace(made.outcome, probability=np.where(made.outcome.true > 0, 0.9, 0.1))
    falling: list[dict[str, Any]] = [{"loss": 1 / epoch} for epoch in range(1, 6)]
    facts, bad = sound(made.facts), made.facts.model_copy(update={"epochs_done": [1, 6]})
    assert list(signatures(quiet, [falling], [], Shares(EVEN, EVEN), facts)) == []
    deaf = dataclasses.replace(made.outcome, probability=np.full(len(made.outcome.true), 0.1))
    assert binary_rates(confusion(deaf.true, (deaf.probability >= 0.5).astype(np.int64))).sensitivity == 0.0
    shares = Shares(Share(0.02, 0.2, 0.2), EVEN)
    swinging: list[dict[str, Any]] = [{"loss": loss} for loss in (1.6, 1.0, 1.5, 1.0, 1.5)]
    names = [one.name for one in signatures(deaf, [falling, swinging], [], shares, facts)]
    assert names == ["high specificity, low sensitivity", "oscillating loss", "attention on seams"]
    read = facts.choice.readings["windows"].model_copy(update={"auroc": Interval(0.7, 0.6, 0.8), "part": "test"})
    crowd = dataclasses.replace(quiet, probability=np.full(len(quiet.true), bad.choice.cycle_threshold))
    found = {one.name: one.fact for one in signatures(crowd, [falling], [read], Shares(EVEN, EVEN), bad)}
    assert {"worse than a confounder alone", "too few patients", "stopped early"} <= set(found)
    worse = found["worse than a confounder alone"]
    assert worse.endswith("windows of sprsound test: AUROC 0.700, duration alone 0.750")
    assert found["stopped early"] == "1 / 6 of 6 epochs" and "threshold in a cluster of scores" in found


def sound(facts: RunFacts) -> RunFacts:
    """The same run with nothing to mend: all epochs, enough patients, every class named."""
    read = facts.choice.readings["windows"]
    counts = np.eye(4, 5, dtype=np.int64) * 9
    better = {
        "patients": 60,
        "auroc": Interval(0.8, 0.7, 0.9),
        "confounders": {"duration": Interval(0.75, 0.7, 0.8)},
        "confusion": dataclasses.replace(read.confusion, counts=counts.tolist()),
    }
    choice = facts.choice.model_copy(update={"readings": {"windows": read.model_copy(update=better)}})
    return facts.model_copy(update={"choice": choice, "epochs_done": [6, 6]})


def test_a_run_without_judgements_or_with_another_corpus_says_so(made: Made, tmp_path: Path) -> None:
    other = dataclasses.replace(made.cache, lengths={})
    with pytest.raises(ReportError, match="of the run is not here; give --data"):
        write_report(made.folder, made.corpus, other, CPU)
    bare = tmp_path / "bare"
    shutil.copytree(made.folder, bare)
    outcome_file(bare, "windows").unlink()
    with pytest.raises(RunError, match=r"held_out-windows\.npz: not there"):
        write_report(bare, made.corpus, made.cache, CPU)


def test_a_run_without_metrics_has_no_curves(made: Made, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(made.folder, bare)
    for number in range(2):
        shutil.rmtree(member_folder(bare, number))
    assert "kept no metrics by epoch" in dataclasses.replace(made, folder=bare).write()


def test_a_run_of_one_model_whose_threshold_the_live_path_chose_has_a_page(made: Made, tmp_path: Path) -> None:
    """As `fit --members 1 --refit 0` leaves it; what the screen never showed is missed, and no mistake to listen to."""
    one = tmp_path / "one"
    data = made.facts.corpora[0].data
    facts = make_run(one, data, made.folder.parent / "cache", MOBILENET)
    mine = np.flatnonzero(np.isin(made.outcome.patients, facts.held_out[0]))
    outcome = made.outcome.at(mine)
    unmet = int(np.flatnonzero(outcome.true > 0)[0])
    outcome.predicted[unmet], outcome.probability[unmet] = NO_VERDICT, 0.0
    save_outcome(outcome_file(one, "live"), outcome)
    read = json.loads((one / RUN_FILE).read_text())
    read["choice"]["threshold"]["protocol"] = "live"
    read["choice"]["readings"] = {"live": {**read["choice"]["readings"]["windows"], "protocol": "live"}}
    (one / RUN_FILE).write_text(json.dumps(read))
    page = dataclasses.replace(made, folder=one).write()
    assert "against the cycle that the screen showed there" in page
    found = mistakes(outcome, made.cache, facts.front_end)["Missed"]
    assert (outcome.recordings[unmet], outcome.start_seconds[unmet]) not in [
        (one.recording, one.start_seconds) for one in found
    ]


@pytest.mark.parametrize(
    ("line", "said"), [("{", "no JSON"), ("7", "no JSON"), ('{"epoch": 6, "loss": 1}', "no seconds")]
)
def test_a_damaged_line_of_metrics_is_named(made: Made, tmp_path: Path, line: str, said: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(made.folder, damaged)
    with (member_folder(damaged, 1) / METRICS_FILE).open("a") as file:
        file.write(line)
    with pytest.raises(RunError, match=rf"member-2/metrics\.jsonl:6: {said}, so not an epoch's metrics; restore"):
        write_report(damaged, made.corpus, made.cache, CPU)


def test_readings_of_earlier_choices_are_counted_not_shown(made: Made, page: str, tmp_path: Path) -> None:
    chosen_again = tmp_path / "chosen_again"
    shutil.copytree(made.folder, chosen_again)
    facts = json.loads((chosen_again / RUN_FILE).read_text())
    facts["choice"]["temperature"] *= 2
    (chosen_again / RUN_FILE).write_text(json.dumps(facts))
    said = "has not been read with these weights (1 reading with earlier ones in readings.jsonl)"
    assert said in dataclasses.replace(made, folder=chosen_again).write() and said not in page


def test_models_of_all_patients_are_measured_on_patients_they_have_met(made: Made, tmp_path: Path) -> None:
    """They have nobody else, and the page says so."""
    refitted = tmp_path / "refitted"
    shutil.copytree(made.folder, refitted)
    facts = json.loads((refitted / RUN_FILE).read_text())
    facts["recipe"]["data"]["refit"], facts["refit_epochs"] = 2, [5, 5]
    (refitted / RUN_FILE).write_text(json.dumps(facts))
    page = dataclasses.replace(made, folder=refitted).write()
    assert page.count("by the models of all patients, who have met them") == 2
    assert "the member that never met its patient" not in page
    assert "2 of all patients serve, epoch 5 / 5;" in page


def test_the_command_writes_it_again_and_refuses_another_corpus(made: Made, tmp_path: Path, run_cli: RunCli) -> None:
    again = tmp_path / "again"
    shutil.copytree(made.folder, again)
    (again / "report.html").unlink()
    refused = run_cli("trainer", "report", again, "--device", "cpu")
    assert refused.returncode == 2
    assert "of the run is not here; give --data" in refused.stderr and not (again / "report.html").exists()
    known = made.corpus.recordings[0].name
    names = [known if name.startswith(NASTY) else name for name in made.outcome.recordings]
    save_outcome(outcome_file(again, "windows"), dataclasses.replace(made.outcome, recordings=names))
    moved = tmp_path / "moved"
    moved.symlink_to(made.facts.corpora[0].data)
    result = run_cli("trainer", "report", again, "--data", moved, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "report.html holds patients' sound" in result.stdout
    assert 'id="mistakes"' in (again / "report.html").read_text()
