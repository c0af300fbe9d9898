"""AST base (87 M parameters, random weights) from a run to an int8 bundle and through its benchmark, at full size.

Run from the repository: python -m tests.bench.export_speed [--threads 2] [--seconds 120] [--out docs/speed.json]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

GOALS = {"build minutes": 10.0, "build peak GB": 6.0, "int8 file MB": 95.0, "times faster than transformers": 3.0}


def make(folder: Path) -> None:
    """A finished run of AST base on a made corpus: nothing is learnt but the head, so that the gates have classes."""
    from tests.export.run_maker import make_run
    from tests.trainer.corpus_maker import make_sprsound
    from trainer.model.config import ModelConfig

    make_sprsound(folder / "corpus")
    make_run(folder / "run", folder / "corpus", folder / "cache", ModelConfig(), gain=1.0)


def build(folder: Path) -> tuple[float, float]:
    """Seconds and peak GB of `export build --int8` in a process of its own."""
    command = [sys.executable, "-m", "export", "build", str(folder / "run"), "--int8", "--out", str(folder / "bundle")]
    began = perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "RESPSAM_TRAINING__CACHE": str(folder / "cache")})
    # in kB; the largest of all children so far, and this is the first
    return perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default 2)")
    parser.add_argument("--seconds", type=float, default=120.0, help="to measure (default 120)")
    parser.add_argument("--out", type=Path, help="JSON file; a picture (.svg) goes beside it")
    parser.add_argument("--keep", type=Path, help="folder for run and bundle, used again where they are there")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        if not (folder / "run").exists():
            make(folder)
        seconds, gigabytes = build(folder) if not (folder / "bundle").exists() else (float("nan"), float("nan"))

        from rich.console import Console

        from device.bundle import read_bundle
        from export import bench

        bundle = read_bundle(folder / "bundle")
        timings = bench.bench(bundle, arguments.threads, arguments.seconds, bench.TRANSFORMERS)
        int8 = next(file for file in bundle.manifest.files if file.precision == "int8")
        measured = bench.as_json(timings, bundle, arguments.threads)
        measured["build"] = {"seconds": seconds, "peak_gb": gigabytes, "int8_mb": len(bundle.read(int8.path)) / 1e6}
        if arguments.out:
            bench.write(measured, timings, arguments.out)
    Console(highlight=False).print(bench.table(timings))
    print(json.dumps({name: measured[name] for name in ("machine", "versions")}))
    medians = {one.name: one.p50_ms for one in timings}
    found = (seconds / 60, gigabytes, measured["build"]["int8_mb"], medians[bench.TRANSFORMERS] / medians[int8.path])
    for (name, goal), value in zip(GOALS.items(), found, strict=True):
        print(f"{name:32s} {value:8.2f}   goal {goal:g}")


if __name__ == "__main__":
    main()
