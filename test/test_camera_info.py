# SPDX-License-Identifier: Apache-2.0
"""Camera infos, the rigs that they make, and the frames of the cameras."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from sicm_ros.conversion.camera_info import CameraInfoError, RigCache, camera_info_fields
from sicm_ros.conversion.frames import static_transforms
from sicm_ros.geometry import StereoRig

RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)


def info(side, rig=RIG, width=1242, height=375, stamp=(0, 0), **change):
    fields = {
        "header": SimpleNamespace(stamp=SimpleNamespace(sec=stamp[0], nanosec=stamp[1])),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
        **camera_info_fields(rig, side, width, height),
        **change,
    }
    return SimpleNamespace(**fields)


def rig_of(cache, stamp_ns, **options):
    """The rig of two images of KITTI's size and one stamp."""
    return cache.rig(
        dict.fromkeys(("left", "right"), (1242, 375)), dict.fromkeys(("left", "right"), stamp_ns), **options
    )


def test_rig_survives_the_camera_infos_left_translation_included():
    cache = RigCache()
    cache.update("left", info("left"))
    assert cache.missing() == ["right"]
    cache.update("right", info("right"))
    assert rig_of(cache, 0) == RIG
    assert rig_of(cache, 0).baseline == pytest.approx(0.5327, abs=1e-4)


@pytest.mark.parametrize(
    ("side", "change", "words"),
    [
        ("left", {"p": [0.0] * 12}, "left/camera_info: p: expected positive focal lengths"),
        ("right", {"p": [1.0] * 11}, "right/camera_info: p: expected 12 finite numbers"),
        ("right", {"p": [math.nan] * 12}, "right/camera_info: p: expected 12 finite numbers"),
        ("left", {"binning_x": 2}, "left/camera_info: binning"),
        ("left", {"roi": SimpleNamespace(x_offset=10, y_offset=0, width=100, height=100)}, "left/camera_info: roi"),
    ],
)
def test_bad_camera_infos_are_refused_and_the_last_good_one_stays(side, change, words):
    cache = RigCache()
    for each in ("left", "right"):
        cache.update(each, info(each))
    with pytest.raises(CameraInfoError, match=words):
        cache.update(side, info(side, **change))
    assert rig_of(cache, 0) == RIG


def test_camera_infos_that_make_no_rig():
    cache = RigCache()
    with pytest.raises(CameraInfoError, match="left/camera_info: no message yet; right/camera_info: no message yet"):
        rig_of(cache, 0)
    cache.update("left", info("left"))
    cache.update("right", info("left"))
    with pytest.raises(CameraInfoError, match="baseline"):
        rig_of(cache, 0)
    cache.update("right", info("right", width=640, height=480))
    with pytest.raises(CameraInfoError, match="right/camera_info: width, height: expected 1242x375, .* got 640x480"):
        rig_of(cache, 0)


def test_a_camera_that_repeats_itself_has_one_rig_that_is_made_once():
    cache = RigCache()
    for second in range(2):
        for side in ("left", "right"):
            cache.update(side, info(side, stamp=(second, 0)))
    first = rig_of(cache, 0)
    assert rig_of(cache, 10**9) is first
    cache.update("left", info("left", stamp=(2, 0), p=[*RIG.p_left.ravel()[:11], 0.5]))
    cache.update("right", info("right", stamp=(2, 0)))
    assert rig_of(cache, 2 * 10**9).left_translation[2] == 0.5


def test_each_camera_info_is_of_the_size_of_its_own_image():
    cache = RigCache()
    cache.update("left", info("left"))
    cache.update("right", info("right", height=374))
    stamps = {"left": 0, "right": 0}
    assert cache.rig({"left": (1242, 375), "right": (1242, 374)}, stamps) == RIG
    with pytest.raises(CameraInfoError, match="right/camera_info: width, height: expected 1242x375, .* got 1242x374"):
        cache.rig({"left": (1242, 375), "right": (1242, 375)}, stamps)


def test_a_pair_uses_the_calibration_of_its_own_stamp_else_the_latest():
    """KITTI's object benchmark has another calibration for each frame."""
    other = StereoRig(707.0, 707.0, 600.0, 180.0, (45.0, 0.0, 0.0), (-330.0, 0.0, 0.0))
    cache = RigCache(depth=2)
    for second, rig in enumerate((RIG, other)):
        for side in ("right", "left"):
            cache.update(side, info(side, rig, stamp=(second, 5)))
    assert rig_of(cache, 5) == RIG
    assert rig_of(cache, 1_000_000_005) == other
    assert rig_of(cache, 77) == other
    for side in ("right", "left"):
        cache.update(side, info(side, other, stamp=(2, 5)))
    assert rig_of(cache, 5) == other  # two are kept


def test_a_late_camera_info_is_waited_for_but_not_again_and_again():
    cache = RigCache()
    other = StereoRig(707.0, 707.0, 600.0, 180.0, (45.0, 0.0, 0.0), (-330.0, 0.0, 0.0))

    def send(second, rig):
        for side in ("left", "right"):
            cache.update(side, info(side, rig, stamp=(second, 0)))

    timer = threading.Timer(0.1, send, (1, RIG))
    timer.start()
    assert rig_of(cache, 10**9, wait_s=30) == RIG
    timer.join()
    timer = threading.Timer(0.1, send, (2, other))
    timer.start()
    assert rig_of(cache, 2 * 10**9, wait_s=30) == other
    timer.join()
    assert rig_of(cache, 99, wait_s=0.05) == other
    assert rig_of(cache, 100, wait_s=1e5) == other  # waiting was in vain the last time
    # One that comes later than its pair was asked for shows that waiting is worth it again.
    assert rig_of(cache, 3 * 10**9, wait_s=30) == other
    send(3, RIG)
    timer = threading.Timer(0.1, send, (4, other))
    timer.start()
    assert rig_of(cache, 4 * 10**9, wait_s=30) == other
    timer.join()


def test_baseline_parameter_stands_in_for_a_lost_translation():
    cache = RigCache(baseline=0.54)
    cache.update("left", info("left"))
    cache.update("right", info("left"))
    assert rig_of(cache, 0).baseline == pytest.approx(0.54)


def test_cameras_stand_where_their_matrices_say():
    base, left, right = static_transforms(RIG)
    assert (base.parent, base.child) == ("base_link", "camera_0_optical")
    for transform, p in ((left, RIG.p_left), (right, RIG.p_right)):
        assert np.allclose(p @ [*transform.translation, 1.0], 0, atol=1e-9)
    assert left.translation[0] == pytest.approx(-0.0598, abs=1e-3)
    assert right.translation[0] == pytest.approx(0.473, abs=1e-3)
