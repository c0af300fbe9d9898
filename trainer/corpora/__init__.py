"""Annotated lung sounds: ICBHI 2017, SPRSound and plain manifests, read into one `Corpus`."""

from pathlib import Path
from typing import Literal

from trainer.corpora.cycle import TEST_PARTS, Corpus, CorpusError, Cycle, Problem, Reading, Recording

__all__ = ["CORPORA", "Corpus", "CorpusError", "Cycle", "Recording", "choose_part", "load_corpus", "parts_of"]

CORPORA = ("icbhi", "sprsound", "manifest")
SPLITS = ("official", "as-published")
OVERHANG_SECONDS = 0.1  # how far an annotation may reach past the audio: annotators round
Purpose = Literal["fit", "evaluate"]


def load_corpus(
    name: str,
    data: Path,
    *,
    part: str | None = None,
    split: str = "official",
    audio: bool = True,
    lenient: bool = False,
    purpose: Purpose | None = None,
) -> Corpus:
    """Read a corpus below `data` and check it.

    `part` is train, test (= test, intra and inter), intra, inter, all or None: what `purpose` takes by itself (see
    `choose_part`), all without one. `audio=False` reads annotations alone. Anything missing, unreadable, empty or
    contradictory is a CorpusError that names the file; with `lenient` the recording is left out and noted.
    """
    reading = _read(name, data, split)
    parts = {recording.part for recording in reading.recordings} | {problem.part for problem in reading.problems}
    if name == "icbhi" and purpose is not None and part is None and parts <= {""}:
        raise CorpusError(f"{data}: no official split file beside the recordings; put it there or give --part all")
    taken = _taken(parts, part, purpose, data)
    recordings = [recording for recording in reading.recordings if recording.part in taken]
    problems = [problem for problem in reading.problems if problem.part in taken]
    if audio:
        problems += [problem for problem in reading.unpaired_audio if _covers(taken, problem.part)]
        recordings, unheard = _check_audio(recordings, data)
        problems += unheard
    if problems and not lenient:
        more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise CorpusError(f"{problems[0].message}; or give --lenient to leave it out{more}")
    if not recordings:
        raise CorpusError(f"{data}: no recording is left of {len(problems)} with problems, first {problems[0].message}")
    left_out = (f"left out ({n} of {len(problems)}): {problem.message}" for n, problem in enumerate(problems, 1))
    return Corpus(name, data, tuple(recordings), (*reading.notes, *left_out))


def _read(name: str, data: Path, split: str) -> Reading:
    if split not in SPLITS:
        raise CorpusError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    if name == "sprsound":
        from trainer.corpora.sprsound import read_sprsound

        return read_sprsound(data)
    if name == "icbhi":
        from trainer.corpora.icbhi import read_icbhi

        return read_icbhi(data, drop_leaking=split == "official")
    if name == "manifest":
        from trainer.corpora.manifest import read_manifest

        return read_manifest(data)
    raise CorpusError(f"unknown corpus {name!r}; known are {', '.join(CORPORA)}")


def _check_audio(recordings: list[Recording], data: Path) -> tuple[list[Recording], list[Problem]]:
    """Those whose audio is there and as long as their cycles say, and the problems of the others."""
    from device.audio import AudioError, read_header

    good, problems = [], []
    for recording in recordings:
        try:
            if recording.audio is None:
                raise CorpusError(f"{data}: {recording.name} is annotated but has no wav or flac; add the recording")
            seconds = read_header(recording.audio).seconds
            last = max((cycle.end_seconds for cycle in recording.cycles), default=0.0)
            if last > seconds + OVERHANG_SECONDS:
                raise CorpusError(
                    f"{recording.audio}: lasts {seconds:.2f} s, its annotation reaches {last:.2f} s; copy both again"
                )
            good.append(recording)
        except (AudioError, CorpusError) as error:
            problems.append(Problem(str(error), recording.part))
    return good, problems


def parts_of(corpus: Corpus) -> tuple[str, ...]:
    """The parts its recordings name, sorted; ("",) for a corpus without parts."""
    return tuple(sorted({recording.part for recording in corpus.recordings}))


def choose_part(corpus: Corpus, wanted: str | None, purpose: Purpose) -> Corpus:
    """The recordings of the wanted part; 'test' is test, intra and inter together.

    Without a wish, fit takes train where the corpus has parts, evaluate the test parts; a corpus without parts is taken
    whole. CorpusError names the parts there are when the wanted one is empty, or when fit would take a test part.
    """
    taken = _taken(set(parts_of(corpus)), wanted, purpose, corpus.root)
    recordings = tuple(recording for recording in corpus.recordings if recording.part in taken)
    return Corpus(corpus.name, corpus.root, recordings, corpus.notes)


def _taken(parts: set[str], wanted: str | None, purpose: Purpose | None, root: Path) -> set[str]:
    there = ", ".join(sorted(parts - {""})) or "no parts"
    if wanted not in (None, "all", "train", *TEST_PARTS):
        raise CorpusError(f"unknown part {wanted!r}; known are train, test, intra, inter and all")
    if wanted == "all" or (wanted is None and (purpose is None or parts <= {""})):
        return parts
    if wanted is None and purpose == "evaluate":
        return parts.intersection(TEST_PARTS) or parts
    taken = parts.intersection(TEST_PARTS if wanted == "test" else (wanted or "train",))
    if not taken and wanted is None:
        raise CorpusError(f"{root}: fit takes the train part, but this holds {there}; name another with --part")
    if not taken:
        raise CorpusError(f"{root}: nothing of part {wanted!r} (this holds {there}); choose another --part or --data")
    return taken


def _covers(taken: set[str], part: str) -> bool:
    """Audio lies in "test_wav" for both test parts of SPRSound; only its annotation would say which."""
    return part in taken or (part == "test" and not taken.isdisjoint(TEST_PARTS))
