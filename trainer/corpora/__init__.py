"""Annotated lung sounds: ICBHI 2017, SPRSound, KAUH and plain manifests, read into one `Corpus`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from trainer.choices import CORPORA, SPLITS
from trainer.corpora.copies import joined, without_copies
from trainer.corpora.cycle import (
    TEST_PARTS,
    Annotations,
    Corpus,
    CorpusError,
    Cycle,
    Problem,
    Recording,
    Source,
    joined_names,
)

__all__ = [
    "CORPORA",
    "Corpus",
    "CorpusError",
    "Cycle",
    "Purpose",
    "Recording",
    "Source",
    "left_out",
    "load_corpora",
    "load_corpus",
    "parts_of",
]

OVERHANG_SECONDS: Final = 0.1  # how far an annotation may reach past the audio: annotators round
Purpose = Literal["fit", "evaluate"]


def load_corpora(
    sources: Sequence[Source],
    *,
    part: str | None = None,
    split: str = "official",
    audio: bool = True,
    lenient: bool = False,
    purpose: Purpose | None = None,
) -> Corpus:
    """Read every source by `load_corpus` into one corpus, recordings and patients named `NAME/...` by their corpus.

    Patients of one name are the same person in all folders of a corpus. A recording in two folders counts once; if its
    annotations differ, it is a CorpusError, as is a folder given twice.
    """
    seen: set[tuple[str, Path]] = set()
    for source in sources:
        if (key := (source.name, source.data.resolve())) in seen:
            raise CorpusError(f"--corpus {source.name} --data {source.data} is given twice; leave one out")
        seen.add(key)
    read = [
        load_corpus(one.name, one.data, part=part, split=split, audio=audio, lenient=lenient, purpose=purpose)
        for one in sources
    ]
    recordings = [_prefixed(one, corpus.name) for corpus in read for one in corpus.recordings]
    folders = [corpus.root for corpus in read for _ in corpus.recordings]
    kept, problems, notes = joined(recordings, folders)
    own = (note for corpus in read for note in corpus.notes)
    notes = tuple(dict.fromkeys((*own, *notes, *left_out(problems, lenient))))
    if not kept:
        raise CorpusError(f"{' + '.join(str(one.data) for one in sources)}: nothing is left; see {problems[0].message}")
    return Corpus(joined_names(sources), sources[0].data, tuple(kept), notes, tuple(sources))


def _prefixed(recording: Recording, corpus: str) -> Recording:
    name, patient = f"{corpus}/{recording.name}", f"{corpus}/{recording.patient}"
    cycles = tuple(replace(cycle, recording=name, patient=patient) for cycle in recording.cycles)
    return replace(recording, name=name, patient=patient, cycles=cycles, corpus=corpus)


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
    """Read one corpus below `data` and check it; its names as published (`load_corpora` prefixes them).

    `part` is train, test (= test, intra and inter), intra, inter, all or None: what `purpose` takes by itself (fit:
    train where there are parts, evaluate: the test parts), all without one. `audio=False` reads annotations alone.
    Anything missing, unreadable, empty or contradictory is a CorpusError that names the file; with `lenient` the
    recording is left out and noted.
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
        recordings, without_audio = _check_audio(recordings, data)
        problems += without_audio
    recordings, contradictions, notes = without_copies(recordings)
    problems += contradictions
    bad = left_out(problems, lenient)
    if not recordings and problems:
        raise CorpusError(f"{data}: no recording is left of {len(problems)} with problems, first {problems[0].message}")
    if not recordings:
        raise CorpusError(f"{data}: no recording is left{'; ' * bool(reading.notes)}{'; '.join(reading.notes[:1])}")
    return Corpus(name, data, tuple(recordings), (*reading.notes, *notes, *bad), (Source(name, data),))


def left_out(problems: Sequence[Problem], lenient: bool) -> tuple[str, ...]:
    """One note a problem; CorpusError on the first, with the number of the others, unless `lenient`."""
    if problems and not lenient:
        more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise CorpusError(f"{problems[0].message}; or give --lenient to leave it out{more}")
    return tuple(f"left out ({n} of {len(problems)}): {problem.message}" for n, problem in enumerate(problems, 1))


def _read(name: str, data: Path, split: str) -> Annotations:
    if split not in SPLITS:
        raise CorpusError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    if name == "sprsound":
        from trainer.corpora.sprsound import read_sprsound

        return read_sprsound(data)
    if name == "icbhi":
        from trainer.corpora.icbhi import read_icbhi

        return read_icbhi(data, drop_leaking=split == "official")
    if name == "kauh":
        from trainer.corpora.kauh import read_kauh

        return read_kauh(data)
    if name == "manifest":
        from trainer.corpora.manifest import read_manifest

        return read_manifest(data)
    raise CorpusError(f"unknown corpus {name!r}; known are {', '.join(CORPORA)}")


def _check_audio(recordings: list[Recording], data: Path) -> tuple[list[Recording], list[Problem]]:
    """The recordings with audio as long as their cycles need, and the problems of the others."""
    from device.capture.recording import AudioError, read_header

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
    """SPRSound has the audio of both test parts in "test_wav"; only the annotation tells which part it is."""
    return part in taken or (part == "test" and not taken.isdisjoint(TEST_PARTS))
