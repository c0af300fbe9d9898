"""From a corpus to the weights of a run: crops, sampling, SAM, members, and what held-out patients choose."""
