# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs as a filter of message_filters: inputs, callbacks, chains, and what no callback can do to it."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import missing
from ros_graph import Graph

MISSING = missing("rclpy", "message_filters")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    import message_filters
    from message_filters import SimpleFilter, Subscriber
    from rclpy.time import Time
    from sensor_msgs.msg import CameraInfo
    from std_msgs.msg import Header

    from sicm_ros.conversion.stamps import nanoseconds
    from sicm_ros.nodes.stereo_sync import StereoSync
    from sicm_ros.ros.qos import image_qos

MS = 1_000_000
# The stand-in has none; the genuine package has.
needs_the_package = pytest.mark.skipif(
    bool(MISSING) or not hasattr(message_filters, "TimeSynchronizer"),
    reason="needs the genuine message_filters of a ROS 2 install",
)


def image(ms, side=""):
    """A message with a header; ``frame_id`` tells what it is."""
    return CameraInfo(header=Header(stamp=Time(nanoseconds=round(ms * MS)).to_msg(), frame_id=f"{side}{ms}"))


def name(message):
    return message.header.frame_id


class Rig:
    """Two filters with a StereoSync behind them; ``pairs`` has what came out."""

    def __init__(self, queue_size=10, slop=0.0):
        self.left, self.right = SimpleFilter(), SimpleFilter()
        self.sync = StereoSync([self.left, self.right], queue_size, slop)
        self.pairs = []
        self.sync.registerCallback(lambda left, right: self.pairs.append((name(left), name(right))))

    def feed(self, *items):
        for side, ms in items:
            {"l": self.left, "r": self.right}[side].signalMessage(image(ms, side))
        return self.pairs


def drops(sync):
    return {key: count for key, count in sync.pairer.drops.items() if count}


def test_pairs_are_handed_out_whichever_side_comes_last():
    rig = Rig()
    assert rig.feed(("l", 10), ("r", 10), ("r", 20), ("l", 20)) == [("l10", "r10"), ("l20", "r20")]


def test_exact_and_approximate_with_every_drop_counted():
    stream = [("l", 100), ("r", 104), ("l", 200), ("l", 300), ("r", 311), ("l", 400), ("r", 400)]
    exact, approximate = Rig(), Rig(slop=0.010)
    assert exact.feed(*stream) == [("l400", "r400")]
    assert drops(exact.sync) == {("left", "unmatched"): 3, ("right", "unmatched"): 2}
    assert approximate.feed(*stream) == [("l100", "r104"), ("l400", "r400")]
    assert drops(approximate.sync) == {("left", "unmatched"): 2, ("right", "unmatched"): 1}


def test_a_stream_that_starts_over_and_a_reset():
    rig = Rig()
    assert len(rig.feed(*[(side, ms) for _ in range(2) for ms in (1000, 1100) for side in "lr"])) == 4
    assert rig.sync.pairer.jumps == 1
    rig.feed(("l", 1200))
    rig.sync.reset()
    assert len(rig.feed(("r", 1200))) == 4
    assert drops(rig.sync) == {("left", "time_jump"): 1}


def test_several_callbacks_in_order_with_their_arguments():
    rig, calls = Rig(), []
    rig.sync.registerCallback(lambda left, right, *more: calls.append(("a", name(left), name(right), *more)), 1, 2)
    rig.sync.registerCallback(lambda left, right: calls.append(("b", name(left), name(right))))
    rig.feed(("l", 10), ("r", 10), ("r", 20), ("l", 20))
    assert calls == [("a", "l10", "r10", 1, 2), ("b", "l10", "r10"), ("a", "l20", "r20", 1, 2), ("b", "l20", "r20")]


def test_it_is_chained_like_any_filter():
    """Filter before, filter behind: every second left image goes in, left images of pairs come out."""

    class EverySecond(SimpleFilter):
        def __init__(self, source):
            super().__init__()
            self.count = 0
            source.registerCallback(self.add)

        def add(self, message):
            self.count += 1
            if self.count % 2:
                self.signalMessage(message)

    left, right, lefts, seen = SimpleFilter(), SimpleFilter(), SimpleFilter(), []
    sync = StereoSync([EverySecond(left), right], 10)
    sync.registerCallback(lambda one, other: lefts.signalMessage(one))
    EverySecond(lefts).registerCallback(lambda message: seen.append(name(message)))
    for ms in range(10, 90, 10):
        left.signalMessage(image(ms, "l"))
        right.signalMessage(image(ms, "r"))
    assert isinstance(sync, SimpleFilter)
    assert sync.pairer.pairs == 4 and sync.pairer.received == {"left": 4, "right": 8}
    assert seen == ["l10", "l50"]


def test_inputs_may_be_connected_later():
    sync, left, right, pairs = StereoSync([], 10), SimpleFilter(), SimpleFilter(), []
    sync.registerCallback(lambda *pair: pairs.append(pair))
    sync.connectInput([left, right])
    left.signalMessage(image(10))
    right.signalMessage(image(10))
    assert len(pairs) == 1


def test_bad_arguments_are_named():
    for filters in ([SimpleFilter()], [SimpleFilter()] * 3):
        with pytest.raises(ValueError, match=f"left and of the right images, got {len(filters)}"):
            StereoSync(filters, 10)
    with pytest.raises(ValueError, match="depth"):
        StereoSync([], 0)
    with pytest.raises(ValueError, match="tolerance_s"):
        StereoSync([], 10, slop=-0.1)


def test_images_without_a_stamp_are_dated_and_paired_roughly():
    rig = Rig()
    before = time.time_ns()
    left, right = CameraInfo(), CameraInfo()
    rig.left.signalMessage(left)
    rig.right.signalMessage(right)
    assert before <= nanoseconds(left.header.stamp) <= nanoseconds(right.header.stamp) <= time.time_ns()
    assert rig.sync.unstamped == 2
    # The wider tolerance is for these alone.
    stamped = Rig()
    assert stamped.feed(("l", 10), ("r", 11)) == [] and stamped.sync.pairer.nearest_miss_ns == MS


