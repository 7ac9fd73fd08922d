# SPDX-License-Identifier: Apache-2.0
"""A bag's stereo images to packets, and packets to boxes: offline, on all cores, resumable after a kill."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from std_msgs.msg import Header

from sicm_ros.bags.reader import BagStereo, PairPlace, opened, raw_messages
from sicm_ros.bags.types import BITSTREAM_TYPE, BagError, Storage, typestore
from sicm_ros.bags.writer import BagWriter
from sicm_ros.cluster import ClusterError, spread
from sicm_ros.codec.encoder import checked_rate
from sicm_ros.conversion.boxes import detection_array, label_info, marker_array
from sicm_ros.conversion.codec_info import codec_info
from sicm_ros.conversion.stamps import nanoseconds, time_fields
from sicm_ros.inference import Engine
from sicm_ros.jobs.journal import Journal
from sicm_ros.jobs.pair_coder import Coding, Outcome, Pair, StereoBag, bag_identity, code_pair
from sicm_ros.model_store import load_model
from sicm_ros.msg import StereoBitstream

__all__ = ["Target", "Transcoded", "transcode"]

Target = Literal["packets", "detections"]


@dataclass(frozen=True)
class Transcoded:
    """What became of a bag. ``raw_bytes`` counts the pixels of both views, three bytes each."""

    pairs: int
    packet_bytes: int
    raw_bytes: int
    boxes: int
    copied: int  # messages of other topics
    dropped: dict[str, int]  # reason -> how many images or packets


def _header(stamp_ns: int, frame: str = "") -> Header:
    return Header(stamp=_time(stamp_ns), frame_id=frame)


def _time(stamp_ns: int) -> Time:
    return Time(**time_fields(stamp_ns))


def _image_pairs(stereo: BagStereo, session: int, done: set[int]) -> Iterator[Pair]:
    for place in stereo.places():
        if place.index not in done:
            prefix = f"{session:016x}-{place.index}"
            yield Pair(place.index, place.recorded_ns, place.stamps_ns[0], place.frame_id, prefix, place)


def _packet_pairs(reader: AnyReader, path: Path, topic: str, done: set[int]) -> Iterator[Pair]:
    connections = [c for c in reader.connections if c.topic == topic]
    for index, (_, recorded_ns, raw) in enumerate(raw_messages(reader, path, connections)):
        if index not in done:
            message = deserialize_message(raw, StereoBitstream)
            header, prefix = message.header, f"{message.session:016x}-{message.sequence}"
            yield Pair(index, recorded_ns, nanoseconds(header.stamp), header.frame_id, prefix, message.data.tobytes())


def transcode(
    path: str | Path,
    out: str | Path,
    target: Target = "packets",
    model: str = "sicm-compact",
    rate: float | None = None,
    threshold: float | None = None,
    workers: int = 1,
    storage: Storage = "sqlite3",
    namespace: str = "",
    left_topic: str = "",
    right_topic: str = "",
    calib: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cluster: str = "",
    engine: Engine = "torch",
) -> Transcoded:
    """Write bag ``out``: bag ``path`` with its stereo images replaced by packets, and with boxes if these are wanted.

    A bag that already has packets keeps them and gets boxes. Other topics are copied. Finished pairs are kept in
    ``out`` + ".part" until the bag is complete, and a second call with the same arguments goes on from there. The work
    is that of ``workers`` processes, or of the cluster whose scheduler has the address ``cluster``; the bytes of the
    bag are the same. ``engine`` runs the network everywhere. Raises BagError, ModelError, InputError, EngineError and
    ClusterError; a pair that cannot be coded is dropped and counted.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise BagError(f"{out}: expected a bag that does not exist yet")
    stored = load_model(model)
    checked_rate(stored, rate)
    if not re.fullmatch(r"/?([A-Za-z_]\w*(/[A-Za-z_]\w*)*)?/?", namespace, re.ASCII):
        raise BagError(f"namespace: expected a name of ROS 2 such as car1, got {namespace!r}")
    part = out.with_name(out.name + ".part")
    with ExitStack() as stack:
        reader = stack.enter_context(opened(path))
        packets = _packet_topic(reader, path, target)
        recipe = {
            "source": bag_identity(path),
            "target": target,
            "fingerprint": f"{stored.fingerprint:016x}",
            "rate": rate,
            "threshold": threshold,
            "engine": engine,
            "namespace": namespace,
            "topics": [left_topic, right_topic],
            "calib": str(calib or ""),
        }
        session = int.from_bytes(hashlib.blake2b(json.dumps(recipe).encode(), digest_size=8).digest(), "little")
        journal = stack.enter_context(closing(Journal(part, recipe)))
        stack.push(partial(_leave, journal, part))
        done = journal.done()
        stereo = None if packets else BagStereo(path, left_topic, right_topic, calib=calib)
        if stereo is None:
            root, total, replaced = packets.rsplit("/", 1)[0], _count(reader, packets), set[str]()
            images, pairs = None, _packet_pairs(reader, path, packets, done)
        else:
            root = "/" + namespace.strip("/") if namespace.strip("/") else ""
            total, replaced = len(stereo), set(stereo.topics.values())
            calibration = Path(calib).absolute() if calib else None
            images = StereoBag(path.absolute(), left_topic, right_topic, calibration, bag_identity(path))
            pairs = _image_pairs(stereo, session, done)
        # A name is looked up on every machine, which may have its models elsewhere.
        known = str(Path(model).absolute()) if Path(model).is_dir() else model
        coding = Coding(known, stored.fingerprint, rate, threshold, target == "detections", images, engine)
        # Closed at once, and its workers with it, whatever happens in the loop.
        results = stack.enter_context(closing(spread(code_pair, pairs, coding, workers=workers, cluster=cluster)))
        for count, (pair, outcome) in enumerate(results, len(done) + 1):
            _keep(journal, pair, outcome, root, session)
            if progress is not None:
                progress(count, max(total, count))
        drops = Counter({"no partner": stereo.drops} if stereo is not None and stereo.drops else {})
        first = _latched(reader, stored, root, target, threshold, new_packets=not packets)
        copied = _assemble(reader, path, journal, first, part / out.name, storage, replaced)
        coded, size, raw, boxes, errors = journal.sums()
    (part / out.name).rename(out)
    shutil.rmtree(part)
    return Transcoded(coded, size, raw, boxes, copied, dict(drops + errors))


