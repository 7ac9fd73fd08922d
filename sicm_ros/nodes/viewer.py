# SPDX-License-Identifier: Apache-2.0
"""The viewer node: shows live topics in Rerun, or records them for it, for those without RViz."""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection3DArray

from sicm_ros.conversion.boxes import boxes_of
from sicm_ros.conversion.camera_info import CameraInfoError, left_rig
from sicm_ros.conversion.frames import CAMERA_HEIGHT
from sicm_ros.conversion.images import ImageError, rgb_from_compressed, to_rgb
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.geometry import Object3D, project
from sicm_ros.msg import DecodeStats, StereoBitstream
from sicm_ros.pictures import BACKGROUND, CLASS_COLOURS, GRID_TEXT, NEAR, box_tag, class_colour
from sicm_ros.ros.diagnostics import DiagnosticsWriter, Problems, Status, Window
from sicm_ros.ros.parameters import ParameterSpec, declare
from sicm_ros.ros.qos import RELIABILITIES, boxes_qos, image_qos, overridable, packet_qos
from sicm_ros.ros.rerun_view import WINDOW, check_view
from sicm_ros.ros.run_node import NodeError, run_node
from sicm_ros.ros.stop_signals import end_process

__all__ = ["PARAMETERS", "ViewerNode", "main"]


TIMELINE = "stamp"
JPEG_QUALITY = 90
FRUSTUM_M = 3.0  # how far before the camera the image hangs in the 3D view
RINGS_M = (10, 20, 30)
RING_ANGLE = math.radians(15)
LABEL_M = 1.5  # above a box in the 3D view
LAST_WORDS_S, QUIET_S = 5.0, 0.3  # at the end, messages are taken until none comes for a while
ENCODER_STAGES = ("preprocess_ms", "backbone_ms", "smfc_ms", "entropy_ms")

