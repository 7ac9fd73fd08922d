# SPDX-License-Identifier: Apache-2.0
"""For process-level tests: a node of the test's own, and node processes whose end and last words are known."""

import array
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from needs import missing

if not missing("rclpy"):
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rcl_interfaces.srv import SetParameters
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter
    from rclpy.time import Time
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import Header

    from sicm_ros.conversion.camera_info import camera_info_fields
    from sicm_ros.conversion.images import rgb_to_message_fields
    from sicm_ros.conversion.stamps import nanoseconds
    from sicm_ros.ros.qos import boxes_qos, latched_qos

REPOSITORY = Path(__file__).resolve().parents[1]
# The tiny model whose boxes can exist.
TINY_MODEL = REPOSITORY / "test" / "data" / "models" / "tame"
# How long a test waits for what must come, in seconds. Only a fault lets it pass: machines differ, and are busy.
PATIENCE_S = 180.0
# Levels of diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR, STALE = range(4)
# Parameters with which nothing is lost and no boxes are cleared.
ENCODER = {"model": TINY_MODEL, "threads": 1, "image_reliability": "reliable", "queue_depth": 100, "lifespan": 0.0}
DECODER = {
    "model": TINY_MODEL,
    "threads": 1,
    "bitstream_reliability": "reliable",
    "queue_depth": 100,
    "bitstream_depth": 100,
    "timeout": 0.0,
}


