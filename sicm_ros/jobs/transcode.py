# SPDX-License-Identifier: Apache-2.0
"""A bag's stereo images to packets, and packets to boxes: offline, on all cores, resumable after a kill."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import shutil
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from std_msgs.msg import Header

from sicm_ros.bags.reader import BagStereo, opened, raw_messages
from sicm_ros.bags.types import BITSTREAM_TYPE, BagError, Storage
from sicm_ros.bags.writer import BagWriter
from sicm_ros.codec.encoder import checked_rate
from sicm_ros.codec.packet import PacketError
from sicm_ros.conversion.boxes import detection_array, label_info, marker_array
from sicm_ros.conversion.codec_info import codec_info
from sicm_ros.conversion.stamps import nanoseconds, time_fields
from sicm_ros.geometry import Object3D, StereoRig
from sicm_ros.jobs.journal import Journal
from sicm_ros.jobs.worker_pool import worker_pool
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


@dataclass
class _Item:
    """One pair on its way: images with their rig, or a packet."""

    index: int
    recorded_ns: int
    header: tuple[int, str]  # stamp in nanoseconds, frame
    right_stamp_ns: int = 0
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    rig: StereoRig | None = None
    packet: bytes = b""
    prefix: str = ""


@dataclass
class _Outcome:
    packet: bytes = b""
    stage_ms: dict[str, float] = field(default_factory=dict)
    objects: list[Object3D] | None = None
    error: str = ""


# --------------------------------------------------------------------------------------------------------- in workers

_work: Callable[[_Item], _Outcome]


def _start_worker(model: str, rate: float | None, threshold: float | None, target: Target, threads: int) -> None:
    import torch

    from sicm_ros.codec.decoder import StereoDecoder
    from sicm_ros.codec.encoder import StereoEncoder

    torch.set_num_threads(threads)
    encoder = StereoEncoder(model, rate=rate)
    decoder = StereoDecoder(model, score_threshold=threshold) if target == "detections" else None

    def work(item: _Item) -> _Outcome:
        outcome = _Outcome(item.packet)
        try:
            if item.left is not None and item.right is not None and item.rig is not None:
                encoded = encoder.encode(item.left, item.right, item.rig)
                outcome = _Outcome(encoded.packet, encoded.stage_ms)
            if decoder is not None:
                outcome.objects = decoder.decode(outcome.packet).objects
        except (PacketError, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return outcome

    global _work
    _work = work


def _work_on(item: _Item) -> _Outcome:
    return _work(item)


# ----------------------------------------------------------------------------------------------------------- messages


def _header(stamp_ns: int, frame: str = "") -> Header:
    return Header(stamp=_time(stamp_ns), frame_id=frame)


def _time(stamp_ns: int) -> Time:
    return Time(**time_fields(stamp_ns))


def _image_items(stereo: BagStereo, session: int, done: set[int]) -> Iterator[_Item]:
    for index, (frame, frame_id, recorded_ns) in enumerate(stereo.recorded()):
        if index not in done:
            yield _Item(
                index,
                recorded_ns,
                (frame.stamp_ns, frame_id),
                frame.right_stamp_ns,
                frame.left,
                frame.right,
                frame.rig,
                prefix=f"{session:016x}-{index}",
            )


def _packet_items(reader: AnyReader, path: Path, topic: str, done: set[int]) -> Iterator[_Item]:
    connections = [c for c in reader.connections if c.topic == topic]
    for index, (_, recorded_ns, raw) in enumerate(raw_messages(reader, path, connections)):
        if index not in done:
            message = deserialize_message(raw, StereoBitstream)
            yield _Item(
                index,
                recorded_ns,
                (nanoseconds(message.header.stamp), message.header.frame_id),
                packet=message.data.tobytes(),
                prefix=f"{message.session:016x}-{message.sequence}",
            )


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
) -> Transcoded:
    """Write bag ``out``: bag ``path`` with its stereo images replaced by packets, and with boxes if these are wanted.

    A bag that already has packets keeps them and gets boxes. Other topics are copied. Finished pairs are kept in
    ``out`` + ".part" until the bag is complete, and a second call with the same arguments goes on from there. Raises
    BagError, ModelError and InputError; a pair that cannot be coded is dropped and counted.
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
            "source": _identity(path),
            "target": target,
            "fingerprint": f"{stored.fingerprint:016x}",
            "rate": rate,
            "threshold": threshold,
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
            items = _packet_items(reader, path, packets, done)
        else:
            root = "/" + namespace.strip("/") if namespace.strip("/") else ""
            total, replaced = len(stereo), set(stereo.topics.values())
            items = _image_items(stereo, session, done)
        arguments = (str(stored.path), rate, threshold, target, 1)
        # Closed at once, and its workers with it, whatever happens in the loop.
        results = stack.enter_context(closing(_results(items, workers, arguments)))
        for count, (item, outcome) in enumerate(results, len(done) + 1):
            _keep(journal, item, outcome, root, session)
            if progress is not None:
                progress(count, max(total, count))
        drops = Counter({"no partner": stereo.drops} if stereo is not None and stereo.drops else {})
        first = _latched(reader, stored, root, target, threshold, new_packets=not packets)
        copied = _assemble(reader, path, journal, first, part / out.name, storage, replaced)
        pairs, size, raw, boxes, errors = journal.sums()
    (part / out.name).rename(out)
    shutil.rmtree(part)
    return Transcoded(pairs, size, raw, boxes, copied, dict(drops + errors))


