"""`export build --int8` of the whole AST base (87 M parameters, random weights): memory, time and file sizes.

Run from the repository: python -m tests.bench.export_base
"""

import resource
import tempfile
from pathlib import Path
from time import perf_counter

GOALS = {"peak RSS GiB": 6.0, "minutes": 10.0, "model.int8.cpu.onnx MB": 95.0}


def main() -> None:
    from export.building import Reporter, Wanted, build
    from tests.export.run_maker import make_run
    from tests.trainer.corpus_maker import make_sprsound
    from trainer.model.config import ModelConfig

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus = make_sprsound(root / "corpus", patients=3, seconds=5.0)
        make_run(root / "run", corpus, root / "cache", ModelConfig(), gain=1.0, fitted=False)
        before = peak_gibibytes()
        began = perf_counter()
        # no Score to lose with random weights
        wanted = Wanted(int8=True, largest_loss=1.0)
        built = build(
            root / "run", root / "bundle", cache_folder=root / "cache", wanted=wanted, reporter=Reporter(print)
        )
        measured = {"peak RSS GiB": peak_gibibytes(), "minutes": (perf_counter() - began) / 60}
    measured |= {f"{one.form.path} MB": len(one.data) / 1e6 for one in built.served}
    print(f"before the build the process had reached {before:.2f} GiB")
    for name, value in measured.items():
        print(f"{name:24s} {value:8.2f}" + (f"   goal {GOALS[name]:g}" if name in GOALS else ""))


def peak_gibibytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