class NodeProcess:
    """``python -m sicm_ros.nodes.<module>`` with parameters; output is kept."""

    def __init__(self, module, parameters, namespace="", folder=None, remap=None):
        arguments = [sys.executable, "-m", f"sicm_ros.nodes.{module}", "--ros-args"]
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{name}:={text}"]
        for name, other in {**(remap or {}), **({"__ns": namespace} if namespace else {})}.items():
            arguments += ["-r", f"{name}:={other}"]
        self.log = Path(folder) / f"{module}-{time.monotonic_ns()}.log"
        # Where the tests import sicm_ros from, the node does, too.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def signal(self, number=signal.SIGINT):
        self.process.send_signal(number)

    def wait(self, timeout=PATIENCE_S):
        return self.process.wait(timeout)

    def stop(self):
        """SIGINT, and the exit status."""
        if self.process.poll() is None:
            self.signal()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Graph:
    """A node in a context of its own, spun by a thread; keeps what it receives on the topics it is told of."""

    def __init__(self, name, namespace):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(name, namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received = defaultdict(list)
        self.arrived = threading.Condition()
        self.subscriptions = {}
        self.publishers = {}
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        try:
            self.executor.spin()
        except Exception:  # noqa: BLE001 - the context was shut down while it waited
            if self.context.ok():
                raise

    def close(self):
        self.executor.shutdown(2.0)
        self.thread.join(5)
        # Left to the garbage collector its topics would be seen by the tests after it.
        self.node.destroy_node()
        self.context.try_shutdown()

    def listen(self, kind, topic, qos=None):
        def keep(message):
            with self.arrived:
                self.received[topic].append(message)
                self.arrived.notify_all()

        self.subscriptions[topic] = self.node.create_subscription(kind, topic, keep, qos or boxes_qos(100))
        self.executor.wake()

    def deafen(self, topic):
        self.node.destroy_subscription(self.subscriptions.pop(topic))
        self.received.pop(topic, None)

    def wait(self, predicate, timeout=PATIENCE_S, what="what was expected"):
        """Wait until ``predicate()`` is true; its value."""
        end = time.monotonic() + timeout
        with self.arrived:
            while not (value := predicate()):
                assert time.monotonic() < end, f"{what} did not come within {timeout:g} s"
                self.arrived.wait(0.05)
        return value

    def repeat(self, action, predicate, period=0.1, what="what was expected"):
        """Call ``action`` again and again until ``predicate()`` is true; how often, at least once."""
        end, count = time.monotonic() + PATIENCE_S, 0
        while True:
            action()
            count += 1
            with contextlib.suppress(AssertionError):
                self.wait(predicate, timeout=period)
                return count
            assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s"

    def publisher(self, kind, topic, qos=None):
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(kind, topic, qos or boxes_qos(100))
        return self.publishers[topic]

    def wait_for_subscribers(self, *topics):
        end = time.monotonic() + PATIENCE_S
        for topic in topics:
            while self.publishers[topic].get_subscription_count() == 0:
                assert time.monotonic() < end, f"nobody subscribes to {topic}"
                time.sleep(0.02)

    def set_parameter(self, node, name, value):
        """Set a parameter of another node: (successful, reason)."""
        client = self.node.create_client(SetParameters, f"{node}/set_parameters")
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        (result,) = self.call(client, request).results
        return result.successful, result.reason

    def call(self, client, request):
        assert client.wait_for_service(PATIENCE_S)
        future = client.call_async(request)
        end = time.monotonic() + PATIENCE_S
        while not future.done():
            assert time.monotonic() < end, f"no answer from {client.srv_name}"
            time.sleep(0.01)
        self.node.destroy_client(client)
        return future.result()

    # ------------------------------------------------------------------------------------------------- diagnostics

    def listen_to_diagnostics(self):
        self.listen(DiagnosticArray, "/diagnostics")

    def statuses(self, name, start=0):
        """All statuses whose name ends with ``name``, latest first, as (level, message, values)."""
        return [
            (status.level[0], status.message, {v.key: v.value for v in status.values})
            for message in reversed(self.received["/diagnostics"][start:])
            for status in message.status
            if status.name.endswith(name)
        ]

    def wait_for_status(self, name, predicate, timeout=PATIENCE_S, start=0):
        """Wait for a status of which ``predicate(level, message, values)`` is true. What came before message ``start``
        does not count; what came since does, for under load two reports may arrive at once.
        """
        try:
            return self.wait(lambda: next((s for s in self.statuses(name, start) if predicate(*s)), None), timeout)
        except AssertionError:
            raise AssertionError(f"diagnostics of {name!r}: {self.statuses(name, start)[:5]}") from None

    def wait_for_reports(self, name, count=2):
        """Wait for ``count`` more reports of a status: a node that says so has had its time to do other things, too."""
        start = len(self.received["/diagnostics"])
        self.wait(lambda: len(self.statuses(name, start)) >= count, what=f"reports of {name}")

    # ------------------------------------------------------------------------------------------------------- camera

    def open_camera(self):
        for side in ("left", "right"):
            self.publisher(Image, f"{side}/image_rect")
            self.publisher(CameraInfo, f"{side}/camera_info")

    def send_pair(self, stamp_ns, left, right, rig, frame_id="camera_0_optical", infos=None, **change):
        """Publish camera infos and images of a pair; ``left`` and ``right`` are arrays or dicts of Image fields."""
        header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=frame_id)
        for side, image in (("left", left), ("right", right)):
            fields = dict(image) if isinstance(image, dict) else rgb_to_message_fields(image)
            info = (infos or {}).get(side) or camera_info_fields(rig, side, fields["width"], fields["height"])
            self.publishers[f"{side}/camera_info"].publish(CameraInfo(header=header, **info))
            fields["data"] = array.array("B", fields["data"])
            self.publishers[f"{side}/image_rect"].publish(Image(header=header, **{**fields, **change}))


def stamp_ns(message):
    """Nanoseconds of a stamped message's header."""
    return nanoseconds(message.header.stamp)


def resident_mb(pid):
    """Resident memory of a process in MB."""
    (line,) = [s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


__all__ = [
    "DECODER",
    "ENCODER",
    "ERROR",
    "OK",
    "PATIENCE_S",
    "REPOSITORY",
    "STALE",
    "TINY_MODEL",
    "WARN",
    "Graph",
    "NodeProcess",
    "boxes_qos",
    "latched_qos",
    "resident_mb",
    "stamp_ns",
]