def _leave(journal: Journal, part: Path, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
    """At a failure or an interruption: keep finished pairs, and say so; without any, leave nothing behind."""
    if error is None:
        return
    kept = len(journal.done())
    if not kept:
        shutil.rmtree(part, ignore_errors=True)
    elif isinstance(error, BagError):
        raise BagError(f"{error}; {kept} pairs are kept in {part}: the same command goes on from there") from None


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


def _identity(path: Path) -> list[str | int]:
    """What tells a bag from another one, or from itself after a change."""
    source = path / "metadata.yaml" if path.is_dir() else path
    return [str(path.resolve()), source.stat().st_size, source.stat().st_mtime_ns]


def _count(reader: AnyReader, topic: str) -> int:
    return sum(c.msgcount for c in reader.connections if c.topic == topic)


def _keep(journal: Journal, item: _Item, outcome: _Outcome, root: str, session: int) -> None:
    """Note a finished pair with its messages, whose topics begin with ``root``; or why it could not be coded."""
    raw = 0 if item.left is None else 2 * item.left.size
    sizes = (len(outcome.packet), raw, len(outcome.objects or []))
    made = [] if outcome.error else _messages(item, outcome, session)
    rows = [(item.recorded_ns, f"{root}/{name}", kind, bytes(serialize_message(m))) for name, kind, m in made]
    journal.add(item.index, sizes, outcome.error, rows)


def _messages(item: _Item, outcome: _Outcome, session: int) -> list[tuple[str, str, Any]]:
    """Name of the topic, type and message: the packet of images, and the boxes where they were asked for."""
    header = _header(*item.header)
    made: list[tuple[str, str, Any]] = []
    if item.left is not None:
        stages = ("preprocess", "backbone", "smfc", "entropy")
        packet = StereoBitstream(
            header=header,
            right_stamp=_time(item.right_stamp_ns),
            session=session,
            sequence=item.index,
            sync_ms=0.0,
            data=array("B", outcome.packet),
            **{f"{name}_ms": float(outcome.stage_ms[name]) for name in stages},
        )
        made.append(("stereo_bitstream", BITSTREAM_TYPE, packet))
    if outcome.objects is not None:
        boxes = detection_array(header, outcome.objects, item.prefix)
        made.append(("detections", "vision_msgs/msg/Detection3DArray", boxes))
        markers = marker_array(header, outcome.objects)
        made.append(("detection_markers", "visualization_msgs/msg/MarkerArray", markers))
    return made


def _results(items: Iterator[_Item], workers: int, arguments: tuple) -> Generator[tuple[_Item, _Outcome], None, None]:
    """Every item with what became of it, in order; few are in memory at a time."""
    if workers <= 1:
        _start_worker(*arguments)
        for item in items:
            yield item, _work_on(item)
        return
    with _told(), worker_pool(workers, _start_worker, arguments) as submit:
        waiting: deque[tuple[_Item, Future[_Outcome]]] = deque()
        for item in items:
            waiting.append((item, submit(_work_on, item)))
            if len(waiting) > 2 * workers:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


@contextmanager
def _told() -> Iterator[None]:
    """A worker that was killed, say for its memory, is a BagError."""
    try:
        yield
    except BrokenProcessPool:
        raise BagError("a worker process was killed: is there memory for so many workers (--workers)?") from None


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
    return [
        (reader.start_time, -1, f"{root}/{name}", kind, bytes(serialize_message(message)))
        for name, kind, message in made
    ]


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
