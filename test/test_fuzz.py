# SPDX-License-Identifier: Apache-2.0
"""The fuzz target in small, that it would notice what it looks for, and the bounds on memory of docs/packet.md.

``python test/fuzz_packets.py`` runs the same cases for as long as one likes.
"""

import array
import contextlib
import random
import struct
import sys
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
import torch
from codec_material import DATA, TINY_MODEL
from fuzz_material import stillborn, troubled
from fuzz_packets import OUTCOMES, Case, Mutations, Target, packed, patched, sealed, supervise, table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.profiler import profile

from sicm_ros.codec import packet
from sicm_ros.codec.packet import ImplausiblePacketError, PacketError, SymbolMismatchError
from sicm_ros.codec.payload import decompress, symbol_count
from sicm_ros.codec.range_coder import RangeCoder
from sicm_ros.geometry import GeometryError, InputTransform, StereoRig
from sicm_ros.model_store import load_model

GOOD = (DATA / "tiny.sicm").read_bytes()


@pytest.fixture(scope="module")
def target():
    target = Target()
    yield target
    target.close()


# ---------------------------------------------------------------------------------------------------- the fuzzer


@pytest.mark.slow
def test_some_thousand_cases(target):
    outcomes, kinds = set(), set()
    for number in range(4000):
        kind, outcome, problem = target.run(2, number)
        assert not problem, f"python test/fuzz_packets.py --replay 2/{number}: {problem}"
        outcomes.add(outcome)
        kinds.add(kind)
    assert outcomes == set(OUTCOMES) - {"FAILED"} and kinds == set(Mutations.WEIGHTS)


def test_a_case_depends_on_its_number_alone(target):
    numbers = list(range(300))
    cases = {n: target.mutations.make(3, n) for n in numbers}
    random.Random(0).shuffle(numbers)
    assert all(target.mutations.make(3, n) == cases[n] for n in numbers)
    assert len({case.data for _, case in cases.values()}) > 250
    assert target.mutations.make(4, 0) != cases[0]


def found(target, case, monkeypatch, decode):
    """What the target says of a case where ``decode`` decodes it."""
    monkeypatch.setattr(target.decoder, "decode", decode)
    monkeypatch.setattr(target.mutations, "make", lambda seed, number: ("flipped", case))
    return target.run(0, 0)[2]


class Panic(BaseException):
    """As pyo3's."""


def test_the_target_notices_what_it_looks_for(target, monkeypatch):
    result = target.decoder.decode(GOOD)
    real = target.decoder.decode
    cut, whole = Case(GOOD[:-1]), Case(GOOD)

    def raises(error):
        def decode(data):
            raise error

        return decode

    assert not found(target, whole, monkeypatch, real) and not found(target, cut, monkeypatch, real)
    assert "KeyError" in found(target, cut, monkeypatch, raises(KeyError("x")))
    assert "Panic" in found(target, cut, monkeypatch, raises(Panic("x")))
    assert "excludes decoded" in found(target, cut, monkeypatch, lambda data: result)
    assert "excludes DamagedPacketError" in found(target, cut, monkeypatch, raises(packet.DamagedPacketError("x" * 30)))
    assert "inspect() says" in found(target, cut, monkeypatch, raises(packet.TruncatedPacketError("x" * 30)))
    assert "expected DamagedPacketError" in found(target, Case(GOOD, "DamagedPacketError"), monkeypatch, real)
    # Symbols decoded, but none compared with the hash.
    forged = Case(patched(GOOD, 69, "I", 1))

    def careless(data):
        with contextlib.suppress(SymbolMismatchError):
            real(data)
        return result

    assert "wrong hash" in found(target, forged, monkeypatch, careless)

    def verbose(data):
        try:
            real(data)
        except SymbolMismatchError as e:
            raise SymbolMismatchError(f"{e}\nand more") from None

    assert "not a line" in found(target, forged, monkeypatch, verbose)

    def greedy(data):
        bytearray(1 << 20)
        return real(data)

    assert "bytes of memory" in found(target, cut, monkeypatch, greedy)


