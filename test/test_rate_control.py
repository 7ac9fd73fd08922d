# SPDX-License-Identifier: Apache-2.0
"""Rate control: never more bits in any second than the budget, not much fewer either, and no jumps in quality."""

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
from codec_material import RIG, TINY_MODEL
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.codec.rate_control import (
    MAX_RISE,
    MAX_TRIES,
    BitWindow,
    RateController,
    RateDecision,
    wire_bits,
    wire_bytes,
)
from sicm_ros.preprocessing import InputError

HIGHEST = 5.0
SECOND = 10**9


@dataclass(frozen=True)
class Packet:
    packet: bytes


@dataclass(frozen=True)
class Frame:
    """What became of a frame: true time in nanoseconds, and the budget and rate limit then."""

    time: int
    max_bitrate: float
    decision: RateDecision[Packet]

    @property
    def bits(self) -> int:
        return wire_bits(self.decision.sent.packet) if self.decision.sent else 0


class Camera:
    """Frames for a controller, with a clock that may differ from true time."""

    def __init__(self) -> None:
        self.time = self.reading = 0
        self.controller = RateController(HIGHEST, BitWindow(lambda: self.reading))
        self.frames: list[Frame] = []

    def wait(self, nanoseconds: int, jump_back: int = 0) -> None:
        self.time += nanoseconds
        self.reading += nanoseconds - jump_back

    def frame(self, max_bitrate: float, size, preferred: float = HIGHEST, coding_ns: int = 0) -> Frame:  # noqa: ANN001
        def encode_at(rate: float) -> Packet:
            assert 0 <= rate <= min(preferred, HIGHEST)
            self.wait(coding_ns)
            return Packet(bytes(size(rate)))

        decision = self.controller.encode(max_bitrate, preferred, encode_at)
        self.frames.append(Frame(self.time, max_bitrate, decision))
        return self.frames[-1]

    def run(
        self,
        max_bitrate,
        bytes_at_0,
        *,
        hz=10.0,
        seconds=20.0,
        slope=0.25,
        noise=0.05,
        jitter=0.0,  # noqa: ANN001
        preferred=HIGHEST,
        seed=0,
    ) -> list[Frame]:  # noqa: ANN001
        """Frames of ``bytes_at_0`` (a number, or of the frame's index) at rate 0, times exp(slope * rate)."""
        rng, start, begin = random.Random(seed), self.time, len(self.frames)
        for i in range(int(seconds * hz)):
            due = start + round(SECOND / hz * (i + 1 + rng.uniform(-jitter, jitter)))
            self.wait(max(0, due - self.time))
            base = (bytes_at_0(i) if callable(bytes_at_0) else bytes_at_0) * math.exp(noise * rng.gauss(0, 1))
            budget = max_bitrate(i) if callable(max_bitrate) else max_bitrate
            self.frame(budget, lambda rate, base=base: round(base * math.exp(slope * rate)), preferred)
        return self.frames[begin:]


def windows(frames: list[Frame]) -> list[tuple[int, float]]:
    """For each packet, the bits of the second (t - 1 s, t] that ends with it, and the budget when it was sent.

    Any [s, s + 1 s) holds no more than the one of these that ends with its last packet.
    """
    sent = [f for f in frames if f.bits]
    return [(sum(g.bits for g in sent[: i + 1] if g.time > f.time - SECOND), f.max_bitrate) for i, f in enumerate(sent)]


def used(frames: list[Frame]) -> float:
    """Share of the budget that was used, over the frames' time."""
    return sum(f.bits for f in frames[1:]) * SECOND / (frames[-1].time - frames[0].time) / frames[0].max_bitrate


def rates(frames: list[Frame]) -> list[float]:
    return [f.decision.rate for f in frames if f.decision.sent]


# ------------------------------------------------------------------------------------------------- the guarantee

