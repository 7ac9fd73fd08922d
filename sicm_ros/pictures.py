# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections: 3D boxes on the left image, the same boxes in bird's-eye view, and both together.

Every picture is an (H, W, 3) uint8 RGB array. Labels (ground truth) are drawn as thin boxes of one colour under the
detections, which have their class's colour, a filled front face, and a tag with class, score and distance.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sicm_ros.files import write_whole
from sicm_ros.geometry import Object3D, StereoRig

__all__ = [
    "CLASS_COLOURS",
    "LABEL_COLOUR",
    "birds_eye",
    "box_tag",
    "class_colour",
    "detection_figure",
    "draw_boxes",
    "write_picture",
]

Colour = tuple[int, int, int]

CLASS_COLOURS: dict[str, Colour] = {
    "Car": (34, 211, 238),
    "Van": (129, 140, 248),
    "Truck": (192, 132, 252),
    "Tram": (45, 212, 191),
    "Pedestrian": (251, 113, 133),
    "Person_sitting": (244, 114, 182),
    "Cyclist": (251, 191, 36),
}
OTHER_COLOUR: Colour = (203, 213, 225)
LABEL_COLOUR: Colour = (132, 255, 80)
CONTRAST: Colour = (255, 64, 64)  # of the paper's figure 4: detections, and labels
CONTRAST_LABEL: Colour = (64, 128, 255)
BACKGROUND: Colour = (13, 17, 26)
GRID: Colour = (58, 70, 94)
GRID_TEXT: Colour = (126, 140, 164)
INK: Colour = (236, 240, 248)

NEAR = 0.1  # metres in front of the camera where boxes are cut
SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel
FIGURE_HEIGHT = 560  # of the image in a figure, pixels

# Faces of a box by the corners of box_corners, the front first.
FACES = ((0, 1, 5, 4), (2, 3, 7, 6), (3, 0, 4, 7), (1, 2, 6, 5), (0, 1, 2, 3), (4, 5, 6, 7))
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def class_colour(label: str) -> Colour:
    """The colour (red, green, blue) that a class has in every picture."""
    return CLASS_COLOURS.get(label, OTHER_COLOUR)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _drawable(objects: Sequence[Object3D] | None) -> list[Object3D]:
    """Objects with a volume, the farthest first, so that nearer ones are drawn over them."""
    kept = [
        o
        for o in objects or ()
        if min(o.height, o.width, o.length) > 0
        and all(math.isfinite(v) for v in (o.x, o.y, o.z, o.rotation_y, o.height, o.width, o.length))
    ]
    return sorted(kept, key=lambda o: -math.hypot(o.x, o.z))