def test_the_observer_notices_symbols_beyond_their_table(target, monkeypatch):
    number = next(n for n in range(10_000) if target.mutations.make(2, n)[0] == "payload_damaged")
    assert not target.run(2, number)[2]
    real = target.watched.__mro__[1]
    monkeypatch.setattr(real, "latents", lambda self, indices: indices.astype("int32") * 0 + 385)
    assert "latent's symbol beyond its table" in target.run(2, number)[2]


@pytest.mark.slow
def test_crashes_and_hangs_are_noticed_and_gone_on_after(capfd):
    shared, failed = supervise(5, 12, hang_s=5.0, worker=troubled, every_s=0.1)
    assert [(n, kind) for n, kind, _ in failed] == [(3, "crash"), (6, "crash"), (8, "cut")]
    assert "ended with -11" in failed[0][2] and "hang" in failed[1][2] and failed[2][2] == "MemoryError"
    assert shared.state[2] == 12 and sum(shared.counts) == 10
    printed = capfd.readouterr().out
    assert "FAILED 5/6 (crash; repeat it with --replay 5/6): hang" in printed and "of 12 cases, " in printed
    assert table(shared.counts).splitlines()[-1].split() == ["all", *"...9.....", "1", "10"]


def test_a_child_that_does_not_start_is_told(capfd):
    _, failed = supervise(5, 12, worker=stillborn)
    assert len(failed) == 1 and "ended with 3 outside of any case" in failed[0][2]
    capfd.readouterr()


# ---------------------------------------------------------------------------------------------------- headers


single = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 65535),
    st.tuples(*[st.integers(1, 65535)] * 4),
    st.floats(0, 1),
    st.tuples(*[st.floats(1, 1e6, width=32)] * 2),
    st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2),
    st.tuples(*[st.floats(-1e9, 1e9, width=32)] * 6),
    st.binary(max_size=50),
    st.integers(0, 2**32 - 1),
)
def test_header_round_trip(fingerprint, rate, sizes, crop, focal, centre, columns, payload, symbol_hash):
    """Whatever a rig and sizes are: ``pack`` writes what ``unpack`` reads, or it is refused with words."""
    width, height, network_width, network_height = sizes
    transform = InputTransform(width, height, int(crop * (height - 1)), network_width, network_height)
    try:
        rig = StereoRig(*focal, *centre, columns[:3], columns[3:])
    except GeometryError:
        return
    try:
        data = packet.pack(fingerprint, rate, transform, rig, payload, symbol_hash)
    except GeometryError as e:
        assert "packet rig" in str(e)
        return
    header, same = packet.unpack(data)
    assert same == payload == packet.payload_of(data) and len(data) == packet.OVERHEAD + header.payload_bytes
    assert (header.fingerprint, header.rate_index, header.symbol_hash) == (fingerprint, rate, symbol_hash)
    assert header.geometry.transform == transform and header.geometry.camera_rig == rig
    assert header.geometry.rig.baseline > 0
    assert packet.inspect(data)["rate"] == rate / 1024


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 255), st.binary(min_size=60, max_size=60), st.binary(max_size=40), st.integers(-3, 3))
def test_any_sealed_header_is_read_or_refused(version, fields, payload, lie):
    told = max(0, len(payload) + lie)
    body = b"SICM" + bytes([version]) + fields + struct.pack("<II", told, 0) + payload
    try:
        header = packet.read_header(sealed(body))
    except PacketError as e:
        assert "\n" not in str(e) and len(str(e)) < 500
    else:
        assert version == 1 and told == header.payload_bytes == len(payload)
        assert header.geometry.rig.baseline > 0


def test_any_kind_of_bytes_will_do():
    for data in (bytearray(GOOD), memoryview(GOOD), array.array("B", GOOD)):
        assert packet.unpack(data) == packet.unpack(GOOD)
    for data in (None, 5, "SICM"):
        with pytest.raises(TypeError):
            packet.read_header(data)


