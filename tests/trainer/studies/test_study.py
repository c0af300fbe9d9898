"""Studies on made corpora: what is trained once, what survives a kill, what the table says, and bad input."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from device.labels import NORMAL
from firmware_config.settings import load_settings
from tests.conftest import RunCli
from tests.trainer.corpus_maker import make_icbhi, make_sprsound
from tests.trainer.toy_fit import RECIPE
from trainer.choices import shipped
from trainer.corpora import Source, load_corpora
from trainer.evaluation.outcome import Outcome, load_outcome, save_outcome
from trainer.metrics import choose_threshold
from trainer.run.folder import CHECKPOINT_FILE, METRICS_FILE, METRICS_KEYS, WEIGHTS_FILE, load_tensors
from trainer.run.recipe import Recipe, load_recipe, with_changes
from trainer.run.request import Request
from trainer.studies.cells import Cell, Plan, Target, minutes_left, plan_cells, run_cells
from trainer.studies.report import Line, lines_of, notes_on, tables, write_report
from trainer.studies.study import Setting, Study, StudyError, load_study
from trainer.training.experiment import Prepared

TOY = with_changes(RECIPE, {"optimizer.rho": 0.0, "optimizer.epochs": 2})
STUDY = Study(
    title="toy",
    question="Is it?",
    reference="plain",
    settings=(Setting(name="plain"), Setting(name="SAM", changes={"optimizer.rho": 0.05})),
)
OTHER = Study(
    title="other",
    question="Or this?",
    reference="as is",
    protocols=("windows", "recordings"),
    settings=(Setting(name="as is"), Setting(name="hard", changes={"front_end.seam": "hard"})),
)
TOML = """
title = "toy"
question = "Is it?"
reference = "plain"
[[settings]]
name = "plain"
[[settings]]
name = "SAM"
changes = { "optimizer.rho" = 0.05 }
"""


@dataclass(frozen=True)
class Ground:
    """A made corpus, the plan of studies on it, and a folder in which STUDY is done with two seeds."""

    plan: Plan
    folder: Path
    cells: list[Cell]
    """Of STUDY."""
    done: Plan
    """The plan with its targets."""


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """A cell takes one thread; the tests after these have theirs back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    root = tmp_path_factory.mktemp("study")
    data = make_sprsound(root / "corpus", patients=9)
    plan = Plan(Request(TOY, "toy", (Source("sprsound", data),)), root / "cache", load_settings(None).quality)
    done, cells = planned(STUDY, plan, root / "out")
    assert run_cells(cells, done, heard := Heard()) == 0
    assert [cell.setting for cell in heard.cells] == ["plain", "SAM", "plain", "SAM"]
    return Ground(plan, root / "out", cells, done)


