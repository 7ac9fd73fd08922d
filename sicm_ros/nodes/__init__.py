# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes: encoder on the vehicle, decoder elsewhere, KITTI player, overlay, viewer."""

import os
import signal
import sys

# These are the first lines of a node's process: `python -m sicm_ros.nodes.NAME` (Python has not put the module's file
# into sys.argv[0] yet), or an installed executable. Until StopSignals takes over, SIGINT and SIGTERM end it with status
# 0: what takes long are the imports, which leave nothing to clean up, and where an exception would print a traceback.
# The executables set the same handlers before their first import.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]).endswith("_node"):
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: os._exit(0))
    # Without it, importing PyTorch ends the process with words about a library.
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working directory does not exist any more: change to another one", file=sys.stderr)
        sys.exit(2)
