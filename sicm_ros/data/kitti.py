# SPDX-License-Identifier: Apache-2.0
"""Readers and writers of KITTI's files: object benchmark, raw drives, odometry sequences.

Any error in a file raises a ``KittiError`` of one line that names the file, the line number where there is one, the
field and what was expected.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from PIL import Image

from sicm_ros.data.source import StereoFrame
from sicm_ros.files import write_whole
from sicm_ros.geometry import GeometryError, Object3D, StereoRig

__all__ = [
    "KittiError",
    "KittiObject",
    "KittiOdometry",
    "KittiRaw",
    "open_source",
    "read_calib",
    "read_image",
    "read_labels",
    "read_object_calib",
    "read_pair",
    "read_raw_calib",
    "read_split",
    "write_labels",
    "write_object_calib",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# The object benchmark's frames carry no time; they get KITTI's camera rate.
SYNTHETIC_PERIOD_NS = 100_000_000
# Times that count from the beginning of a recording begin here: in ROS a stamp of zero means none.
START_NS = 1_000_000_000

# Numbers of the left and the right camera: a recording may have one of the two pairs, or both.
Cameras = tuple[int, int]
COLOUR: Cameras = (2, 3)
GREY: Cameras = (0, 1)

# The columns of a label file after the class name; a result file has the score too.
LABEL_FIELDS = (
    "truncated",
    "occluded",
    "alpha",
    "bbox left",
    "bbox top",
    "bbox right",
    "bbox bottom",
    "height",
    "width",
    "length",
    "x",
    "y",
    "z",
    "rotation_y",
    "score",
)


class KittiError(ValueError):
    """A KITTI file or folder that cannot be used; the message is one line naming file, field and expected value."""


# ---------------------------------------------------------------------------------------------------------------- text


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise KittiError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise KittiError(f"{path}: expected a file, got a folder") from None
    except UnicodeDecodeError:
        raise KittiError(f"{path}: expected a text file, got binary data") from None
    except OSError as error:
        raise KittiError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line:
            yield number, line


def _shortened(text: str) -> str:
    """A piece of somebody's file as it may stand in a one-line message."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _number(path: Path, line: int, field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KittiError(f"{path}:{line}: {field}: expected a finite number, got {_shortened(text)}")
    return value


# -------------------------------------------------------------------------------------------------------------- labels


def read_labels(path: str | Path) -> list[Object3D]:
    """Objects of a label file (15 columns) or a result file (16, with the score), DontCare regions included.

    Blank lines are skipped. Raises KittiError.
    """
    path = Path(path)
    objects = []
    for line, text in _lines(_read_text(path)):
        columns = text.split()
        if len(columns) not in (15, 16):
            raise KittiError(f"{path}:{line}: columns: expected 15 (a label) or 16 (a result), got {len(columns)}")
        name, *rest = columns
        if not name[0].isalpha():
            raise KittiError(f"{path}:{line}: type: expected a class name such as Car, got {_shortened(name)}")
        values = [_number(path, line, field, value) for field, value in zip(LABEL_FIELDS, rest, strict=False)]
        truncated, occluded, alpha, left, top, right, bottom, height, width, length, x, y, z, rotation_y = values[:14]
        if occluded not in (-1, 0, 1, 2, 3):
            raise KittiError(f"{path}:{line}: occluded: expected one of -1, 0, 1, 2, 3, got {_shortened(rest[1])}")
        objects.append(
            Object3D(
                name,
                (left, top, right, bottom),
                height,
                width,
                length,
                x,
                y,
                z,
                rotation_y,
                alpha,
                truncated,
                int(occluded),
                values[14] if len(values) == 15 else None,
            )
        )
    return objects


