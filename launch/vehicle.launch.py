# SPDX-License-Identifier: Apache-2.0
"""The encoder node, on the vehicle: rectified stereo images in, packets of a few kilobytes out."""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from sicm_ros.ros.launch_nodes import node
from sicm_ros.ros.launch_values import ENCODER


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("sicm_ros"), "config", "vehicle.yaml"])
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the vehicle's topics and node"),
        DeclareLaunchArgument("params_file", default_value=config, description="YAML file with the node's parameters"),
        DeclareLaunchArgument(
            "model", default_value="", description="name or folder of the model; default: of params_file"
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
            "rate",
            default_value="",
            description="rate of the codec: 0 for the fewest bits, -1 for the model's default; default: of params_file",
        ),
        DeclareLaunchArgument(
            "max_bitrate",
            default_value="",
            description="bits per second that packets may take on the wire, 0 for no limit; default: of params_file",
        ),
        DeclareLaunchArgument(
            "sync",
            default_value="",
            description="how images are paired by their stamps: exact or approximate; default: of params_file",
        ),
        DeclareLaunchArgument(
            "image_transport",
            default_value="",
            description="raw, or compressed for images below .../compressed; default: of params_file",
        ),
        DeclareLaunchArgument(
            "left", default_value="left", description="namespace of the left camera's image_rect and camera_info"
        ),
        DeclareLaunchArgument(
            "right", default_value="right", description="namespace of the right camera's image_rect and camera_info"
        ),
        DeclareLaunchArgument("image", default_value="image_rect", description="name of the images in both namespaces"),
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
    topics = [
        (f"{side}/{name}", f"{given[side]}/{target}")
        for side in ("left", "right")
        for name, target in (("image_rect", given["image"]), ("camera_info", "camera_info"))
    ]
    return [node("encoder_node", given, ENCODER, "params_file", remappings=topics)]
