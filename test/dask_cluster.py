# SPDX-License-Identifier: Apache-2.0
"""A Dask cluster of processes that know of each other by their addresses alone, as on several machines."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ros_graph import PATIENCE_S

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


@contextmanager
def cluster(
    folder: Path, workers: int = 2, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler and workers without nannies: its address, and the processes, the scheduler first.

    ``environment`` is that of the workers.
    """
    file = folder / "scheduler.json"
    common = ["--no-dashboard", "--host", "127.0.0.1", "--scheduler-file", str(file)]
    worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *common]
    processes = [_start(folder / "scheduler.log", ["distributed.cli.dask_scheduler", "--port", "0", *common], {})]
    try:
        wait_for(file.exists)
        address = re.search(r'"address": "(tcp://[\d.:]+)"', file.read_text()).group(1)
        processes += [_start(folder / f"{i}.log", worker, environment or {}) for i in range(workers)]
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(log: Path, module: list[str], environment: dict[str, str]) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            env=ENVIRONMENT | environment,
            stdout=output,
            stderr=output,
            cwd=log.parent,
        )


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(reached) -> None:
    """Until ``reached()`` is true."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)
