# SPDX-License-Identifier: Apache-2.0
"""The bit budget: never more bits than the link has, and not much fewer either."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.nodes.bit_budget import BURST_S, BitBudget, wire_bytes


def simulate(limit, hz, seconds, *, base=900.0, slope=0.4, noise=0.1, preferred=5.0, seed=0, gap=None):
    """Packets of ``base * exp(slope * rate)`` bytes, times a log-normal picture: (time, wire bits, rate) if sent."""
    rng = random.Random(seed)
    budget = BitBudget(5.0)
    sent, now = [], 100.0
    for _ in range(int(seconds * hz)):
        now += rng.uniform(0.7, 1.3) / hz
        if gap and gap[0] <= now - 100.0 < gap[1]:
            continue
        rate = budget.choose(now, limit, preferred)
        assert 0.0 <= rate <= preferred
        size = round(base * math.exp(slope * rate + noise * rng.gauss(0, 1)))
        if budget.admit(now, limit, rate, size):
            sent.append((now, 8 * wire_bytes(size), rate))
    return sent, budget


def most_in_any(sent, seconds):
    return max(sum(bits for t, bits, _ in sent if start <= t <= start + seconds) for start, _, _ in sent)


@pytest.mark.parametrize(("limit", "hz"), [(150e3, 10), (400e3, 10), (300e3, 30), (1e6, 10)])
def test_the_budget_is_kept_and_used(limit, hz):
    sent, budget = simulate(limit, hz, 30)
    for window in (1.0, 5.0):
        assert most_in_any(sent, window) <= limit * (window + BURST_S)
    settled = [s for s in sent if s[0] > 110.0]
    used = sum(bits for _, bits, _ in settled) / 20
    reachable = 8 * wire_bytes(round(900 * math.exp(0.4 * 5))) * hz
    assert used > 0.7 * min(limit, reachable)
    assert budget.refused < 0.03 * 30 * hz


def test_a_generous_budget_leaves_the_preferred_rate_alone():
    sent, budget = simulate(20e6, 10, 10, preferred=3.0)
    assert {rate for _, _, rate in sent[5:]} == {3.0} and budget.refused == 0


def test_a_budget_below_the_smallest_packet_drops_pairs_but_is_kept():
    sent, budget = simulate(40e3, 10, 30)
    assert most_in_any(sent, 10.0) <= 40e3 * (10 + BURST_S)
    assert budget.refused > 100 and len(sent) > 50 and max(rate for _, _, rate in sent) < 0.5


def test_a_pause_is_not_saved_up():
    sent, _ = simulate(150e3, 10, 40, gap=(10.0, 25.0))
    assert most_in_any(sent, 2.0) <= 150e3 * (2.0 + BURST_S)


def test_the_budget_may_change_while_running():
    budget, now, rates = BitBudget(5.0), 0.0, []
    for i in range(200):
        now += 0.1
        limit = 300e3 if i < 100 else 120e3
        rate = budget.choose(now, limit, 5.0)
        budget.admit(now, limit, rate, round(900 * math.exp(0.4 * rate)))
        rates.append(rate)
    assert sum(rates[50:100]) / 50 > sum(rates[150:]) / 50 + 0.5


@pytest.mark.parametrize(("packet", "measured"), [(500, 742), (1000, 1242), (3000, 3626), (6000, 7184), (12000, 14100)])
def test_wire_bytes_are_those_that_were_captured(packet, measured):
    """Ethernet bytes of one StereoBitstream with config/fastdds_lossy.xml, Fast DDS 2.14, captured on an interface."""
    assert measured <= wire_bytes(packet) <= 1.05 * measured


@settings(max_examples=60, deadline=None)
@given(st.floats(20e3, 2e6), st.integers(1, 40), st.floats(100, 5000), st.floats(0.0, 1.0), st.floats(0, 0.6),
       st.integers(0, 99))
def test_no_stream_exceeds_the_budget(limit, hz, base, slope, noise, seed):
    sent, _ = simulate(limit, hz, 6, base=base, slope=slope, noise=noise, seed=seed)
    for window in (0.5, 2.0):
        assert not sent or most_in_any(sent, window) <= limit * (window + BURST_S) * (1 + 1e-9)