def _fixed(points: np.ndarray) -> np.ndarray:
    # OpenCV's own fixed point overflows beyond 32767 pixels.
    return np.round(np.clip(points, -30000, 30000) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _fill(image: np.ndarray, points: np.ndarray, colour: Colour, opacity: float) -> None:
    """Blend a filled convex polygon (N, 2), pixels, into ``image`` (H, W, 3), in place."""
    low = np.clip(np.floor(points.min(0)) - 1, 0, [image.shape[1], image.shape[0]]).astype(int)
    high = np.clip(np.ceil(points.max(0)) + 2, 0, [image.shape[1], image.shape[0]]).astype(int)
    if (high <= low).any():
        return
    part = image[low[1] : high[1], low[0] : high[0]]
    over = part.copy()
    cv2.fillConvexPoly(over, _fixed(points - low), colour, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.addWeighted(over, opacity, part, 1 - opacity, 0, dst=part)


def _line(image: np.ndarray, ends: np.ndarray, colour: Colour, thickness: int) -> None:
    (ax, ay), (bx, by) = _fixed(ends).tolist()
    cv2.line(image, (ax, ay), (bx, by), colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


# --------------------------------------------------------------------------------------------------------- perspective


def _clip(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Homogeneous pixels (N, 3) of a convex polygon or a segment, cut to the part before the camera near the image.

    It is cut in homogeneous coordinates, before the division, so that exactly the visible part stays of a box which is
    partly behind the camera. Returns pixels (M, 2), M = 0 where nothing is left.
    """
    margin = 50.0
    planes = np.array(
        [
            [0, 0, 1, -NEAR],
            [1, 0, margin, 0],
            [-1, 0, width + margin, 0],
            [0, 1, margin, 0],
            [0, -1, height + margin, 0],
        ]
    )
    segment = len(points) == 2
    for plane in planes:
        distances = points @ plane[:3] + plane[3]
        kept = []
        for i in range(len(points)):
            j = (i + 1) % len(points)
            if distances[i] >= 0:
                kept.append(points[i])
            if distances[i] * distances[j] < 0 and not (segment and i == 1):
                kept.append(points[i] + distances[i] / (distances[i] - distances[j]) * (points[j] - points[i]))
        if len(kept) < 2:
            return np.zeros((0, 2))
        points = np.array(kept)
    return points[:, :2] / points[:, 2:]


def _draw_box(image: np.ndarray, o: Object3D, p: np.ndarray, colour: Colour, thickness: int, solid: bool) -> None:
    height, width = image.shape[:2]
    corners = o.corners()
    homogeneous = corners @ p[:, :3].T + p[:, 3]
    camera = -np.linalg.solve(p[:, :3], p[:, 3])
    middle = corners.mean(0)
    faces_us = [float((corners[list(f)].mean(0) - middle) @ (camera - corners[list(f)].mean(0))) > 0 for f in FACES]
    hidden: list[np.ndarray] = []
    shown: list[np.ndarray] = []
    if solid and homogeneous[:, 2].min() > NEAR and np.ptp(homogeneous[:, 1] / homogeneous[:, 2]) < height / 8:
        thickness = max(1, thickness - 1)  # thick lines would hide what is far away
    for edge in EDGES:
        ends = _clip(homogeneous[list(edge)], width, height)
        if len(ends) == 2:
            visible = any(faces and set(edge) <= set(face) for face, faces in zip(FACES, faces_us, strict=True))
            (shown if visible else hidden).append(ends)
    if solid:
        for face, faces in zip(FACES, faces_us, strict=True):
            if faces and face is not FACES[0]:
                polygon = _clip(homogeneous[list(face)], width, height)
                if len(polygon) >= 3:
                    _fill(image, polygon, colour, 0.07)
        front = _clip(homogeneous[list(FACES[0])], width, height)
        if len(front) >= 3:
            _fill(image, front, colour, 0.36)
    if hidden:
        over = image.copy()
        for ends in hidden:
            _line(over, ends, colour, thickness)
        cv2.addWeighted(over, 0.35, image, 0.65, 0, dst=image)
    if solid and shown:  # a dark rim keeps bright lines readable on bright ground
        over = image.copy()
        for ends in shown:
            _line(over, ends, BACKGROUND, thickness + 2)
        cv2.addWeighted(over, 0.45, image, 0.55, 0, dst=image)
    for ends in shown:
        _line(image, ends, colour, thickness)


def box_tag(o: Object3D) -> str:
    """The text beside a box: class, score and distance in metres."""
    score = "" if o.score is None else f" {o.score:.2f}"
    return f"{o.label}{score} · {math.hypot(o.x, o.z):.1f} m"


def _draw_tags(image: np.ndarray, objects: Sequence[Object3D], p: np.ndarray, size: int) -> None:
    """Draw a tag above each box, near ones first. A tag without a free place is left out. ``p``: (3, 4) projection."""
    height, width = image.shape[:2]
    font = _font(size)
    placed: list[tuple[int, int, int, int]] = []
    texts = []
    for o in reversed(objects):
        homogeneous = o.corners() @ p[:, :3].T + p[:, 3]
        outline = [_clip(homogeneous[list(face)], width, height) for face in FACES]
        pixels = np.concatenate([x for x in outline if len(x)] or [np.zeros((0, 2))])
        if not len(pixels):
            continue
        low, high = pixels.min(0), pixels.max(0)
        if high[0] < 0 or high[1] < 0 or low[0] > width or low[1] > height:
            continue
        text = box_tag(o)
        box = font.getbbox(text)
        w, h = int(box[2] - box[0]) + size, int(size * 1.45)
        left = int(np.clip((max(low[0], 0) + min(high[0], width)) / 2 - w / 2, 2, max(width - w - 2, 2)))
        top = int(np.clip(low[1] - h - size * 0.4, 2, height - h - 2))
        anchor = (int(np.clip((low[0] + high[0]) / 2, 0, width - 1)), int(max(low[1], 0)))
        for y in [top - k * (h + 3) for k in range(6) if top - k * (h + 3) >= 2]:
            if all(left + w + 2 < a or left > c + 2 or y + h + 2 < b or y > d + 2 for a, b, c, d in placed):
                placed.append((left, y, left + w, y + h))
                texts.append((o, text, left, y, w, h, anchor))
                break
    for o, _, left, y, w, h, anchor in texts:
        colour = class_colour(o.label)
        if anchor[1] > y + h + 2:
            _line(image, np.array([(min(max(anchor[0], left), left + w), y + h), anchor]), colour, 1)
        part = image[y : y + h, left : left + w]
        part[:] = (part * 0.22 + np.array(BACKGROUND) * 0.78).astype(np.uint8)
        part[:, : max(size // 5, 2)] = colour
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for _, text, left, y, w, h, _ in texts:
        draw.text((left + w / 2 + size * 0.1, y + h / 2), text, INK, font, anchor="mm")
    image[:] = np.asarray(canvas)


def draw_boxes(
    image: np.ndarray,
    objects: Sequence[Object3D],
    rig: StereoRig,
    labels: Sequence[Object3D] | None = None,
    contrast: bool = False,
) -> np.ndarray:
    """A copy of the left ``image`` (H, W, 3) uint8 RGB with the 3D boxes of ``objects`` and, in thin lines, ``labels``.

    ``rig`` is that of this image. DontCare regions and boxes without a volume are not drawn; boxes partly behind the
    camera are cut at its plane. ``contrast``: as in the paper's figure 4, detections red and labels blue, without tags.
    """
    picture = np.ascontiguousarray(image, np.uint8).copy()
    p = rig.p_left
    thickness = max(1, round(image.shape[0] / 280))
    for o in _drawable(labels):
        colour = CONTRAST_LABEL if contrast else LABEL_COLOUR
        _draw_box(picture, o, p, colour, max(1, thickness - 1), solid=False)
    shown = _drawable(objects)
    for o in shown:
        _draw_box(picture, o, p, CONTRAST if contrast else class_colour(o.label), thickness, solid=not contrast)
    if contrast:
        return picture
    _draw_tags(picture, shown, p, max(11, round(image.shape[0] / 34)))
    return picture


# ----------------------------------------------------------------------------------------------------------- from above


def birds_eye(
    objects: Sequence[Object3D],
    labels: Sequence[Object3D] | None = None,
    *,
    rig: StereoRig | None = None,
    image_width: int | None = None,
    size: tuple[int, int] = (520, 560),
    reach: float | None = None,
    contrast: bool = False,
) -> np.ndarray:
    """Bird's-eye view of boxes, (height, width, 3) uint8 RGB: forward is up, rings are 10 m apart.

    The camera is at the middle of the bottom edge. With ``rig`` and ``image_width`` the left camera's field of view is
    drawn too. ``size`` is (width, height) in pixels; ``reach`` is how many metres ahead the panel shows (default: what
    the objects need, 50 to 90). ``contrast`` as in ``draw_boxes``.
    """
    width, height = size
    drawn, truth = _drawable(objects), _drawable(labels)
    if reach is None:
        farthest = max((math.hypot(o.x, o.z) for o in drawn + truth), default=0.0)
        reach = min(max(math.ceil((farthest + 4) / 10) * 10, 50), 90)
    camera = np.array([width / 2, height - 26.0])
    scale = (camera[1] - 14) / reach

    def pixels(xz: np.ndarray) -> np.ndarray:
        return camera + np.asarray(xz, np.float64) * [scale, -scale]

    panel = np.full((height, width, 3), BACKGROUND, np.uint8)
    sides = None
    if rig is not None and image_width is not None:
        tangents = [(-rig.cx) / rig.fx, (image_width - 1 - rig.cx) / rig.fx]
        far = 4 * reach
        sides = [pixels(np.array([t * far, far])) for t in tangents]
        _fill(panel, np.array([camera, *sides]), (38, 52, 80), 0.55)
    rings = range(10, int(math.hypot(reach, width / 2 / scale)) + 10, 10)
    for ring in rings:
        centre = tuple(_fixed(camera).tolist())
        cv2.circle(panel, centre, int(ring * scale * (1 << SUBPIXEL_BITS)), GRID, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    for end in sides or ():
        _line(panel, np.stack([camera, end]), (84, 104, 140), 1)
    for o in truth:
        _draw_outline(
            panel, pixels(o.corners()[:4, [0, 2]]), CONTRAST_LABEL if contrast else LABEL_COLOUR, 1, filled=False
        )
    for o in drawn:
        colour = CONTRAST if contrast else class_colour(o.label)
        _draw_outline(panel, pixels(o.corners()[:4, [0, 2]]), colour, 2, filled=True)
    vehicle = camera + np.array([[0, -11], [7, 8], [0, 4], [-7, 8]])
    cv2.fillPoly(panel, [_fixed(vehicle)], INK, cv2.LINE_AA, SUBPIXEL_BITS)

    canvas = Image.fromarray(panel)
    draw = ImageDraw.Draw(canvas)
    for ring in rings:
        # Ring numbers stand right of the field of view, and farther out where the ring leaves the panel.
        bearing = math.radians(45) if rig is None or image_width is None else math.atan2(image_width - rig.cx, rig.fx)
        side = min(math.sin(bearing) * ring * scale + 16, width / 2 - 18)
        up = math.sqrt(max((ring * scale) ** 2 - side**2, 0.0))
        if up > 0 and camera[1] - up > 8:
            draw.text(
                (camera[0] + side, camera[1] - up),
                f"{ring} m",
                GRID_TEXT,
                _font(12),
                anchor="mm",
                stroke_width=2,
                stroke_fill=BACKGROUND,
            )
    return np.array(canvas)


def _draw_outline(panel: np.ndarray, base: np.ndarray, colour: Colour, thickness: int, filled: bool) -> None:
    """Draw a box's outline on the ground (4, 2), pixels, with a tick from its middle out over its front."""
    if filled:
        _fill(panel, base, colour, 0.38)
    cv2.polylines(panel, [_fixed(base)], True, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    middle, front = base.mean(0), base[:2].mean(0)
    _line(panel, np.stack([middle, middle + (front - middle) * 1.45]), colour, thickness)


# -------------------------------------------------------------------------------------------------------------- figures


def detection_figure(
    image: np.ndarray,
    objects: Sequence[Object3D],
    rig: StereoRig,
    labels: Sequence[Object3D] | None = None,
    title: str = "",
) -> np.ndarray:
    """The left image (H, W, 3) uint8 RGB with 3D boxes beside the bird's-eye view, below a title and a legend."""
    factor = FIGURE_HEIGHT / image.shape[0]
    width = round(image.shape[1] * factor)
    large = cv2.resize(np.ascontiguousarray(image, np.uint8), (width, FIGURE_HEIGHT), interpolation=cv2.INTER_CUBIC)
    left = draw_boxes(large, objects, rig.scaled(width / image.shape[1], factor), labels)
    above = birds_eye(objects, labels, rig=rig, image_width=image.shape[1], size=(520, FIGURE_HEIGHT))
    gap = np.full((FIGURE_HEIGHT, 6, 3), BACKGROUND, np.uint8)
    body = np.concatenate([left, gap, above], axis=1)
    header = Image.new("RGB", (body.shape[1], 44), BACKGROUND)
    draw = ImageDraw.Draw(header)
    draw.text((16, 22), title, INK, _font(22), anchor="lm")
    x = float(body.shape[1] - 16)
    names = sorted({o.label for o in _drawable(objects)}, key=lambda n: (n not in CLASS_COLOURS, n))
    entries = [(name, class_colour(name), True) for name in names]
    if _drawable(labels):
        entries.append(("ground truth", LABEL_COLOUR, False))
    for name, colour, solid in reversed(entries):
        x -= draw.textlength(name, _font(18))
        draw.text((x, 22), name, INK, _font(18), anchor="lm")
        x -= 24
        draw.rectangle((x, 15, x + 15, 29), fill=colour if solid else None, outline=colour)
        x -= 22
    return np.concatenate([np.asarray(header), body], axis=0)


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG or JPEG, by the suffix. Raises ValueError on another suffix."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{path}: suffix: expected .png or .jpg, got {path.suffix or 'none'}")
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    data = io.BytesIO()  # Pillow does not notice every failure to write a file
    Image.fromarray(picture).save(data, kind, quality=92)  # the quality is JPEG's; PNG has none
    write_whole(path, lambda beside: beside.write_bytes(data.getvalue()))
