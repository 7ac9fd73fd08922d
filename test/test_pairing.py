# SPDX-License-Identifier: Apache-2.0
"""The stereo pairer: what it pairs, what it drops and under which name, and that it survives jumps of time."""

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sicm_ros.data.pairing import DROP_REASONS, StereoPairer

MS = 1_000_000


def feed(pairer, *items):
    """Add ("l" or "r", milliseconds) items; the stamps of the pairs in milliseconds."""
    pairs = []
    for side, ms in items:
        match = pairer.add({"l": "left", "r": "right"}[side], round(ms * MS), (side, ms))
        if match:
            assert match.left == ("l", match.left_stamp_ns / MS) and match.right == ("r", match.right_stamp_ns / MS)
            pairs.append((match.left_stamp_ns / MS, match.right_stamp_ns / MS))
    return pairs


def drops(pairer):
    return {key: count for key, count in pairer.drops.items() if count}


def test_exact_pairs_in_any_arrival_order():
    pairer = StereoPairer()
    assert feed(pairer, ("l", 0), ("r", 0), ("r", 100), ("l", 100), ("l", 200), ("l", 300), ("r", 200), ("r", 300)) == [
        (0, 0),
        (100, 100),
        (200, 200),
        (300, 300),
    ]
    assert drops(pairer) == {} and pairer.pairs == 4


def test_exact_refuses_one_nanosecond():
    pairer = StereoPairer()
    assert pairer.add("left", 1000, "a") is None and pairer.add("right", 1001, "b") is None
    assert pairer.nearest_miss_ns == 1


def test_approximate_takes_the_nearest_within_the_tolerance():
    pairer = StereoPairer(tolerance_s=0.010)
    assert feed(pairer, ("r", 92), ("r", 104), ("l", 100)) == [(100, 104)]
    assert drops(pairer) == {("right", "unmatched"): 1}
    pairer = StereoPairer(tolerance_s=0.010)
    assert feed(pairer, ("l", 100), ("r", 110)) == [(100, 110)]
    pairer = StereoPairer(tolerance_s=0.010)
    assert feed(pairer, ("l", 100), ("r", 110.001)) == []


def test_a_lost_image_is_counted_and_does_not_shift_the_pairs():
    pairer = StereoPairer(tolerance_s=0.010)
    assert feed(pairer, ("l", 0), ("r", 1), ("l", 100), ("l", 200), ("r", 201), ("r", 301), ("l", 400), ("r", 401)) == [
        (0, 1),
        (200, 201),
        (400, 401),
    ]
    assert drops(pairer) == {("left", "unmatched"): 1, ("right", "unmatched"): 1}


def test_a_dead_camera_fills_no_memory():
    pairer = StereoPairer(depth=3)
    assert feed(pairer, *(("l", 100 * i) for i in range(10))) == []
    assert pairer.waiting("left") == 3 and drops(pairer) == {("left", "overflow"): 7}
    assert feed(pairer, ("r", 900)) == [(900, 900)]


def test_duplicates_and_stragglers():
    pairer = StereoPairer()
    assert feed(pairer, ("l", 0), ("l", 0), ("r", 0), ("r", 0), ("l", 10), ("r", 10), ("l", 5)) == [(0, 0), (10, 10)]
    assert drops(pairer) == {("left", "duplicate"): 1, ("right", "duplicate"): 1, ("left", "late"): 1}


@pytest.mark.parametrize("order", ["lr", "rl"])
def test_a_bag_in_a_loop_goes_on(order):
    pairer = StereoPairer(tolerance_s=0.010)
    once = [(side, 100 * i + (1 if side == "r" else 0)) for i in range(5) for side in order]
    assert len(feed(pairer, *once, *once, *once)) == 15
    assert pairer.jumps == 2 and drops(pairer) == {}


def test_a_jump_back_keeps_what_the_other_side_sent_of_the_new_time():
    pairer = StereoPairer()
    feed(pairer, ("l", 5000), ("r", 5000), ("l", 5100))
    # The right view starts over first; one image of the old time is still under way.
    assert feed(pairer, ("r", 0), ("l", 5200), ("l", 0), ("r", 100), ("l", 100)) == [(0, 0), (100, 100)]
    assert drops(pairer) == {("left", "time_jump"): 2}


