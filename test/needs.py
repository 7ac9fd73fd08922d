# SPDX-License-Identifier: Apache-2.0
"""Which packages a test module misses in this environment.

A module that misses one must still be importable: launch_testing's hook imports every module while it looks for launch
tests, and a skip there skips the whole folder. So a module puts the imports concerned under ``if not MISSING:`` and has
``pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)``.
"""

import importlib.util

# What starts nodes, or makes their messages.
NODES = ("rclpy", "message_filters", "sicm_ros.msg", "vision_msgs.msg")


def missing(*modules: str) -> str:
    """Words that name those of the modules that are not there; empty if all are."""
    absent = [name for name in modules if not _is_there(name)]
    return f"not in this environment: {', '.join(absent)}" if absent else ""


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
