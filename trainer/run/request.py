"""The request for a run, its recipe, corpora and seed, and where it runs."""

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


@dataclass(frozen=True)
class Where:
    """Where a fit runs: `device` is auto, cpu or cuda; several processes and nodes share its steps."""

    device: str = "auto"
    processes: int = 1
    nodes: int = 1
    compiled: bool = False
    """Through torch.compile."""
    checkpointing: bool = False
    """Less memory, a third more time: activations are computed again."""
