# SPDX-License-Identifier: Apache-2.0
"""The decoder node, wherever the boxes are needed: packets in, 3D boxes out. With RViz, if wanted."""

from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("sicm_ros")
    config = PathJoinSubstitution([share, "config", "remote.yaml"])
    view = PathJoinSubstitution([share, "rviz", "sicm.rviz"])
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the vehicle to listen to"),
        DeclareLaunchArgument(
            "vehicles",
            default_value="['']",
            description="namespaces of several vehicles to serve, below this one's, such as [car1, car2]",
        ),
        DeclareLaunchArgument("params_file", default_value=config, description="YAML file with the node's parameters"),
        DeclareLaunchArgument("model", default_value="sicm-compact", description="the vehicle's model: name or folder"),
        DeclareLaunchArgument("device", default_value="cpu", description="where the network runs: cpu, cuda or cuda:N"),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            choices=["true", "false"],
            description="start RViz with boxes, images and frames",
        ),
        DeclareLaunchArgument("rviz_config", default_value=view, description="RViz configuration"),
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
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    decoder = Node(
        package="sicm_ros",
        executable="decoder_node",
        name="decoder_node",
        output="screen",
        emulate_tty=True,
        namespace=LaunchConfiguration("namespace"),
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
                "vehicles": ParameterValue(LaunchConfiguration("vehicles"), value_type=list[str]),
                "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
                "use_sim_time": use_sim_time,
            },
        ],
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        namespace=LaunchConfiguration("namespace"),
        condition=IfCondition(LaunchConfiguration("rviz")),
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[{"use_sim_time": use_sim_time}],
    )
    return LaunchDescription([*arguments, decoder, rviz])
