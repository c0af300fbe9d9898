"""Two processes (gloo) train as one does that takes both their micro-batches a step; and one that dies is told."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import AST, RECIPE, toy_fit
from trainer.model.mobilenet import AudioSetMobileNet
from trainer.run.folder import CHECKPOINT_FILE, load_tensors
from trainer.run.machine import Machine, MachineError, check_started, start
from trainer.training.sampler import draw

# one process takes its batches in turn, two have the mean of their running averages: nearly the same; patches have none
PATCHES = [f"model={json.dumps({**AST, 'dropout': 0.0})}", "optimizer.epochs=2"]


WITH_A_WORKER = """
import torch
from torch.utils.data import DataLoader
from trainer.run.machine import start
batches = DataLoader(torch.arange(3.0), 1, num_workers=start("cpu", workers=1).workers)
print(sum(1 for _ in batches))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(corpus: Path, cache: Path, out: Path, processes: int, *changes: str) -> list[str]:
    folders = map(str, (corpus, cache, out))
    return [sys.executable, "-m", "tests.trainer.toy_fit", *folders, *PATCHES, *changes, f"--processes={processes}"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("machine")
    return make_sprsound(root / "corpus"), root / "cache"


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_two_processes_learn_what_one_learns_from_the_same_micro_batches(
    corpus: tuple[Path, Path], tmp_path: Path, rho: float
) -> None:
    """With accumulation, mixup and clipping; rho 0.05 climbs in each process along its own gradient."""
    same = (f"optimizer.rho={rho}", "optimizer.clip_norm=0.1")
    subprocess.run(
        command(*corpus, tmp_path / "two", 2, "optimizer.accumulation=2", *same),
        env=environment(),
        check=True,
        timeout=200,
    )
    subprocess.run(
        command(*corpus, tmp_path / "one", 1, "optimizer.accumulation=4", *same),
        env=environment(),
        check=True,
        timeout=200,
    )
    (two, about_two), (one, about_one) = (load_tensors(tmp_path / name / CHECKPOINT_FILE) for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], atol=2e-5, rtol=1e-3)
    for mine, theirs in zip(about_two["progress"]["history"], about_one["progress"]["history"], strict=True):
        for key in ("loss", "auroc", "held_out_loss", "sensitivity"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key


class Alone:
    """What `Machine` asks of Fabric, for one process of several that nobody starts."""

    def __init__(self, rank: int, processes: int) -> None:
        self.global_rank, self.world_size, self.device = rank, processes, torch.device("cpu")

    def setup_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module


def test_two_processes_train_a_mobilenet_that_begins_at_a_file(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    """Its batch norms' running averages are the mean of both processes'; its weights begin where the file is."""
    torch.manual_seed(0)
    weights = AudioSetMobileNet().state_dict()
    torch.save(weights, tmp_path / "own.pt")
    changes = [f"init={json.dumps(str(tmp_path / 'own.pt'))}", "optimizer.epochs=1", "data.draws=16"]
    changes += ["optimizer.learning_rate=1e-12", "optimizer.accumulation=1"]
    told = [sys.executable, "-m", "tests.trainer.toy_fit", *map(str, (*corpus, tmp_path / "run")), *changes]
    done = subprocess.run(
        [*told, "--processes=2"], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept, _ = load_tensors(tmp_path / "run" / CHECKPOINT_FILE)
    name = "features.0.0.weight"
    torch.testing.assert_close(kept[f"model.trunk.{name}"], weights[name], rtol=0, atol=1e-6)
    assert not torch.equal(kept["model.trunk.features.0.1.running_mean"], weights["features.0.1.running_mean"])


def test_two_processes_that_stop_within_an_epoch_go_on_as_if_they_had_not(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each has its own dropout, its own losses, and the batch norms' averages of its own windows."""

    def fit(out: str, *more: str) -> None:
        line = [sys.executable, "-m", "tests.trainer.toy_fit", *map(str, (*corpus, tmp_path / out))]
        changes = ["optimizer.epochs=1", "optimizer.accumulation=1", "--processes=2"]
        subprocess.run([*line, *changes, *more], cwd=REPOSITORY, env=environment(), check=True, timeout=200)

    fit("whole")
    fit("stopped", "--minutes=1e-9")
    kept = tmp_path / "stopped" / CHECKPOINT_FILE
    assert load_tensors(kept)[0]["epoch.buffers"].shape[0] == 2
    assert load_tensors(kept)[1]["progress"]["steps_done"] == 1
    fit("stopped", "--resume")
    (whole, about), (stopped, about_stopped) = (
        load_tensors(tmp_path / f / CHECKPOINT_FILE) for f in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys()
    for name, tensor in stopped.items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)
    losses = [one["progress"]["history"][0]["loss"] for one in (about, about_stopped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_every_draw_of_an_epoch_goes_to_exactly_one_process(corpus: tuple[Path, Path]) -> None:
    keys = []
    for rank in range(3):
        machine = Machine(Alone(rank, 3))  # type: ignore[arg-type]
        fit, _ = toy_fit(*corpus, machine=machine, data__draws=60)
        mine = fit.drawn(1)
        assert len(mine) == fit.steps_per_epoch * RECIPE.optimizer.accumulation * RECIPE.optimizer.batch == 16
        keys += mine
    assert sorted(position for _, position, _ in keys) == list(range(48))
    assert [index for _, _, index in sorted(keys)] == draw(fit.probabilities, 48, 0, 1).tolist()


TOGETHER = """
import numpy as np
import torch
from trainer.run.machine import start

machine = start("cpu", processes=2)
rows = np.arange(14, dtype=np.float32).reshape(7, 2)
assert (machine.together(rows[machine.rank :: 2], 7) == rows).all()
assert machine.mean(float(machine.rank)) == 0.5
assert machine.broadcast(machine.rank == 0) is True
assert machine.agree(7) and not machine.agree(machine.rank)
norm = torch.nn.BatchNorm2d(2)
shared = machine.set_up(norm)
for _ in range(200):
    shared(torch.randn(4, 2, 8, 8) + 10 * machine.rank).sum().backward()
assert (abs(norm.running_mean - 10 * machine.rank) < 0.5).all(), "each has seen its own batches"
del shared  # as a Fit goes: what still holds the connections would keep them open beyond Python's end
machine.same_buffers(norm)
assert (abs(norm.running_mean - 5) < 0.5).all() and norm.num_batches_tracked == 200
"""


def test_rows_of_uneven_processes_come_back_in_order_to_both(repository: Path, tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = subprocess.run(
        [sys.executable, script],
        env={**environment(), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr and "_buffers" not in done.stderr, done.stderr


ALL_THREADS = """
import json, sys
from threadpoolctl import threadpool_info
from trainer.cli import app
try:
    app(["fit", "--corpus=sprsound", "--data=docs", "--init=", "--processes=2", f"--out={sys.argv[1]}"])
except Exception:
    print(json.dumps([[one["user_api"], one["num_threads"]] for one in threadpool_info()]))
"""


@pytest.mark.parametrize("asked", ["", "3"])
def test_processes_share_the_cores_also_where_numpy_works(
    asked: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their workers make log-mels with numpy: with a thread a core in each, two took longer than one alone."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    command = [sys.executable, "-c", ALL_THREADS, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    threads = {kind: count for kind, count in json.loads(done.stdout)}
    most = int(asked or max(1, (os.cpu_count() or 1) // 2))
    assert {"blas", "openmp"} <= set(threads)
    assert all(count <= most for count in threads.values())


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "torchrun"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM"),
    ],
)
def test_processes_that_somebody_started_and_nobody_asked_for_are_refused(
    variables: dict[str, str], launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train alone into one folder."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    count = int(next(iter(variables.values())))
    with pytest.raises(MachineError, match=f"{launcher} has started {count} processes, .* makes 1; give the numbers"):
        check_started(1, 1)
    check_started(count // 2, 2)


def test_nobody_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation's variables alone are no launch."""
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    check_started(1, 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line_and_the_run_goes_on(
    corpus: tuple[Path, Path], tmp_path: Path, victim: int
) -> None:
    arguments = command(*corpus, tmp_path / "run", 2, "optimizer.epochs=3", "optimizer.accumulation=1")
    process = subprocess.Popen([*arguments, "--halt"], env=environment(), stderr=subprocess.PIPE, text=True)
    marks = [tmp_path / "run" / f"halted-{rank}" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(mark.exists() for mark in marks):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(marks[victim].read_text()), signal.SIGKILL)
    (tmp_path / "run" / "go").touch()
    _, said = process.communicate(timeout=100)
    other = 1 - victim
    assert f"another process of this run has stopped (this is {other} of 2)" in said
    assert "go on with --resume" in said
    assert process.returncode != 0
    assert load_tensors(tmp_path / "run" / CHECKPOINT_FILE)[1]["progress"]["epochs_done"] == 1
    subprocess.run([*arguments, "--resume"], env=environment(), check=True, timeout=200)
    if victim == 0:
        return  # once is enough
    undisturbed = command(*corpus, tmp_path / "whole", 2, "optimizer.epochs=3", "optimizer.accumulation=1")
    subprocess.run(undisturbed, env=environment(), check=True, timeout=200)
    expected, _ = load_tensors(tmp_path / "whole" / CHECKPOINT_FILE)
    for name, tensor in load_tensors(tmp_path / "run" / CHECKPOINT_FILE)[0].items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(MachineError, match="--device cuda: torch sees no GPU here"):
        start("cuda")


@pytest.mark.parametrize("length", [75, 76])
def test_a_folder_for_temporary_files_that_is_too_long_for_the_workers_is_refused(length: int) -> None:
    """The workers of a training would wait forever: once with the longest folder that works, once with a longer one."""
    with TemporaryDirectory(dir="/tmp", prefix="x" * (length - len("/tmp/12345678"))) as folder:
        done = subprocess.run(
            [sys.executable, "-c", WITH_A_WORKER],
            env={**environment(), "TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=100,
        )
    if length == 75 or sys.version_info >= (3, 14):
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    else:
        (line,) = done.stderr.strip().splitlines()[-1:]
        assert f"MachineError: {folder}: " in line and "has 76 bytes in its path" in line and "allow 75" in line
        assert "set TMPDIR to a shorter one" in line


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps its memory as it likes")
def test_what_a_step_frees_the_next_one_takes() -> None:
    """Pages that the kernel hands out while 64 MB are taken and given back ten times."""
    script = """
import resource, torch
from trainer.run.machine import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(16_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
before = pages()
keep_freed_memory()
pages()
print(before, pages())
"""
    out = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment(), cwd=REPOSITORY)
    before, after = map(int, out.split())
    assert after < before / 20
