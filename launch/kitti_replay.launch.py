# SPDX-License-Identifier: Apache-2.0
"""KITTI or a bag through encoder and decoder on one machine, with RViz.

ros2 launch sicm_ros kitti_replay.launch.py path:=KITTI/object
"""

from launch.actions import DeclareLaunchArgument, EmitEvent, GroupAction, IncludeLaunchDescription, RegisterEventHandler
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("sicm_ros")
    profile = PathJoinSubstitution([share, "config", "fastdds_images.xml"])
    arguments = [
        DeclareLaunchArgument("path", description="KITTI object folder, raw drive, odometry sequence, or a rosbag2"),
        DeclareLaunchArgument("frequency", default_value="0.0", description="pairs per second; 0.0: the source's own"),
        DeclareLaunchArgument(
            "loop", default_value="false", choices=["true", "false"], description="start over at the end"
        ),
        DeclareLaunchArgument(
            "lockstep",
            default_value="false",
            choices=["true", "false"],
            description="send the next pair only when the boxes of the last one are back",
        ),
        DeclareLaunchArgument("left_topic", default_value="", description="left image topic of a bag; else found"),
        DeclareLaunchArgument("right_topic", default_value="", description="right image topic of a bag; else found"),
        DeclareLaunchArgument("calib", default_value="", description="KITTI calibration for a bag without camera_info"),
        DeclareLaunchArgument(
            "player_params_file",
            default_value=PathJoinSubstitution([share, "config", "kitti_player.yaml"]),
            description="YAML file with further parameters of the player",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of all topics and nodes"),
        DeclareLaunchArgument("model", default_value="sicm-compact", description="name or folder of the model"),
        DeclareLaunchArgument("device", default_value="cpu", description="where the networks run: cpu, cuda or cuda:N"),
        DeclareLaunchArgument(
            "rate",
            default_value="-1.0",
            description="rate of the codec: 0.0 for the fewest bits, -1.0 for the model's default",
        ),
        DeclareLaunchArgument(
            "overlay",
            default_value="true",
            choices=["true", "false"],
            description="publish the left image with the boxes drawn into it, for whoever subscribes",
        ),
        DeclareLaunchArgument("rviz", default_value="true", choices=["true", "false"], description="start RViz"),
        DeclareLaunchArgument(
            "shutdown",
            default_value="false",
            choices=["true", "false"],
            description="end everything when the source has been played",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="lowest level of what is logged",
        ),
    ]

    def include(name: str, **more: LaunchConfiguration) -> GroupAction:
        # In a group, because the arguments of an included file would else replace ours of the same name.
        same = {key: LaunchConfiguration(key) for key in ("namespace", "model", "device", "log_level")}
        source = PythonLaunchDescriptionSource(PathJoinSubstitution([share, "launch", name]))
        values = {**same, "respawn": "false", **more}
        return GroupAction([IncludeLaunchDescription(source, launch_arguments=values.items())], scoped=True)

    # Without it images of a busy machine arrive late; a profile that the user has chosen stays.
    variables = {
        name: EnvironmentVariable(name, default_value=profile)
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    }
    player = Node(
        package="sicm_ros",
        executable="kitti_player_node",
        name="kitti_player_node",
        output="screen",
        emulate_tty=True,
        namespace=LaunchConfiguration("namespace"),
        additional_env=variables,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        parameters=[
            LaunchConfiguration("player_params_file"),
            {
                **{
                    name: ParameterValue(LaunchConfiguration(name), value_type=str)
                    for name in ("path", "left_topic", "right_topic", "calib")
                },
                "frequency": ParameterValue(LaunchConfiguration("frequency"), value_type=float),
                "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
                "lockstep": ParameterValue(LaunchConfiguration("lockstep"), value_type=bool),
            },
        ],
    )
    overlay = Node(
        package="sicm_ros",
        executable="overlay_node",
        name="overlay_node",
        output="screen",
        emulate_tty=True,
        namespace=LaunchConfiguration("namespace"),
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        condition=IfCondition(LaunchConfiguration("overlay")),
    )
    end = RegisterEventHandler(
        OnProcessExit(target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the source has been played"))]),
        condition=IfCondition(LaunchConfiguration("shutdown")),
    )
    return LaunchDescription(
        [
            *arguments,
            include("vehicle.launch.py", rate=LaunchConfiguration("rate")),
            include("remote.launch.py", rviz=LaunchConfiguration("rviz")),
            player,
            overlay,
            end,
        ]
    )
