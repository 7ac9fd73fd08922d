# SPDX-License-Identifier: Apache-2.0
"""The thread that a node works in."""

import threading

import pytest

from sicm_ros.ros.worker import Worker


def test_newest_work_wins_and_the_rest_is_counted():
    begun, proceed, done = threading.Event(), threading.Event(), []

    def handle(items):
        begun.set()
        assert proceed.wait(180)
        done.extend(items)

    worker = Worker(handle, depth=1, on_error=pytest.fail)
    assert worker.submit(0)
    assert begun.wait(180)
    assert worker.submit(1)
    assert not worker.submit(2)
    assert not worker.submit(3)
    proceed.set()
    while len(done) < 2:
        threading.Event().wait(0.01)
    assert done == [0, 3] and worker.dropped.total() == 2
    assert worker.close() and not worker.submit(4)


def test_who_sends_much_takes_nothing_from_the_others():
    begun, proceed, batches = threading.Event(), threading.Event(), []

    def handle(items):
        begun.set()
        assert proceed.wait(180)
        batches.append(items)

    worker = Worker(handle, depth=2, on_error=pytest.fail, batch=2)
    worker.submit("first", "a")
    assert begun.wait(180)
    for i in range(100):
        worker.submit(f"a{i}", "a")
    for key in "bc":
        assert worker.submit(f"{key}0", key)
    proceed.set()
    while sum(map(len, batches)) < 5:
        threading.Event().wait(0.01)
    assert batches == [["first"], ["a98", "b0"], ["c0", "a99"]]
    assert worker.dropped == {"a": 98} and worker.close()


def test_a_deep_queue_drops_nothing():
    done = []
    worker = Worker(done.extend, depth=1000, on_error=pytest.fail)
    assert all(worker.submit(i) for i in range(1000))
    while len(done) < 1000:
        threading.Event().wait(0.01)
    assert done == list(range(1000)) and not worker.dropped and worker.close()


def test_an_exception_is_reported_and_the_thread_goes_on():
    errors, done = [], threading.Event()

    def handle(items):
        if items == ["bad"]:
            raise RuntimeError("boom")
        done.set()

    worker = Worker(handle, depth=2, on_error=lambda error, items: errors.append((str(error), items)))
    worker.submit("bad")
    worker.submit("good")
    assert done.wait(180) and errors == [("boom", ["bad"])] and worker.close()
