# SPDX-License-Identifier: Apache-2.0
"""One decoder for several vehicles, compressed images, the overlay, a GPU without memory, the security policy."""

import array
import contextlib
import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from needs import NODES, missing
from ros_graph import ERROR, TINY_MODEL, Graph, NodeProcess, stamp_ns

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.geometry import Object3D
from sicm_ros.pictures import draw_boxes
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair

MISSING = missing(*NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from rclpy.node import NodeNameNonExistentError
    from rclpy.time import Time
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image
    from sicm_ros.msg import DecodeStats, StereoBitstream
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection3DArray, LabelInfo

    from sicm_ros.conversion.boxes import detection_array
    from sicm_ros.conversion.camera_info import camera_info_fields
    from sicm_ros.conversion.images import to_rgb
    from sicm_ros.nodes.decoder import vehicle_names
    from sicm_ros.ros.qos import boxes_qos, latched_qos

NAMESPACE = "/depot"


@pytest.fixture(scope="module")
def pairs():
    """Two rendered pairs, their packets of the tiny model, and the boxes that these decode to."""
    encoder, decoder = StereoEncoder(TINY_MODEL, engine="auto"), StereoDecoder(TINY_MODEL, engine="auto")
    found = []
    for seed in (0, 2):
        pair = render_pair(
            random_layout(np.random.default_rng(seed), KITTI_RIG, *KITTI_SIZE), KITTI_RIG, *KITTI_SIZE, seed
        )
        packet = encoder.encode(pair.left, pair.right, pair.rig).packet
        found.append((pair, packet, decoder.decode(packet).objects))
    assert not shows(detection_array(Header(), found[0][2], ""), found[1][2])
    return found


def shows(message, boxes):
    """Whether an array has just these boxes."""
    sizes = [(d.bbox.size.x, d.bbox.size.y, d.bbox.size.z) for d in message.detections]
    expected = [(box.length, box.width, box.height) for box in boxes]
    return len(sizes) == len(expected) and bool(np.allclose(sizes, expected, rtol=1e-2))


@pytest.fixture
def graph():
    graph = Graph("test_fleet", NAMESPACE)
    graph.listen_to_diagnostics()
    yield graph
    graph.close()


def packet_message(data, sequence, session=1):
    stamp = Time(nanoseconds=(sequence + 1) * 10**9).to_msg()
    return StereoBitstream(
        header=Header(stamp=stamp, frame_id="camera"), session=session, sequence=sequence, data=array.array("B", data)
    )


def listen(graph, *vehicles):
    for vehicle in vehicles:
        graph.publisher(StereoBitstream, f"{vehicle}/stereo_bitstream")
        graph.listen(Detection3DArray, f"{vehicle}/detections")
        graph.listen(LabelInfo, f"{vehicle}/label_info", latched_qos())


def await_service(graph, *vehicles):
    graph.wait_for_subscribers(*(f"{vehicle}/stereo_bitstream" for vehicle in vehicles))
    for vehicle in vehicles:
        graph.wait(lambda v=vehicle: graph.received[f"{v}/label_info"], what=f"label_info of {vehicle}")


@pytest.mark.slow
def test_each_vehicle_gets_its_own_boxes_whatever_another_one_sends(graph, pairs, tmp_path):
    (_, packet, boxes), (_, other_packet, other_boxes) = pairs
    parameters = {
        "model": TINY_MODEL,
        "threads": 1,
        "vehicles": json.dumps(["car1", "fleet/car2"]),
        "bitstream_reliability": "reliable",
        "bitstream_depth": 100,
        "queue_depth": 100,
        "timeout": 0.0,
    }
    node = NodeProcess("decoder", parameters, NAMESPACE, tmp_path)
    try:
        listen(graph, "car1", "fleet/car2", "car3")
        await_service(graph, "car1", "fleet/car2")
        stop = threading.Event()

        def flood():
            sequence = 0
            while not stop.is_set():
                for data in (b"\x00" * 500, packet[:-1], np.random.default_rng(sequence).bytes(5000)):
                    graph.publishers["car1/stereo_bitstream"].publish(packet_message(data, sequence))
                    sequence += 1
                time.sleep(0.005)

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            for sequence in range(20):
                graph.publishers["fleet/car2/stereo_bitstream"].publish(packet_message(other_packet, sequence))
                time.sleep(0.02)
            graph.wait(lambda: len(graph.received["fleet/car2/detections"]) == 20, what="20 arrays of fleet/car2")
        finally:
            stop.set()
            sender.join()
        arrays = graph.received["fleet/car2/detections"]
        assert [stamp_ns(m) for m in arrays] == [(i + 1) * 10**9 for i in range(20)]
        assert all(shows(m, other_boxes) for m in arrays)
        assert graph.received["car1/detections"] == []
        graph.wait_for_status(
            "decoder_node: car1 link",
            lambda level, message, values: (
                {"refused_NotAPacketError", "refused_TruncatedPacketError"} <= set(values)
                and int(values["packets"]) > 20
            ),
        )
        level, message, values = graph.wait_for_status(
            "decoder_node: fleet/car2 link", lambda level, message, values: values["packets"] == "20"
        )
        assert values["lost"] == "0" and not any(name.startswith("refused") for name in values)
        # The bad sender is served again as soon as it sends what is sound.
        graph.publishers["car1/stereo_bitstream"].publish(packet_message(packet, 0, session=2))
        graph.wait(lambda: graph.received["car1/detections"])
        assert shows(graph.received["car1/detections"][0], boxes)
        assert "car1: packet" in node.output and "fleet/car2: packet" not in node.output

        # A further vehicle needs a parameter; one that is taken out loses its boxes and its topics.
        assert graph.set_parameter("decoder_node", "vehicles", ["fleet/car2", "car3"]) == (True, "")
        await_service(graph, "car3")
        graph.wait(lambda: len(graph.received["car1/detections"]) == 2)
        assert graph.received["car1/detections"][-1].detections == []
        graph.wait(lambda: graph.node.count_publishers("car1/detections") == 0)
        graph.publishers["car3/stereo_bitstream"].publish(packet_message(packet, 0))
        graph.publishers["fleet/car2/stereo_bitstream"].publish(packet_message(other_packet, 20))
        graph.wait(lambda: graph.received["car3/detections"] and len(graph.received["fleet/car2/detections"]) == 21)
        assert shows(graph.received["car3/detections"][0], boxes)
        successful, reason = graph.set_parameter("decoder_node", "vehicles", ["car3", "2 cars"])
        assert not successful and "vehicles: expected namespaces such as car1 or fleet/car1, got '2 cars'" in reason
        assert node.stop() == 0 and "Traceback" not in node.output
    finally:
        node.stop()


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "at least one"), (["a", "b", "a/"], "each namespace once"), (["a-b"], "got 'a-b'"), (["a//b"], "got 'a//b'")],
)
def test_names_that_are_no_vehicles(names, words):
    with pytest.raises(ValueError, match=f"vehicles: expected .*{words}"):
        vehicle_names(names)
    assert vehicle_names(["", "car1", "/fleet/car2/"]) == ["", "car1", "/fleet/car2"]


