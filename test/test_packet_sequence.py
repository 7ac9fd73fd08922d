# SPDX-License-Identifier: Apache-2.0
"""What the numbers of packets say of a link."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.nodes.packet_sequence import PacketSequence


def arrivals(numbers):
    sequence = PacketSequence()
    return [sequence.add(n)[0].value for n in numbers], sequence.lost


@pytest.mark.parametrize(
    ("numbers", "expected", "lost"),
    [
        ([5, 6, 9], "new new new", 2),
        ([0, 1, 3, 2, 4], "new new new late new", 0),
        ([0, 1, 2, 2, 1, 3], "new new new duplicate duplicate new", 0),
        ([0, 1, 4, 4, 5, 0, 1], "new new new duplicate new restart new", 2),
        ([7, 8, 9, 7, 8], "new new new restart new", 0),
        ([100, 101, 180, 103, 104], "new new new restart new", 78),
        # Played again from the middle: the first one looks repeated, the second one tells.
        ([0, 1, 2, 3, 4, 5, 2, 3, 4], "new new new new new new duplicate restart new", 0),
        ([3, 3], "new duplicate", 0),
        ([9, 2, 3], "new late restart", 0),
        # A decoder that joins a link which reorders.
        ([5, 4, 6], "new late new", 0),
        ([10, 11, 12, 9, 13], "new new new late new", 0),
    ],
)
def test_what_packet_numbers_say(numbers, expected, lost):
    assert arrivals(numbers) == (expected.split(), lost)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.data())
def test_a_shuffled_lossy_link_is_accounted_to_the_packet(count, data):
    """Packets that swap places within a few, some lost, some twice: each number that came is new or late once."""
    kept = [n for n in range(count) if n == 0 or data.draw(st.integers(0, 9)) > 2]
    order = sorted(kept[1:], key=lambda n: n + data.draw(st.integers(0, 6)))
    sent = [kept[0]]
    for n in order:
        sent += [n] * (2 if data.draw(st.integers(0, 9)) == 0 else 1)
    found, lost = arrivals(sent)
    assert found.count("new") + found.count("late") == len(kept) and "restart" not in found
    assert found.count("duplicate") == len(sent) - len(kept)
    assert lost == max(sent) + 1 - len(kept)