def test_a_baseline_that_is_lost_to_rounding_is_refused(target):
    """It is positive in the camera's pixels and not in the network's; found by fuzzing."""
    rig = (
        700.0,
        700.0,
        -49126.53515625,
        100.0,
        -509459680.0,
        0.0,
        10370.5361328125,
        -3.255300998687744,
        0.0,
        0.1797638088464737,
    )
    assert StereoRig(*rig[:4], rig[4:7], rig[7:]).baseline > 0
    with pytest.raises(ImplausiblePacketError, match="packet rig, scaled to the network's input: rig: baseline"):
        target.decoder.decode(patched(GOOD, 25, "10f", *rig))


def test_a_payload_that_goes_on_after_its_symbols(target):
    payload = b"\1\0\0\0" + GOOD[73:-4]
    number = target.symbol_hash(target.symbols_in(payload))
    with pytest.raises(SymbolMismatchError, match="expected a payload that ends with them"):
        target.decoder.decode(packed(GOOD[:69] + struct.pack("<I", number), payload))
    # Zero bytes at the end are no part of it.
    assert target.decoder.decode(packed(GOOD, GOOD[73:-4] + bytes(9))).objects == target.decoder.decode(GOOD).objects


# ---------------------------------------------------------------------------------------------------- memory


def test_large_packets_are_not_copied(target):
    large = bytes(4 << 20)
    sound = sealed(GOOD[:65] + struct.pack("<I", len(large)) + GOOD[69:73] + large)
    other = patched(sound, 5, "Q", 1)
    for data, words in (
        (GOOD + large, "packet damaged"),
        (large, "not a packet"),
        (sound, "packet payload: expected"),
        (other, "packet of another model"),
    ):
        tracemalloc.start()
        with pytest.raises(PacketError, match=words):
            target.decoder.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 10, words


def allocated(function):
    """Bytes of PyTorch's, and of Python's and numpy's, at their peaks."""
    with profile(profile_memory=True) as recorded:
        function()
    now = top = 0
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    tracemalloc.start()
    function()
    other = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return top, other


@pytest.mark.parametrize(
    ("name", "slack"), [(TINY_MODEL, 1024), ("sicm-compact", 64 * 1024)], ids=["tiny", "sicm-compact"]
)
def test_memory_of_the_entropy_stage(target, name, slack):
    """Whatever the payload is: the same tensors, and less than docs/packet.md says.

    Events of the profiler can carry one time stamp: the order of a small allocation and a release is then unsure, by
    less than ``slack`` bytes (a step's indices have 21 600 in the larger model).
    """
    assert target.memory_bound() == 64 * 1024 + 512 * 228
    model = load_model(name)
    config, integers, coder = model.config, model.net.entropy_model.integer_prior(), RangeCoder(model.tables)
    symbols = symbol_count(config.latent_channels, config.hyper_channels, config.latent_size)
    seen = set()
    with torch.inference_mode():
        for length in (0, 100, 3 * symbols + 8):
            payload = random.Random(0).randbytes(length)
            function = lambda: decompress(payload, coder, integers, config.latent_size)  # noqa: B023, E731
            function()
            tensors, other = allocated(function)
            seen.add(tensors)
            assert 0 < tensors + other <= 64 * 1024 + 512 * symbols, (tensors, other)
    assert max(seen) - min(seen) < slack, seen


def test_an_error_does_not_keep_its_packet_alive(target):
    """Those that come from another error, too: a queue of refused packets would hold them all."""
    refused = patched(GOOD, 25, "10f", 700, 700, 600, 100, 0, 0, 0, 5, 0, 0)  # a negative baseline
    held = sys.getrefcount(refused)
    outcome = target.decoder.decode_batch([refused])[0]
    assert isinstance(outcome, ImplausiblePacketError) and "baseline" in str(outcome)
    assert sys.getrefcount(refused) == held


# ---------------------------------------------------------------------------------------------------- the node