@pytest.mark.slow
def test_waiting_packets_of_several_vehicles_are_decoded_together(graph, pairs, tmp_path):
    packet = pairs[0][1]
    vehicles = [f"car{i}" for i in range(6)]
    parameters = {
        "model": TINY_MODEL,
        "threads": 1,
        "vehicles": json.dumps(vehicles),
        "max_batch": 4,
        "bitstream_reliability": "reliable",
        "bitstream_depth": 100,
        "queue_depth": 100,
        "timeout": 0.0,
    }
    node = NodeProcess("decoder", parameters, NAMESPACE, tmp_path)
    try:
        listen(graph, *vehicles)
        for vehicle in vehicles:
            graph.listen(DecodeStats, f"{vehicle}/decode_stats")
        await_service(graph, *vehicles)
        outputs = [f"{vehicle}/{name}" for vehicle in vehicles for name in ("detections", "decode_stats")]
        # Packets one by one, until the decoder knows every subscriber; sequences go on with those that are counted.
        sequences = itertools.count()

        def send():
            sequence = next(sequences)
            for vehicle in vehicles:
                graph.publishers[f"{vehicle}/stereo_bitstream"].publish(packet_message(packet, sequence))

        first = graph.repeat(send, lambda: all(graph.received[topic] for topic in outputs), period=0.5)
        for _ in range(10):
            send()
        last = packet_message(packet, first + 9).header.stamp
        graph.wait(
            lambda: all(graph.received[f"{v}/detections"][-1].header.stamp == last for v in vehicles), what="the arrays"
        )

        def counted(vehicle):
            return [m for m in graph.received[f"{vehicle}/decode_stats"] if m.sequence >= first]

        graph.wait(lambda: all(len(counted(v)) == 10 for v in vehicles), what="60 statistics")
        for vehicle in vehicles:
            stamps = [stamp_ns(m) // 10**9 - 1 for m in graph.received[f"{vehicle}/detections"]]
            assert [stamp for stamp in stamps if stamp >= first] == list(range(first, first + 10))
        batches = [m.batch for v in vehicles for m in counted(v)]
        assert max(batches) == 4
        assert node.stop() == 0
    finally:
        node.stop()


@pytest.mark.slow
def test_compressed_images_of_a_remapped_camera(graph, pairs, tmp_path):
    pair, packet, _ = pairs[0]
    node = NodeProcess(
        "encoder",
        {"model": TINY_MODEL, "threads": 1, "image_transport": "compressed", "image_reliability": "reliable"},
        NAMESPACE,
        tmp_path,
        remap={"left/image_rect": "cam2/image", "right/image_rect": "cam3/image"},
    )
    topics = {"left": "cam2/image/compressed", "right": "cam3/image/compressed"}
    try:
        graph.listen(StereoBitstream, "stereo_bitstream")
        for side, topic in topics.items():
            graph.publisher(CompressedImage, topic)
            graph.publisher(CameraInfo, f"{side}/camera_info")
        graph.wait_for_subscribers(*topics.values(), "left/camera_info", "right/camera_info")

        def send(stamp, cut=None):
            header = Header(stamp=Time(nanoseconds=stamp).to_msg(), frame_id="camera")
            for side, topic in topics.items():
                info = camera_info_fields(pair.rig, side, *KITTI_SIZE)
                graph.publishers[f"{side}/camera_info"].publish(CameraInfo(header=header, **info))
                png = cv2.imencode(".png", getattr(pair, side)[..., ::-1])[1].tobytes()[:cut]
                message = CompressedImage(header=header, format="rgb8; png compressed bgr8", data=array.array("B", png))
                graph.publishers[topic].publish(message)

        send(10**9)
        graph.wait(lambda: graph.received["stereo_bitstream"])
        # PNG loses nothing: the packet is that of the images themselves.
        assert graph.received["stereo_bitstream"][0].data.tobytes() == packet
        send(2 * 10**9, cut=40)
        graph.wait_for_status(
            "encoder_node: stereo input",
            lambda level, message, values: level == ERROR and "left/image_rect: compressed image" in message,
        )
        send(3 * 10**9)
        graph.wait(lambda: len(graph.received["stereo_bitstream"]) == 2)
        assert node.stop() == 0 and "Traceback" not in node.output
    finally:
        node.stop()


@pytest.mark.slow
def test_boxes_are_drawn_into_the_image_of_their_stamp(graph, pairs, tmp_path):
    pair = pairs[0][0]
    rig, box = pair.rig, Object3D("Car", (0, 0, 0, 0), 1.5, 1.7, 4.1, -3.0, 1.7, 12.0, -1.4, -1.2, score=0.8)
    boxes = [box, replace(box, label="Pedestrian", height=1.8, width=0.6, length=0.8, x=2.0, z=8.0)]
    node = NodeProcess("overlay", {"image_reliability": "reliable", "history": 5}, NAMESPACE, tmp_path)
    try:
        graph.publisher(Detection3DArray, "detections")
        graph.open_camera()
        graph.wait_for_reports("overlay_node: overlay")
        assert graph.publishers["detections"].get_subscription_count() == 0, "nobody looks yet"
        graph.listen(Image, "detections_image", boxes_qos(2))
        graph.wait_for_subscribers("detections", "left/image_rect", "left/camera_info")

        def array_at(stamp, objects):
            header = Header(stamp=Time(nanoseconds=stamp).to_msg(), frame_id="camera_0_optical")
            graph.publishers["detections"].publish(detection_array(header, objects, ""))

        graph.send_pair(10**9, pair.left, pair.right, rig)
        array_at(10**9, boxes)
        graph.wait(lambda: graph.received["detections_image"])
        # Boxes before their image wait for it; a far shift of the rig would draw them elsewhere.
        array_at(2 * 10**9, boxes[:1])
        graph.wait_for_status(
            "overlay_node: overlay", lambda level, message, values: "has the boxes' stamp 2.000" in message
        )
        graph.send_pair(2 * 10**9, pair.left, pair.right, rig)
        graph.wait(lambda: len(graph.received["detections_image"]) == 2)
        for message, stamp, objects in zip(graph.received["detections_image"], (1, 2), (boxes, boxes[:1]), strict=True):
            assert stamp_ns(message) == stamp * 10**9 and message.header.frame_id == "camera_0_optical"
            drawn = to_rgb(message).astype(int)
            expected = draw_boxes(pair.left, objects, rig)
            assert drawn.shape == pair.left.shape and (expected != pair.left).any(2).sum() > 1000
            # Lines may move by a sixteenth of a pixel: messages hold the yaw in a quaternion.
            assert (np.abs(drawn - expected).max(2) > 8).mean() < 1e-3
        array_at(9 * 10**9, boxes)
        graph.wait_for_status(
            "overlay_node: overlay",
            lambda level, message, values: "has the boxes' stamp 9.000" in message and values["drawn"] == "2",
        )
        graph.deafen("detections_image")
        graph.wait(lambda: graph.publishers["detections"].get_subscription_count() == 0)
        assert node.stop() == 0 and "Traceback" not in node.output
    finally:
        node.stop()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_gpu_without_memory_is_given_up_and_told(side, pairs):
    """Simulated: the network raises what PyTorch raises; no GPU is needed for the way on."""
    import importlib

    import rclpy
    import torch

    (pair, packet, boxes), _ = pairs
    node_type = getattr(importlib.import_module(f"sicm_ros.nodes.{side}"), f"{side.capitalize()}Node")
    # A namespace of its own: what stays of it in this process's graph must not be taken for a node of another test.
    arguments = ["--ros-args", "-r", "__ns:=/gpu", "-p", f"model:={TINY_MODEL}", "-p", "lazy:=false"]
    node = None
    rclpy.init(args=arguments)
    try:
        node = node_type()
        node.trigger_configure()

        def fail(*_args, **_options):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        if side == "decoder":
            node._decoder.decode_batch = fail
            (outcome,) = node._outcomes([packet])
            assert len(outcome.objects) == len(boxes)
            (outcome,) = node._outcomes([packet])
            assert len(outcome.objects) == len(boxes)
        else:
            node._encoder.encode_within = fail
            for _ in range(2):
                assert (
                    node._encode_within({"left": pair.left, "right": pair.right}, pair.rig, None).sent.packet == packet
                )
        status = next(s for s in node._collect() if s.name == "lifecycle")
        assert status.level == "WARN"
        work = {"encoder": "encoding", "decoder": "decoding"}[side]
        assert status.messages == [f"out of memory on cpu: {work} on the CPU until configured again"]
        node.trigger_cleanup()
        node.trigger_configure()
        assert next(s for s in node._collect() if s.name == "lifecycle").level == "OK"
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()


POLICY = Path(__file__).resolve().parents[1] / "config" / "security" / "policy.xml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "parameters", "namespace", "enclave"),
    [
        ("encoder", {"lazy": False}, "/car1", "/car1/encoder"),
        ("decoder", {"vehicles": json.dumps(["car1"])}, "/", "/station/decoder"),
    ],
)
def test_the_security_policy_allows_just_what_a_node_does(graph, tmp_path, module, parameters, namespace, enclave):
    profile = ElementTree.parse(POLICY).getroot().find(f".//enclave[@path='{enclave}']/profiles/profile")
    name = profile.get("node")
    assert (profile.get("ns"), name) == (namespace, f"{module}_node")

    def full(text):
        root = namespace.rstrip("/")
        return (
            text
            if text.startswith("/")
            else text.replace("~", f"{root}/{name}")
            if text[0] == "~"
            else f"{root}/{text}"
        )

    def allowed(kind, right):
        return {full(item.text) for group in profile.findall(kind) if group.get(right) == "ALLOW" for item in group}

    node = NodeProcess(module, {"model": TINY_MODEL, "threads": 1, **parameters}, namespace, tmp_path)
    try:
        graph.wait_for_status(f"{name}: lifecycle", lambda level, message, values: values["state"] == "active")
        find = graph.node
        for query, kind, right, unused in (
            (find.get_publisher_names_and_types_by_node, "topics", "publish", set()),
            # Simulated time alone needs the clock.
            (find.get_subscriber_names_and_types_by_node, "topics", "subscribe", {"/clock"}),
            (find.get_service_names_and_types_by_node, "services", "reply", set()),
        ):
            expected = allowed(kind, right) - unused

            def found(query=query):
                try:
                    return {topic for topic, _ in query(name, namespace)}
                except NodeNameNonExistentError:  # its diagnostics came before discovery had its name
                    return set()

            with contextlib.suppress(AssertionError):  # discovery tells of a node bit by bit; the line below says what
                graph.wait(lambda e=expected: found() == e)
            graph.wait_for_reports(f"{name}: lifecycle")
            assert found() == expected
    finally:
        node.stop()