def _leave(journal: Journal, part: Path, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
    """At a failure or an interruption: keep finished pairs, and say so; without any, leave nothing behind."""
    if error is None:
        return
    kept = len(journal.done())
    if not kept:
        shutil.rmtree(part, ignore_errors=True)
    elif isinstance(error, (BagError, ClusterError)):
        raise type(error)(f"{error}; {kept} pairs are kept in {part}: the same command goes on from there") from None


def _packet_topic(reader: AnyReader, path: Path, target: Target) -> str:
    """The topic of the bag's packets, empty for none.

    Raises BagError where there are several, or some although packets are to be made.
    """
    topics = sorted({c.topic for c in reader.connections if c.msgtype == BITSTREAM_TYPE and c.msgcount})
    if len(topics) > 1:
        raise BagError(f"{path}: expected one topic of packets, there are {', '.join(topics)}")
    if topics and target == "packets":
        raise BagError(f"{path}: has packets already ({topics[0]}); expected detections as the target")
    return topics[0] if topics else ""


def _count(reader: AnyReader, topic: str) -> int:
    return sum(c.msgcount for c in reader.connections if c.topic == topic)


def _keep(journal: Journal, pair: Pair, outcome: Outcome, root: str, session: int) -> None:
    """Note a finished pair with its messages, whose topics begin with ``root``; or why it could not be coded."""
    sizes = (len(outcome.packet), outcome.raw_bytes, len(outcome.objects or []))
    made = [] if outcome.error else _messages(pair, outcome, session)
    rows = [(pair.recorded_ns, f"{root}/{name}", kind, _serialised(kind, m)) for name, kind, m in made]
    journal.add(pair.index, sizes, outcome.error, rows)


def _serialised(kind: str, message: Any) -> bytes:
    """The message's bytes; those that only align others are zero, where ROS leaves what was in the memory."""
    store = _types()
    return bytes(store.serialize_cdr(store.deserialize_cdr(bytes(serialize_message(message)), kind), kind))


_types = cache(typestore)


def _messages(pair: Pair, outcome: Outcome, session: int) -> list[tuple[str, str, Any]]:
    """Name of the topic, type and message: the packet of images, and the boxes where they were asked for."""
    header = _header(pair.stamp_ns, pair.frame_id)
    made: list[tuple[str, str, Any]] = []
    if isinstance(pair.source, PairPlace):
        # Without the times of the stages: they would tell of the machine that happened to do the work.
        packet = StereoBitstream(
            header=header,
            right_stamp=_time(pair.source.stamps_ns[1]),
            session=session,
            sequence=pair.index,
            data=array("B", outcome.packet),
        )
        made.append(("stereo_bitstream", BITSTREAM_TYPE, packet))
    if outcome.objects is not None:
        boxes = detection_array(header, outcome.objects, pair.prefix)
        made.append(("detections", "vision_msgs/msg/Detection3DArray", boxes))
        markers = marker_array(header, outcome.objects)
        made.append(("detection_markers", "visualization_msgs/msg/MarkerArray", markers))
    return made


def _latched(
    reader: AnyReader, stored: Any, root: str, target: Target, threshold: float | None, new_packets: bool
) -> list[tuple[int, int, str, str, bytes]]:
    """What a late subscriber must know, at the bag's beginning."""
    header, model = _header(reader.start_time), stored
    made: list[tuple[str, str, Any]] = []
    if new_packets:
        made.append(("codec_info", "sicm_ros/msg/CodecInfo", codec_info(header, model)))
    if target == "detections":
        shown = model.config.analysis.score_threshold if threshold is None else threshold
        made.append(("label_info", "vision_msgs/msg/LabelInfo", label_info(header, model.classes, shown)))
    return [(reader.start_time, -1, f"{root}/{name}", kind, _serialised(kind, message)) for name, kind, message in made]


def _assemble(
    reader: AnyReader,
    source: Path,
    journal: Journal,
    first: list[tuple[int, int, str, str, bytes]],
    path: Path,
    storage: Storage,
    replaced: set[str],
) -> int:
    """Write the bag from the journal and from the source's other topics, in the order of time; the messages copied."""
    made = {topic for _, _, topic, _, _ in first} | {row[2] for row in journal.messages()}
    copied = 0
    if path.exists():  # of a run that was killed after it wrote the bag
        shutil.rmtree(path)
    with BagWriter(path, storage) as bag:
        # ROS 1 bags hold another serialisation.
        kept = [
            c
            for c in reader.connections
            if reader.is2 and c.topic not in replaced | made and c.msgtype in bag.store.fielddefs
        ]
        others = (
            (stamp, 0, c.topic, c.msgtype, raw)
            for c, stamp, raw in (raw_messages(reader, source, kept) if kept else ())
        )
        for stamp, _, topic, kind, raw in heapq.merge(first, others, journal.messages(), key=lambda row: row[0]):
            bag.write(topic, kind, stamp, raw)
            copied += topic not in made
    return copied
