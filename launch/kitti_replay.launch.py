# SPDX-License-Identifier: Apache-2.0
"""KITTI or a bag through encoder and decoder on one machine, with RViz.

ros2 launch sicm_ros kitti_replay.launch.py path:=KITTI/object
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_context import LaunchContext
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from sicm_ros.ros.launch_nodes import BAD_CONFIGURATION, node, rviz
from sicm_ros.ros.launch_values import DECODER, ENCODER, OVERLAY, PLAYER


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("sicm_ros"), "config"])
    arguments = [
        DeclareLaunchArgument("path", description="KITTI object folder, raw drive, odometry sequence, or a rosbag2"),
        DeclareLaunchArgument("frequency", default_value="", description="pairs per second; default: the source's own"),
        DeclareLaunchArgument(
            "loop", default_value="", description="true to start over at the end; default: of player_params_file"
        ),
        DeclareLaunchArgument(
            "lockstep",
            default_value="",
            description="true to send the next pair only when the boxes of the last one are back; default: of "
            "player_params_file",
        ),
        DeclareLaunchArgument("left_topic", default_value="", description="left image topic of a bag; else found"),
        DeclareLaunchArgument("right_topic", default_value="", description="right image topic of a bag; else found"),
        DeclareLaunchArgument("calib", default_value="", description="KITTI calibration for a bag without camera_info"),
        DeclareLaunchArgument(
            "player_params_file",
            default_value=PathJoinSubstitution([config, "kitti_player.yaml"]),
            description="YAML file with the player's parameters",
        ),
        DeclareLaunchArgument(
            "encoder_params_file",
            default_value=PathJoinSubstitution([config, "vehicle.yaml"]),
            description="YAML file with the encoder's parameters",
        ),
        DeclareLaunchArgument(
            "decoder_params_file",
            default_value=PathJoinSubstitution([config, "remote.yaml"]),
            description="YAML file with the decoder's parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of all topics and nodes"),
        DeclareLaunchArgument(
            "model", default_value="", description="name or folder of the model; default: of the parameter files"
        ),
        DeclareLaunchArgument(
            "device",
            default_value="",
            description="where the networks run: cpu, cuda or cuda:N; default: of the parameter files",
        ),
        DeclareLaunchArgument(
            "engine",
            default_value="",
            description="what runs the networks: auto, torch or openvino; default: of the parameter files",
        ),
        DeclareLaunchArgument(
            "rate",
            default_value="",
            description="rate of the codec: 0 for the fewest bits, -1 for the model's default; default: of "
            "encoder_params_file",
        ),
        DeclareLaunchArgument(
            "max_bitrate",
            default_value="",
            description="bits per second that packets may take on the wire, 0 for no limit; default: of "
            "encoder_params_file",
        ),
        DeclareLaunchArgument(
            "sync",
            default_value="",
            description="how images are paired by their stamps: exact or approximate; default: of encoder_params_file",
        ),
        DeclareLaunchArgument(
            "score_threshold",
            default_value="",
            description="least score of a box, -1 for the model's default; default: of decoder_params_file",
        ),
        DeclareLaunchArgument(
            "overlay",
            default_value="true",
            choices=["true", "false"],
            description="publish the left image with the boxes drawn into it, for whoever subscribes",
        ),
        DeclareLaunchArgument("rviz", default_value="true", choices=["true", "false"], description="start RViz"),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            description="true for all nodes to take the time from /clock, where the player then publishes the source's",
        ),
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
    names = [argument.name for argument in arguments]
    return LaunchDescription([*arguments, OpaqueFunction(function=start, args=[names])])


def start(context: LaunchContext, names: list[str]) -> list[Node]:
    given = {name: context.launch_configurations[name] for name in names}

    def ended(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
        if event.returncode:
            reason = "bad configuration" if event.returncode == BAD_CONFIGURATION else "without it there are no boxes"
            return EmitEvent(event=Shutdown(reason=f"{event.process_name} has ended: {reason}"))
        if event.action is player and given["shutdown"] == "true":
            return EmitEvent(event=Shutdown(reason="the source has been played"))
        return None

    # Without it images of a busy machine arrive late; a profile that the user has chosen stays.
    profile = str(Path(get_package_share_directory("sicm_ros")) / "config" / "fastdds_images.xml")
    variables = {
        name: context.environment.get(name, profile)
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    }
    encoder = node("encoder_node", given, ENCODER, "encoder_params_file", on_exit=ended)
    decoder = node("decoder_node", given, DECODER, "decoder_params_file", on_exit=ended)
    clock = {"publish_clock": given["use_sim_time"]}
    player = node(
        "kitti_player_node", {**given, **clock}, PLAYER, "player_params_file", on_exit=ended, additional_env=variables
    )
    nodes = [encoder, decoder, player]
    image = "left/image_rect"
    if given["overlay"] == "true":
        nodes.append(node("overlay_node", given, OVERLAY))
        image = "detections_image"
    if given["rviz"] == "true":
        nodes += rviz(given["namespace"], image=image, use_sim_time=given["use_sim_time"] == "true")
    return nodes
