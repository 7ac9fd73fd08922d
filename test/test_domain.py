# SPDX-License-Identifier: Apache-2.0
"""The ROS domain that the tests and the demo take for themselves."""

import os
import subprocess
import sys

import pytest

CODE = "from sicm_ros.ros.domain import own_domain; print(own_domain()['ROS_DOMAIN_ID'], flush=True); input()"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def taker():
    """A process that holds a domain until its input ends."""
    command = [sys.executable, "-c", CODE]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_no_two_programs_have_the_same_domain():
    takers = [taker() for _ in range(4)]
    domains = [int(process.stdout.readline()) for process in takers]
    for process in takers:
        process.communicate("\n")
    assert len({*domains, int(os.environ["ROS_DOMAIN_ID"])}) == 5 and all(1 <= d <= 100 for d in domains)
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"


def test_a_domain_in_which_somebody_listens_is_not_taken():
    """The first one that is free, twice: once taken by a ROS node that knows nothing of locks."""
    pytest.importorskip("rclpy", reason="no ROS 2 in this environment")
    process = taker()
    domain = process.stdout.readline().strip()
    process.communicate("\n")
    code = "import rclpy; rclpy.init(); node = rclpy.create_node('stranger'); print(flush=True); input()"
    stranger = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "ROS_DOMAIN_ID": domain},
    )
    try:
        stranger.stdout.readline()
        process = taker()
        assert process.stdout.readline().strip() != domain
        process.communicate("\n")
    finally:
        stranger.communicate("\n")