class Heard:
    """What a study told of its cells."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.problems: list[str] = []

    def __call__(self, cell: Cell, problem: str | None) -> None:
        self.cells.append(cell)
        self.problems += [problem] if problem else []


def planned(study: Study, plan: Plan, folder: Path, seeds: int = 2, **changes: object) -> tuple[Plan, list[Cell]]:
    """A study of the toy recipe below `folder`; `changes` are `section__field`."""
    recipes = study.recipes(TOY, {key.replace("__", "."): value for key, value in changes.items()})
    plan, cells, _ = plan_cells(study, plan, recipes, seeds, folder)
    return plan, cells


def elsewhere(plan: Plan, data: Path) -> Plan:
    """The plan on another corpus."""
    return replace(plan, request=replace(plan.request, sources=(Source("sprsound", data),)))


def epochs_of(cells: list[Cell]) -> list[int]:
    """Of those that are trained."""
    return [facts.epochs_done for cell in cells if (facts := cell.facts())]


def weights_of(cell: Cell) -> dict[str, torch.Tensor]:
    return load_tensors(cell.folder / WEIGHTS_FILE)[0]


def same_cell(one: Cell, other: Cell, target: Target) -> None:
    """Weights and reading, bit for bit."""
    weights, expected = weights_of(one), weights_of(other)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    ours, theirs = load_outcome(one.reading(target)), load_outcome(other.reading(target))
    assert np.array_equal(ours.probability, theirs.probability)
    assert ours.patients == theirs.patients


def test_every_shipped_study_fits_the_shipped_recipe() -> None:
    assert shipped("studies") == ["ablation", "rho", "stethoscopes"]
    for name in shipped("studies"):
        study = load_study(name)
        recipes = study.recipes(load_recipe("mobilenet"), {"data.draws": 100})
        assert len({recipe.model_dump_json() for recipe in recipes.values()}) == len(study.settings), name
        assert {recipe.data.draws for recipe in recipes.values()} == {100}


def test_the_ablation_is_the_papers_and_rho_shares_its_cells() -> None:
    recipe = load_recipe("mobilenet")
    ablation, rho = (load_study(name).recipes(recipe, {}) for name in ("ablation", "rho"))
    drawn = {name: (one.data.balance, one.optimizer.rho) for name, one in ablation.items()}
    assert drawn == {"AdamW": ("none", 0.0), "+WRS": ("class", 0.0), "+SAM": ("none", 0.05), "+both": ("class", 0.05)}
    assert (rho["rho 0"], rho["rho 0.05"]) == (ablation["+WRS"], ablation["+both"])


def test_patients_are_held_out_by_seed_and_alike_in_every_setting(ground: Ground) -> None:
    held = {(cell.setting, cell.seed): set(facts.held_out) for cell in ground.cells if (facts := cell.facts())}
    assert held["plain", 0] == held["SAM", 0] != held["plain", 1] == held["SAM", 1]
    assert held["plain", 0].isdisjoint(held["plain", 1])
    for cell in ground.cells:
        assert set(load_outcome(cell.reading(ground.done.targets[0])).patients) <= held[cell.setting, cell.seed]


def test_the_last_epoch_is_read_not_the_best(ground: Ground) -> None:
    """The average of the last epoch is what serves; the checkpoint also holds the best epoch's."""
    differ = False
    for cell in ground.cells:
        tensors, metadata = load_tensors(cell.folder / "member-1" / CHECKPOINT_FILE)
        served = {name: tensors[f"average.module.{name}"] for name in weights_of(cell)}
        assert all(torch.equal(tensor, served[name]) for name, tensor in weights_of(cell).items())
        differ |= metadata["progress"]["best_epoch"] < TOY.optimizer.epochs
    assert differ, "no cell of this test had its best epoch before the last: the test shows nothing"


def test_a_cell_of_two_studies_is_trained_once_and_read_for_both(ground: Ground) -> None:
    plan, cells = planned(OTHER, ground.plan, ground.folder)
    shared = [cell for cell in cells if cell.setting == "as is"]
    assert {cell.folder for cell in shared} == {cell.folder for cell in ground.cells if cell.setting == "plain"}
    before = {cell.folder: (cell.folder / WEIGHTS_FILE).stat().st_mtime_ns for cell in shared}
    run_cells(cells, plan, heard := Heard())
    assert len(heard.cells) == 4  # the shared ones, too: they had not been read on recordings
    assert {cell.folder: (cell.folder / WEIGHTS_FILE).stat().st_mtime_ns for cell in shared} == before
    assert all(cell.reading(target).is_file() for cell in cells for target in plan.targets)
    run_cells([*cells, *ground.cells], plan, heard := Heard())
    assert heard.cells == [cell for cell in ground.cells if cell.setting == "SAM"]  # on recordings, now


def test_the_key_depends_on_all_that_decides_the_result(ground: Ground, tmp_path: Path) -> None:
    folders = {cell.folder.name for cell in ground.cells}
    for changes in ({"data__draws": 8}, {"optimizer__epochs": 1}, {"front_end__level": 0.0}):
        _, cells = planned(STUDY, ground.plan, ground.folder, **changes)
        assert folders.isdisjoint(cell.folder.name for cell in cells)
    moved = elsewhere(ground.plan, make_sprsound(tmp_path / "again", patients=9))
    assert {cell.folder.name for cell in planned(STUDY, moved, ground.folder)[1]} == folders
    other = elsewhere(ground.plan, make_sprsound(tmp_path / "other", patients=9, seed=3))
    assert folders.isdisjoint(cell.folder.name for cell in planned(STUDY, other, ground.folder)[1])
    divided = replace(ground.plan, request=replace(ground.plan.request, seed=1))  # the same patients in other folds
    assert folders.isdisjoint(cell.folder.name for cell in planned(STUDY, divided, ground.folder)[1])


