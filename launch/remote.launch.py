# SPDX-License-Identifier: Apache-2.0
"""The decoder node, wherever the boxes are needed: packets in, 3D boxes out. With RViz, if wanted."""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from sicm_ros.ros.launch_nodes import node, rviz
from sicm_ros.ros.launch_values import DECODER


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("sicm_ros"), "config", "remote.yaml"])
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the vehicle to listen to"),
        DeclareLaunchArgument(
            "vehicles",
            default_value="",
            description="namespaces of several vehicles to serve, below this one's, such as [car1, car2]; "
            "default: of params_file",
        ),
        DeclareLaunchArgument("params_file", default_value=config, description="YAML file with the node's parameters"),
        DeclareLaunchArgument(
            "model", default_value="", description="the vehicle's model: name or folder; default: of params_file"
        ),
        DeclareLaunchArgument(
            "device",
            default_value="",
            description="where the network runs: cpu, cuda or cuda:N; default: of params_file",
        ),
        DeclareLaunchArgument(
            "engine",
            default_value="",
            description="what runs the network: auto, torch or openvino; default: of params_file",
        ),
        DeclareLaunchArgument(
            "score_threshold",
            default_value="",
            description="least score of a box, -1 for the model's default; default: of params_file",
        ),
        DeclareLaunchArgument(
            "rviz", default_value="false", choices=["true", "false"], description="start RViz with boxes and frames"
        ),
        DeclareLaunchArgument(
            "rviz_config", default_value="", description="RViz configuration; default: rviz/sicm.rviz of this package"
        ),
        DeclareLaunchArgument(
            "fixed_frame",
            default_value="",
            description="RViz' fixed frame: one to which TF has a way from the images' frame, or the images' frame "
            "itself; default: of rviz_config, base_link in this package's",
        ),
        DeclareLaunchArgument(
            "image",
            default_value="",
            description="topic of images to show in RViz, such as left/image_rect/compressed, as it is called on the "
            "vehicle; these images cross the link; default: none",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="",
            description="true to configure and activate at start, false to leave that to a lifecycle manager; "
            "default: of params_file, else true",
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="true",
            choices=["true", "false"],
            description="start the node again if it dies, unless its configuration is bad",
        ),
        DeclareLaunchArgument("enclave", default_value="/", description="security enclave of the node (SECURITY.md)"),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            description="true to take the time from /clock; default: of params_file, else false",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="lowest level of what is logged",
        ),
    ]
    names = [argument.name for argument in arguments]
    return LaunchDescription([*arguments, OpaqueFunction(function=start, args=[names])])


def start(context: LaunchContext, names: list[str]) -> list[Node]:
    given = {name: context.launch_configurations[name] for name in names}
    view = (
        rviz(
            given["namespace"],
            given["rviz_config"],
            given["fixed_frame"],
            given["image"],
            given["use_sim_time"] == "true",
        )
        if given["rviz"] == "true"
        else []
    )
    return [node("decoder_node", given, DECODER, "params_file"), *view]