def test_a_jump_forward_needs_no_reset():
    pairer = StereoPairer()
    assert feed(pairer, ("l", 0), ("r", 0), ("l", 10**9), ("r", 10**9)) == [(0, 0), (10**9, 10**9)]
    assert pairer.jumps == 0


def test_tolerance_above_half_of_the_period_is_told():
    pairer = StereoPairer(tolerance_s=0.020)
    feed(pairer, ("l", 0), ("l", 100))
    assert not pairer.ambiguous
    feed(pairer, ("l", 133))
    assert pairer.ambiguous


def test_first_arrival_is_that_of_the_earlier_image():
    pairer = StereoPairer()
    pairer.add("right", 7, "r", arrival_ns=100)
    assert pairer.add("left", 7, "l", arrival_ns=250).first_arrival_ns == 100


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="tolerance_s"):
        StereoPairer(tolerance_s=float("nan"))
    with pytest.raises(ValueError, match="depth"):
        StereoPairer(depth=0)


stamps = st.integers(0, 400)
events = st.lists(st.tuples(st.sampled_from(["left", "right"]), stamps), max_size=120)


@given(events, st.integers(0, 30), st.integers(1, 6))
def test_invariants_under_any_input(sequence, tolerance, depth):
    pairer = StereoPairer(tolerance * 1e-3, depth)
    used = Counter()
    last = None
    jumps = 0
    for number, (side, ms) in enumerate(sequence):
        match = pairer.add(side, ms * MS, (side, number))
        assert pairer.waiting("left") <= depth and pairer.waiting("right") <= depth
        if match is None:
            continue
        assert abs(match.left_stamp_ns - match.right_stamp_ns) <= tolerance * MS
        used[match.left] += 1
        used[match.right] += 1
        assert match.left[0] == "left" and match.right[0] == "right"
        if pairer.jumps == jumps and last is not None:
            assert match.left_stamp_ns > last[0] and match.right_stamp_ns > last[1]
        last, jumps = (match.left_stamp_ns, match.right_stamp_ns), pairer.jumps
    assert all(count == 1 for count in used.values())
    # Nothing vanishes: every item was paired, dropped under a name, or still waits.
    for side in ("left", "right"):
        dropped = sum(count for (s, reason), count in pairer.drops.items() if s == side and reason in DROP_REASONS)
        assert pairer.received[side] == pairer.pairs + dropped + pairer.waiting(side)


@given(
    st.integers(1, 40), st.integers(0, 9), st.randoms(use_true_random=False), st.sets(st.integers(0, 39), max_size=8)
)
def test_every_complete_pair_is_found_whatever_the_interleaving(frames, jitter, random, lost):
    """Streams in order, 33 ms apart, right up to 9 ms off, some right images lost, arbitrary interleaving."""
    left = [("left", 33 * i) for i in range(frames)]
    right = [("right", 33 * i + random.randint(-jitter, jitter)) for i in range(frames) if i not in lost]
    pairer = StereoPairer(tolerance_s=0.010, depth=60)
    pairs = []
    while left or right:
        source = random.choice([queue for queue in (left, right) if queue])
        side, ms = source.pop(0)
        match = pairer.add(side, ms * MS, None)
        if match:
            pairs.append(match.left_stamp_ns // MS // 33)
    assert pairs == [i for i in range(frames) if i not in lost]


def test_threads_lose_nothing():
    pairer = StereoPairer(depth=2000)
    pairs = []

    def run(side):
        for i in range(1000):
            match = pairer.add(side, i * MS, i)
            if match:
                pairs.append((match.left, match.right))

    threads = [threading.Thread(target=run, args=(side,)) for side in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unpaired = sum(pairer.drops.values()) + pairer.waiting("left") + pairer.waiting("right")
    assert all(a == b for a, b in pairs) and 2 * len(pairs) + unpaired == 2000
