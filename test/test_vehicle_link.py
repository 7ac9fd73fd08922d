# SPDX-License-Identifier: Apache-2.0
"""What the decoder node keeps for one vehicle: times of each pair, and which refused packets are what."""

import time

import pytest
from needs import NODES, missing

from sicm_ros.codec.packet import SymbolMismatchError, WrongModelError

MISSING = missing(*NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.lifecycle import LifecycleNode
    from rclpy.time import Time
    from sicm_ros.msg import DecodeStats, StereoBitstream
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection3DArray

    from sicm_ros.conversion.stamps import nanoseconds
    from sicm_ros.nodes.link_status import link_status
    from sicm_ros.nodes.vehicle_link import Decoded, VehicleLink
    from sicm_ros.ros.diagnostics import Problems
    from sicm_ros.ros.qos import boxes_qos

SLOW_S = 0.2


@pytest.fixture
def node():
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = LifecycleNode("link_test", context=context, enable_communication_interface=False)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_times_end_when_the_boxes_are_published_and_arrive_as_numbers(node):
    link, received = VehicleLink(node, "car1"), {"detections": [], "decode_stats": []}
    link.open(enabled=True)
    for name, kind in (("detections", Detection3DArray), ("decode_stats", DecodeStats)):
        node.create_subscription(kind, f"car1/{name}", received[name].append, boxes_qos())
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    while not (link._has_subscriber("detections") and link._has_subscriber("decode_stats")):
        executor.spin_once(timeout_sec=0.05)
    publish = link._publishers["detections"].publish

    def slowly(message):
        time.sleep(SLOW_S)
        publish(message)

    link._publishers["detections"].publish = slowly
    stamp = node.get_clock().now()
    packet = StereoBitstream(
        header=Header(stamp=stamp.to_msg(), frame_id="camera"), session=2**63, sequence=5, data=bytes(40), smfc_ms=3.0
    )
    stage_ms = {"wait": 1.0, "entropy": 2.0, "smfc": 3.0, "analysis": 4.0}
    now = time.monotonic_ns()
    link.deliver(Decoded(packet, [], stage_ms, 2, now - 10_000_000, now), lazy=False)
    old = StereoBitstream(header=Header(stamp=Time(nanoseconds=nanoseconds(stamp.to_msg()) - 10**12).to_msg()))
    link.deliver(Decoded(old, [], stage_ms, 1, now, now), lazy=False)
    while len(received["decode_stats"]) < 2 or len(received["detections"]) < 2:
        executor.spin_once(timeout_sec=0.05)
    times, of_the_past = received["decode_stats"]
    assert (times.session, times.sequence, times.packet_bytes, times.boxes, times.batch) == (2**63, 5, 40, 0, 2)
    assert times.header == packet.header and times.encoder_smfc_ms == 3.0
    assert (times.wait_ms, times.entropy_ms, times.smfc_ms, times.analysis_ms) == (1, 2, 3, 4)
    assert times.publish_ms >= 1e3 * SLOW_S and times.total_ms >= times.publish_ms + 10 - 0.01
    assert times.end_to_end_ms >= 1e3 * SLOW_S
    assert of_the_past.end_to_end_ms != of_the_past.end_to_end_ms  # not a number
    link.close()


@pytest.mark.parametrize(
    ("error", "level"), [(WrongModelError, "ERROR"), (SymbolMismatchError, "WARN"), (ZeroDivisionError, "OK")]
)
def test_what_a_refused_packet_means_goes_by_the_class_of_its_error(error, level):
    class OfAnotherDay(error):
        """A kind that nobody has written down anywhere."""

    problems = Problems(lambda words: None)
    problems.add(OfAnotherDay, "words")
    new = {"received": 1, "lost": 0}
    status = link_status(new, {}, 1.0, new, "topic", 0.1, 1.0, None, problems, problems.recent())
    refused = level != "OK"  # the last one is no packet's
    assert (status.level, status.messages) == (level, ["words"] if refused else [])
    assert status.values.get("refused_OfAnotherDay") == ("1" if refused else None)
    again = link_status(new, {}, 1.0, new, "topic", 0.1, 1.0, None, problems, problems.recent())
    assert again.level == "OK"  # none since