def test_what_is_gradable_decides_a_reading_through_the_live_path_and_no_other(ground: Ground) -> None:
    quality = ground.plan.quality.model_copy(update={"minimum_snr_db": ground.plan.quality.minimum_snr_db + 1.0})
    study = OTHER.model_copy(update={"protocols": ("windows", "recordings", "live")})
    plain, cells = planned(study, ground.plan, ground.folder)
    stricter, same = planned(study, replace(ground.plan, quality=quality), ground.folder)
    assert cells == same
    assert plain.targets[0] == stricter.targets[0]
    assert [target.protocol for target in plain.targets[1:]] == ["recordings", "live"]
    for target, other in zip(plain.targets[1:], stricter.targets[1:], strict=True):
        assert cells[0].reading(target) != cells[0].reading(other)


def test_a_study_reads_what_the_screen_shows(ground: Ground) -> None:
    """Through the segmenter, not the annotated cycle as it is: each row is a cycle that was met or missed."""
    live = STUDY.model_copy(update={"protocols": ("live",)})
    plan, cells = planned(live, ground.plan, ground.folder, seeds=1)
    assert run_cells(cells[:1], plan, heard := Heard()) == 0, heard.problems
    (target,) = plan.targets
    outcome = load_outcome(cells[0].reading(target))
    assert np.isnan(outcome.classes).all(), "of cycles on the screen; an annotation read as it is has all four"
    assert set(outcome.predicted[outcome.probability > 0].tolist()) <= {1, 2, 3}


def test_minutes_that_earlier_calls_spent_are_spent(tmp_path: Path) -> None:
    cell, metrics = Cell("plain", 0, TOY, tmp_path), tmp_path / "member-1" / METRICS_FILE
    assert minutes_left(cell, 2.0) == 2.0
    metrics.parent.mkdir()
    metrics.write_text(
        "".join(json.dumps(dict.fromkeys(METRICS_KEYS, 0.0) | {"seconds": one}) + "\n" for one in (60, 30))
    )
    assert [minutes_left(cell, budget) for budget in (None, 1.0, 2.0, 2.5, 4.0)] == [None, 0.0, 0.0, 1.0, 2.5]


def test_minutes_stop_a_cell_and_a_larger_budget_goes_on(ground: Ground, tmp_path: Path) -> None:
    plan, cells = planned(STUDY, replace(ground.plan, minutes=1e-6), tmp_path)
    run_cells(cells, plan, Heard())
    assert epochs_of(cells) == [1] * 4
    lines = lines_of(STUDY, cells, plan.targets)
    assert all("1/1 of 2 (!)" in line.words for line in lines)
    notes = " ".join(notes_on(STUDY, lines, 2))
    assert "the budget is shorter" in notes
    assert "unequal epochs do not compare" in notes
    run_cells(cells, plan, heard := Heard())
    assert heard.cells == []
    # what was trained before counts: another reading, or a budget that is larger and still spent, trains no epoch
    read_again = replace(plan, targets=(*plan.targets, Target("events", "events")))
    run_cells(cells, read_again, heard := Heard())
    assert len(heard.cells) == 4
    spent = [facts.seconds / 60 for cell in cells if (facts := cell.facts())]
    run_cells(cells, replace(plan, minutes=1.5 * min(spent)), heard := Heard())
    assert len(heard.cells) == 4
    assert heard.problems == []
    assert epochs_of(cells) == [1] * 4
    whole = replace(plan, minutes=None)
    run_cells(cells, whole, heard := Heard())
    assert len(heard.cells) == 4
    for cell, expected in zip(cells, ground.cells, strict=True):
        same_cell(cell, expected, plan.targets[0])


def test_a_worker_that_is_killed_loses_nothing(ground: Ground, tmp_path: Path) -> None:
    """Ray starts another one, which goes on from the checkpoint; the result is that of an undisturbed study."""
    pytest.importorskip("ray")
    plan, cells = planned(STUDY, ground.plan, tmp_path)
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            time.sleep(0.02)
            begun = any((cell.folder / "member-1" / CHECKPOINT_FILE).is_file() and not cell.facts() for cell in cells)
            for worker in _workers(os.getpid()) if begun else ():
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    killer = Thread(target=kill)
    killer.start()
    assert run_cells(cells, plan, heard := Heard(), jobs=2) == 0
    killer.join()
    assert killed, "the study was over before its worker could be killed"
    assert len(heard.cells) == 4
    for cell, expected in zip(cells, ground.cells, strict=True):
        same_cell(cell, expected, plan.targets[0])


