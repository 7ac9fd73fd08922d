# SPDX-License-Identifier: Apache-2.0
"""Work on other processes: Dask's distributed scheduler spreads it, on this machine or on a cluster.

Dask decides which process does what and when, does the work of a process that died again, and starts a new process in
its place. docs/scale.md says what a cluster must have. Dask is imported when there is work to spread, and not before.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, TypeVar

from . import __version__

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DASK", "ClusterError", "spread"]

# Client, scheduler and workers speak a protocol of Dask's own, which changes with its releases.
DASK = "distributed==2026.8.0"
_GONE = "--cluster: the scheduler does not answer any more"

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class ClusterError(ValueError):
    """Work that could not be spread, or got lost; the message is one line."""


def spread(
    function: Callable[..., R], items: Iterable[I], *shared: Any, workers: int = 1, cluster: str = ""
) -> Generator[tuple[I, R], None, None]:
    """Every item with ``function(item, *shared)``, as they get done: a few items are taken from ``items`` at a time.

    ``cluster`` is the address of a Dask scheduler. Without one, ``workers`` processes of this machine do the work; one
    is this process, and needs no Dask. Function, items and results are pickled. To be closed (``contextlib.closing``):
    the end, an exception and KeyboardInterrupt leave no process behind. Raises ClusterError, and what ``function``
    raises.
    """
    if workers <= 1 and not cluster:
        for item in items:
            yield item, function(item, *shared)
        return
    with ExitStack() as stack:
        client = _client(stack, workers, cluster)
        yield from _results(client, function, items, shared)


def _results(
    client: Client, function: Callable[..., R], items: Iterable[I], shared: tuple
) -> Generator[tuple[I, R], None, None]:
    from distributed import CancelledError, KilledWorker, as_completed

    items, waiting, done = iter(items), dict[Any, I](), as_completed(loop=client.loop, with_results=True)
    try:
        while True:
            # Enough to keep all threads busy, those included that joined in the meantime; so memory is bounded.
            for item in islice(items, max(0, 2 * _threads(client) + 1 - len(waiting))):
                future = client.submit(_unit, __version__, function, item, *shared, pure=False)
                waiting[future] = item
                done.add(future)
            if not waiting:
                return
            future, result = next(done)
            yield waiting.pop(future), result
    except KilledWorker as error:
        raise ClusterError(
            f"the same piece of work killed {error.allowed_failures + 1} worker processes: "
            "is there memory for so many (--workers)?"
        ) from None
    except CancelledError:
        raise ClusterError(_GONE) from None


def _threads(client: Client) -> int:
    try:
        return sum(client.nthreads().values())
    except OSError:
        raise ClusterError(_GONE) from None


def _unit(version: str, function: Callable[..., R], item: Any, *shared: Any) -> R:
    """Runs in a worker."""
    if version != __version__:  # of one that joined after the client had looked
        from distributed import get_worker

        raise ClusterError(_other_version(f"worker {get_worker().address}", "sicm_ros", __version__, version))
    return function(item, *shared)


def _other_version(where: str, name: str, found: str | None, expected: str) -> str:
    return f"{where}: expected {name} {expected}, as where the command runs, found {found or 'none'}"


def _client(stack: ExitStack, workers: int, cluster: str) -> Client:
    """A client of the cluster, or of a local one that is made; both end with ``stack``."""
    if cluster and not re.fullmatch(r"(tcp|tls)://.+:\d+", cluster):
        raise ClusterError(f"--cluster: expected tcp://HOST:PORT or tls://HOST:PORT, got {cluster!r}")
    try:
        import dask.config

        with dask.config.set(logging=_log_levels()):  # which Dask reads when it is imported
            from distributed import Client, LocalCluster, TimeoutError
            from distributed.versions import VersionMismatchWarning
    except ModuleNotFoundError:
        raise ClusterError(
            f"several processes and clusters need Dask: pip install {DASK}; --workers 1 does without"
        ) from None
    if not cluster:
        stack.enter_context(dask.config.set(_local_configuration()))
        stack.enter_context(_sigterm_raises())
        # Until its workers are there: a cluster that is closed before may hang.
        with _sigint_kept_from_children():
            try:
                local = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    # Of a limit, Dask would pause its workers; they have little in memory, as little is given to them.
                    memory_limit=None,
                    dashboard_address=None,
                    # Dask opens ports for web pages in any case: on this machine, and with no page behind them.
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    silence_logs=False,  # _log_levels
                )
            except RuntimeError as error:
                raise ClusterError(f"--workers: {workers} processes did not start: {error}") from None
            stack.enter_context(local)
        return stack.enter_context(Client(local, set_as_default=False))
    patience = dask.config.get("distributed.comm.timeouts.connect")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # a table; what matters of it is checked here
        try:
            client = stack.enter_context(Client(cluster, set_as_default=False))
        except (OSError, TimeoutError):
            raise ClusterError(f"--cluster: no scheduler answered at {cluster} within {patience}") from None
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        raise ClusterError(
            f"--cluster: {cluster} had no worker within {patience}; to start some: dask worker {cluster}"
        ) from None
    _check_versions(client)
    return client


def _log_levels() -> dict[str, str]:
    """Nothing of Dask in the terminal, whose lines are ours; SICM_DEBUG=1 shows what it logs by default."""
    if os.environ.get("SICM_DEBUG") == "1":
        return {}
    names = ("asyncio", "distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application")
    return dict.fromkeys(names, "critical")


def _local_configuration() -> dict[str, Any]:
    import dask.config

    environment = dask.config.get("distributed.nanny.pre-spawn-environ")
    levels = {f"DASK_LOGGING__{name.upper()}": level for name, level in _log_levels().items() if "." not in name}
    return {
        "distributed.nanny.pre-spawn-environ": environment | levels,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }


def _check_versions(client: Client) -> None:
    """Raise ClusterError where a machine has another version of this package or of Dask."""
    versions: Any = client.get_versions(packages=["sicm_ros"])
    here = versions["client"]["packages"]
    machines = {"the scheduler": versions["scheduler"], **{f"worker {k}": v for k, v in versions["workers"].items()}}
    for machine, there in machines.items():
        for name in ("sicm_ros", "distributed"):
            if there["packages"].get(name) != here[name]:
                raise ClusterError(_other_version(machine, name, there["packages"].get(name), here[name]))


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM is SystemExit, so that the workers end in order; where this process is killed they end by themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _sigint_kept_from_children() -> Iterator[None]:
    """Threads and processes started in here never see SIGINT, which a terminal sends to all; for this thread it comes
    afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # to start this one takes the mask off
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    # The mask is inherited. It does not keep another thread from taking the signal, hence the handler, too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            raise KeyboardInterrupt
