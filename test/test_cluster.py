# SPDX-License-Identifier: Apache-2.0
"""Work spread by Dask: over processes of this machine, and over a cluster of which a worker is killed."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from dask_cluster import ENVIRONMENT, cluster, content, wait_for
from needs import missing
from ros_graph import PATIENCE_S

from sicm_ros import __version__
from sicm_ros.cluster import DASK, ClusterError, _log_levels, spread
from sicm_ros.data.rendered import render_dataset

MISSING = missing("distributed")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
ROOT = Path(__file__).parents[1]


def square(number, offset):
    return number * number + offset, os.getpid()


def fail(number):
    raise FileNotFoundError(2, "No such file or directory", f"/shared/{number}")


def kill_once(number, marker):
    """The first process that gets to 5 dies of it."""
    if number == 5:
        with suppress(FileExistsError):
            Path(marker).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_always(number):
    os.kill(os.getpid(), signal.SIGKILL)


def hold(number):
    time.sleep(600)


# -------------------------------------------------------------------------------------------- processes of this machine


def test_one_process_needs_no_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    assert list(spread(square, [2, 3], 1)) == [(2, (5, os.getpid())), (3, (10, os.getpid()))]
    with pytest.raises(ClusterError) as error:
        list(spread(square, [2, 3], 1, workers=2))
    assert str(error.value) == (
        f"several processes and clusters need Dask: pip install {DASK}; --workers 1 does without"
    )


def test_the_release_is_that_of_the_requirements():
    lines = (ROOT / "requirements" / "cluster.txt").read_text().splitlines()
    assert DASK in lines and DASK.replace("distributed", "dask") in lines


def test_commands_start_without_dask():
    code = "import sys, sicm_ros.cli.app, sicm_ros.data.rendered; sys.exit('dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_processes_share_the_work_few_items_at_a_time(capfd):
    taken = []

    def items():
        for number in range(40):
            taken.append(number)
            yield number

    results, most = {}, 0
    with closing(spread(square, items(), 1, workers=2)) as found:
        for number, (value, process) in found:
            results[number] = value
            assert process != os.getpid()
            most = max(most, len(taken) - len(results))
    assert results == {number: number * number + 1 for number in range(40)} and most <= 5
    assert capfd.readouterr() == ("", "")


def test_what_a_worker_raises_is_raised_here(capfd):
    with pytest.raises(FileNotFoundError, match="/shared/0"):
        list(spread(fail, [0], workers=2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_its_work_done_again(tmp_path, capfd):
    found = dict(spread(kill_once, range(12), tmp_path / "marker", workers=2))
    assert found == {number: number for number in range(12)} and (tmp_path / "marker").exists()
    with pytest.raises(ClusterError) as error:
        list(spread(kill_always, [0], workers=2))
    assert str(error.value) == (
        "the same piece of work killed 4 worker processes: is there memory for so many (--workers)?"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_listen_on_this_machine_only(number):
    code = "import test_cluster as t; list(t.spread(t.hold, range(4), workers=2))"
    code = f"if __name__ == '__main__': {code}"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: len(listening(process.pid)) >= 6)
        time.sleep(1.0)
        assert {address for address, _ in listening(process.pid)} == {"0100007F"}  # 127.0.0.1
        assert 8787 not in {port for _, port in listening(process.pid)}  # the dashboard's
    finally:
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not group(process.pid))
    assert number == signal.SIGKILL or (process.returncode, output) == (128 + number, b"")


def group(leader):
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, pgrp = path.joinpath("stat").read_text().rsplit(") ", 1)[1].split()[:3]
            if int(pgrp) == leader and state != "Z":
                found.append(int(path.name))
    return found


def import_distributed():
    """As the commands do. Its defaults come with it, and a setting made before would take them away at its end."""
    import dask.config

    with dask.config.set(logging=_log_levels()):
        importlib.import_module("distributed")


def listening(leader):
    """Address and port, as the kernel writes them, of every socket that a process group listens at."""
    inodes = set()
    for pid in group(leader):
        with suppress(OSError):
            inodes |= {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


# ------------------------------------------------------------------------------------------------------------ a cluster


@pytest.mark.slow
def test_a_rendered_folder_is_the_same_although_a_worker_is_killed(tmp_path, capfd):
    render_dataset(tmp_path / "here", count=4, seed=4)
    with cluster(tmp_path) as (address, processes):

        def kill(done, total):
            if done == 1:
                processes[1].kill()

        render_dataset(tmp_path / "there", count=4, seed=4, progress=kill, cluster=address)
        assert processes[1].wait() == -signal.SIGKILL
    assert content(tmp_path / "there") == content(tmp_path / "here") and len(content(tmp_path / "here")) == 21
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_a_cluster_lacks_is_one_line(tmp_path, monkeypatch, capfd):
    import dask.config

    import_distributed()

    def words(address):
        with pytest.raises(ClusterError) as error:
            list(spread(square, range(3), 1, cluster=address))
        assert capfd.readouterr() == ("", "")
        return str(error.value)

    assert words("10.0.0.5:8786") == "--cluster: expected tcp://HOST:PORT or tls://HOST:PORT, got '10.0.0.5:8786'"
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        assert words("tcp://127.0.0.1:1") == "--cluster: no scheduler answered at tcp://127.0.0.1:1 within 2s"
        with cluster(tmp_path, 0) as (address, _):
            assert words(address).startswith(
                f"--cluster: {address} had no worker within 2s; to start some: dask worker"
            )
    # A worker with another release of this package.
    other = tmp_path / "other" / "sicm_ros"
    other.mkdir(parents=True)
    lines = [f"__path__ = [{str(ROOT / 'sicm_ros')!r}]", '__version__ = "0.0.9"']
    (other / "__init__.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "b").mkdir()
    path = os.pathsep.join([str(other.parent), ENVIRONMENT["PYTHONPATH"]])
    with cluster(tmp_path / "b", 1, {"PYTHONPATH": path}) as (address, _):
        found = words(address)
        assert found.startswith("worker tcp://127.0.0.1:")
        assert found.endswith(f": expected sicm_ros {__version__}, as where the command runs, found 0.0.9")


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_line(tmp_path, capfd):
    import dask.config

    import_distributed()
    with cluster(tmp_path, 1) as (address, processes), dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        with pytest.raises(ClusterError) as error:
            for _ in spread(square, range(100), 1, cluster=address):
                processes[0].kill()
                processes[0].wait()
    assert str(error.value) == "--cluster: the scheduler does not answer any more"
    assert capfd.readouterr() == ("", "")