def _workers(ancestor: int) -> list[int]:
    """Processes of Ray below this one that are in the middle of `attempt`; Ray writes it into their title."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
                if title.startswith(b"ray::attempt") and ancestor in _ancestors(int(folder.name)):
                    found.append(int(folder.name))
            except OSError:
                continue  # it has just ended
    return found


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


def test_one_bad_cell_is_one_line_and_the_others_go_on(ground: Ground, tmp_path: Path) -> None:
    """Once by a loss that is no number; once by what nobody foresaw, which is kept in full."""
    bad = Study(
        title="bad",
        question="?",
        reference="plain",
        settings=(
            Setting(name="wild", changes={"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}),
            Setting(name="plain"),
        ),
    )
    plan, cells = planned(bad, ground.plan, ground.folder)
    assert run_cells(cells, plan, heard := Heard()) == 2
    assert len(heard.problems) == 2
    assert all("\n" not in problem and "loss" in problem for problem in heard.problems)
    lines = lines_of(bad, cells, plan.targets)
    assert [line.setting for line in lines] == ["plain"]
    assert "NOTE wild: 0 of 2 seeds." in notes_on(bad, lines, 2)
    broken = replace(cells[0], recipe=TOY.model_copy(update={"model": None}), folder=tmp_path / "broken")
    run_cells([broken, cells[1]], plan, heard := Heard())
    assert [cell.setting for cell in heard.cells] == ["wild"], "the other was done before"
    (problem,) = heard.problems
    assert problem.startswith("AttributeError: ") and problem.endswith(f"in full in {tmp_path}/broken/error.txt")
    assert "Traceback" in (tmp_path / "broken" / "error.txt").read_text()


class Unreadable(Cell):
    """A worker cannot even unpack it."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no cell",)


