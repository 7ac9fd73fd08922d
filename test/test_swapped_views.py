# SPDX-License-Identifier: Apache-2.0
"""Swapped left and right images are noticed; everything else is not taken for them."""

import numpy as np
import pytest
from kitti_material import ROOT, needs_kitti

from sicm_ros.codec.input_warnings import pair_warnings
from sicm_ros.codec.swapped_views import SWAPPED_WARNING, views_swapped
from sicm_ros.data.kitti import KittiObject, open_source
from sicm_ros.data.rendered import rendered_frames
from sicm_ros.model_store import load_model

REAL = ("object", "sequence_02", "drives/drive_0005", "drives/singles", "drives/unlabelled")


def check(frames):
    count = 0
    for frame in frames:
        assert views_swapped(frame.left, frame.right) is False, frame.name
        assert views_swapped(frame.right, frame.left) is True, frame.name
        count += 1
    return count


@pytest.mark.slow
def test_rendered_pairs():
    assert check(rendered_frames(3, seed=11)) == 3


@needs_kitti
@pytest.mark.slow
def test_real_pairs():
    sources = [open_source(ROOT / name) for name in REAL if (ROOT / name).is_dir()]
    # One after another of a drive show the same scene.
    frames = [source[i] for source in sources for i in range(0, len(source), 3 if len(source) > 20 else 1)]
    assert check(frames) >= 20


@needs_kitti
def test_real_pairs_in_grey_in_bad_light_and_with_noise():
    source = KittiObject(ROOT / "object")
    rng = np.random.default_rng(2)
    for frame in (source[i] for i in range(len(source))):
        views = [np.repeat(view.mean(-1, keepdims=True), 3, -1) for view in (frame.left, frame.right)]
        dark = [np.clip(view * gain + rng.normal(0, 3, view.shape), 0, 255).astype(np.uint8)
                for view, gain in zip(views, (0.3, 0.25), strict=True)]  # fmt: skip
        assert views_swapped(*dark) is False and views_swapped(*dark[::-1]) is True
        small = [np.ascontiguousarray(view[::4, ::4]) for view in (frame.left, frame.right)]
        assert views_swapped(*small) is False and views_swapped(*small[::-1]) is True


def test_images_that_do_not_tell():
    rng = np.random.default_rng(3)
    noise = [rng.integers(0, 256, (375, 1242, 3), np.uint8) for _ in range(2)]
    stripes = np.broadcast_to(np.uint8(120 + 100 * np.sin(np.arange(1242) / 12))[None, :, None], (375, 1242, 3))
    for left, right in (
        noise,
        (noise[0], noise[0]),  # one camera twice
        (np.zeros((375, 1242, 3), np.uint8),) * 2,  # the lens caps are on
        (np.full((375, 1242, 3), 255, np.uint8), noise[0]),
        (stripes, np.roll(stripes, -5, 1)),  # a fence
        (np.roll(noise[0], 300, 1), noise[0]),  # nothing matches
        (noise[0][:8, :8], noise[1][:8, :8]),
        (noise[0][:1, :1], noise[1][:1, :1]),
    ):
        left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        assert not views_swapped(left, right) and not views_swapped(right, left)


@needs_kitti
def test_the_warnings_of_a_pair():
    frame = KittiObject(ROOT / "object")[0]
    model = load_model("sicm-compact", "vehicle")
    assert pair_warnings(model, frame.left, frame.right, frame.rig) == []
    assert pair_warnings(model, frame.right, frame.left, frame.rig) == [SWAPPED_WARNING]
    half = frame.rig.scaled(0.5, 0.5)
    (words,) = pair_warnings(model, frame.left, frame.right, half)
    assert words.startswith("focal length times baseline is 0.5")