BUDGETS = st.one_of(st.just(0.0), st.floats(1.0, 5e6), st.sampled_from([40e3, 150e3, 300e3, 1e6]))
INTERVALS = st.one_of(st.integers(0, 2 * SECOND), st.sampled_from([1, SECOND // 30, SECOND // 10, SECOND - 1, SECOND]))
SIZES = st.one_of(st.integers(77, 40_000), st.sampled_from([77, 990, 991, 2000, 5000]))
EVENTS = st.lists(
    st.tuples(
        INTERVALS,
        st.one_of(st.just(0), st.integers(0, 100 * SECOND)),
        BUDGETS | st.none(),
        st.floats(-1, 2 * HIGHEST),
        st.lists(SIZES, min_size=MAX_TRIES, max_size=MAX_TRIES),
        st.integers(0, SECOND // 5),
    ),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(BUDGETS, EVENTS)
@example(150e3, [(SECOND // 10, 0, None, 0.0, [900] * MAX_TRIES, 0)] * 60)
@example(
    0.0, [(SECOND // 10, 0, None, 5.0, [20_000] * MAX_TRIES, 0)] * 9 + [(1, 0, 150e3, 5.0, [77] * MAX_TRIES, 0)] * 9
)
def test_no_second_holds_more_than_the_budget(budget, events):
    """Whatever the sizes (even such as have nothing to do with the rate), times, clock jumps and budgets are."""
    camera = Camera()
    for interval, back, change, preferred, sizes, coding in events:
        budget = budget if change is None else change
        camera.wait(interval, back)
        left = iter(sizes)  # StopIteration: more tries than allowed
        frame = camera.frame(budget, lambda rate, left=left: next(left), max(preferred, 0.0), coding)
        decision = frame.decision
        assert 1 <= len(decision.tries) <= MAX_TRIES
        assert decision.sent in (None, decision.tries[-1])
        assert bool(decision.refusal) == (decision.sent is None)
        assert budget or decision.sent
        if decision.sent is None:
            assert decision.rate == 0, "a frame was dropped without a try at the lowest rate"
    for bits, limit in windows(camera.frames):
        assert limit == 0 or bits <= limit


@settings(max_examples=100, deadline=None)
@given(
    st.floats(20e3, 2e6),
    st.floats(1, 40),
    st.floats(100, 5000),
    st.floats(0, 1),
    st.floats(0, 0.6),
    st.floats(0, 2),
    st.integers(0, 99),
)
def test_no_second_of_a_plausible_stream_exceeds_the_budget(budget, hz, base, slope, noise, jitter, seed):
    frames = Camera().run(budget, base, hz=hz, seconds=4, slope=slope, noise=noise, jitter=jitter, seed=seed)
    assert all(bits <= limit for bits, limit in windows(frames))
    before: float | None = None
    for rate in rates(frames):
        assert before is None or rate <= before + MAX_RISE + 1e-9
        before = rate


def test_a_window_is_half_open_and_exact():
    reading = [0]
    window = BitWindow(lambda: reading[0])
    assert window.admit(600, 1000) and not window.admit(401, 1000) and window.admit(400, 1000)
    reading[0] = SECOND - 1
    assert window.bits() == 1000 and not window.admit(1, 1000)
    reading[0] = SECOND
    assert window.bits() == 0 and window.admit(1000, 1000)


def test_time_that_jumps_back_frees_nothing_and_blocks_nothing():
    reading = [50 * SECOND]
    window = BitWindow(lambda: reading[0])
    assert window.admit(1000, 1000)
    reading[0] = 0
    assert not window.admit(1, 1000)
    reading[0] = SECOND - 1
    assert not window.admit(1, 1000)
    reading[0] = SECOND
    assert window.admit(1000, 1000)


def test_what_was_sent_without_a_budget_counts_when_one_comes():
    camera = Camera()
    camera.run(0.0, 3000, seconds=2)
    assert all(f.decision.sent and f.decision.rate == HIGHEST for f in camera.frames)
    frames = camera.run(200e3, 500, seconds=2)
    assert not frames[0].decision.sent and "left of this second's 200000" in frames[0].decision.refusal
    assert all(bits <= 200e3 for bits, limit in windows(camera.frames) if limit)
    assert all(f.decision.sent for f in frames[10:])


# ------------------------------------------------------------------------------------------------- use and smoothness


@pytest.mark.parametrize(
    ("budget", "hz", "least"), [(200e3, 10, 0.8), (300e3, 10, 0.8), (700e3, 30, 0.88), (150e3, 5, 0.7)]
)
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_the_budget_is_used_without_drops_or_jumps(budget, hz, least, jitter):
    frames = Camera().run(budget, 1200, hz=hz, seconds=30, jitter=jitter)
    assert all(f.decision.sent for f in frames)
    settled = frames[5 * hz :]
    assert least < used(settled) <= 1
    steps = np.abs(np.diff(rates(settled)))
    assert steps.max() < 0.75 and steps.mean() < 0.12
    assert sum(len(f.decision.tries) for f in frames) < 1.1 * len(frames)


def test_a_generous_budget_leaves_the_preferred_rate_alone_from_the_first_frame():
    frames = Camera().run(20e6, 900, preferred=3.0, seconds=3)
    assert rates(frames) == [3.0] * 30 and all(len(f.decision.tries) == 1 for f in frames)


def test_the_first_frame_already_fits():
    first = Camera().run(30e3, 1200, seconds=0.1, noise=0)[0]
    # The lowest rate is 13 kbit on the wire, the highest 41.
    assert 13e3 <= first.bits <= 30e3 and 2 <= len(first.decision.tries) <= MAX_TRIES


def test_the_last_try_is_at_the_lowest_rate():
    camera, tried = Camera(), []
    for size in (84_000, 100, 100):
        camera.frame(0.0, lambda rate, size=size: size)
        camera.wait(3 * SECOND // 10)

    def too_much(rate: float) -> int:  # but for the lowest rate
        tried.append(rate)
        return 22_500 if rate else 100

    decision = camera.frame(1e6, too_much).decision
    assert len(tried) == MAX_TRIES and min(tried[:-1]) > 2 and tried[-1] == 0
    assert decision.sent is not None and tried == sorted(tried, reverse=True)


def test_a_budget_below_the_smallest_packets_spaces_what_it_sends():
    frames = Camera().run(50e3, 1200, jitter=0.1)
    sent = [f for f in frames if f.bits]
    assert all(f.decision.rate == 0 for f in sent[1:])
    assert used(frames) > 0.7
    # 13 kbit each, so three in a second: no burst followed by a long silence.
    assert max(np.diff([f.time for f in sent])) < 0.55 * SECOND
    assert {f.decision.refusal.split(", ")[0][:29] for f in frames if not f.bits} == {"its packet at rate 0.00 has 1"}


def test_a_budget_below_any_packet_sends_nothing():
    frames = Camera().run(5e3, 1200, seconds=3)
    assert not any(f.bits for f in frames)
    assert "and 5000 are left of this second's 5000" in frames[0].decision.refusal


def test_a_pause_is_not_saved_up():
    camera = Camera()
    before = rates(camera.run(200e3, 1200, seconds=10))
    camera.wait(60 * SECOND)
    after = camera.run(200e3, 1200, seconds=5)
    assert max(rates(after)) < max(before[20:]) + 0.3 and all(f.decision.sent for f in after)


def test_a_single_hard_frame_is_sent_and_quality_comes_back_gradually():
    frames = Camera().run(400e3, lambda i: 3600 if i == 100 else 1200, noise=0.02)
    assert all(f.decision.sent for f in frames)
    before, after = rates(frames)[99], rates(frames)[100:]
    assert min(after[:12]) < before - 0.3 and min(after[30:]) > before - 0.3


def test_black_frames_between_noise_keep_the_rate_of_the_noise():
    frames = Camera().run(300e3, lambda i: (300, 2400)[i % 2])[20:]
    assert all(f.decision.sent for f in frames)
    assert np.abs(np.diff(rates(frames))).mean() < MAX_RISE + 0.05


def test_the_budget_may_change_while_running():
    frames = Camera().run(lambda i: 300e3 if i < 100 else 180e3, 1200)
    assert np.mean(rates(frames[50:100])) > np.mean(rates(frames[130:])) + 1
    # Some frames fall into the second that the old budget had filled; then all are sent.
    assert all(f.decision.sent for f in frames[:100] + frames[112:])


@pytest.mark.parametrize("budget", [-1.0, math.nan, math.inf])
def test_budgets_that_are_none(budget):
    with pytest.raises(ValueError, match="max_bitrate: expected bits per second, at least 0"):
        Camera().frame(budget, lambda rate: 100)


@pytest.mark.parametrize(("packet", "measured"), [(500, 742), (1000, 1242), (3000, 3626), (6000, 7184), (12000, 14100)])
def test_wire_bytes_are_those_that_were_captured(packet, measured):
    """Ethernet bytes of one StereoBitstream with config/fastdds_lossy.xml, Fast DDS 2.14, captured on an interface."""
    assert measured <= wire_bytes(packet) <= 1.05 * measured


# ------------------------------------------------------------------------------------------------- with the encoder


@pytest.fixture(scope="module")
def encoder():
    return StereoEncoder(TINY_MODEL)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    left = np.kron(rng.integers(0, 255, (38, 125, 3)), np.ones((10, 10, 1)))[:375, :1242].astype(np.uint8)
    return left, np.roll(left, -12, 1)


def test_other_rates_repeat_only_the_entropy_stage(encoder, images, monkeypatch):
    whole = [encoder.encode(*images, RIG, rate=r).packet for r in (0.0, 2.5, 5.0)]
    latents = encoder.latents(*images, RIG)
    assert set(latents.stage_ms) == {"preprocess", "backbone", "smfc"}
    monkeypatch.setattr(encoder.model.net, "features", None)
    monkeypatch.setattr(encoder.model.net, "latents", None)
    assert [encoder.encode_latents(latents, r).packet for r in (0.0, 2.5, 5.0)] == whole


def test_the_encoder_keeps_a_budget_and_tells_the_time_of_all_tries(encoder, images):
    sizes = {r: wire_bits(encoder.encode(*images, RIG, rate=r).packet) for r in (0.0, 5.0)}
    budget = (sizes[0.0] + sizes[5.0]) / 2
    controller = RateController(HIGHEST, BitWindow(lambda: 0))  # all of it within one second
    decision = encoder.encode_within(*images, RIG, controller, budget, 5.0)
    assert decision.sent is not None and len(decision.tries) > 1
    assert wire_bits(decision.sent.packet) <= budget and decision.sent.packet == decision.tries[-1].packet
    assert decision.sent.packet == encoder.encode(*images, RIG, rate=decision.rate).packet
    assert decision.sent.stage_ms["entropy"] == sum(c.stage_ms["entropy"] for c in decision.tries)
    again = encoder.encode_within(*images, RIG, controller, budget, 5.0)
    assert again.sent is None and "bits on the wire" in again.refusal
    with pytest.raises(InputError, match="rate: expected 0 to 5"):
        encoder.encode_within(*images, RIG, controller, budget, 6.0)
