"""The request for a run: its recipe, its corpora and its seed."""

from dataclasses import dataclass

from trainer.corpora.cycle import Source, joined_names
from trainer.run.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """Recipe, corpora and seed of a run."""

    recipe: Recipe
    recipe_name: str
    sources: tuple[Source, ...]
    part: str | None = None
    split: str = "official"
    lenient: bool = False
    seed: int = 0

    @property
    def corpus(self) -> str:
        """Names of its corpora, joined by +."""
        return joined_names(self.sources)
