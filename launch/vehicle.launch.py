# SPDX-License-Identifier: Apache-2.0
"""The encoder node, on the vehicle: rectified stereo images in, packets of a few kilobytes out."""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("sicm_ros"), "config", "vehicle.yaml"])
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the vehicle's topics and node"),
        DeclareLaunchArgument("params_file", default_value=config, description="YAML file with the node's parameters"),
        DeclareLaunchArgument("model", default_value="sicm-compact", description="name or folder of the model"),
        DeclareLaunchArgument("device", default_value="cpu", description="where the network runs: cpu, cuda or cuda:N"),
        DeclareLaunchArgument(
            "rate",
            default_value="-1.0",
            description="rate of the codec: 0.0 for the fewest bits, -1.0 for the model's default",
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
            default_value="true",
            choices=["true", "false"],
            description="configure and activate at start, or leave that to a lifecycle manager",
        ),
        DeclareLaunchArgument(
            "respawn", default_value="true", choices=["true", "false"], description="start the node again if it dies"
        ),
        DeclareLaunchArgument("enclave", default_value="/", description="security enclave of the node (SECURITY.md)"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=["true", "false"], description="take the time from /clock"
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="lowest level of what is logged",
        ),
    ]
    topics = [
        (f"{side}/{name}", [LaunchConfiguration(side), "/", target])
        for side in ("left", "right")
        for name, target in (("image_rect", LaunchConfiguration("image")), ("camera_info", "camera_info"))
    ]
    encoder = Node(
        package="sicm_ros",
        executable="encoder_node",
        name="encoder_node",
        output="screen",
        emulate_tty=True,
        namespace=LaunchConfiguration("namespace"),
        remappings=topics,
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=2.0,
        arguments=[
            "--ros-args",
            "--log-level",
            LaunchConfiguration("log_level"),
            "--enclave",
            LaunchConfiguration("enclave"),
        ],
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "model": ParameterValue(LaunchConfiguration("model"), value_type=str),
                "device": ParameterValue(LaunchConfiguration("device"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
                "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool),
            },
        ],
    )
    return LaunchDescription([*arguments, encoder])
