"""Work on a Ray cluster, at an address or in this machine's processes."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from device.runtime import disable_telemetry
from firmware_config.command_line import one_line
from firmware_config.errors import RespSAMError

Job = TypeVar("Job")
Result = TypeVar("Result")

RESTARTS: Final = 3  # of a job that dies with its worker or its machine
WAITING: Final = 256  # jobs that Ray holds at once: enough for hundreds of workers, and an archive needs no memory
START_RAY: Final = "start one with 'ray start --head', or leave --ray out"


class ClusterError(RespSAMError):
    """A Ray cluster that is not there, or that does not have what this machine has."""


def on_ray(
    work: Callable[..., Result],
    jobs: Sequence[Job],
    shared: tuple[object, ...],
    lost: Callable[[Job, Exception], Result],
    *,
    address: str = "",
    processes: int = 1,
    gpu: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Each job's index and `work(job, *shared)`, as they finish; a worker has one core, with `gpu` a GPU too.

    The workers are those of the cluster at `address`, or so many `processes` here. `lost` makes the result of a job
    that raised an error, or whose worker died in all restarts. ClusterError where no cluster is.
    """
    disable_telemetry()
    # at the priority of the command: Ray's own 15 starves beside anything else that computes
    os.environ.setdefault("RAY_worker_niceness", "0")
    # it prints to stdout what its daemons report, for example a machine that is gone; there the verdicts are
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    import ray

    _reach(address)
    try:
        local: dict[str, Any] = {} if address else {"num_cpus": processes, "include_dashboard": False}
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(str(error))
        if not address:
            raise ClusterError(f"Ray does not start here ({reason}); leave --jobs out") from error
        raise ClusterError(f"--ray {address}: no cluster answers there ({reason}); {START_RAY}") from error
    try:
        task = ray.remote(work).options(num_cpus=1, num_gpus=int(gpu), max_retries=RESTARTS)
        left, running = iter(enumerate(jobs)), dict[Any, int]()
        while True:
            for index, job in islice(left, WAITING - len(running)):
                running[task.remote(job, *shared)] = index
            if not running:
                return
            (finished,), _ = ray.wait(list(running))
            index = running.pop(finished)
            try:
                result = ray.get(finished)
            except ray.exceptions.RayError as error:
                result = lost(jobs[index], error)
            yield index, result
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """ClusterError where nothing listens at HOST:PORT; Ray itself would try for minutes and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ClusterError(f"--ray {address}: nothing answers there ({reason}); {START_RAY}") from error
