# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: one CPU thread, a ROS domain of our own, and where real KITTI images may lie."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from sicm_ros.ros.domain import own_domain

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch or rclpy is imported anywhere. Two test runs on one machine must not hear each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(own_domain())
os.environ.pop("ROS_LOCALHOST_ONLY", None)
# Without it, images of a busy machine's tests arrive seconds late (the file says why).
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(REPOSITORY / "config" / "fastdds_images.xml"))

# A script that starts the tests in the background leaves them, and every process that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test has a time limit of its own: machines differ, and are busy.
settings.register_profile("sicm_ros", deadline=None)
settings.load_profile("sicm_ros")


@pytest.fixture(scope="session")
def kitti_root() -> Path:
    """The folder with real KITTI images: $SICM_KITTI_ROOT, or ../shared/data/kitti."""
    root = Path(os.environ.get("SICM_KITTI_ROOT") or REPOSITORY.parent / "shared" / "data" / "kitti")
    if not (root / "object" / "training" / "image_2").is_dir():
        pytest.skip(f"no KITTI images at {root} (set SICM_KITTI_ROOT)")
    return root
