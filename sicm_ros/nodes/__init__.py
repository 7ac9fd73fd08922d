# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes: encoder on the vehicle, decoder elsewhere, KITTI player, overlay, viewer."""

import os
import sys

from sicm_ros.ros.stop_signals import end_at_once

# `python -m sicm_ros.nodes.NAME`: this is a node's process, and these are its first lines. Python has not put the
# module's file into sys.argv[0] yet.
if sys.argv[:1] == ["-m"]:
    end_at_once()
    # Without it, importing PyTorch ends the process with words about a library.
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working directory does not exist any more: change to another one", file=sys.stderr)
        sys.exit(2)
