"""What a run is made of, read and divided: `trainer fit` makes one of it, `trainer study` many."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device.signal import FrontEnd
from trainer.audio_cache import AudioCache, with_audio
from trainer.corpora import Corpus, load_corpus
from trainer.crops import TrainingCrops
from trainer.fit import measure_normalisation
from trainer.recipe import DataRecipe, Recipe
from trainer.splits import Fold, SplitError, folds_of, refuse_one_kind, refuse_shared_patients


@dataclass(frozen=True)
class Request:
    """What a run is to be made of."""

    recipe: Recipe
    recipe_name: str
    corpus: str
    data: Path
    part: str | None = None
    split: str = "official"
    lenient: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """The training corpus and its audio, the front end with its measured mean and std, and who is held out when."""

    corpus: Corpus
    cache: AudioCache
    front_end: FrontEnd
    folds: list[Fold]

    def stethoscopes(self, data: DataRecipe) -> tuple[str, ...]:
        """Notes on which of them no model of a run with this recipe leaves out."""
        if data.hold_out != "device":
            return ()
        notes = []
        if data.members < len(self.folds):
            named = (", ".join(sorted({one.device for one in held.recordings})) for _, held in self.folds)
            told = [f"{name}: {'held out' if n < data.members else 'not held out'}" for n, name in enumerate(named)]
            every = f"--members {len(self.folds)} holds out each in turn"
            notes.append(f"of {len(self.folds)} stethoscopes {'; '.join(told)}; {every}")
        if data.refit:
            notes.append("what serves learns from every stethoscope; --refit 0 serves the models that leave one out")
        return tuple(notes)


def prepare(request: Request, cache_folder: Path, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Read, decode, measure and divide; CorpusError, AudioError or SplitError say what does not hold."""
    recipe = request.recipe
    read = load_corpus(
        request.corpus,
        request.data,
        part=request.part,
        split=request.split,
        lenient=request.lenient,
        purpose="fit",
    )
    refuse_one_kind(read)
    tested = None
    if recipe.data.choose_on == "test":
        tested = load_corpus(
            request.corpus, request.data, split=request.split, lenient=request.lenient, purpose="evaluate"
        )
        if request.split != "as-published" and {one.part for one in tested.recordings} != {"intra"}:
            refuse_shared_patients(read.patients, tested.patients, f"{read.root}")
    wanted = read if tested is None else dataclasses.replace(read, recordings=read.recordings + tested.recordings)
    heard, cache = with_audio(wanted, cache_folder, lenient=request.lenient, progress=progress)
    training = heard
    if tested is None:
        folds = folds_of(training, recipe.data.hold_out, recipe.data.folds, request.seed)
        if len(folds) < recipe.data.members:
            raise SplitError(
                f"{read.root}: {recipe.data.members} members cannot each hold out another of {len(folds)} folds "
                f"(hold_out = {recipe.data.hold_out}); give --members {len(folds)}"
            )
    else:
        names = {one.name for one in tested.recordings}
        training, held_out = (
            dataclasses.replace(heard, recordings=tuple(one for one in heard.recordings if (one.name in names) == side))
            for side in (False, True)
        )
        folds = [(training, held_out)]
    # on those who train the first member: a single member's held-out patients are not even in the mean
    plain = TrainingCrops(folds[0][0], cache, recipe.front_end, recipe.data, recipe.augmentation, request.seed)
    # a recipe that states a mean keeps it
    front_end = (
        recipe.front_end if recipe.front_end.mean else measure_normalisation(plain, recipe.front_end, request.seed)
    )
    return Prepared(training, cache, front_end, folds)