@pytest.fixture
def node():
    """The decoder node and its link to one vehicle without a graph: what they do with a message."""
    pytest.importorskip("rclpy", reason="no ROS 2 in this environment")
    pytest.importorskip("sicm_ros.msg", reason="the messages of sicm_ros are not built in this environment")
    pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not in this environment")
    from sicm_ros.codec.decoder import StereoDecoder
    from sicm_ros.nodes.decoder import DecoderNode
    from sicm_ros.nodes.vehicle_link import VehicleLink

    class Publisher:
        def __init__(self):
            self.messages = []

        def get_subscription_count(self):
            return 1

        def on_activate(self, state):
            pass

        def publish(self, message):
            from rclpy.serialization import serialize_message

            serialize_message(message)  # what the middleware could not send is found here
            self.messages.append(message)

    callbacks = {}
    publishers = {}
    quiet = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
    graph = SimpleNamespace(
        get_logger=lambda: quiet,
        resolve_topic_name=str,
        create_lifecycle_publisher=lambda kind, topic, qos, **_: publishers.setdefault(topic, Publisher()),
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=0)),
        create_subscription=lambda kind, topic, callback, qos, **_: callbacks.setdefault(topic, callback),
    )
    node = DecoderNode.__new__(DecoderNode)
    node.__dict__.update(
        _decoder=StereoDecoder(DATA / "models" / "tiny"),
        _classes=frozenset({"Car", "Pedestrian", "Cyclist"}),
        value={"lazy": False, "timeout": 1.0}.get,
    )
    node._worker = SimpleNamespace(submit=lambda item, key: node._decode([item]))
    link = VehicleLink(graph, "")
    link.open(enabled=True)
    link.listen(node._on_packet, None, "reliable", 1)
    return SimpleNamespace(receive=callbacks["stereo_bitstream"], link=link, boxes=publishers["detections"].messages)


def message(data, **fields):
    """A StereoBitstream, through the middleware's serialisation."""
    from builtin_interfaces.msg import Time
    from rclpy.serialization import deserialize_message, serialize_message
    from sicm_ros.msg import StereoBitstream
    from std_msgs.msg import Header

    stamp = Time(sec=fields.pop("sec", 0), nanosec=fields.pop("nanosec", 0))
    header = Header(stamp=stamp, frame_id=fields.pop("frame_id", "camera"))
    bitstream = StereoBitstream(header=header, data=array.array("B", data), **fields)
    return deserialize_message(serialize_message(bitstream), StereoBitstream)


def test_the_node_survives_any_message(node, target):
    rng = random.Random(6)
    for number in range(400):
        _, case = target.mutations.make(6, number)
        session = rng.choice((0, 1, rng.getrandbits(64)))
        node.receive(
            message(
                case.data,
                session=session,
                sequence=rng.getrandbits(rng.choice((2, 64))),
                sec=rng.randrange(-(2**31), 2**31),
                nanosec=rng.getrandbits(32),
                frame_id=rng.choice(("", "x" * 5000, "\n\t\u00e9")),
                sync_ms=rng.choice((float("nan"), float("inf"), -1.0)),
            )
        )
    assert node.link.received == 400 and node.link.decoded == len(node.boxes) > 0
    assert len(node.link._sequences) <= 8 and node.link.errors == 0
    refused = node.link.problems.counts.keys()
    expected = ("NotAPacketError", "TruncatedPacketError", "DamagedPacketError", "SymbolMismatchError")
    assert {getattr(packet, name) for name in expected} <= refused
    for size in (0, (4 << 20) + 1):
        before = node.link.problems.counts["size"]
        node.receive(message(bytes(size), session=5, sequence=size + 1))
        assert node.link.problems.counts["size"] == before + 1


@pytest.mark.parametrize("sec", [-1, -(2**31), 2**31 - 1])
def test_stamps_that_rclpy_refuses_do_not_end_the_node(node, sec):
    """The watchdog runs in the executor: an exception there would end the process. Found by fuzzing."""
    node.receive(message(GOOD))
    node.receive(message(b"junk", sec=sec, nanosec=2**32 - 1, sequence=1))
    node.link._last_packet -= 100.0
    node.link.watch(1.0)
    assert node.link.timeouts == 1 and node.boxes[-1].detections == []
    stamp = node.boxes[-1].header.stamp
    assert stamp.sec == min(sec + 104, 2**31 - 1) and stamp.nanosec < 10**9


def test_the_checks_are_those_of_zlib():
    assert struct.unpack("<I", sealed(b"abc")[3:])[0] == zlib.crc32(b"abc") == 0x352441C2
