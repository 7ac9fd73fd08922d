# SPDX-License-Identifier: Apache-2.0
"""The nodes as separate processes over real ROS 2 topics: one box array for each pair, and nothing that stops them."""

import array
import itertools
import math
import re
import signal
import struct
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from needs import NODES, missing
from PIL import Image as PilImage
from ros_graph import (
    DECODER,
    ENCODER,
    ERROR,
    PATIENCE_S,
    REPOSITORY,
    STALE,
    TINY_MODEL,
    WARN,
    Graph,
    NodeProcess,
    stamp_ns,
)

from sicm_ros.bags.writer import BagWriter
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import open_source, write_object_calib
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair

MISSING = missing(*NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState, GetState
    from rclpy.duration import Duration
    from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
    from rclpy.serialization import serialize_message
    from rclpy.time import Time
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CameraInfo, Image
    from sicm_ros.msg import CodecInfo, DecodeStats, StereoBitstream
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection3DArray, LabelInfo
    from visualization_msgs.msg import MarkerArray

    from sicm_ros.conversion.camera_info import camera_info_fields
    from sicm_ros.conversion.stamps import nanoseconds
    from sicm_ros.ros.qos import latched_qos

NAMESPACE = "/car"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def processes(logs):
    """An encoder and a decoder node that every test of this module uses, one after another, bad input and all."""
    nodes = {
        "encoder": NodeProcess("encoder", ENCODER, NAMESPACE, logs),
        "decoder": NodeProcess("decoder", DECODER, NAMESPACE, logs),
    }
    yield nodes
    ends = {}
    for name, node in nodes.items():
        if node.process.poll() is None:
            node.signal()
            node.signal()  # a launch file's Ctrl-C comes twice
        ends[name] = (node.wait(), node.output)
    for status, output in ends.values():
        assert status == 0 and "Traceback" not in output, output


@pytest.fixture(scope="module")
def graph(processes):
    graph = Graph("test_graph", NAMESPACE)
    graph.listen_to_diagnostics()
    graph.listen(Detection3DArray, "detections")
    graph.listen(MarkerArray, "detection_markers")
    graph.listen(StereoBitstream, "stereo_bitstream")
    graph.listen(DecodeStats, "decode_stats")
    graph.listen(CodecInfo, "codec_info", latched_qos())
    graph.listen(LabelInfo, "label_info", latched_qos())
    graph.open_camera()
    graph.publisher(StereoBitstream, "stereo_bitstream")
    yield graph
    graph.close()


@pytest.fixture
def ready(graph, processes):
    """The graph, with both nodes up and nothing received yet."""
    for name, node in processes.items():
        assert node.process.poll() is None, f"the {name} has ended: {node.output}"
    graph.wait_for_subscribers(
        "left/camera_info", "right/camera_info", "left/image_rect", "right/image_rect", "stereo_bitstream"
    )
    graph.wait(lambda: graph.node.count_publishers("detections"))
    # The encoder's packets must have found the decoder as well as this test; its next report tells.
    graph.wait_for_status("encoder_node: encoding", lambda level, message, values: values.get("subscribers") == "2")
    with graph.arrived:
        for topic in ("detections", "detection_markers", "stereo_bitstream", "decode_stats", "/diagnostics"):
            graph.received[topic].clear()
    return graph


@pytest.fixture(scope="module")
def rendered():
    """Two rendered stereo pairs of KITTI's size."""
    width, height = KITTI_SIZE
    layouts = {seed: random_layout(np.random.default_rng(seed), KITTI_RIG, width, height) for seed in (0, 2)}
    return [render_pair(layout, KITTI_RIG, width, height, seed) for seed, layout in layouts.items()]


@pytest.fixture(scope="module")
def rendered_root(rendered, tmp_path_factory):
    """The same as a KITTI object folder, each pair twice."""
    root = tmp_path_factory.mktemp("rendered")
    for folder in ("image_2", "image_3", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    for i, pair in enumerate([*rendered, *rendered]):
        PilImage.fromarray(pair.left).save(root / "training" / "image_2" / f"{i:06d}.png")
        PilImage.fromarray(pair.right).save(root / "training" / "image_3" / f"{i:06d}.png")
        write_object_calib(root / "training" / "calib" / f"{i:06d}.txt", pair.rig)
    return root


@pytest.fixture(scope="module")
def codec():
    # As the nodes do by default; packets of another engine may differ by a symbol.
    return StereoEncoder(TINY_MODEL, engine="auto"), StereoDecoder(TINY_MODEL, engine="auto")


def play(source, logs, **parameters):
    patience = {"wait_timeout": PATIENCE_S, "lockstep_timeout": PATIENCE_S}
    player = NodeProcess("kitti_player", {"path": source, **patience, **parameters}, NAMESPACE, logs)
    try:
        return player.wait(), player.output
    finally:
        player.stop()


def check_against_codec(graph, frames, codec):
    """Every pair has one packet and one array, with its own stamp and the boxes that the codec gives without ROS."""
    encoder, decoder = codec
    packets = {stamp_ns(m): m for m in graph.received["stereo_bitstream"]}
    arrays = {stamp_ns(m): m for m in graph.received["detections"]}
    assert len(graph.received["detections"]) == len(arrays) == len(frames)
    assert len(graph.received["stereo_bitstream"]) == len(packets) == len(frames)
    assert sorted(arrays) == sorted(packets) == sorted(f.stamp_ns for f in frames)
    assert len({m.session for m in packets.values()}) == 1
    sequences = [packets[f.stamp_ns].sequence for f in frames]
    assert sequences == list(range(sequences[0], sequences[0] + len(frames)))
    for frame in frames:
        packet, boxes = packets[frame.stamp_ns], arrays[frame.stamp_ns]
        expected = encoder.encode(frame.left, frame.right, frame.rig)
        assert packet.data.tobytes() == expected.packet
        assert packet.header == boxes.header and boxes.header.frame_id == "camera_0_optical"
        assert nanoseconds(packet.right_stamp) == frame.right_stamp_ns
        assert min(packet.preprocess_ms, packet.backbone_ms, packet.smfc_ms, packet.entropy_ms) > 0
        objects = decoder.decode(expected.packet).objects
        assert len(boxes.detections) == len(objects) > 0
        for detection, box in zip(boxes.detections, objects, strict=True):
            assert detection.results[0].hypothesis.class_id == box.label.lower()
            assert detection.results[0].hypothesis.score == pytest.approx(box.score, rel=1e-5)
            assert detection.bbox.size.x == pytest.approx(box.length, rel=1e-4)
            assert detection.bbox.center.position.z == pytest.approx(box.z, rel=1e-4)
    assert len({tuple(m.data) for m in packets.values()}) > 1


# ------------------------------------------------------------------------------------------------------ the main job


@pytest.mark.slow
def test_lockstep_play_of_rendered_pairs(ready, rendered_root, codec, logs):
    status, output = play(rendered_root, logs, lockstep=True)
    assert status == 0, output
    assert "sent 4 pairs" in output and "boxes of 4 came back, 0 pairs without an answer" in output
    source = open_source(rendered_root)
    ready.wait(lambda: len(ready.received["detection_markers"]) >= 4 and len(ready.received["decode_stats"]) >= 4)
    check_against_codec(ready, [source[i] for i in range(4)], codec)
    packets = {(m.session, m.sequence): m for m in ready.received["stereo_bitstream"]}
    boxes = {stamp_ns(m): len(m.detections) for m in ready.received["detections"]}
    stats = {(m.session, m.sequence): m for m in ready.received["decode_stats"]}
    assert stats.keys() == packets.keys()
    for key, times in stats.items():
        packet = packets[key]
        assert times.header == packet.header and times.packet_bytes == len(packet.data)
        assert times.boxes == boxes[stamp_ns(times)] and times.batch == 1
        for stage in ("sync", "preprocess", "backbone", "smfc", "entropy"):
            assert getattr(times, f"encoder_{stage}_ms") == getattr(packet, f"{stage}_ms")
        assert min(times.entropy_ms, times.smfc_ms, times.analysis_ms, times.publish_ms) > 0
        assert times.total_ms >= decoder_ms(times) - 0.01
        assert math.isnan(times.end_to_end_ms)  # the source's stamps are of 1970


def decoder_ms(times):
    """The sum of the decoder's stages of a DecodeStats."""
    return times.wait_ms + times.entropy_ms + times.smfc_ms + times.analysis_ms + times.publish_ms


@pytest.mark.slow
def test_end_to_end_is_more_than_all_stages_of_both_ends(ready, rendered_root, logs):
    status, output = play(rendered_root, logs, lockstep=True, stamps="now")
    assert status == 0, output
    ready.wait(lambda: len(ready.received["decode_stats"]) == 4)
    for times in ready.received["decode_stats"]:
        encoder_ms = times.encoder_preprocess_ms + times.encoder_backbone_ms + times.encoder_smfc_ms
        encoder_ms += times.encoder_sync_ms + times.encoder_entropy_ms
        assert times.total_ms >= decoder_ms(times) - 0.01
        assert times.end_to_end_ms >= times.total_ms + encoder_ms - 0.01


@pytest.mark.slow
def test_lockstep_play_of_a_real_sequence(ready, kitti_root, codec, logs):
    status, output = play(kitti_root / "sequence_02", logs, lockstep=True, count=6)
    assert status == 0, output
    source = open_source(kitti_root / "sequence_02")
    check_against_codec(ready, [source[i] for i in range(6)], codec)


@pytest.mark.slow
def test_lockstep_play_of_the_object_benchmark(ready, kitti_root, codec, logs):
    status, output = play(kitti_root / "object", logs, lockstep=True)
    assert status == 0, output
    source = open_source(kitti_root / "object")
    check_against_codec(ready, [source[i] for i in range(2)], codec)


@pytest.mark.slow
def test_free_play_keeps_its_frequency_and_loops_with_increasing_stamps(ready, rendered_root, logs):
    status, output = play(rendered_root, logs, frequency=4.0, loop=True, count=6)
    assert status == 0 and "sent 6 pairs" in output, output
    ready.wait(lambda: len(ready.received["detections"]) == 6)
    assert [stamp_ns(m) // 10**6 for m in ready.received["detections"]] == [1000, 1100, 1200, 1300, 1400, 1500]


@pytest.mark.slow
def test_play_from_a_start_and_paused(ready, rendered_root, logs):
    """Four pairs of 10 Hz: the last two of them, once the pause is over, and the clock with them."""
    ready.listen(Clock, "/clock")
    parameters = {"path": rendered_root, "start": 0.2, "paused": True, "publish_clock": True}
    player = NodeProcess("kitti_player", parameters, NAMESPACE, logs)
    try:
        ready.wait(lambda: ready.node.count_publishers("left/image_rect") == 2)
        # A player that is not paused, started later, comes to its end meanwhile.
        other = {"path": rendered_root, "start": 0.2, "wait_timeout": 0.0}
        later = NodeProcess("kitti_player", other, "/not_paused", logs)
        assert later.wait() == 0 and "sent 2 pairs" in later.output, later.output
        assert ready.received["detections"] == [] and player.process.poll() is None
        assert ready.set_parameter("kitti_player_node", "paused", False) == (True, "")
        assert player.wait() == 0, player.output
        ready.wait(lambda: len(ready.received["detections"]) == 2)
        assert [stamp_ns(m) for m in ready.received["detections"]] == [1_200_000_000, 1_300_000_000]
        clock = [nanoseconds(m.clock) for m in ready.received["/clock"]]
        assert clock == sorted(clock) and clock[-1] == 1_300_000_000
    finally:
        player.stop()
        ready.deafen("/clock")
    late = NodeProcess("kitti_player", {"path": rendered_root, "start": 9.0, "wait_timeout": 0.0}, "/alone", logs)
    assert late.wait() == 2 and "expected at least one pair after a start of 9 s, there is none" in late.output


@pytest.mark.slow
def test_a_bag_of_packets_from_a_start(logs, tmp_path):
    """An hour of packets: the last ones at once, before them the model information from the bag's beginning."""
    with BagWriter(tmp_path / "bag") as bag:
        info = CodecInfo(model_name="tiny", fingerprint=1)
        bag.write("/car9/codec_info", "sicm_ros/msg/CodecInfo", 10**9, bytes(serialize_message(info)))
        for i in range(20):
            stamp = 10**9 + i * 5 * 10**8 + (3600 * 10**9 if i >= 17 else 0)
            raw = bytes(serialize_message(packet_message(b"packet", i)))
            bag.write("/car9/stereo_bitstream", "sicm_ros/msg/StereoBitstream", stamp, raw)
    graph = Graph("late", "/late")
    player = None
    try:
        graph.listen(StereoBitstream, "stereo_bitstream")
        graph.listen(CodecInfo, "codec_info", latched_qos())
        player = NodeProcess(
            "kitti_player", {"path": tmp_path / "bag", "start": 3608.5, "publish_tf": False}, "/late", logs
        )
        assert player.wait() == 0, player.output
        graph.wait(lambda: len(graph.received["stereo_bitstream"]) == 3)
        assert [m.sequence for m in graph.received["stereo_bitstream"]] == [17, 18, 19]
        assert [m.model_name for m in graph.received["codec_info"]] == ["tiny"]
    finally:
        if player:
            player.stop()
        graph.close()


def test_latched_information_reaches_a_late_subscriber(ready, codec):
    model = codec[0].model
    late = Graph("late", NAMESPACE)
    try:
        late.listen(CodecInfo, "codec_info", latched_qos())
        late.listen(LabelInfo, "label_info", latched_qos())
        (info,) = late.wait(lambda: late.received["codec_info"])
        (labels,) = late.wait(lambda: late.received["label_info"])
    finally:
        late.close()
    assert (info.model_name, info.fingerprint) == (model.name, model.fingerprint)
    assert list(info.class_names) == ["Car", "Pedestrian"] and list(info.rates) == list(model.lambdas)
    assert info.default_rate == model.config.default_rate and info.packet_version == 1
    assert [c.class_name for c in labels.class_map] == ["car", "pedestrian"]
    assert labels.threshold == pytest.approx(model.config.analysis.score_threshold)


# ------------------------------------------------------------------------------------------------------- bad input


def expect_answer(graph, stamp, pair):
    """A good pair is answered, whatever came before."""
    graph.send_pair(stamp, pair.left, pair.right, pair.rig)
    graph.wait(lambda: [m for m in graph.received["detections"] if stamp_ns(m) == stamp], what=f"boxes of {stamp}")


def fields(image, **change):
    height, width = image.shape[:2]
    return {
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "step": 3 * width,
        "is_bigendian": 0,
        "data": image.tobytes(),
        **change,
    }


@pytest.mark.parametrize(
    ("name", "left", "right", "words"),
    [
        (
            "sizes",
            lambda i: i,
            lambda i: i[:-1],
            "left and right image: expected equal sizes, got 1242x375 and 1242x374",
        ),
        ("encoding", lambda i: fields(i, encoding="32FC1"), lambda i: i, "left/image_rect: image: encoding: expected"),
        pytest.param(
            "data",
            lambda i: i,
            lambda i: fields(i, data=i.tobytes()[:1000]),
            "right/image_rect: image: data: expected 1397250 bytes (375 rows of 3726), got 1000",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "step",
            lambda i: fields(i, step=7),
            lambda i: i,
            "left/image_rect: image: step: expected at least 3726",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "empty",
            lambda i: fields(i, width=0, height=0, data=b""),
            lambda i: i,
            "left/image_rect: image: expected width",
            marks=pytest.mark.slow,
        ),
        ("tiny", lambda i: i[:10], lambda i: i[:10], "crop_top: expected 0 <= crop_top < image height 10"),
    ],
)
def test_bad_images_are_dropped_with_words(ready, rendered, processes, name, left, right, words):
    pair, output = rendered[0], processes["encoder"].output
    ready.send_pair(time.time_ns(), left(pair.left), right(pair.right), pair.rig)
    ready.wait_for_status(
        "encoder_node: stereo input", lambda level, message, values: level == ERROR and words in message
    )

    # Each kind of problem is logged at most every five seconds: more of this one, until it is its turn.
    ready.repeat(
        lambda: ready.send_pair(time.time_ns(), left(pair.left), right(pair.right), pair.rig),
        lambda: re.search(f"pair dropped: .*{re.escape(words)}", processes["encoder"].output[len(output) :]),
        period=1.0,
        what=f"{words!r} in the log",
    )
    expect_answer(ready, time.time_ns(), pair)
    # The boxes may be here before the packet, which comes on another topic.
    ready.wait(lambda: ready.received["stereo_bitstream"], what="the packet")
    assert len(ready.received["stereo_bitstream"]) == len(ready.received["detections"]) == 1


def test_mono_images_are_as_good_as_colour_ones(ready, rendered):
    grey = rendered[0].left.mean(2).astype(np.uint8)
    message = fields(grey, encoding="mono8", step=grey.shape[1])
    ready.send_pair(time.time_ns(), message, message, rendered[0].rig)
    ready.wait(lambda: len(ready.received["detections"]) == 1)


@pytest.mark.slow
def test_images_without_a_stamp_are_dated_by_their_arrival(ready, rendered):
    pair = rendered[0]
    before = time.time_ns()
    # On a busy machine the two images of a pair may arrive too far apart.
    ready.repeat(
        lambda: ready.send_pair(0, pair.left, pair.right, pair.rig), lambda: ready.received["detections"], period=1.0
    )
    assert before < stamp_ns(ready.received["detections"][0]) < time.time_ns()
    ready.wait_for_status(
        "encoder_node: stereo input",
        lambda level, message, values: level == WARN and "images without a stamp" in message,
    )


def test_a_wrong_camera_info_is_refused_and_the_last_one_kept(ready, rendered):
    pair = rendered[0]
    expect_answer(ready, time.time_ns(), pair)  # with a good one
    bad = {**camera_info_fields(pair.rig, "right", 1242, 375), "p": [0.0] * 12}
    ready.send_pair(time.time_ns(), pair.left, pair.right, pair.rig, infos={"right": bad})
    ready.wait(lambda: len(ready.received["detections"]) == 2)
    swapped = {
        side: camera_info_fields(pair.rig, other, 1242, 375) for side, other in (("left", "right"), ("right", "left"))
    }
    ready.send_pair(time.time_ns(), pair.left, pair.right, pair.rig, infos=swapped)
    ready.wait_for_status(
        "encoder_node: stereo input",
        lambda level, message, values: level == ERROR and "baseline" in message and "are the views swapped" in message,
    )
    expect_answer(ready, time.time_ns(), pair)
    assert len(ready.received["detections"]) == 3


def test_images_that_cannot_be_paired_are_counted_and_explained(ready, rendered):
    pair = rendered[0]
    stamps = itertools.count(time.time_ns(), 10**8)

    def send():
        stamp = next(stamps)
        ready.publishers["left/image_rect"].publish(image_message(pair.left, stamp))
        ready.publishers["right/image_rect"].publish(image_message(pair.right, stamp + 40_000_000))

    def told():
        return [m for _, m, _ in ready.statuses("encoder_node: stereo input") if "none can be paired" in m]

    ready.repeat(send, told)  # both views must come within the second of a report
    assert "40.0 ms apart" in told()[0] and "sync_tolerance" in told()[0]
    for _ in range(5):
        send()
    expect_answer(ready, next(stamps) + 10**10, pair)
    ready.wait_for_status(
        "encoder_node: stereo input", lambda level, message, values: int(values.get("dropped_left_unmatched", 0)) >= 5
    )


def image_message(image, stamp):
    header = Header(stamp=Time(nanoseconds=stamp).to_msg(), frame_id="camera_0_optical")
    return Image(header=header, **{**fields(image), "data": array.array("B", image.tobytes())})


def packet_message(data, sequence, session=77):
    message = StereoBitstream(session=session, sequence=sequence, data=array.array("B", data))
    message.header.frame_id = "camera_0_optical"
    message.header.stamp.sec = sequence
    return message


def resealed(packet, offset, value):
    """The packet with other bytes at ``offset`` and a right check sum."""
    body = bytearray(packet[:-4])
    body[offset : offset + len(value)] = value
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def test_bad_packets_are_dropped_with_words_and_the_decoder_goes_on(ready, rendered, codec, processes):
    pair = rendered[0]
    good = codec[0].encode(pair.left, pair.right, pair.rig).packet
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 16
    bad = {
        "NotAPacketError": b"\x00" * 500,
        "TruncatedPacketError": good[:-20],
        "DamagedPacketError": bytes(flipped),
        "WrongVersionError": resealed(good, 4, b"\x63"),
        "WrongModelError": resealed(good, 5, b"\x01\x02\x03\x04\x05\x06\x07\x08"),
        "ImplausiblePacketError": resealed(good, 15, b"\x00\x00"),
        "SymbolMismatchError": resealed(good, len(good) - 40, b"\xff\x00\xff\x00"),
        "size": b"",
    }
    publish = ready.publishers["stereo_bitstream"].publish
    sequence = 0
    for data in [*bad.values(), np.random.default_rng(0).bytes(100_000)]:
        publish(packet_message(data, sequence))
        sequence += 1
    publish(packet_message(good, sequence))
    ready.wait(lambda: ready.received["detections"])
    assert [m.header.stamp.sec for m in ready.received["detections"]] == [sequence]
    expected = {f"refused_{kind}": "1" for kind in bad} | {"refused_NotAPacketError": "2"}
    ready.wait_for_status(
        "decoder_node: link",
        lambda level, message, values: {k: v for k, v in values.items() if k.startswith("refused_")} == expected,
    )
    for words in (
        "not a packet: expected it to start with",
        "packet cut off: expected",
        "packet damaged: expected CRC-32",
        "packet version: expected 1, got 99",
        "packet of another model: expected fingerprint",
        "expected 1 to 4194304 bytes, got 0",
    ):
        assert processes["decoder"].output.count(words) == 1, words


def test_gaps_and_repetitions_are_counted_and_a_recording_may_start_over(ready, rendered, codec):
    pair = rendered[0]
    good = codec[0].encode(pair.left, pair.right, pair.rig).packet
    before = {
        k: int(v)
        for k, v in ready.wait_for_status("decoder_node: link", lambda *_: True)[2].items()
        if k in ("lost", "refused_duplicate")
    }
    for sequence in (0, 1, 4, 4, 5, 0, 1):
        ready.publishers["stereo_bitstream"].publish(packet_message(good, sequence, session=99))
    ready.wait(lambda: len(ready.received["detections"]) == 6)
    assert [m.header.stamp.sec for m in ready.received["detections"]] == [0, 1, 4, 5, 0, 1]
    ready.wait_for_status(
        "decoder_node: link",
        lambda level, message, values: (
            int(values["lost"]) == before["lost"] + 2
            and int(values["refused_duplicate"]) == before.get("refused_duplicate", 0) + 1
        ),
    )


@pytest.mark.slow
def test_boxes_that_cannot_exist_are_counted_in_the_diagnostics(logs):
    """A model of wild weights, of whose boxes none can exist: an empty array, and the account says why."""
    namespace, packet = "/wild", (REPOSITORY / "test" / "data" / "tiny.sicm").read_bytes()
    model = REPOSITORY / "test" / "data" / "models" / "tiny"
    count = StereoDecoder(model, engine="auto").decode(packet).refused
    node = NodeProcess("decoder", {**DECODER, "model": model}, namespace, logs)
    graph = Graph("keeper", namespace)
    try:
        graph.listen_to_diagnostics()
        graph.listen(Detection3DArray, "detections")
        graph.publisher(StereoBitstream, "stereo_bitstream")
        graph.wait_for_subscribers("stereo_bitstream")
        graph.wait(lambda: graph.node.count_publishers("detections"))
        publish = graph.publishers["stereo_bitstream"].publish
        for sequence in (0, 1):
            publish(packet_message(packet, sequence))
        _, _, values = graph.wait_for_status(
            "decoder_node: decoding", lambda level, m, values: values["decoded"] == "2"
        )
        assert int(values["refused_boxes"]) == 2 * count > 0
        assert values["engine"].startswith("openvino-")  # which is installed with the tests
        graph.wait(lambda: len(graph.received["detections"]) == 2)
        assert not any(m.detections for m in graph.received["detections"])
    finally:
        assert node.stop() == 0 and "Traceback" not in node.output, node.output
        graph.close()


# ------------------------------------------------------------------------------------- parameters, silence, demand


def test_rate_and_threshold_change_while_running(ready, rendered, codec):
    pair = rendered[0]
    assert ready.set_parameter("encoder_node", "rate", 5.0) == (True, "")
    try:
        expect_answer(ready, time.time_ns(), pair)
        assert (
            ready.received["stereo_bitstream"][-1].data.tobytes()
            == codec[0].encode(pair.left, pair.right, pair.rig, rate=5.0).packet
        )
        successful, reason = ready.set_parameter("encoder_node", "rate", 5.5)
        assert not successful and "rate: expected 0 to 5 (or -1) for model tame, got 5.5" in reason
        assert not ready.set_parameter("encoder_node", "rate", 99.0)[0]
        assert not ready.set_parameter("encoder_node", "model", "other")[0]
        count = len(ready.received["detections"][-1].detections)
        assert count > 0
        ready.set_parameter("decoder_node", "score_threshold", 1.0)
        expect_answer(ready, time.time_ns(), pair)
        strict = len(ready.received["detections"][-1].detections)
        assert strict < count
        assert ready.wait(lambda: [m for m in ready.received["label_info"] if m.threshold == 1.0])
    finally:
        ready.set_parameter("encoder_node", "rate", -1.0)
        ready.set_parameter("decoder_node", "score_threshold", -1.0)


def test_integers_do_for_numbers_while_running(ready, rendered, codec):
    pair = rendered[0]
    try:
        assert ready.set_parameter("encoder_node", "rate", 0) == (True, "")
        expect_answer(ready, time.time_ns(), pair)
        assert (
            ready.received["stereo_bitstream"][-1].data.tobytes()
            == codec[0].encode(pair.left, pair.right, pair.rig, rate=0.0).packet
        )
        assert ready.set_parameter("encoder_node", "rate", 5) == (True, "")
        successful, reason = ready.set_parameter("encoder_node", "rate", 6)
        assert not successful and "rate: expected 0 to 5 (or -1) for model tame, got 6" in reason
        assert ready.set_parameter("decoder_node", "score_threshold", 1) == (True, "")
        assert ready.set_parameter("decoder_node", "timeout", 0) == (True, "")
        assert not ready.set_parameter("encoder_node", "max_bitrate", 1e6)[0]
    finally:
        ready.set_parameter("encoder_node", "rate", -1.0)
        ready.set_parameter("decoder_node", "score_threshold", -1.0)


def test_a_max_bitrate_that_no_packet_keeps_is_refused_with_the_least(ready):
    successful, reason = ready.set_parameter("encoder_node", "max_bitrate", 1000)
    assert not successful
    least = int(
        re.search(r"max_bitrate: expected 0 \(no limit\) or at least (\d+), the bits on the wire of the", reason)[1]
    )
    try:
        assert not ready.set_parameter("encoder_node", "max_bitrate", least - 1)[0]
        assert ready.set_parameter("encoder_node", "max_bitrate", least) == (True, "")
    finally:
        assert ready.set_parameter("encoder_node", "max_bitrate", 0) == (True, "")


def test_classes_are_chosen_while_running(ready, rendered):
    pair = rendered[0]
    expect_answer(ready, time.time_ns(), pair)
    ids = [d.results[0].hypothesis.class_id for d in ready.received["detections"][-1].detections]
    (common, count), *_ = Counter(ids).most_common()
    assert ready.set_parameter("decoder_node", "classes", [common.upper()]) == (True, "")
    try:
        expect_answer(ready, time.time_ns(), pair)
        chosen = [d.results[0].hypothesis.class_id for d in ready.received["detections"][-1].detections]
        assert chosen == [common] * count
        successful, reason = ready.set_parameter("decoder_node", "classes", ["car", "bus"])
        assert not successful and "classes: expected some of " in reason and "'bus'" in reason
    finally:
        ready.set_parameter("decoder_node", "classes", [""])


@pytest.mark.slow
def test_max_bitrate_lowers_the_rate_and_drops_what_cannot_be_sent(ready, rendered):
    pair = rendered[0]
    assert ready.set_parameter("encoder_node", "rate", 5.0)[0]
    assert ready.set_parameter("encoder_node", "max_bitrate", 10_000)[0]
    try:

        def told(what):
            found = ready.statuses("encoder_node: encoding")
            return [s for s in found if s[2]["max_bitrate"] == "10000" and what(*s)]

        def lowered(level, message, values):
            return "rate" in values and float(values["rate"]) < 5.0

        def dropped(level, message, values):
            return level == WARN and "to keep within max_bitrate" in message and int(values["dropped_max_bitrate"]) > 0

        sent = ready.repeat(
            lambda: ready.send_pair(time.time_ns(), pair.left, pair.right, pair.rig),
            lambda: told(lowered) and told(dropped) and len(ready.received["stereo_bitstream"]) >= 2,
            period=0.05,
        )
        assert len(ready.received["stereo_bitstream"]) < sent
    finally:
        ready.set_parameter("encoder_node", "max_bitrate", 0)
        ready.set_parameter("encoder_node", "rate", -1.0)
    before = len(ready.received["detections"])
    expect_answer(ready, time.time_ns(), pair)
    assert len(ready.received["detections"]) > before


@pytest.mark.slow
def test_swapped_images_are_told_as_long_as_they_come(ready, rendered):
    pair = rendered[0]

    def swapped():
        level, message, _ = ready.statuses("encoder_node: stereo input")[0]
        return level == WARN and "left and right image seem to be swapped" in message

    ready.wait(lambda: ready.statuses("encoder_node: stereo input"))
    assert not swapped()
    ready.repeat(lambda: ready.send_pair(time.time_ns(), pair.right, pair.left, pair.rig), swapped)
    ready.repeat(lambda: ready.send_pair(time.time_ns(), pair.left, pair.right, pair.rig), lambda: not swapped())
    expect_answer(ready, time.time_ns(), pair)


@pytest.mark.slow
def test_silence_clears_the_boxes_once_and_is_told(ready, rendered):
    expect_answer(ready, time.time_ns(), rendered[0])
    ready.set_parameter("decoder_node", "timeout", 0.4)
    try:

        def empty():
            return [m for m in ready.received["detections"] if not m.detections]

        ready.wait(empty)
        boxes, last = ready.received["detections"][-2:]
        assert len(boxes.detections) > 0 and last is empty()[0]
        assert last.header.frame_id == boxes.header.frame_id and stamp_ns(last) >= stamp_ns(boxes) + 4 * 10**8
        ready.wait(
            lambda: (
                [len(m.markers) for m in ready.received["detection_markers"][-2:]] == [1 + 2 * len(boxes.detections), 1]
            )
        )
        level, message, _ = ready.wait_for_status("decoder_node: link", lambda level, *_: level == STALE)
        assert "no packet on /car/stereo_bitstream for" in message
        # Several times the timeout later there is still but one, and after it come the next boxes.
        ready.wait_for_status(
            "decoder_node: link",
            lambda level, message, values: (
                level == STALE and float(re.search(r"for ([0-9.]+) s: is the link up", message)[1]) > 1.5
            ),
        )
    finally:
        ready.set_parameter("decoder_node", "timeout", 0.0)
    expect_answer(ready, time.time_ns(), rendered[0])
    # A pair is sent until it is answered, on a busy machine several times.
    answers = [bool(m.detections) for m in ready.received["detections"]]
    assert answers.count(False) == 1 and [some for some, _ in itertools.groupby(answers)] == [True, False, True]


@pytest.mark.slow
def test_dead_cameras_are_told(ready):
    words = [f"no image on /car/{side}/image_rect for" for side in ("left", "right")]
    ready.wait_for_status(
        "encoder_node: stereo input",
        lambda level, message, values: level == STALE and all(text in message for text in words),
    )


# --------------------------------------------------------------------------------------------- lifecycle and endings


def change(graph, node, transition):
    client = graph.node.create_client(ChangeState, f"{node}/change_state")
    return graph.call(client, ChangeState.Request(transition=Transition(id=transition))).success


def state(graph, node):
    client = graph.node.create_client(GetState, f"{node}/get_state")
    return graph.call(client, GetState.Request()).current_state.label


@pytest.mark.slow
@pytest.mark.parametrize(("history", "kept"), [("keep_last", 3), ("keep_all", 5)])
def test_every_policy_can_be_overridden(logs, history, kept):
    """Of a publisher, and of a subscription, of a node that has none of these by itself.

    Discovery tells of every policy but the history and its depth; these are what a late subscriber gets.
    """
    namespace = "/overridden"
    drawn, images = f"{namespace}/detections_image", f"{namespace}/left/image_rect"
    both = {
        "durability": "transient_local",
        "deadline": 70 * 10**9,
        "liveliness": "manual_by_topic",
        "liveliness_lease_duration": 80 * 10**9,
        "history": history,
        "depth": 3,
    }
    policies = {
        f"{drawn}.publisher": {**both, "reliability": "reliable", "lifespan": 3600 * 10**9},
        f"{images}.subscription": {**both, "durability": "volatile", "reliability": "reliable"},
    }
    parameters = {
        f"qos_overrides.{topic}.{policy}": value
        for topic, chosen in policies.items()
        for policy, value in chosen.items()
    }
    node = NodeProcess("overlay", {**parameters, "lazy": False}, namespace, logs)
    graph, late = Graph("looker", namespace), None
    try:
        for topic, query in (
            (drawn, graph.node.get_publishers_info_by_topic),
            (images, graph.node.get_subscriptions_info_by_topic),
        ):
            (info,) = graph.wait(lambda query=query, topic=topic: query(topic))
            found = info.qos_profile
            assert found.reliability == ReliabilityPolicy.RELIABLE
            assert found.deadline.nanoseconds == 70 * 10**9
            assert found.liveliness == LivelinessPolicy.MANUAL_BY_TOPIC
            assert found.liveliness_lease_duration.nanoseconds == 80 * 10**9
            if topic == drawn:
                assert found.durability == DurabilityPolicy.TRANSIENT_LOCAL
                assert found.lifespan.nanoseconds == 3600 * 10**9
            else:
                assert found.durability == DurabilityPolicy.VOLATILE
        # The images' subscription takes only from who keeps its promises.
        promises = QoSProfile(
            depth=10,
            deadline=Duration(seconds=60),
            liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
            liveliness_lease_duration=Duration(seconds=60),
        )
        graph.publisher(Image, "left/image_rect", promises)
        graph.publisher(CameraInfo, "left/camera_info")
        graph.publisher(Detection3DArray, "detections")
        graph.wait_for_subscribers("left/image_rect", "left/camera_info", "detections")
        graph.listen(Image, "detections_image")
        pictures = graph.received["detections_image"]

        def send(second):
            message = image_message(np.full((120, 320, 3), 90, np.uint8), second * 10**9)
            info = camera_info_fields(KITTI_RIG, "left", 320, 120)
            graph.publishers["left/camera_info"].publish(CameraInfo(header=message.header, **info))
            graph.publishers["left/image_rect"].publish(message)
            graph.publishers["detections"].publish(Detection3DArray(header=message.header))

        graph.repeat(lambda: send(1), lambda: pictures, period=1.0)  # until both know each other
        for second in range(2, 6):
            send(second)
            graph.wait(lambda second=second: stamp_ns(pictures[-1]) == second * 10**9)
        late = Graph("late_looker", namespace)
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        late.listen(Image, "detections_image", qos)
        got = late.received["detections_image"]
        late.wait(lambda: got and stamp_ns(got[-1]) == 5 * 10**9)
        # The first may have been sent several times.
        assert list(dict.fromkeys(stamp_ns(m) // 10**9 for m in got)) == list(range(6 - kept, 6))
        assert history == "keep_all" or len(got) == kept
    finally:
        assert node.stop() == 0, node.output
        graph.close()
        if late is not None:
            late.close()


@pytest.mark.slow
def test_the_policies_of_the_image_subscriptions_can_be_overridden(logs):
    namespace = "/overridden_images"
    image, info = f"{namespace}/left/image_rect", f"{namespace}/right/camera_info"
    policies = {
        f"qos_overrides.{image}.subscription.reliability": "reliable",
        f"qos_overrides.{image}.subscription.deadline": 500_000_000,
        f"qos_overrides.{info}.subscription.durability": "transient_local",
        f"qos_overrides.{info}.subscription.reliability": "reliable",
        "image_reliability": "best_effort",
        "lazy": False,
    }
    node = NodeProcess("encoder", {**ENCODER, **policies}, namespace, logs)
    graph = Graph("looker", namespace)

    def profile(topic):
        (subscription,) = graph.wait(lambda: graph.node.get_subscriptions_info_by_topic(topic))
        return subscription.qos_profile

    try:
        assert profile(image).reliability == ReliabilityPolicy.RELIABLE
        assert profile(image).deadline.nanoseconds == 500_000_000
        assert profile(info).durability == DurabilityPolicy.TRANSIENT_LOCAL
        for topic in (f"{namespace}/right/image_rect", f"{namespace}/left/camera_info"):
            assert profile(topic).reliability == ReliabilityPolicy.BEST_EFFORT
            assert profile(topic).durability == DurabilityPolicy.VOLATILE
    finally:
        assert node.stop() == 0, node.output
        graph.close()


@pytest.mark.slow
def test_lifecycle_and_nothing_is_subscribed_while_nobody_listens(logs):
    """Configured and activated from outside; the images are taken only while somebody takes the packets."""
    namespace = "/managed"
    graph = Graph("manager", namespace)
    graph.listen_to_diagnostics()
    encoder = NodeProcess("encoder", {**ENCODER, "autostart": False}, namespace, logs)
    try:
        graph.open_camera()
        assert state(graph, "encoder_node") == "unconfigured"
        assert change(graph, "encoder_node", Transition.TRANSITION_CONFIGURE)
        assert state(graph, "encoder_node") == "inactive"
        assert change(graph, "encoder_node", Transition.TRANSITION_ACTIVATE)
        assert state(graph, "encoder_node") == "active"
        left = graph.publishers["left/image_rect"]
        graph.wait_for_reports("encoder_node: stereo input")
        assert left.get_subscription_count() == 0
        graph.listen(StereoBitstream, "stereo_bitstream")
        graph.wait_for_subscribers("left/image_rect", "right/image_rect", "left/camera_info", "right/camera_info")
        graph.deafen("stereo_bitstream")
        graph.wait(lambda: left.get_subscription_count() == 0)
        assert change(graph, "encoder_node", Transition.TRANSITION_DEACTIVATE)
        assert change(graph, "encoder_node", Transition.TRANSITION_CLEANUP)
        assert state(graph, "encoder_node") == "unconfigured"
        assert change(graph, "encoder_node", Transition.TRANSITION_CONFIGURE)
        assert change(graph, "encoder_node", Transition.TRANSITION_ACTIVATE)
        encoder.signal(signal.SIGTERM)
        assert encoder.wait() == 0, encoder.output
    finally:
        encoder.stop()
        graph.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "parameters", "words"),
    [
        ("encoder", {"model": "no-such-model"}, "encoder_node: cannot configure: model 'no-such-model' not found"),
        ("decoder", {"model": TINY_MODEL, "device": "quantum"}, "decoder_node: cannot configure: device 'quantum'"),
        ("encoder", {"sync": "sometimes"}, "parameter sync: expected one of exact, approximate, got 'sometimes'"),
        ("encoder", {"rate": "fast"}, "parameter rate: expected a number in [-1, 15]"),
        ("encoder", {"rate": 16}, "parameter rate: expected a number in [-1, 15]"),
        ("encoder", {"model": TINY_MODEL, "max_bitrate": 1000}, "parameter max_bitrate: expected 0 (no limit) or at l"),
        ("encoder", {"model": TINY_MODEL, "rate": 9.0}, "rate: expected 0 to 5 (or -1) for model tame, got 9"),
        ("decoder", {"queue_depth": 0}, "parameter queue_depth: expected an integer in [1, 1000]"),
        ("kitti_player", {}, "parameter path: expected a KITTI folder or a bag, got nothing"),
        ("kitti_player", {"path": "/no/such/folder"}, "/no/such/folder: expected a KITTI folder"),
        ("kitti_player", {"path": "/no/such.mcap"}, "/no/such.mcap: no such bag"),
    ],
)
def test_bad_configuration_is_one_line_and_status_2(logs, module, parameters, words):
    node = NodeProcess(module, parameters, "/bad", logs)
    try:
        assert node.wait() == 2, node.output
    finally:
        node.stop()
    (line,) = [line for line in node.output.splitlines() if line.startswith("error: ")]
    assert words in line and "Traceback" not in node.output


@pytest.mark.slow
def test_lockstep_without_nodes_gives_up_with_words(logs, rendered_root):
    player = NodeProcess("kitti_player", {"path": rendered_root, "lockstep": True, "wait_timeout": 0.5}, "/alone", logs)
    try:
        assert player.wait() == 1
    finally:
        player.stop()
    assert "no subscriber of /alone/left/camera_info within 0.5 s: are the encoder and the deco" in player.output
