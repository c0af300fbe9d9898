"""How long one 8 s log-mel window takes on one core: ours and transformers' ASTFeatureExtractor, measured in turns.

Run from the repository: python -m tests.bench.log_mel
"""

import argparse
import os
import warnings
from collections.abc import Callable
from time import perf_counter


def milliseconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = perf_counter()
    work()
    return 1000 * (perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50, help="how often each of the two is measured (default 50)")
    parser.add_argument("--mels", type=int, default=128, help="bands (default 128)")
    arguments = parser.parse_args()
    # before numpy is loaded, so that the threads of its BLAS inherit the one core
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    import numpy as np
    import torch
    from transformers import ASTFeatureExtractor

    from device.signal import FRAMES, SAMPLE_RATE, WINDOW_SAMPLES, FrontEnd, window

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    samples = (0.1 * np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)).astype(np.float32)
    front_end = FrontEnd(mels=arguments.mels)
    sizes = {"max_length": FRAMES, "num_mel_bins": arguments.mels}
    extractor = ASTFeatureExtractor(do_normalize=False, **sizes)  # type: ignore[no-untyped-call]

    def ours() -> object:
        return window(samples, front_end)

    def theirs() -> object:
        return extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")

    ours(), theirs()  # filters are made once
    times = np.array([(milliseconds(ours), milliseconds(theirs)) for _ in range(arguments.pairs)])
    names = ("respsam (level, pad, log-mel, normalise)", "transformers (log-mel alone)")
    for name, column in zip(names, times.T, strict=True):
        low, median, high = np.percentile(column, [10, 50, 90])
        print(f"{name:42s} {median:6.2f} ms  (10-90 %: {low:.2f}-{high:.2f})")
    print(f"transformers takes {np.median(times[:, 1] / times[:, 0]):.1f} times as long ({arguments.pairs} pairs)")


if __name__ == "__main__":
    main()
