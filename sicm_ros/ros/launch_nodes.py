# SPDX-License-Identifier: Apache-2.0
"""The nodes as actions of the launch files.

A launch file makes all of its actions before the first process starts: where one raises after another has started, ros2
launch ends at once and leaves the started ones behind. Bad arguments raise ValueError; ros2 launch prints its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import EmitEvent
from launch.events import matches_action
from launch.events.process import ProcessExited, ShutdownProcess
from launch.launch_context import LaunchContext
from launch.logging import get_logger
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from sicm_ros.ros.launch_values import existing_file, typed
from sicm_ros.ros.rviz_view import write_view

__all__ = ["BAD_CONFIGURATION", "node", "rviz"]

BAD_CONFIGURATION = 2  # exit status of a node that another start would not help
_RESPAWN_DELAY_S = 2.0


def node(
    executable: str,
    arguments: Mapping[str, str],
    kinds: Mapping[str, Callable[[str], Any]],
    params_file: str = "",
    on_exit: Callable[[ProcessExited, LaunchContext], Any] | None = None,
    **more: Any,
) -> Node:
    """The action that starts a node of this package.

    ``arguments`` are the launch file's: ``namespace``, ``log_level``, those of ``kinds`` for parameters (over those in
    ``arguments[params_file]``), and where it has them ``enclave`` and ``respawn``. A node that is to be started again
    ends for good when its configuration is bad. ``more`` goes to launch_ros. Raises ValueError for bad arguments.
    """
    respawn = arguments.get("respawn") == "true"
    files = [existing_file(params_file, arguments[params_file])] if params_file else []
    enclave = ["--enclave", arguments["enclave"]] if "enclave" in arguments else []
    values = {name: _described(value) for name, value in typed(kinds, arguments).items()}
    return Node(
        package="sicm_ros",
        executable=executable,
        name=executable,
        namespace=arguments["namespace"],
        output="screen",
        emulate_tty=True,
        arguments=["--ros-args", "--log-level", arguments["log_level"], *enclave],
        parameters=[*files, *([values] if values else [])],
        respawn=respawn,
        respawn_delay=_RESPAWN_DELAY_S,
        on_exit=_end_for_good if respawn else on_exit,
        **more,
    )


def _described(value: Any) -> Any:
    """Texts as such, since launch_ros would take those that look like numbers for numbers."""
    if isinstance(value, list):
        return ParameterValue(yaml.safe_dump(value, default_flow_style=True).strip(), value_type=list[str])
    return ParameterValue(value, value_type=str) if isinstance(value, str) else value


def _end_for_good(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
    if event.returncode != BAD_CONFIGURATION:
        return None
    return EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))


def rviz(
    namespace: str,
    view: str = "",
    fixed_frame: str = "",
    image: str = "",
    use_sim_time: bool = False,
) -> Sequence[Node]:
    """RViz with the package's view or ``view``, changed as in ``write_view``. None, and a warning, where it is missing.

    Raises ValueError for a view that cannot be read.
    """
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        get_logger("sicm_ros").warning("RViz is not started: the package rviz2 is not installed")
        return []
    folder = Path(get_package_share_directory("sicm_ros")) / "rviz"
    path = write_view(view or folder / "sicm.rviz", folder / "class_colours.yaml", fixed_frame, image)
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz2",
            namespace=namespace,
            arguments=["-d", str(path)],
            parameters=[{"use_sim_time": use_sim_time}],
        )
    ]