PARAMETERS = (
    ParameterSpec("view", WINDOW, "window to open Rerun's viewer, or the file (.rrd) to write a recording for it to"),
    ParameterSpec(
        "image_transport",
        "raw",
        "raw subscribes to Image on left/image_rect, compressed to CompressedImage on left/image_rect/compressed, "
        "none to no images",
        choices=("raw", "compressed", "none"),
    ),
    ParameterSpec(
        "image_reliability", "best_effort", "reliability of the image subscriptions", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec(
        "bitstream_reliability", "best_effort", "reliability of the packet subscription", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec(
        "image_delay", 1.0, "most seconds that an image waits for its boxes, so that both appear together", 0.0, 60.0
    ),
)


def blueprint() -> Any:
    """What the viewer shows at first: the image above, below it the scene, and beside that the packets and times."""
    import rerun.blueprint as rrb

    return rrb.Blueprint(
        rrb.Vertical(
            # Rerun projects the boxes by the camera of the view's origin, but not their labels.
            rrb.Spatial2DView(origin="left", contents=["left/**", "detections"], name="left image"),
            rrb.Horizontal(
                rrb.Spatial3DView(
                    origin="/",
                    # The image would hide the boxes behind it, were it in here.
                    contents=["left", "detections/**", "range/**"],
                    name="boxes",
                    background=BACKGROUND,
                    line_grid=rrb.archetypes.LineGrid3D(visible=False),
                ),
                rrb.Vertical(
                    rrb.TimeSeriesView(origin="stereo_bitstream", name="packet, bytes"),
                    rrb.TimeSeriesView(origin="latency", name="latency, ms"),
                ),
                column_shares=[5, 2],
            ),
            row_shares=[4, 5],
        ),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed"),
    )


class ViewerNode(Node):
    """Shows the left image, the boxes in it and in space, packet sizes and times, on the timeline of the stamps.

    Entities are called as the topics are.
    """

    def __init__(self) -> None:
        super().__init__("viewer_node")
        declare(self, PARAMETERS)
        self.problems = Problems(self.get_logger().warning)
        self.shown = {"images": 0, "boxes": 0, "packets": 0}
        self._window = Window()
        self._taken = 0
        self._waiting: OrderedDict[int, tuple[float, Any]] = OrderedDict()
        self._boxes_stamp: int | None = None
        self._camera: tuple[np.ndarray, int, int] | None = None
        self._open(self._value("view"))
        transport, options = self._value("image_transport"), overridable()
        images = image_qos(self._value("image_reliability"))
        packets = packet_qos(self._value("bitstream_reliability"), 10)
        listen = self.create_subscription
        listen(DecodeStats, "decode_stats", self._on_stats, boxes_qos(100))
        listen(Detection3DArray, "detections", self._on_boxes, boxes_qos(), qos_overriding_options=options)
        topic = self.resolve_topic_name("left/image_rect")
        if transport == "raw":
            listen(Image, topic, self._on_image, images, qos_overriding_options=options)
        elif transport == "compressed":
            topic = f"{topic}/compressed"
            listen(CompressedImage, topic, self._on_image, images, qos_overriding_options=options)
        # Last: who waits for subscribers of these two may send when they are there.
        listen(StereoBitstream, "stereo_bitstream", self._on_packet, packets, qos_overriding_options=options)
        listen(CameraInfo, "left/camera_info", self._on_camera_info, images, qos_overriding_options=options)
        self.create_timer(0.1, self._release, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._diagnostics = DiagnosticsWriter(self, self._collect)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _open(self, view: str) -> None:
        check_view(view)
        import rerun
        import rerun_cli

        self._rerun = rerun
        self._recording = rerun.new_recording("sicm_ros")
        try:
            if view == WINDOW:
                # The window's program comes in the wheel, and is looked for in the PATH.
                os.environ["PATH"] = os.pathsep.join([str(Path(rerun_cli.__file__).parent), os.environ.get("PATH", "")])
                rerun.spawn(recording=self._recording, default_blueprint=blueprint(), hide_welcome_screen=True)
            else:
                rerun.save(view, recording=self._recording, default_blueprint=blueprint())
        except (OSError, RuntimeError) as error:
            raise NodeError(f"{view}: the viewer cannot be opened: {error}") from None
        self._log(None, "/", rerun.ViewCoordinates.RDF)
        self._log(None, "range", self._rings())
        for name, colour in (
            ("stereo_bitstream/bytes", (34, 211, 238)),
            ("latency/encoder", (251, 191, 36)),
            ("latency/decoder", (192, 132, 252)),
            ("latency/end_to_end", (132, 255, 80)),
        ):
            words = name.rsplit("/", 1)[-1].replace("_", " ")
            self._log(None, name, rerun.SeriesLine(color=colour, width=2.0, name=words))

    def _rings(self) -> Any:
        """Arcs on a road at KITTI's height, which also make Rerun choose a view along the road before boxes come."""
        angles = np.linspace(-RING_ANGLE, RING_ANGLE, 33)
        road = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], 1)
        return self._rerun.LineStrips3D(
            [road * ring + [0, CAMERA_HEIGHT, 0] for ring in RINGS_M],
            colors=[GRID_TEXT] * len(RINGS_M),
            labels=[f"{ring} m" for ring in RINGS_M],
            show_labels=True,
        )

    def _log(self, stamp_ns: int | None, entity: str, *what: Any) -> None:
        """Show something from a stamp on; None for always."""
        if stamp_ns is not None:
            self._rerun.set_time_nanos(TIMELINE, stamp_ns, recording=self._recording)
            self._taken += 1
        self._rerun.log(entity, *what, static=stamp_ns is None, recording=self._recording)

    def close(self) -> None:
        """Show what is still under way, and finish the recording. The window stays open."""
        # Who plays has sent everything when it ends this process; its last messages may wait to be taken.
        end = quiet = time.monotonic() + LAST_WORDS_S
        quiet -= LAST_WORDS_S - QUIET_S
        while self.executor is not None and time.monotonic() < min(quiet, end):
            before = (self._taken, len(self._waiting))
            self.executor.spin_once(timeout_sec=0.05)
            if before != (self._taken, len(self._waiting)):
                quiet = time.monotonic() + QUIET_S
        self._release(everything=True)
        self._recording.flush(blocking=True)
        self._rerun.disconnect(recording=self._recording)

    # ---------------------------------------------------------------------------------------------------- camera

    def _on_camera_info(self, message: CameraInfo) -> None:
        try:
            rig = left_rig(message)
        except CameraInfoError as error:
            self.problems.add("camera_info", str(error))
            return
        # P takes points of the boxes' frame to pixels: intrinsics, and where in that frame the camera stands.
        self._camera = (rig.p_left, message.width, message.height)
        intrinsics, column = rig.p_left[:, :3], rig.p_left[:, 3]
        centre = -np.linalg.solve(intrinsics, column)
        # The middle of the first pixel is (0, 0) in P, and (0.5, 0.5) in Rerun.
        intrinsics = intrinsics + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        camera = self._rerun.Pinhole(
            image_from_camera=intrinsics,
            resolution=[message.width, message.height],
            camera_xyz=self._rerun.ViewCoordinates.RDF,
            image_plane_distance=FRUSTUM_M,
        )
        self._log(
            nanoseconds(message.header.stamp),
            "left",
            camera,
            self._rerun.Transform3D(translation=centre, axis_length=0.0),
        )

    def _on_image(self, message: Image | CompressedImage) -> None:
        started = time.perf_counter()
        try:
            image = rgb_from_compressed(message) if isinstance(message, CompressedImage) else to_rgb(message)
        except ImageError as error:
            self.problems.add("image", f"image not shown: {error}")
            return
        shown = self._rerun.Image(image).compress(jpeg_quality=JPEG_QUALITY)
        self._window.sample({"compress": 1e3 * (time.perf_counter() - started)})
        self._waiting[nanoseconds(message.header.stamp)] = (time.monotonic(), shown)
        self._release()

    def _release(self, everything: bool = False) -> None:
        """Show the images whose boxes are there, or have not come within the delay."""
        late = time.monotonic() - self._value("image_delay")
        for stamp_ns, (arrived, image) in list(self._waiting.items()):
            answered = self._boxes_stamp is not None and stamp_ns <= self._boxes_stamp
            if everything or answered or arrived <= late:
                del self._waiting[stamp_ns]
                self._log(stamp_ns, "left/image_rect", image)
                self.shown["images"] += 1

    # ----------------------------------------------------------------------------------------------------- boxes

    def _on_boxes(self, message: Detection3DArray) -> None:
        stamp_ns, rerun = nanoseconds(message.header.stamp), self._rerun
        boxes = boxes_of(message, tuple(CLASS_COLOURS))
        style = {"colors": [class_colour(box.label) for box in boxes], "labels": [box_tag(box) for box in boxes]}
        bounds = [detection.bbox for detection in message.detections]
        poses = [(bound.center.position, bound.center.orientation) for bound in bounds]
        shown = rerun.Boxes3D(
            centers=[(p.x, p.y, p.z) for p, _ in poses],
            sizes=[(bound.size.x, bound.size.y, bound.size.z) for bound in bounds],
            quaternions=[rerun.Quaternion(xyzw=(q.x, q.y, q.z, q.w)) for _, q in poses],
            show_labels=False,
            **style,
        )
        # Rerun writes labels over the middle of a box. Ours stand above it in space, and below it in the image.
        above = [(box.x, box.y - box.height - LABEL_M, box.z) for box in boxes]
        self._log(stamp_ns, "detections", shown)
        self._log(stamp_ns, "detections/labels", rerun.Points3D(above, radii=0.0, show_labels=True, **style))
        self._log(stamp_ns, "left/labels", self._image_labels(boxes))
        self._boxes_stamp = stamp_ns
        self.shown["boxes"] += len(boxes)
        self._release()

    def _image_labels(self, boxes: list[Object3D]) -> Any:
        """The tags of the boxes that are in the image, below them."""
        if self._camera is None:
            return self._rerun.Points2D([])
        p, width, height = self._camera
        places, shown = [], []
        for box in boxes:
            pixels, depths = project(p, box.corners())
            pixels = pixels[depths > NEAR]
            if len(pixels) and (pixels.max(0) > 0).all() and (pixels.min(0) < (width, height)).all():
                middle = (pixels.min(0)[0] + pixels.max(0)[0]) / 2
                places.append((np.clip(middle, 0, width), min(pixels.max(0)[1], height)))
                shown.append(box)
        return self._rerun.Points2D(
            places,
            radii=0.0,
            colors=[class_colour(box.label) for box in shown],
            labels=[box_tag(box) for box in shown],
            show_labels=True,
        )

    # ------------------------------------------------------------------------------------------ packets and times

    def _on_packet(self, message: StereoBitstream) -> None:
        stamp_ns = nanoseconds(message.header.stamp)
        self._log(stamp_ns, "stereo_bitstream/bytes", self._rerun.Scalar(len(message.data)))
        encoder_ms = sum(getattr(message, stage) for stage in ENCODER_STAGES)
        self._log(stamp_ns, "latency/encoder", self._rerun.Scalar(encoder_ms))
        self.shown["packets"] += 1

    def _on_stats(self, message: DecodeStats) -> None:
        stamp_ns = nanoseconds(message.header.stamp)
        for name, milliseconds in (("decoder", message.total_ms), ("end_to_end", message.end_to_end_ms)):
            if math.isfinite(milliseconds):
                self._log(stamp_ns, f"latency/{name}", self._rerun.Scalar(milliseconds))

    # ----------------------------------------------------------------------------------------------- diagnostics

    def _collect(self) -> list[Status]:
        new, samples, seconds = self._window.tick(self.shown)
        status = Status("viewer")
        status.set(view=self._value("view"), **self.shown, images_hz=new["images"] / seconds)
        if samples.get("compress"):
            status.set(compress_ms=sum(samples["compress"]) / len(samples["compress"]))
        for kind in self.problems.recent():
            status.report("WARN", self.problems.latest[kind])
        return [status]


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point of ``viewer_node``. Ends the process."""
    end_process(run_node(ViewerNode, args))


if __name__ == "__main__":
    main()
