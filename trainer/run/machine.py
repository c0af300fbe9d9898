"""The machine that a run trains on: one device or several processes, and the precision; by Lightning Fabric."""

import atexit
import gc
import inspect
import os
import platform
import tempfile
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.util import get_temp_dir
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from device.signal import FloatArray
from firmware_config.errors import RespSAMError
from trainer.choices import DeviceKind, Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Value = TypeVar("Value")
LONGEST_SOCKET: Final = 107  # bytes in the path of a Unix socket, on Linux
SOCKET_NAME: Final = "/listener-12345678"  # as multiprocessing names it
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LONGEST_WAIT: Final = timedelta(
    minutes=30
)  # of one process for another: calibration on a slow disk, never a healthy step


class MachineError(RespSAMError):
    """A device, a number of processes or a process that is not there."""


@dataclass(frozen=True)
class Machine:
    """The process that this is, among those that train together."""

    fabric: "Fabric"
    workers: int = 0
    """Further processes that prepare this one's batches."""
    compiled: bool = False
    """Whether the training step goes through torch.compile."""
    checkpointing: bool = False
    """Whether a block's activations are computed again in the backward pass instead of being kept."""

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.fabric.device

    @property
    def rank(self) -> int:
        """This process's number; 0 shows progress and writes files."""
        return self.fabric.global_rank

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.fabric.world_size

    @property
    def in_words(self) -> str:
        """One line of where and how."""
        several = f", {self.processes} processes" if self.processes > 1 else ""
        kept = ", activations recomputed" if self.checkpointing else ""
        return f"training on {self.device.type}{several}{', compiled' if self.compiled else ''}{kept}"

    def set_up(self, module: nn.Module) -> Any:
        """The module as it is called in training: on its device, in its precision, its gradients shared."""
        # Fabric compiles again what it wraps
        wrapped: Any = torch.compile(module) if self.compiled else module
        return self.fabric.setup_module(wrapped)

    def without_sharing(self, module: Any, enabled: bool = True) -> AbstractContextManager[None]:
        """Gradients of what runs inside stay in this process."""
        return self.fabric.no_backward_sync(module, enabled=enabled and self.processes > 1)

    def mean(self, value: float) -> float:
        """Of all processes' values."""
        if self.processes == 1:
            return value
        reduced = self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=self.device), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return float(reduced)

    def broadcast(self, value: Value) -> Value:
        """The value of process 0."""
        return self.fabric.broadcast(value) if self.processes > 1 else value

    def together(self, rows: FloatArray, count: int) -> FloatArray:
        """All `count` rows (count, k), of which process r gave number r, r + processes, ... (float32)."""
        if self.processes == 1:
            return rows
        padded = np.zeros((-(-count // self.processes), rows.shape[1]), np.float32)
        padded[: len(rows)] = rows
        gathered = self.fabric.all_gather(torch.from_numpy(padded).to(self.device))
        assert isinstance(gathered, Tensor)
        return np.asarray(gathered.transpose(0, 1).reshape(-1, rows.shape[1])[:count].cpu().numpy())

    def agree(self, value: int) -> bool:
        """Whether all processes gave the same."""
        mine = np.array([[value]], np.float32)
        return len(np.unique(self.together(mine, self.processes))) == 1

    def same_buffers(self, *modules: nn.Module) -> None:
        """The mean of the processes' running averages, for each saw other batches; counts as process 0 has them.

        Torch would have all processes take process 0's before every step; `start` switches that off.
        """
        if self.processes > 1:
            for module in modules:
                for buffer in module.buffers():
                    if buffer.is_floating_point():
                        torch.distributed.all_reduce(buffer)
                        buffer /= self.processes
                    else:
                        torch.distributed.broadcast(buffer, 0)


def start(
    device: str = "auto",
    *,
    processes: int = 1,
    nodes: int = 1,
    precision: Precision = "32",
    workers: int = 0,
    compiled: bool = False,
    checkpointing: bool = False,
) -> Machine:
    """Join or start the processes of a run; each goes on from here. `device` is auto, cpu or cuda.

    Started by torchrun or SLURM, a process joins; otherwise further ones are started with the same command line.
    MachineError when torch sees fewer GPUs than asked for, or when TMPDIR is too long for the workers.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    kind = resolved(device)
    if kind == "cpu":
        keep_freed_memory()
    if kind == "cuda" and processes > torch.cuda.device_count():
        raise MachineError(
            f"--processes {processes}: torch sees {torch.cuda.device_count()} GPUs here; ask for as many"
        )
    if workers:
        _check_sockets(workers)
    several = processes * nodes > 1
    # Fabric calls a name that torch has renamed; the user cannot change that
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
    # torch has renamed it; Fabric hands it on
    known = inspect.signature(DistributedDataParallel).parameters
    own_buffers: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    sharing = DDPStrategy(
        process_group_backend="nccl" if kind == "cuda" else "gloo", timeout=LONGEST_WAIT, **own_buffers
    )
    fabric = Fabric(
        accelerator=kind,
        devices=processes,
        num_nodes=nodes,
        strategy=sharing if several else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    if several and kind == "cpu":
        # Fabric does so for NCCL alone, and threads of gloo that outlive Python abort the process now and then
        atexit.register(_part)
    return Machine(fabric, workers, compiled, checkpointing)


def _check_sockets(workers: int) -> None:
    """MachineError where the folder for temporary files has too long a path for the workers' sockets.

    A worker could not send its first batch, and the training would wait for it forever.
    """
    most = LONGEST_SOCKET - len(SOCKET_NAME)
    # newer Pythons take a shorter folder by themselves
    if len(os.fsencode(get_temp_dir())) > most:
        folder = tempfile.gettempdir()
        raise MachineError(
            f"{folder}: this folder for temporary files has {len(os.fsencode(folder))} bytes in its path, and the "
            f"sockets of training.workers = {workers} allow {most - len('/pymp-12345678')}; set TMPDIR to a shorter "
            "one, for example /tmp, or training.workers to 0"
        )


def keep_freed_memory() -> None:
    """Let glibc keep what one training step frees for the next; another C library is left as it is.

    Otherwise every tensor above 32 MB is new pages, which the kernel fills with zeros: up to half of a step's time
    (tests/bench/training_memory.py).
    """
    from ctypes import CDLL

    if platform.libc_ver()[0] != "glibc":
        return
    set_option = CDLL(None).mallopt
    for option, value in (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28):
        set_option(option, value)


def _part() -> None:
    """Close the connections, where they are still open; an unused wrapped module keeps them open, too."""
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_started(processes: int, nodes: int) -> None:
    """MachineError when torchrun or SLURM has started another number of processes than is asked for.

    Each would train alone and write into the same folder.
    """
    for launcher, count, one in (("torchrun", "WORLD_SIZE", "RANK"), ("SLURM", "SLURM_NTASKS", "SLURM_PROCID")):
        started = int(os.environ.get(count) or 0) if one in os.environ else 0
        if started and started != processes * nodes:
            raise MachineError(
                f"{launcher} has started {started} processes, and --processes {processes} on --nodes {nodes} makes "
                f"{processes * nodes}; give the numbers that {launcher} was given"
            )


def follows() -> bool:
    """Whether this process was started beside another one that shows what happens; known before it joins."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def resolved(device: str) -> Literal["cpu", "cuda"]:
    """'cpu' or 'cuda' for auto, cpu or cuda; MachineError for another word or a GPU that is not there."""
    if device not in get_args(DeviceKind):
        raise MachineError(f"--device {device}: not auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "--device cuda: torch sees no GPU here; install its CUDA build and a driver, or use --device cpu"
        )
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
