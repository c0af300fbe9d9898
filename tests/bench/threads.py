"""What one BLAS thread saves on an 8 s log-mel beside torch: with and without, measured in turns.

Run from the repository: python -m tests.bench.threads
"""

import argparse
from contextlib import nullcontext
from time import perf_counter, process_time

import numpy as np
import torch

import device.signal
from device.runtime import one_blas_thread
from device.signal import WINDOW_SAMPLES, FrontEnd, window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50, help="how often each of the two is measured (default 50)")
    arguments = parser.parse_args()
    samples = (0.1 * np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)).astype(np.float32)
    matrix = torch.rand(512, 512)

    def measure(limit: object) -> tuple[float, float]:
        """Milliseconds of the clock and of the processor."""
        setattr(device.signal, "one_blas_thread", limit)  # noqa: B010 - mypy does not see it there
        _ = matrix @ matrix  # torch's threads are awake, as between two training steps
        wall, processor = perf_counter(), process_time()
        window(samples, FrontEnd())
        return 1000 * (perf_counter() - wall), 1000 * (process_time() - processor)

    kinds = {"one BLAS thread": one_blas_thread, "as many as cores": nullcontext}
    for limit in kinds.values():
        measure(limit)
    times = np.array([[measure(limit) for limit in kinds.values()] for _ in range(arguments.pairs)])
    for name, (wall, processor) in zip(kinds, np.median(times, axis=0), strict=True):
        print(f"{name:18s} {wall:6.2f} ms, {processor:6.2f} ms of processor time")
    ratio = np.median(times[:, 1] / times[:, 0], axis=0)
    print(f"all cores take {ratio[0]:.1f} times the time, {ratio[1]:.1f} times the processor ({arguments.pairs} pairs)")


if __name__ == "__main__":
    main()
