# SPDX-License-Identifier: Apache-2.0
"""One pair of a bag to a packet, and a packet to boxes: the work of one process, on a machine that needs no ROS."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from rosbags.highlevel import AnyReader

from sicm_ros.bags.reader import BagStereo, PairPlace, opened
from sicm_ros.bags.types import BagError
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.geometry import Object3D
from sicm_ros.inference import Engine
from sicm_ros.model_store import ModelError, load_model

__all__ = ["Coding", "Outcome", "Pair", "StereoBag", "bag_identity", "code_pair"]


@dataclass(frozen=True)
class StereoBag:
    """A bag of images, at the same absolute path on every machine. ``identity`` is ``bag_identity`` of it."""

    path: Path
    left_topic: str
    right_topic: str
    calib: Path | None
    identity: tuple[str, int, int]


@dataclass(frozen=True)
class Coding:
    """How pairs are coded. ``model``, a name or an absolute path, has the ``fingerprint`` on every machine; ``bag`` is
    None where there are packets already."""

    model: str
    fingerprint: int
    rate: float | None
    threshold: float | None
    detections: bool
    bag: StereoBag | None
    engine: Engine


@dataclass(frozen=True)
class Pair:
    """One pair on its way: where its images lie in the bag, or its packet; ``prefix`` begins the names of its boxes."""

    index: int
    recorded_ns: int
    stamp_ns: int
    frame_id: str
    prefix: str
    source: PairPlace | bytes


@dataclass
class Outcome:
    """The packet of a pair and its boxes, where they were asked for; or why there are none, in one line."""

    packet: bytes = b""
    raw_bytes: int = 0  # of the pixels of both views
    objects: list[Object3D] | None = None
    error: str = ""


def code_pair(pair: Pair, coding: Coding) -> Outcome:
    """Make the packet of a pair of images, and decode it where boxes are wanted.

    Raises BagError and ModelError if bag or model are not what they should be; what is wrong with the pair alone is in
    the result.
    """
    # PyTorch's number of threads and SQLite's connections are a thread's own, and a worker of Dask may have several.
    thread = threading.get_ident()
    encoder, decoder = _coders(coding, thread)
    outcome = Outcome()
    try:
        if isinstance(pair.source, bytes):
            outcome.packet = pair.source
        elif encoder is not None and coding.bag is not None:
            stereo, reader = _open(coding.bag, thread)
            frame = stereo.frame(reader, pair.source)
            outcome.raw_bytes = 2 * frame.left.size
            outcome.packet = encoder.encode(frame.left, frame.right, frame.rig).packet
        if decoder is not None:
            outcome.objects = decoder.decode(outcome.packet).objects
    except BagError:
        raise
    except ValueError as error:
        outcome.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return outcome


@lru_cache(maxsize=64)  # threads of a process
def _coders(coding: Coding, thread: int) -> tuple[StereoEncoder | None, StereoDecoder | None]:
    torch.set_num_threads(1)
    model = load_model(coding.model, ("both" if coding.bag else "remote") if coding.detections else "vehicle")
    if model.fingerprint != coding.fingerprint:
        raise ModelError(
            f"{socket.gethostname()}: model {coding.model}: expected the fingerprint {coding.fingerprint:016x}, as "
            f"where the command runs, found {model.fingerprint:016x}"
        )
    encoder = StereoEncoder(model, rate=coding.rate, engine=coding.engine) if coding.bag else None
    if not coding.detections:
        return encoder, None
    return encoder, StereoDecoder(model, score_threshold=coding.threshold, engine=coding.engine)


@lru_cache(maxsize=64)
def _open(bag: StereoBag, thread: int) -> tuple[BagStereo, AnyReader]:
    """A bag and its reader, which stays open until the process ends or has worked on other bags."""
    stereo = BagStereo(bag.path, bag.left_topic, bag.right_topic, calib=bag.calib)
    if bag_identity(bag.path) != bag.identity:
        raise BagError(f"{socket.gethostname()}: {bag.path}: expected the bag that the command found, this is another")
    return stereo, opened(bag.path).__enter__()


def bag_identity(path: Path) -> tuple[str, int, int]:
    """What tells a bag from another one, or from itself after a change: path, and size and time of its main file."""
    source = path / "metadata.yaml" if path.is_dir() else path
    return str(path.resolve()), source.stat().st_size, source.stat().st_mtime_ns
