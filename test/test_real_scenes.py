# SPDX-License-Identifier: Apache-2.0
"""The shipped model on labelled camera images: what it finds there, and what packets lose or invent.

The bounds are what the shipped weights reach, with a little room for processors that round differently. New weights get
new bounds; a change that makes them worse has to be noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.detector import StereoDetector
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import KittiObject, KittiOdometry, StereoFrame
from sicm_ros.evaluation.recall import Found, count_found, count_invented
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import load_model

pytestmark = pytest.mark.slow

Detect = Callable[[Iterable[StereoFrame]], "Outcome"]


class Outcome(NamedTuple):
    """Cars at the model's threshold, and how many boxes packets have invented."""

    uncompressed: Found
    packets: Found
    invented: int


@pytest.fixture(scope="module")
def detect() -> Detect:
    model = load_model("sicm-compact")
    threshold = model.config.analysis.score_threshold
    detector = StereoDetector(model, score_threshold=threshold / 2)
    encoder, decoder = StereoEncoder(model), StereoDecoder(model)

    def run(frames: Iterable[StereoFrame]) -> Outcome:
        labels: list[list[Object3D]] = []
        plain: list[list[Object3D]] = []
        coded: list[list[Object3D]] = []
        for frame in frames:
            labels.append(frame.labels or [])
            plain.append(detector.detect(frame.left, frame.right, frame.rig))
            coded.append(decoder.decode(encoder.encode(frame.left, frame.right, frame.rig).packet).objects)
        return Outcome(
            count_found(labels, plain, threshold=threshold),
            count_found(labels, coded),
            count_invented(labels, coded, plain, threshold),
        )

    return run


def test_scenes_that_no_training_has_seen(detect: Detect, kitti_root: Path) -> None:
    frames = [frame for part in ("drives/singles", "object") for frame in KittiObject(kitti_root / part)]
    outcome = detect(frames)
    assert outcome.uncompressed.frames == 5 and outcome.uncompressed.wanted == 8
    assert outcome.uncompressed.found >= 5 and outcome.uncompressed.false <= 3
    assert outcome.packets.found >= 5 and outcome.packets.false <= 3
    assert outcome.invented == 0


def test_a_drive_of_the_training(detect: Detect, kitti_root: Path) -> None:
    frames = KittiObject(kitti_root / "drives" / "drive_0005")
    outcome = detect(frames[i] for i in range(0, len(frames), 6))
    assert outcome.uncompressed.frames == 11 and outcome.uncompressed.wanted == 6
    assert outcome.uncompressed.found >= 6 and outcome.uncompressed.false <= 6
    assert outcome.packets.found >= 6 and outcome.packets.false <= 6
    assert outcome.invented == 0


def test_packets_invent_nothing_in_a_sequence_without_labels(detect: Detect, kitti_root: Path) -> None:
    outcome = detect(KittiOdometry(kitti_root / "sequence_02"))
    assert outcome.packets.frames == 20
    assert outcome.packets.false <= 11  # no label: every box counts
    assert outcome.invented <= 1
