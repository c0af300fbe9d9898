"""Held-out patients' stretches: what every epoch, the temperature and the gates of an export are read on."""

import numpy as np

from device.model.judgement import abnormal_probability, pool
from device.signal import FrontEnd
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus
from trainer.corpora.protocols import examples, inputs_of, labels_of, stretch_protocol, worst_window
from trainer.corpora.splits import SplitError
from trainer.metrics import Float64Array
from trainer.model.network import Ensemble, Network, predict
from trainer.run.machine import Machine


class Validation:
    """The held-out patients' stretches on the corpus's default protocol, computed once."""

    def __init__(self, corpus: Corpus, cache: AudioCache, front_end: FrontEnd) -> None:
        self.protocol = stretch_protocol(corpus)
        chosen = examples(corpus, self.protocol, cache)
        self.labels = labels_of(chosen)
        self.patients = [example.patient for example in chosen]
        if len(np.unique(self.labels > 0)) < 2:
            raise SplitError(f"the held-out patients have normal or abnormal {self.protocol} only; add patients")
        self.inputs, self.owner = inputs_of(chosen, cache, front_end)

    def logits(self, model: Network | Ensemble, machine: Machine) -> Float64Array:
        """Logits of every stretch (n, classes); the worst window speaks for a long one. Processes share the work."""
        raw = pool(predict(model, self.inputs[machine.rank :: machine.processes], machine.device)).astype(np.float32)
        together = machine.together(raw, len(self.inputs)).astype(np.float64)
        return worst_window(together, abnormal_probability(together), self.owner)[0]
