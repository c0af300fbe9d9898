"""KAUH: names that carry the facts, three filters of one subject, and what contradicts itself."""

from pathlib import Path

import pytest

from tests.trainer.corpora.test_several_corpora import sound
from trainer.corpora import CorpusError, Source, load_corpora, load_corpus
from trainer.corpora.splits import patient_folds

FACTS = {
    1: "Asthma,I E W,P L L,70,M",
    2: "N,N,A R U,24,F",
    3: "heart failure,C,P R M,61,M",
    4: "Heart Failure + COPD , I C E W B,PLL, 58 ,m",
    5: "Lung Fibrosis,Crep,A U R,44,F",
}
LABELS = {1: "wheeze", 2: "normal", 3: "crackle", 4: "both", 5: "crackle"}


def make_kauh(root: Path, facts: dict[int, str] = FACTS) -> Path:
    for number, of in facts.items():
        for turn, name in enumerate(("BP", "DP", "EP")):
            sound(root / f"{name}{number}_{of}.wav", 3 * number + turn)
    return root


def test_the_published_names_are_read(tmp_path: Path) -> None:
    corpus = load_corpus("kauh", make_kauh(tmp_path))
    assert {int(one.patient.removeprefix("kauh")): one.label for one in corpus.recordings} == LABELS
    assert len(corpus.recordings) == 15 and corpus.notes == ()
    first = next(one for one in corpus.recordings if one.name == "DP4")
    assert (first.device, first.site, first.age_years) == ("Littmann 3200 diaphragm", "P L L", 58.0)
    assert (first.grain, first.corpus) == ("recording", "kauh")
    assert [(cycle.start_seconds, cycle.end_seconds, cycle.label) for cycle in first.cycles] == [(0.0, 4.0, "both")]


def test_a_manifest_of_short_names_is_the_same_corpus(tmp_path: Path) -> None:
    published = load_corpus("kauh", make_kauh(tmp_path / "published"))
    rows = ["path,start,end,label,patient,device,site,age,part"]
    (tmp_path / "short").mkdir()
    for one in published.recordings:
        assert one.audio is not None
        (tmp_path / "short" / f"{one.name}.wav").write_bytes(one.audio.read_bytes())
        rows.append(f"{one.name}.wav,0,4.0,{one.label},{one.patient},{one.device},{one.site},{one.age_years},")
    (tmp_path / "short" / "manifest.csv").write_text("\n".join(rows))
    short = load_corpus("kauh", tmp_path / "short")
    without_paths = [
        [(one.name, one.patient, one.device, one.site, one.age_years, one.label, one.grain, one.cycles) for one in some]
        for some in (published.recordings, short.recordings)
    ]
    assert without_paths[0] == without_paths[1]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("Asthma,I E W,P L L,71,M", "age"),
        ("Asthma,I E W,P L L,70,F", "sex"),
        ("Asthma,I E W,P R L,70,M", "place"),
        ("COPD,I E W,P L L,70,M", "diagnosis"),
        ("Asthma,C,P L L,70,M", "sound and label"),
    ],
)
def test_a_subject_that_contradicts_itself_is_left_out_by_name(other: str, what: str, tmp_path: Path) -> None:
    root = make_kauh(tmp_path)
    (root / f"EP1_{FACTS[1]}.wav").rename(root / f"EP1_{other}.wav")
    corpus = load_corpus("kauh", root)
    assert corpus.patients == ("kauh2", "kauh3", "kauh4", "kauh5")
    (note,) = corpus.notes
    assert note.startswith(f"kauh1 is left out: {what} contradict in BP1_") and other in note


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cough", "not a KAUH name"),
        ("BP6_Asthma,W,P L L,70", "not a KAUH name"),
        ("FP6_Asthma,W,P L L,70,M", "not a KAUH name"),
        ("BP6_Asthma,purr,P L L,70,M", "sound 'purr' is not N, W, C or Crep"),
        ("BP6_BRON,Bronchial,P L L,70,M", r"sound 'Bronchial' .*bronchial breathing is neither"),
        ("BP6_Asthma,W,neck,70,M", "place 'neck'"),
        ("BP6_Asthma,W,P L L,old,M", "age 'old'"),
        ("BP6_Asthma,W,P L L,70,X", "sex 'X'"),
    ],
)
def test_a_name_that_does_not_parse_is_one_line(name: str, said: str, tmp_path: Path) -> None:
    root = make_kauh(tmp_path)
    sound(root / f"{name}.wav", 99)
    with pytest.raises(CorpusError, match=rf"{name}\.wav: .*{said}|{name}\.wav: {said}"):
        load_corpus("kauh", root)
    assert len(load_corpus("kauh", root, lenient=True).recordings) == 15


def test_filters_that_are_the_same_to_the_bit_count_once(tmp_path: Path) -> None:
    root = make_kauh(tmp_path)
    (root / f"DP2_{FACTS[2]}.wav").write_bytes((root / f"BP2_{FACTS[2]}.wav").read_bytes())
    corpus = load_corpus("kauh", root)
    assert len(corpus.recordings) == 14 and corpus.notes[0].startswith("1 of the recordings are there twice")


def test_the_filters_of_a_subject_are_on_one_side(tmp_path: Path) -> None:
    facts = {number: f"N,{'N' if number % 2 else 'W'},P L L,40,M" for number in range(1, 9)}
    corpus = load_corpora([Source("kauh", make_kauh(tmp_path, facts))])
    for training, held_out in patient_folds(corpus, 2, 0):
        assert len(training.recordings) == len(held_out.recordings) == 12
        assert not set(training.patients) & set(held_out.patients)


def test_kauh_at_hand(shared_data: Path) -> None:
    corpus = load_corpus("kauh", shared_data / "kauh")
    assert len(corpus.patients) == 53
    # DP9 is BP9 to the bit
    assert len(corpus.recordings) == 158 and {one.grain for one in corpus.recordings} == {"recording"}
