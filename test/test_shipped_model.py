# SPDX-License-Identifier: Apache-2.0
"""The model in the repository: its size, its packets on real pairs, what it finds on rendered frames of a new seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.detector import StereoDetector
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import KittiObject, KittiOdometry
from sicm_ros.evaluation.recall import count_found
from sicm_ros.model_store import StoredModel, load_model
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair


@pytest.fixture(scope="module")
def model() -> StoredModel:
    torch.set_num_threads(1)
    return load_model("sicm-compact")


def test_weights_are_small_enough_to_travel_and_the_card_names_them(model: StoredModel) -> None:
    assert (model.path / "weights.safetensors").stat().st_size <= 24_000_000
    assert f"{model.fingerprint:016x}" in (model.path / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_packets_of_real_pairs_average_at_most_three_kilobytes(model: StoredModel, kitti_root: Path) -> None:
    encoder, decoder = StereoEncoder(model), StereoDecoder(model)
    frames = [*KittiObject(kitti_root / "object"), *(f for f in KittiOdometry(kitti_root / "sequence_02"))]
    sizes, bits = [], []
    for frame in frames:
        coded = encoder.encode(frame.left, frame.right, frame.rig)
        decoder.decode(coded.packet)
        sizes.append(len(coded.packet))
        bits.append(coded.estimated_bits / 8)
    assert len(sizes) == 22
    assert np.mean(sizes) <= 3000
    # What the likelihoods promise is what the coder writes; 77 bytes are header and trailer.
    assert np.sum(sizes) - 77 * len(sizes) == pytest.approx(np.sum(bits), rel=0.02)


def test_bytes_rise_with_the_rate(model: StoredModel) -> None:
    encoder = StereoEncoder(model)
    pair = render_pair(random_layout(np.random.default_rng(5), KITTI_RIG, *KITTI_SIZE), KITTI_RIG, *KITTI_SIZE, 5)
    sizes = [len(encoder.encode(pair.left, pair.right, KITTI_RIG, rate=r).packet) for r in np.arange(0, 5.01, 0.5)]
    assert sizes == sorted(sizes) and sizes[-1] > 8 * sizes[0]


@pytest.mark.slow
def test_cars_are_found_on_rendered_frames_before_and_after_compression(model: StoredModel) -> None:
    detector, encoder, decoder = StereoDetector(model), StereoEncoder(model), StereoDecoder(model)
    labels, plain, coded = [], [], []
    for i in range(12):
        rng = np.random.default_rng((77, i))
        layout = random_layout(rng, KITTI_RIG, *KITTI_SIZE)
        pair = render_pair(layout, KITTI_RIG, *KITTI_SIZE, int(rng.integers(2**31)))
        labels.append(pair.labels)
        plain.append(detector.detect(pair.left, pair.right, KITTI_RIG))
        coded.append(decoder.decode(encoder.encode(pair.left, pair.right, KITTI_RIG).packet).objects)
    uncompressed, compressed = count_found(labels, plain), count_found(labels, coded)
    assert uncompressed.wanted >= 15
    assert uncompressed.recall >= 0.75
    assert compressed.recall >= 0.8 * uncompressed.recall