def _plain(value: float, digits: int = 4) -> str:
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def write_labels(path: str | Path, objects: Sequence[Object3D]) -> None:
    """Write ``objects`` as KITTI text, one a line, with a 16th column where a score is set."""
    lines = []
    for o in objects:
        values = (o.alpha, *o.bbox, o.height, o.width, o.length, o.x, o.y, o.z, o.rotation_y)
        columns = [o.label, _plain(o.truncated), str(o.occluded), *map(_plain, values)]
        if o.score is not None:
            columns.append(_plain(o.score, 6))
        lines.append(" ".join(columns) + "\n")
    write_whole(path, lambda beside: beside.write_text("".join(lines), encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- calibration


def _read_projections(path: Path, left_key: str, right_key: str) -> StereoRig:
    matrices: dict[str, np.ndarray] = {}
    keys: list[str] = []
    for line, text in _lines(_read_text(path)):
        key, colon, rest = text.partition(":")
        key = key.strip()
        if not colon:
            continue
        keys.append(key)
        if key not in (left_key, right_key):
            continue
        values = rest.split()
        if len(values) != 12:
            raise KittiError(f"{path}:{line}: {key}: expected 12 numbers (a 3x4 matrix), got {len(values)}")
        matrices[key] = np.array([_number(path, line, key, value) for value in values]).reshape(3, 4)
    for key in (left_key, right_key):
        if key not in matrices:
            found = ", ".join(_shortened(k)[1:-1] for k in keys[:12]) or "no field"
            raise KittiError(f"{path}: {key}: expected a line '{key}: <12 numbers>', found {found}")
    try:
        return StereoRig.from_projections(matrices[left_key], matrices[right_key])
    except GeometryError as error:
        message = str(error).replace("P_left", left_key).replace("P_right", right_key)
        raise KittiError(f"{path}: {message}") from None


def read_object_calib(path: str | Path, cameras: Cameras = COLOUR) -> StereoRig:
    """The rig of two cameras, from P2 and P3 (of the grey ones: P0 and P1) of an object-benchmark calibration or an
    odometry ``calib.txt``."""
    return _read_projections(Path(path), *(f"P{camera}" for camera in cameras))


def read_raw_calib(path: str | Path, cameras: Cameras = COLOUR) -> StereoRig:
    """The rig of two cameras, from P_rect_02 and P_rect_03 (of the grey ones: 00 and 01) of a raw drive's
    ``calib_cam_to_cam.txt``."""
    return _read_projections(Path(path), *(f"P_rect_0{camera}" for camera in cameras))


def read_calib(path: str | Path, cameras: Cameras = COLOUR) -> StereoRig:
    """The rig of two cameras from any of KITTI's three kinds of calibration file."""
    path = Path(path)
    raw = any(text.startswith("P_rect_") for _, text in _lines(_read_text(path)))
    return read_raw_calib(path, cameras) if raw else read_object_calib(path, cameras)


def write_object_calib(path: str | Path, rig: StereoRig) -> None:
    """Write a complete object-benchmark calibration of ``rig``.

    P0 and P1 repeat P2 and P3 (a rig knows of no grey cameras), R0_rect is the identity, and the lidar and the IMU get
    the same origin and axes: x forward, y left, z up.
    """

    def matrix(values: np.ndarray) -> str:
        return " ".join(f"{v:.12e}" for v in np.asarray(values).ravel())

    lidar_to_camera = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]], np.float64)
    lines = [f"P{i}: {matrix(rig.p_left if i % 2 == 0 else rig.p_right)}\n" for i in range(4)]
    lines += [
        f"R0_rect: {matrix(np.eye(3))}\n",
        f"Tr_velo_to_cam: {matrix(lidar_to_camera)}\n",
        f"Tr_imu_to_velo: {matrix(np.eye(4)[:3])}\n",
    ]
    write_whole(path, lambda beside: beside.write_text("".join(lines), encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------------- images


def read_image(path: str | Path) -> np.ndarray:
    """A PNG or JPEG as (H, W, 3) uint8 RGB. Raises KittiError when it is missing or not a whole image."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise KittiError(f"{path}: no such image") from None
    except IsADirectoryError:
        raise KittiError(f"{path}: expected an image, got a folder") from None
    except OSError as error:
        raise KittiError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("RGB", "L", "P", "RGBA"):
                raise KittiError(f"{path}: expected an image of 8 bits a channel, got mode {image.mode}")
            return np.array(image.convert("RGB"))
    except KittiError:
        raise
    except Exception:  # Pillow raises whatever the damaged part of a file leads it into
        raise KittiError(
            f"{path}: expected a PNG or JPEG image, got {len(data)} bytes that are not a whole one"
        ) from None


def _find_image(folder: Path, name: str) -> Path:
    for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    raise KittiError(f"{folder / name}.png: no such image")


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise KittiError(f"{folder}: expected a folder of images, there is none")
    # Names with a dot in front are of the system, or of a file that was not finished.
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    names = sorted({p.stem for p in files})
    if not names:
        raise KittiError(f"{folder}: expected PNG or JPEG images, found none")
    return names


def _read_views(left_path: Path, right_path: Path) -> tuple[np.ndarray, np.ndarray]:
    left, right = read_image(left_path), read_image(right_path)
    if left.shape != right.shape:
        raise KittiError(
            f"{right_path}: size: expected {left.shape[1]}x{left.shape[0]} like the left view "
            f"{left_path}, got {right.shape[1]}x{right.shape[0]}"
        )
    return left, right


def read_pair(left: str | Path, right: str | Path, calib: str | Path) -> StereoFrame:
    """One pair from three files: images of equal size, and any KITTI calibration. Stamps are 0, labels None.

    The calibration is that of the colour cameras, unless the left image lies in a folder of KITTI's grey camera.
    """
    left = Path(left)
    views = _read_views(left, Path(right))
    grey = {"image_0", "image_00"} & {left.absolute().parent.name, left.absolute().parent.parent.name}
    return StereoFrame(left.stem, *views, read_calib(calib, GREY if grey else COLOUR), 0, 0, None)


def _cameras(folder: Path, pattern: str) -> Cameras:
    """The cameras whose images are in ``folder``, in folders named like ``pattern``; colour where both are there."""
    grey = not (folder / pattern.format(COLOUR[0])).is_dir() and (folder / pattern.format(GREY[0])).is_dir()
    return GREY if grey else COLOUR


# ------------------------------------------------------------------------------------------------------------- sources


def read_split(path: str | Path) -> list[str]:
    """Frame ids of a split file, one a line. Raises KittiError on anything else, and on a file with none."""
    path = Path(path)
    ids = []
    for line, text in _lines(_read_text(path)):
        if not re.fullmatch(r"[\w-]+", text, re.ASCII):
            raise KittiError(f"{path}:{line}: id: expected one frame id such as 000107, got {_shortened(text)}")
        ids.append(text)
    if not ids:
        raise KittiError(f"{path}: expected frame ids, one a line, found none")
    return ids


class KittiObject:
    """Frames of the object benchmark: ``root/split/{image_2,image_3,calib,label_2}``, read when they are asked for.

    Where there are only ``image_0`` and ``image_1``, these. ``ids`` chooses frames (default: every left image). Without
    a ``label_2`` folder, labels are None. The benchmark's frames carry no time: frame i is stamped 1 s plus i times
    0.1 s.
    """

    def __init__(self, root: str | Path, split: str = "training", ids: Sequence[str] | None = None) -> None:
        self.folder = Path(root) / split
        if not self.folder.is_dir():
            raise KittiError(f"{root}: expected a KITTI object folder with {split}/image_2, there is none")
        self.cameras = _cameras(self.folder, "image_{}")
        self._left, self._right = (self.folder / f"image_{camera}" for camera in self.cameras)
        self.ids = list(ids) if ids is not None else _image_names(self._left)
        self.has_labels = (self.folder / "label_2").is_dir()

    def __len__(self) -> int:
        return len(self.ids)

    def stamp_ns(self, index: int) -> int:
        """The left image's stamp of a frame, without reading it."""
        return START_NS + (index % len(self.ids)) * SYNTHETIC_PERIOD_NS

    def __getitem__(self, index: int) -> StereoFrame:
        name = self.ids[index]
        left, right = _read_views(_find_image(self._left, name), _find_image(self._right, name))
        rig = read_object_calib(self.folder / "calib" / f"{name}.txt", self.cameras)
        labels = read_labels(self.folder / "label_2" / f"{name}.txt") if self.has_labels else None
        stamp = self.stamp_ns(index)
        return StereoFrame(name, left, right, rig, stamp, stamp, labels)


class KittiRaw:
    """Frames of a rectified raw drive: ``drive/image_02``, ``image_03`` with ``data/`` and ``timestamps.txt`` each.

    Where there are only ``image_00`` and ``image_01``, these.
    ``calib_cam_to_cam.txt`` is looked for in ``calib_dir``, else in the drive's folder and the one above (the day's).
    Both cameras keep their own stamps (UTC nanoseconds since 1970).
    """

    def __init__(self, drive_dir: str | Path, calib_dir: str | Path | None = None) -> None:
        self.folder = Path(drive_dir)
        cameras = _cameras(self.folder, "image_0{}")
        self._sides = [f"image_0{camera}" for camera in cameras]
        self.ids = _image_names(self.folder / self._sides[0] / "data")
        places = [Path(calib_dir)] if calib_dir is not None else [self.folder, self.folder.resolve().parent]
        found = [p / "calib_cam_to_cam.txt" for p in places if (p / "calib_cam_to_cam.txt").is_file()]
        if not found:
            raise KittiError(f"{places[-1]}: expected calib_cam_to_cam.txt, there is none")
        self.rig = read_raw_calib(found[0], cameras)
        self.stamps = {side: self._read_stamps(self.folder / side / "timestamps.txt") for side in self._sides}

    @staticmethod
    def _read_stamps(path: Path) -> list[int]:
        stamps = []
        for line, text in _lines(_read_text(path)):
            # Nine digits of a second: datetime holds six, so the fraction is read on its own.
            second, _, fraction = text.partition(".")
            try:
                whole = datetime.strptime(second, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
                nanoseconds = int((fraction or "0").ljust(9, "0")[:9])
            except ValueError:
                raise KittiError(
                    f"{path}:{line}: time: expected YYYY-MM-DD HH:MM:SS.fffffffff, got {_shortened(text)}"
                ) from None
            stamps.append(int(whole.timestamp()) * 1_000_000_000 + nanoseconds)
        return stamps

    def _stamp(self, side: str, name: str) -> int:
        # Frames that a drive lacks still have their line, so a frame's number, not its rank, finds its time.
        path = self.folder / side / "timestamps.txt"
        if not name.isdecimal():
            raise KittiError(f"{self.folder / self._sides[0] / 'data' / name}: name: expected a frame number")
        if int(name) >= len(self.stamps[side]):
            raise KittiError(f"{path}: expected a line for frame {name}, the file has {len(self.stamps[side])}")
        return self.stamps[side][int(name)]

    def __len__(self) -> int:
        return len(self.ids)

    def stamp_ns(self, index: int) -> int:
        """The left image's stamp of a frame, without reading it."""
        return self._stamp(self._sides[0], self.ids[index])

    def __getitem__(self, index: int) -> StereoFrame:
        name = self.ids[index]
        views = _read_views(*(_find_image(self.folder / side / "data", name) for side in self._sides))
        left_ns, right_ns = (self._stamp(side, name) for side in self._sides)
        return StereoFrame(name, *views, self.rig, left_ns, right_ns, None)


class KittiOdometry:
    """Frames of an odometry sequence: ``image_2``, ``image_3``, ``calib.txt`` and ``times.txt`` (seconds).

    Where there are only ``image_0`` and ``image_1``, these.
    """

    def __init__(self, sequence_dir: str | Path) -> None:
        self.folder = Path(sequence_dir)
        cameras = _cameras(self.folder, "image_{}")
        self._left, self._right = (self.folder / f"image_{camera}" for camera in cameras)
        self.ids = _image_names(self._left)
        self.rig = read_object_calib(self.folder / "calib.txt", cameras)
        path = self.folder / "times.txt"
        self.stamps = []
        for line, text in _lines(_read_text(path)):
            try:
                seconds = Decimal(text)
                if not 0 <= seconds < 10**9:
                    raise InvalidOperation
            except InvalidOperation:
                raise KittiError(
                    f"{path}:{line}: time: expected seconds since the sequence's start, got {_shortened(text)}"
                ) from None
            self.stamps.append(START_NS + round(seconds * 1_000_000_000))
        last = max((int(n) for n in self.ids if n.isdecimal()), default=0)
        if any(not n.isdecimal() for n in self.ids) or last >= len(self.stamps):
            raise KittiError(
                f"{path}: expected a time for each image up to {self.ids[-1]}, the file has {len(self.stamps)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def stamp_ns(self, index: int) -> int:
        """The left image's stamp of a frame, without reading it."""
        return self.stamps[int(self.ids[index])]

    def __getitem__(self, index: int) -> StereoFrame:
        name = self.ids[index]
        left, right = _read_views(_find_image(self._left, name), _find_image(self._right, name))
        stamp = self.stamp_ns(index)
        return StereoFrame(name, left, right, self.rig, stamp, stamp, None)


def open_source(path: str | Path) -> KittiObject | KittiRaw | KittiOdometry:
    """The source of frames at ``path``, of whichever kind its folders show.

    An object benchmark is given by its root or by its ``training`` or ``testing`` folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise KittiError(f"{path}: expected a KITTI folder, there is none")
    if (path / "image_02").is_dir() or (path / "image_00").is_dir():
        return KittiRaw(path)
    if (path / "image_2").is_dir() or (path / "image_0").is_dir():
        if (path / "calib").is_dir():
            return KittiObject(path.parent, path.name)
        return KittiOdometry(path)
    for split in ("training", "testing"):
        if (path / split / "image_2").is_dir() or (path / split / "image_0").is_dir():
            return KittiObject(path, split)
    raise KittiError(
        f"{path}: expected an object folder (training/image_2), a raw drive (image_02/data) or an "
        "odometry sequence (image_2 and calib.txt), found none of them"
    )