def test_first_arrival_is_that_of_the_pair_in_hand():
    left, right, waited = SimpleFilter(), SimpleFilter(), []
    sync = StereoSync([left, right], 10)
    sync.registerCallback(lambda *_: waited.append(sync.first_arrival_ns))
    start = time.monotonic_ns()
    left.signalMessage(image(10))
    between = time.monotonic_ns()
    left.signalMessage(image(20))
    right.signalMessage(image(10))
    right.signalMessage(image(20))
    assert start <= waited[0] <= between <= waited[1] <= time.monotonic_ns()


def test_a_callback_that_raises_blocks_nothing():
    """With the library's synchronisers the lock stays held, and the next image waits for ever."""
    rig = Rig()

    def stumble(left, right):
        if name(left) == "l10":
            raise RuntimeError("of the user")

    rig.sync.registerCallback(stumble)
    with pytest.raises(RuntimeError, match="of the user"):
        rig.feed(("l", 10), ("r", 10))
    thread = threading.Thread(target=rig.feed, args=[("l", 20), ("r", 20)], daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and rig.pairs == [("l10", "r10"), ("l20", "r20")]


def test_a_callback_that_takes_long_holds_up_no_other_thread():
    rig, entered, leave = Rig(), threading.Event(), threading.Event()

    def slow(left, right):
        if name(left) == "l10":
            entered.set()
            assert leave.wait(60)

    rig.sync.registerCallback(slow)
    busy = threading.Thread(target=rig.feed, args=[("l", 10), ("r", 10)], daemon=True)
    busy.start()
    assert entered.wait(30)
    other = threading.Thread(target=rig.feed, args=[("l", 20), ("r", 20)], daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive() and busy.is_alive()
    leave.set()
    busy.join(30)
    assert rig.pairs == [("l10", "r10"), ("l20", "r20")]


def test_subscribers_over_dds():
    """Two subscribers in, pairs and accounts out; one right image is lost."""
    graph = Graph("stereo", "/synced")
    try:
        topics = ("left/camera_info", "right/camera_info")
        profile = image_qos("reliable", 50)
        subscribers = [Subscriber(graph.node, CameraInfo, topic, qos_profile=profile) for topic in topics]
        sync = StereoSync(subscribers, queue_size=50, slop=0.010, clock=graph.node.get_clock())

        def keep(left, right, key):
            with graph.arrived:
                graph.received[key].append((name(left), name(right)))
                graph.arrived.notify_all()

        sync.registerCallback(keep, "pairs")
        sync.registerCallback(keep, "again")
        for topic in topics:
            graph.publisher(CameraInfo, topic, profile)
        graph.executor.wake()
        graph.wait_for_subscribers(*topics)
        for frame in range(1, 21):
            graph.publishers[topics[0]].publish(image(100 * frame, "l"))
            if frame != 7:
                graph.publishers[topics[1]].publish(image(100 * frame + 5, "r"))
        expected = [(f"l{100 * frame}", f"r{100 * frame + 5}") for frame in range(1, 21) if frame != 7]
        graph.wait(lambda: len(graph.received["again"]) == len(expected))
        assert graph.received["pairs"] == graph.received["again"] == expected
        assert drops(sync) == {("left", "unmatched"): 1}
        assert sync.pairer.received == {"left": 20, "right": 19}
    finally:
        graph.close()


# --------------------------------------------------------------------------------------------- beside the library's own


@needs_the_package
def test_the_filters_of_the_library_before_and_behind_it():
    left, right, lefts, seen = SimpleFilter(), SimpleFilter(), SimpleFilter(), []
    cache = message_filters.Cache(left, 5)
    sync = StereoSync([cache, right], 10)
    sync.registerCallback(lambda one, other: lefts.signalMessage(one))
    boxes = SimpleFilter()
    behind = message_filters.TimeSynchronizer([lefts, boxes], 10)
    behind.registerCallback(lambda *pair: seen.append(tuple(map(name, pair))))
    for ms in (10, 20, 30):
        left.signalMessage(image(ms, "l"))
        right.signalMessage(image(ms, "r"))
        if ms != 20:
            boxes.signalMessage(image(ms, "b"))
    assert seen == [("l10", "b10"), ("l30", "b30")] and name(cache.getLast()) == "l30"


@needs_the_package
@pytest.mark.parametrize("slop", [0.0, 0.010])
@given(
    frames=st.integers(1, 30),
    jitter=st.integers(0, 9),
    random=st.randoms(use_true_random=False),
    lost=st.sets(st.integers(0, 29), max_size=8),
)
def test_the_pairs_of_message_filters(slop, frames, jitter, random, lost):
    """Where ROS 2 has it: both streams in order, the same pairs from the same inputs as its synchronisers find."""
    jitter = jitter if slop else 0
    left = [("l", 33 * i) for i in range(1, frames + 1)]
    right = [("r", 33 * i + random.randint(-jitter, jitter)) for i in range(1, frames + 1) if i not in lost]
    rig, theirs = Rig(60, slop), []
    synchroniser = (
        message_filters.ApproximateTimeSynchronizer([rig.left, rig.right], 60, slop)
        if slop
        else message_filters.TimeSynchronizer([rig.left, rig.right], 60)
    )
    synchroniser.registerCallback(lambda *pair: theirs.append(tuple(map(name, pair))))
    while left or right:
        rig.feed(random.choice([queue for queue in (left, right) if queue]).pop(0))
    assert rig.pairs == theirs
