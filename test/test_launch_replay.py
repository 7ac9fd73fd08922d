# SPDX-License-Identifier: Apache-2.0
"""The launch files with launch_testing, where a ROS 2 install has it: what test_nodes.py asserts of processes that it
starts itself, one array for each pair with the pair's stamp and frame, and that everything ends with status 0."""

import tempfile
import time
import unittest
from pathlib import Path

import pytest
from needs import NODES, missing

MISSING = missing("launch_testing", "launch_ros", *NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if MISSING:

    def parametrize(*_, **__):
        return lambda function: function

    keep_alive, post_shutdown_test = parametrize(), parametrize
else:
    import launch_testing.actions
    import launch_testing.asserts
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch_testing import parametrize, post_shutdown_test
    from launch_testing.markers import keep_alive
    from rcl_interfaces.srv import GetParameters
    from ros_graph import REPOSITORY, TINY_MODEL, Graph, stamp_ns
    from rosgraph_msgs.msg import Clock
    from vision_msgs.msg import Detection3DArray

    from launch import LaunchDescription
    from sicm_ros.data.kitti import open_source
    from sicm_ros.data.rendered import render_dataset

NAMESPACE = "/launched"
PAIRS = 2
FOLDER = tempfile.TemporaryDirectory()


def included(name, **arguments):
    source = PythonLaunchDescriptionSource(str(REPOSITORY / "launch" / f"{name}.launch.py"))
    values = {"namespace": NAMESPACE, "model": str(TINY_MODEL), **arguments}
    return IncludeLaunchDescription(source, launch_arguments=values.items())


@pytest.mark.launch_test
@keep_alive
@parametrize("files", ["kitti_replay", "kitti_replay on /clock", "vehicle and remote"])
def generate_test_description(files):
    root = Path(FOLDER.name) / "rendered"
    if not root.exists():
        render_dataset(root, count=PAIRS, seed=5)
    clock = "true" if files == "kitti_replay on /clock" else ""
    nodes = (
        [included("kitti_replay", path=str(root), rviz="false", loop="true", lockstep="true", use_sim_time=clock)]
        if files.startswith("kitti_replay")
        else [included("vehicle", respawn="false"), included("remote", rviz="false", respawn="false")]
    )
    return LaunchDescription([*nodes, launch_testing.actions.ReadyToTest()]), {"files": files, "root": root}


if MISSING:
    del generate_test_description  # launch_testing would run it, skipped or not


class TestWhileRunning(unittest.TestCase):
    def test_each_pair_comes_back_as_one_array(self, files, root):
        frames = list(open_source(root))
        graph = Graph("launch_test", NAMESPACE)
        try:
            graph.listen(Detection3DArray, "detections")
            arrays = graph.received["detections"]
            if files == "kitti_replay on /clock":
                graph.listen(Clock, "/clock")
                graph.wait(lambda: graph.received["/clock"])
                for node in ("encoder_node", "decoder_node", "overlay_node"):
                    client = graph.node.create_client(GetParameters, f"{node}/get_parameters")
                    (value,) = graph.call(client, GetParameters.Request(names=["use_sim_time"])).values
                    assert value.bool_value, node
            if files.startswith("kitti_replay"):
                # In a loop the stamps go on: 0.1 s from pair to pair, none twice and none left out.
                graph.wait(lambda: len(arrays) >= 4 * PAIRS)
                stamps = [stamp_ns(m) for m in arrays]
                assert {b - a for a, b in zip(stamps, stamps[1:], strict=False)} == {100_000_000}
            else:
                graph.open_camera()
                graph.wait_for_subscribers(*graph.publishers)
                start = time.time_ns()
                for i in range(4 * PAIRS):
                    frame, stamp = frames[i % PAIRS], start + i * 10**9

                    def send(frame=frame, stamp=stamp):
                        graph.send_pair(stamp, frame.left, frame.right, frame.rig)

                    if i == 0:  # again, until both nodes know each other
                        graph.repeat(send, lambda: arrays, period=1.0)
                    else:
                        send()
                    graph.wait(lambda stamp=stamp: stamp_ns(arrays[-1]) == stamp, what=f"boxes of pair {i}")
                stamps = [stamp_ns(m) for m in arrays]
                assert sorted(set(stamps)) == [start + i * 10**9 for i in range(4 * PAIRS)]
                assert len(stamps) == len(set(stamps)) or set(stamps[: -4 * PAIRS]) <= {start}
            assert {m.header.frame_id for m in arrays} == {"camera_0_optical"}
            assert all(m.detections for m in arrays)
        finally:
            graph.close()


@post_shutdown_test()
class TestAfterShutdown(unittest.TestCase):
    def test_everything_ended_well(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
