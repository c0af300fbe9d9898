"""The corpus and the audio of a run, read and divided: `trainer fit` trains one run on them, `trainer study` many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device.signal import FrontEnd
from trainer.corpora import Corpus, CorpusError, load_corpora
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.splits import Fold, SplitError, families_of, folds_of, refuse_one_kind, refuse_shared_patients
from trainer.run.folder import RunFacts
from trainer.run.recipe import DataRecipe
from trainer.run.request import Request
from trainer.training.crops import TrainingCrops
from trainer.training.train import measure_normalisation


@dataclass(frozen=True)
class Prepared:
    """The training corpus and its audio, the front end with its measured mean and std, and who is held out when."""

    corpus: Corpus
    cache: AudioCache
    front_end: FrontEnd
    folds: list[Fold]

    def stethoscopes(self, data: DataRecipe) -> tuple[str, ...]:
        """Notes on which of them no model of a run with this recipe leaves out."""
        if data.hold_out == "patients":
            return ()
        notes = []
        named = [", ".join(families_of(held, data.hold_out)) for _, held in self.folds]
        if data.members < len(self.folds):
            sides = [f"{name}: {'held out' if n < data.members else 'not held out'}" for n, name in enumerate(named)]
            every = f"--members {len(self.folds)} holds out each in turn"
            notes.append(f"of {len(self.folds)} stethoscopes {'; '.join(sides)}; {every}")
        never = [name for name in families_of(self.corpus, data.hold_out) if name not in named]
        if never:
            notes.append(f"never held out, as one side would lack normal or abnormal ones: {', '.join(never)}")
        if data.refit:
            notes.append("what serves learns from every stethoscope; --refit 0 serves the models that leave one out")
        return tuple(notes)


@dataclass(frozen=True)
class Opened:
    """The corpus of a run and its audio; with the test part apart where it chooses (`choose_on = "test"`)."""

    training: Corpus
    tested: Corpus | None
    cache: AudioCache


def request_of(facts: RunFacts, data: Sequence[Path] = ()) -> Request:
    """The request that a run was made of; `data` are the corpora's folders where they have moved.

    SplitError unless these are as many as the run's corpora, in the same order.
    """
    if data and len(data) != len(facts.corpora):
        named = ", ".join(source.name for source in facts.corpora)
        raise SplitError(f"--data names {len(data)} folders, the run was trained on {len(facts.corpora)}: {named}")
    moved = (replace(source, data=folder) for source, folder in zip(facts.corpora, data, strict=True)) if data else ()
    return Request(
        facts.recipe,
        facts.recipe_name,
        tuple(moved) or tuple(facts.corpora),
        facts.part,
        facts.split,
        facts.lenient,
        facts.seed,
    )


def open_run_corpus(request: Request, cache_folder: Path, progress: Callable[[int, int], None] | None = None) -> Opened:
    """Read and decode the corpus that a run is, or was, trained on; CorpusError, AudioError or SplitError.

    All of it at once, so that every command finds the same audio cache.
    """
    read = load_corpora(request.sources, part=request.part, split=request.split, lenient=request.lenient, purpose="fit")
    refuse_one_kind(read)
    if request.recipe.data.choose_on != "test":
        training, cache = with_audio(read, cache_folder, lenient=request.lenient, progress=progress)
        return Opened(training, None, cache)
    tested = load_corpora(request.sources, split=request.split, lenient=request.lenient, purpose="evaluate")
    if request.split != "as-published" and {one.part for one in tested.recordings} != {"intra"}:
        refuse_shared_patients(read.patients, tested.patients, read.where)
    both = replace(read, recordings=read.recordings + tested.recordings)
    opened, cache = with_audio(both, cache_folder, lenient=request.lenient, progress=progress)
    names = {one.name for one in tested.recordings}
    training, held_out = (
        replace(opened, recordings=tuple(one for one in opened.recordings if (one.name in names) == side))
        for side in (False, True)
    )
    return Opened(training, held_out, cache)


def open_run(
    facts: RunFacts, data: Sequence[Path], cache_folder: Path, progress: Callable[[int, int], None] | None = None
) -> Opened:
    """The corpus that a finished run was trained on, at `data` where it has moved; CorpusError when it is another."""
    request = request_of(facts, data)
    absent = [source.data for source in request.sources if not source.data.exists()]
    if absent:
        raise CorpusError(f"{absent[0]}: the run's corpus is not here; name its folder with --data")
    opened = open_run_corpus(request, cache_folder, progress)
    missing = sorted(set(facts.patients) - set(opened.training.patients))
    if missing:
        raise CorpusError(
            f"{opened.training.where}: {len(missing)} of the run's patients are not here, {missing[0]} for one; give "
            "--data the corpus that the run was trained on"
        )
    return opened


def prepare(request: Request, cache_folder: Path, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Read, decode, measure and divide; CorpusError, AudioError or SplitError name the problem."""
    recipe = request.recipe
    opened = open_run_corpus(request, cache_folder, progress)
    training, cache = opened.training, opened.cache
    if opened.tested is not None:
        folds = [(training, opened.tested)]
    else:
        folds = folds_of(training, recipe.data.hold_out, recipe.data.folds, request.seed)
    if len(folds) < recipe.data.members:
        raise SplitError(
            f"{training.where}: {recipe.data.members} members cannot each hold out another of {len(folds)} folds "
            f"(hold_out = {recipe.data.hold_out}); give --members {len(folds)}"
        )
    # on the first member's training patients: a single member's held-out patients must not be in the mean
    plain = TrainingCrops(folds[0][0], cache, recipe.front_end, recipe.data, recipe.augmentation, request.seed)
    # a recipe that states a mean keeps it
    front_end = (
        recipe.front_end if recipe.front_end.mean else measure_normalisation(plain, recipe.front_end, request.seed)
    )
    return Prepared(training, cache, front_end, folds)