def test_what_ray_says_of_one_cell_is_its_line_and_the_others_go_on(ground: Ground, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plan, cells = planned(STUDY, ground.plan, tmp_path, seeds=1)
    bad = Unreadable("bad", 0, TOY, tmp_path / "bad")
    cells[0].folder.mkdir(parents=True, exist_ok=True)
    (cells[0].folder / "error.txt").write_text("of an earlier call")
    run_cells([bad, cells[0]], plan, heard := Heard(), jobs=2)
    assert {cell.setting for cell in heard.cells} == {"bad", "plain"}
    assert cells[0].done(plan) and not (cells[0].folder / "error.txt").exists()
    (problem,) = heard.problems
    assert "\n" not in problem and "Traceback" not in problem and "invalid literal for int" in problem
    assert "Traceback" in (tmp_path / "bad" / "error.txt").read_text()


class Interrupted(Plan):
    """Ctrl-C in the middle of a cell."""

    def prepared(self, recipe: Recipe) -> Prepared:
        raise KeyboardInterrupt


def test_an_interrupt_is_no_cells_failure(ground: Ground, tmp_path: Path) -> None:
    plan, cells = planned(STUDY, ground.plan, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, Interrupted(plan.request, plan.audio_cache, plan.quality), heard := Heard())
    assert heard.cells == []


def invented(folder: Path, better: float) -> tuple[list[Cell], Target, dict[tuple[str, int], Outcome]]:
    """Two settings with two seeds whose readings are drawn; the second hears `better` standard deviations better."""
    target, cells, drawn = Target("windows", "windows"), [], {}
    for seed in range(2):
        random = np.random.default_rng(seed)
        patients = [f"{seed}-{number}" for number in np.repeat(np.arange(30), 8)]
        true = random.integers(0, 4, len(patients))
        noise = random.standard_normal(len(patients))
        for name, shift in (("plain", 0.5), ("SAM", 0.5 + better)):
            cell = Cell(name, seed, TOY, folder / f"{name}{seed}")
            cell.folder.mkdir(parents=True)
            likely = 1 / (1 + np.exp(-(noise + shift * (true > 0) - seed)))
            outcome = Outcome(
                true,
                random.integers(1, 4, len(true)),
                likely,
                patients,
                {"duration": random.standard_normal(len(true))},
                patients,
                np.arange(len(true), dtype=float),
                np.arange(1, len(true) + 1, dtype=float),
                ["d"] * len(true),
                ["s"] * len(true),
                np.zeros((len(true), 4)),
                ["sprsound"] * len(true),
            )
            save_outcome(cell.reading(target), outcome)
            facts = {"recipe": TOY.model_dump(mode="json"), "seed": seed, "held_out": sorted(set(patients))}
            facts |= {"epochs_done": 2, "minutes": None, "seconds": 60.0, "step_seconds": 0.25}
            (cell.folder / "cell.json").write_text(json.dumps(facts))
            cells.append(cell)
            drawn[name, seed] = outcome
    return cells, target, drawn


def rates(true: np.ndarray, called: np.ndarray) -> float:
    return float((np.mean(called[true > 0]) + np.mean(~called[true == 0])) / 2)


def test_the_tables_numbers_are_what_scikit_learn_and_numpy_say(tmp_path: Path) -> None:
    cells, target, drawn = invented(tmp_path, 0.6)
    plain, sam = lines_of(STUDY, cells, [target])
    means = {}
    for line in (plain, sam):
        two = [drawn[line.setting, seed] for seed in range(2)]
        means[line.setting] = np.mean([roc_auc_score(one.true > 0, one.probability) for one in two])
        assert line.auroc.value == pytest.approx(means[line.setting])
        # each is read at the other's threshold: these two models have scales of their own
        limits = [choose_threshold(one.true > 0, one.probability)[0] for one in reversed(two)]
        called = [one.probability >= limit for one, limit in zip(two, limits, strict=True)]
        assert line.score.value == pytest.approx(
            rates(np.concatenate([one.true for one in two]), np.concatenate(called))
        )
        exact = [np.where(call, one.predicted, NORMAL) for one, call in zip(two, called, strict=True)]
        named, true = np.concatenate(exact), np.concatenate([one.true for one in two])
        right = np.mean(named[true > 0] == true[true > 0]), np.mean(named[true == 0] == 0)
        assert line.exact.value == pytest.approx(np.mean(right))
    assert sam.difference is not None
    assert sam.difference.value == pytest.approx(means["SAM"] - means["plain"])
    # the same noise in both: paired, the difference is far surer than two intervals side by side
    assert sam.difference.high - sam.difference.low < 0.8 * (sam.auroc.high - sam.auroc.low)
    assert (sam.in_words, plain.in_words) == ("higher", "")


def test_an_interval_that_holds_zero_is_no_difference(tmp_path: Path) -> None:
    cells, target, _ = invented(tmp_path, 0.0)
    same = lines_of(STUDY, cells, [target])[1]
    assert same.in_words == "no difference seen"
    worse, target, _ = invented(tmp_path / "worse", -0.6)
    assert lines_of(STUDY, worse, [target])[1].in_words == "lower"


def test_what_has_no_score_or_class_has_none_and_a_missing_seed_is_said(tmp_path: Path) -> None:
    cells, target, _ = invented(tmp_path, 0.3)
    alone = lines_of(STUDY, [cell for cell in cells if cell.seed == 0], [target])
    assert [line.words[4:6] for line in alone] == [["-", "-"]] * 2
    heard = Target("recordings-1", "recordings")
    for cell in cells:
        cell.reading(heard).write_bytes(cell.reading(target).read_bytes())
    on_stretches, on_recordings = (lines_of(STUDY, cells, [one])[0].words for one in (target, heard))
    # a class needs a site rule, and none is fitted
    assert on_stretches[5] != "-" and on_recordings[5] == "-"
    assert on_recordings[4] == on_stretches[4] != "-"
    lines = lines_of(STUDY, cells[:3], [target])
    assert "NOTE SAM: 1 of 2 seeds." in notes_on(STUDY, lines, 2)
    first = lines_of(STUDY, cells[:2], [target])[1]
    assert lines[1].difference is not None and first.difference is not None
    assert lines[1].difference == first.difference  # over the seed that both have


def test_the_file_says_what_the_terminal_says_and_the_picture_is_one(tmp_path: Path) -> None:
    cells, target, _ = invented(tmp_path, 0.6)
    lines = lines_of(STUDY, cells, [target])
    write_report("toy", STUDY, lines, notes_on(STUDY, lines, 2), tmp_path)
    text, picture = (tmp_path / "toy.md").read_text(), (tmp_path / "toy.svg").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert [cell.strip() for cell in rows[-1].strip("|").split("|")] == lines[1].words
    assert "480 windows of 60 patients" in text
    assert picture.lstrip().startswith("<?xml") and "</svg>" in picture
    assert len(tables(lines)) == 1
    (tmp_path / "again").mkdir()
    write_report("toy", STUDY, lines, [], tmp_path / "again")
    assert (tmp_path / "again" / "toy.svg").read_text() == picture


def test_another_corpus_is_read_and_it_is_said_how_few_they_are(ground: Ground, tmp_path: Path) -> None:
    other = make_icbhi(tmp_path / "icbhi", patients=4, recordings_per_patient=1)
    plan, cells = planned(STUDY, replace(ground.plan, to_corpus="icbhi", to_data=other), ground.folder)
    run_cells(cells, plan, Heard())
    lines = lines_of(STUDY, cells, plan.targets)
    there: list[Line] = [line for line in lines if line.target.elsewhere]
    assert [line.setting for line in there] == ["plain", "SAM"]
    whole = load_corpora([Source("icbhi", other)], part="all")
    assert set(there[0].outcome.patients) == set(whole.patients)
    assert len(there[0].outcome.true) == 2 * len(whole.cycles)  # two models, each on all of it
    notes = notes_on(STUDY, lines, 2)
    assert (
        "NOTE events of icbhi rests on 4 recordings of 4 patients; too few patients for any claim: 4, 50 are the least."
        in notes
    )
    # its thresholds are of the training corpus's patients: other labels there cannot move them
    source = load_outcome(cells[0].reading(plan.targets[0]))
    at = choose_threshold(source.true > 0, source.probability)[0]
    rows = np.flatnonzero(there[0].seeds == cells[0].seed)
    assert np.array_equal(there[0].outcome.predicted[rows] != NORMAL, there[0].outcome.probability[rows] >= at)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TOML.replace("optimizer.rho", "optimizer.roh"),
            "key 'optimizer.roh' is not there; the nearest is 'optimizer.rho'",
        ),
        (
            TOML.replace('"optimizer.rho" = 0.05', '"optimizer.rho" = -1'),
            "setting 'SAM': changed recipe: optimizer.rho",
        ),
        (TOML.replace('"optimizer.rho" = 0.05', '"data.folds" = 3'), "data.folds is one for all settings"),
        (TOML.replace('reference = "plain"', 'reference = "plane"'), "the nearest is 'plain'"),
        (TOML.replace("changes", "change"), "unknown key settings.1.change; the nearest valid one is changes"),
        (TOML.replace("question", "questions"), "nearest valid one is question"),
        (TOML.replace('"SAM"', '"plain"'), "two or more with different names"),
        (TOML + "[", "not valid TOML"),
    ],
)
def test_a_bad_study_is_named_at_load(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(str(tmp_path / "bad.toml")).recipes(TOY, {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_some_settings(tmp_path: Path) -> None:
    rho = load_study("rho")
    assert [one.name for one in rho.only(["rho 0.1"]).settings] == ["rho 0", "rho 0.1"]
    with pytest.raises(StudyError, match=r"setting 'rho 0\.2' is not there; the nearest is 'rho 0"):
        rho.only(["rho 0.2"])
    with pytest.raises(StudyError, match="neither a file nor one of ablation, rho"):
        load_study("ablations")


def test_the_command(run_cli: RunCli, ground: Ground, tmp_path: Path) -> None:
    from tests.trainer.toy_recipe import TOML as TOY_TOML

    (tmp_path / "recipe.toml").write_text(TOY_TOML)
    (tmp_path / "mine.toml").write_text(TOML)
    data = str(ground.plan.request.sources[0].data)
    options = ["--corpus", "sprsound", "--data", data, "--recipe", "recipe.toml", "--out", "studies"]
    result = run_cli("trainer", "study", "mine.toml", *options, "--seeds", "1", "--epochs", "1", "--draws", "16")
    assert result.returncode == 0, result.stderr
    assert "2 settings x 1 seeds = 2 cells, 0 of them done before" in result.stderr
    assert "plain" in result.stdout and "AUROC" in result.stdout
    assert (tmp_path / "studies" / "mine.md").is_file() and (tmp_path / "studies" / "mine.svg").is_file()
    again = run_cli("trainer", "study", "mine.toml", *options, "--seeds", "1", "--epochs", "1", "--draws", "16")
    assert "2 of them done before" in again.stderr
    assert again.stdout == result.stdout
    for arguments, said in (
        (["ablation", *options, "--to-corpus", "icbhi"], "--to-corpus C --to-data DIR"),
        (["mine.toml", *options, "--settings", "SAN"], "the nearest is 'SAM'"),
        (["mine.toml", *options, "--ray", "127.0.0.1:1"], "nothing answers there"),
    ):
        result = run_cli("trainer", "study", *arguments)
        assert result.returncode == 2, result.stderr
        assert said in result.stderr
        assert "Traceback" not in result.stderr
