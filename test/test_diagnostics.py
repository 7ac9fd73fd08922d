# SPDX-License-Identifier: Apache-2.0
"""Status lines, problems, and what happened since the last look."""

import pytest


def test_status_keeps_the_worst_level_and_its_words():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    status = diagnostics.Status("link")
    status.report("WARN", "2 lost")
    status.report("ERROR", "wrong model")
    status.report("WARN", "ignored")
    status.report("ERROR", "and more")
    status.set(lost=2, rate=9.96)
    message = status.to_message("/car/decoder_node")
    assert message.level == b"\x02" and message.message == "wrong model; and more" and message.name == "link"
    assert {v.key: v.value for v in message.values} == {"lost": "2", "rate": "10.0"}
    assert diagnostics.Status("x").to_message("").message == "ok"


def test_problems_are_logged_at_once_then_rarely_and_all_counted():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    log = []
    problems = diagnostics.Problems(log.append, period_s=3600)
    for i in range(5):
        problems.add("cut", f"packet {i} cut")
    problems.add("other", "something else")
    assert log == ["packet 0 cut", "something else"]
    assert problems.counts == {"cut": 5, "other": 1} and problems.latest["cut"] == "packet 4 cut"
    problems = diagnostics.Problems(log.append, period_s=0)
    problems.add("cut", "a")
    problems.add("cut", "b")
    assert log[2:] == ["a", "b"]


def test_window_counts_since_the_last_look():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    window = diagnostics.Window()
    window.sample({"ms": 1.0})
    window.sample({"ms": 3.0})
    increase, samples, _ = window.tick({"n": 5})
    assert increase == {"n": 5} and samples == {"ms": [1.0, 3.0]}
    increase, samples, _ = window.tick({"n": 7})
    assert increase == {"n": 2} and samples == {}


def test_a_total_that_began_anew_does_not_count_backwards():
    """As those of a node that was deactivated and activated again."""
    window = pytest.importorskip("sicm_ros.ros.diagnostics").Window()
    window.tick({"n": 5, "m": 5})
    assert window.tick({"n": 2, "m": 0})[0] == {"n": 2, "m": 0}
    assert window.tick({"n": 3, "m": 0})[0] == {"n": 1, "m": 0}
