# SPDX-License-Identifier: Apache-2.0
"""KITTI's files: what real ones hold, what is said about broken ones, and that writing and reading agree."""

import shutil
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kitti_material import ROOT, archive, needs_kitti
from PIL import Image

from sicm_ros.data.kitti import (
    KittiError,
    KittiObject,
    KittiOdometry,
    KittiRaw,
    open_source,
    read_calib,
    read_image,
    read_labels,
    read_object_calib,
    read_pair,
    read_raw_calib,
    read_split,
    write_labels,
    write_object_calib,
)
from sicm_ros.geometry import Object3D, StereoRig

CAR = "Car 0.25 1 -1.85 733.06 182.54 934.34 317.95 1.45 1.49 3.79 2.73 1.60 9.79 -1.58"
RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def error_of(call, *arguments) -> str:
    with pytest.raises(KittiError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -------------------------------------------------------------------------------------------------------------- labels


def test_label_fields_are_in_kitti_order(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(CAR + "\n" + CAR + " 0.5\r\n   \n\n")
    label, result = read_labels(path)
    assert label == Object3D(
        "Car", (733.06, 182.54, 934.34, 317.95), 1.45, 1.49, 3.79, 2.73, 1.60, 9.79, -1.58, -1.85, 0.25, 1, None
    )
    assert result.score == 0.5


def test_an_empty_label_file_has_no_object(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert read_labels(tmp_path / "a.txt") == []


@pytest.mark.parametrize(
    "text, expected",
    [
        (CAR.rsplit(" ", 1)[0], ":2: columns: expected 15 (a label) or 16 (a result), got 14"),
        (CAR + " 1 2", ":2: columns: expected 15 (a label) or 16 (a result), got 17"),
        (CAR.replace("1.49", "wide"), ":2: width: expected a finite number, got 'wide'"),
        (CAR.replace("9.79", "nan"), ":2: z: expected a finite number, got 'nan'"),
        (CAR.replace("317.95", "inf"), ":2: bbox bottom: expected a finite number, got 'inf'"),
        (CAR + " high", ":2: score: expected a finite number, got 'high'"),
        (CAR.replace(" 1 ", " 7 "), ":2: occluded: expected one of -1, 0, 1, 2, 3, got '7'"),
        (CAR.replace("Car", "0.5"), ":2: type: expected a class name such as Car, got '0.5'"),
    ],
)
def test_a_broken_label_names_line_field_and_expectation(tmp_path, text, expected):
    path = tmp_path / "000007.txt"
    path.write_text(CAR + "\n" + text + "\n")
    assert error_of(read_labels, path) == f"{path}{expected}"


def test_label_file_that_is_not_one(tmp_path):
    assert error_of(read_labels, tmp_path / "none.txt") == f"{tmp_path / 'none.txt'}: no such file"
    assert error_of(read_labels, tmp_path) == f"{tmp_path}: expected a file, got a folder"
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert error_of(read_labels, tmp_path / "a.png").endswith("expected a text file, got binary data")


@relaxed
@given(
    text=st.text(max_size=200)
    | st.lists(
        st.sampled_from(["Car", "0", "-1", "1.5", "nan", "1e400", "\n", "x" * 90, "DontCare", "3", "\x0b"]), max_size=40
    ).map(" ".join)
)
def test_any_text_is_labels_or_one_clear_error(tmp_path, text):
    path = tmp_path / "fuzz.txt"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        objects = read_labels(path)
    except KittiError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error) and len(str(error)) < len(str(path)) + 200
    else:
        assert all(np.isfinite([*o.bbox, o.x, o.y, o.z, o.height]).all() for o in objects)


numbers = st.floats(-2000, 2000)
objects_of_any_kind = st.builds(
    Object3D,
    label=st.sampled_from(["Car", "Pedestrian", "DontCare", "Person_sitting"]),
    bbox=st.tuples(numbers, numbers, numbers, numbers),
    height=numbers,
    width=numbers,
    length=numbers,
    x=numbers,
    y=numbers,
    z=numbers,
    rotation_y=numbers,
    alpha=numbers,
    truncated=st.floats(-1, 1),
    occluded=st.integers(-1, 3),
    score=st.none() | st.floats(-50, 50),
)


@relaxed
@given(objects=st.lists(objects_of_any_kind, max_size=5))
def test_written_labels_read_back(tmp_path, objects):
    path = tmp_path / "round.txt"
    write_labels(path, objects)
    back = read_labels(path)
    for a, b in zip(objects, back, strict=True):
        assert (a.label, a.occluded, a.score is None) == (b.label, b.occluded, b.score is None)
        first, second = (
            [*o.bbox, o.height, o.width, o.length, o.x, o.y, o.z, o.rotation_y, o.alpha, o.truncated, o.score or 0.0]
            for o in (a, b)
        )
        np.testing.assert_allclose(second, first, atol=5.1e-5)


@pytest.mark.slow
@needs_kitti
def test_all_training_labels_read(tmp_path):
    counts, scored = Counter(), 0
    path = tmp_path / "label.txt"
    for text in archive("label_2").values():
        path.write_bytes(text)
        objects = read_labels(path)
        counts.update(o.label for o in objects)
        scored += sum(o.score is not None for o in objects)
    assert len(archive("label_2")) == 7481 and scored == 0
    assert counts == {
        "Car": 28742,
        "DontCare": 11295,
        "Pedestrian": 4487,
        "Van": 2914,
        "Cyclist": 1627,
        "Truck": 1094,
        "Misc": 973,
        "Tram": 511,
        "Person_sitting": 222,
    }


@pytest.mark.slow
@needs_kitti
def test_a_real_detectors_results_read(tmp_path):
    """Some of these files end in a line of white space."""
    path = tmp_path / "result.txt"
    boxes = 0
    for text in archive("detections_val").values():
        path.write_bytes(text)
        objects = read_labels(path)
        assert all(o.score is not None and o.label == "Car" for o in objects)
        boxes += len(objects)
    assert boxes == 16057


# --------------------------------------------------------------------------------------------------------- calibration


def calib_lines(**changes) -> str:
    values = {"P2": RIG.p_left, "P3": RIG.p_right} | changes
    return "".join(
        f"{k}: {v if isinstance(v, str) else ' '.join(map(repr, v.ravel()))}\n"
        for k, v in values.items()
        if v is not None
    )


def test_written_calibration_reads_back_and_is_complete(tmp_path):
    path = tmp_path / "calib.txt"
    write_object_calib(path, RIG)
    assert read_object_calib(path) == RIG
    sizes = {line.split(":")[0]: len(line.split()) - 1 for line in path.read_text().splitlines()}
    assert sizes == {"P0": 12, "P1": 12, "P2": 12, "P3": 12, "R0_rect": 9, "Tr_velo_to_cam": 12, "Tr_imu_to_velo": 12}


def test_raw_calibration(tmp_path):
    path = tmp_path / "calib_cam_to_cam.txt"
    text = calib_lines().replace("P2", "P_rect_02").replace("P3", "P_rect_03")
    path.write_text("calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\n" + text)
    assert read_raw_calib(path) == read_calib(path) == RIG
    message = error_of(read_object_calib, path)
    assert "P2: expected a line 'P2: <12 numbers>', found calib_time, corner_dist, P_rect_02" in message


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"P3": None}, "P3: expected a line 'P3: <12 numbers>', found P2"),
        ({"P2": None, "P3": None}, "P2: expected a line 'P2: <12 numbers>', found no field"),
        ({"P3": "1 2 3"}, "P3: expected 12 numbers (a 3x4 matrix), got 3"),
        ({"P3": "0 " * 11 + "x"}, "P3: expected a finite number, got 'x'"),
        ({"P3": RIG.p_left}, "baseline (P_left[0,3] - P_right[0,3]) / fx must be positive"),
        ({"P2": RIG.p_right, "P3": RIG.p_left}, "are the views swapped"),
        ({"P3": RIG.p_right + 3 * np.eye(3, 4) * [1, 1, 0, 0]}, "P2 and P3: expected equal intrinsics"),
        ({"P2": np.zeros((3, 4))}, "P2: expected zero skew and P[2,2] = 1"),
    ],
)
def test_a_broken_calibration_names_file_and_field(tmp_path, changes, expected):
    path = tmp_path / "calib.txt"
    path.write_text(calib_lines(**changes))
    message = error_of(read_object_calib, path)
    assert message.startswith(f"{path}:")
    assert expected.replace("P_left", "P2").replace("P_right", "P3") in message


@relaxed
@given(
    text=st.text(max_size=200)
    | st.lists(
        st.sampled_from(["P2:", "P3:", "\n", "1", "0", "nan", "700", ":", "-300", "P_rect_02:"]), max_size=60
    ).map(" ".join)
)
def test_any_text_is_a_calibration_or_one_clear_error(tmp_path, text):
    path = tmp_path / "fuzz.txt"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        rig = read_calib(path)
    except KittiError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
    else:
        assert rig.baseline > 0


@pytest.mark.slow
@needs_kitti
def test_all_training_calibrations_read(tmp_path):
    path = tmp_path / "calib.txt"
    baselines = Counter()
    for text in archive("calib").values():
        path.write_bytes(text)
        baselines[round(read_object_calib(path).baseline, 4)] += 1
    assert baselines == {0.5327: 6057, 0.5357: 770, 0.5324: 358, 0.5333: 296}


# -------------------------------------------------------------------------------------------------------------- images


def write_image(path, width=64, height=20, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_images_are_rgb(tmp_path):
    pixels = write_image(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.writeable and (image == pixels).all()
    write_image(tmp_path / "grey.png", mode="L")
    assert read_image(tmp_path / "grey.png").shape == (20, 64, 3)


def test_what_is_no_image_gives_one_clear_error(tmp_path):
    assert error_of(read_image, tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such image"
    assert error_of(read_image, tmp_path) == f"{tmp_path}: expected an image, got a folder"
    write_image(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for bad in (b"", b"hello", data[: len(data) // 2], data[:500] + b"\0\0\0\0" + data[504:]):
        (tmp_path / "b.png").write_bytes(bad)
        assert f"expected a PNG or JPEG image, got {len(bad)} bytes" in error_of(read_image, tmp_path / "b.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    assert "expected an image of 8 bits a channel" in error_of(read_image, tmp_path / "deep.png")


# ------------------------------------------------------------------------------------------------------------- sources


def object_folder(root, names=("000003", "000001")):
    folder = root / "training"
    for sub in ("calib", "label_2"):
        (folder / sub).mkdir(parents=True)
    for name in names:
        write_image(folder / "image_2" / f"{name}.png")
        write_image(folder / "image_3" / f"{name}.png")
        write_object_calib(folder / "calib" / f"{name}.txt", RIG)
        (folder / "label_2" / f"{name}.txt").write_text(CAR + "\n")
    return folder


def test_object_source(tmp_path):
    folder = object_folder(tmp_path)
    source = open_source(tmp_path)
    assert isinstance(source, KittiObject) and isinstance(open_source(folder), KittiObject)
    assert [f.name for f in source] == ["000001", "000003"] and len(source) == 2
    frame = source[1]
    assert frame.rig == RIG and frame.left.shape == (20, 64, 3) and len(frame.labels) == 1
    assert (frame.stamp_ns, frame.right_stamp_ns) == (1_100_000_000, 1_100_000_000)
    assert [f.name for f in KittiObject(tmp_path, ids=["000003"])] == ["000003"]
    with pytest.raises(IndexError):
        source[2]


def test_object_source_without_labels(tmp_path):
    shutil.rmtree(object_folder(tmp_path) / "label_2")
    assert open_source(tmp_path)[0].labels is None


def test_object_source_errors_name_the_file(tmp_path):
    folder = object_folder(tmp_path)
    source = open_source(tmp_path)
    write_image(folder / "image_3" / "000001.png", width=62)
    assert error_of(source.__getitem__, 0) == (
        f"{folder}/image_3/000001.png: size: expected 64x20 like the left view {folder}/image_2/000001.png, got 62x20"
    )
    (folder / "image_3" / "000001.png").unlink()
    assert error_of(source.__getitem__, 0) == f"{folder}/image_3/000001.png: no such image"
    (folder / "calib" / "000003.txt").write_text(calib_lines(P3=None))
    assert error_of(source.__getitem__, 1).startswith(f"{folder}/calib/000003.txt: P3: expected")
    write_object_calib(folder / "calib" / "000003.txt", RIG)
    (folder / "label_2" / "000003.txt").unlink()
    assert error_of(source.__getitem__, 1) == f"{folder}/label_2/000003.txt: no such file"


def raw_drive(day, digits=("390", "123456789")):
    drive = day / "2011_09_26_drive_0001_sync"
    for side, fraction in zip(("image_02", "image_03"), digits, strict=True):
        for name in ("0000000000", "0000000002"):
            write_image(drive / side / "data" / f"{name}.png")
        times = [f"2011-09-26 13:02:{second}.{fraction}\n" for second in (25, 26, 27)]
        (drive / side / "timestamps.txt").write_text("".join(times))
    (day / "calib_cam_to_cam.txt").write_text(calib_lines().replace("P2", "P_rect_02").replace("P3", "P_rect_03"))
    return drive


def test_raw_source_keeps_both_cameras_nanoseconds(tmp_path):
    drive = raw_drive(tmp_path)
    source = open_source(drive)
    assert isinstance(source, KittiRaw) and [f.name for f in source] == ["0000000000", "0000000002"]
    second = 1317042145 * 10**9
    assert (source[0].stamp_ns, source[0].right_stamp_ns) == (second + 390_000_000, second + 123_456_789)
    # A drive that lacks a frame: the time is that of the frame's number.
    assert source[1].stamp_ns == second + 2_390_000_000 and source[1].labels is None and source[1].rig == RIG
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "calib_cam_to_cam.txt", tmp_path / "elsewhere")
    assert KittiRaw(drive, tmp_path / "elsewhere").rig == RIG
    assert "expected calib_cam_to_cam.txt" in error_of(KittiRaw, drive)


def test_raw_source_with_broken_times(tmp_path):
    drive = raw_drive(tmp_path)
    times = drive / "image_03" / "timestamps.txt"
    times.write_text("2011-09-26 13:02:25.1\n2011-13-26 13:02:25.1\n")
    assert error_of(KittiRaw, drive).startswith(f"{times}:2: time: expected YYYY-MM-DD HH:MM:SS.fffffffff")
    times.write_text("2011-09-26 13:02:25.1\n")
    assert error_of(KittiRaw(drive).__getitem__, 1) == f"{times}: expected a line for frame 0000000002, the file has 1"


def test_odometry_source(tmp_path):
    for name in ("000000", "000001"):
        write_image(tmp_path / "image_2" / f"{name}.png")
        write_image(tmp_path / "image_3" / f"{name}.png")
    write_object_calib(tmp_path / "calib.txt", RIG)
    (tmp_path / "times.txt").write_text("0.000000e+00\n1.036117e-01\n")
    source = open_source(tmp_path)
    assert isinstance(source, KittiOdometry) and source[1].stamp_ns == source[1].right_stamp_ns == 1_103_611_700
    (tmp_path / "times.txt").write_text("0.0\nsoon\n")
    assert error_of(open_source, tmp_path).startswith(f"{tmp_path}/times.txt:2: time: expected seconds")
    (tmp_path / "times.txt").write_text("0.0\n")
    assert "expected a time for each image up to 000001, the file has 1" in error_of(open_source, tmp_path)


GREY_RIG = replace(RIG, left_translation=(0.0, 0.0, 0.0), right_translation=(-387.5744, 0.0, 0.0))


@pytest.mark.parametrize("kind", ["object", "raw", "odometry"])
def test_grey_cameras_have_their_own_rig_and_colour_comes_first(tmp_path, kind):
    """Grey images have one channel, as KITTI's have; suffixes may be capital letters."""
    root = tmp_path / "2011_09_26_drive_0001_sync" if kind == "raw" else tmp_path / "data"
    base, sub, name = {
        "object": (root / "training", "", "image_{}"),
        "raw": (root, "data", "image_0{}"),
        "odometry": (root, "", "image_{}"),
    }[kind]
    for camera in (0, 1):
        folder = base / name.format(camera) / sub
        folder.mkdir(parents=True)
        Image.new("L", (64, 20), 40 + camera).save(folder / "0000000000.PNG")
        if kind == "raw":
            (folder.parent / "timestamps.txt").write_text("2011-09-26 13:02:25.1\n")
    lines = "".join(
        f"{'P_rect_0' if kind == 'raw' else 'P'}{i}: {' '.join(map(str, p.ravel()))}\n"
        for i, p in enumerate((GREY_RIG.p_left, GREY_RIG.p_right, RIG.p_left, RIG.p_right))
    )
    path = {
        "object": base / "calib" / "0000000000.txt",
        "raw": tmp_path / "calib_cam_to_cam.txt",
        "odometry": root / "calib.txt",
    }[kind]
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines)
    (root / "times.txt").write_text("0.0\n")
    (frame,) = open_source(root)
    assert frame.rig == GREY_RIG and frame.left.shape == (20, 64, 3)
    assert (frame.left == 40).all() and (frame.right == 41).all()
    pair = [base / name.format(camera) / sub / "0000000000.PNG" for camera in (0, 1)]
    assert read_pair(*pair, path).rig == GREY_RIG
    for camera in (2, 3):
        shutil.copytree(base / name.format(camera - 2), base / name.format(camera))
    assert open_source(root)[0].rig == RIG


def test_hidden_files_are_no_images(tmp_path):
    folder = object_folder(tmp_path)
    before = [f.name for f in open_source(tmp_path)]
    (folder / "image_2" / "._000001.png").write_bytes(b"of another system")
    (folder / "image_2" / ".000009.png").write_bytes(b"half")
    assert [f.name for f in open_source(tmp_path)] == before


def test_no_source(tmp_path):
    assert error_of(open_source, tmp_path / "none").endswith("expected a KITTI folder, there is none")
    assert "found none of them" in error_of(open_source, tmp_path)
    (tmp_path / "training" / "image_2").mkdir(parents=True)
    assert error_of(open_source, tmp_path).endswith("image_2: expected PNG or JPEG images, found none")


def test_pair_from_three_files(tmp_path):
    folder = object_folder(tmp_path)
    frame = read_pair(
        *(
            folder / sub / name
            for sub, name in (("image_2", "000001.png"), ("image_3", "000003.png"), ("calib", "000001.txt"))
        )
    )
    assert frame.name == "000001" and frame.rig == RIG and frame.labels is None


def test_split_files(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("000001\r\n\n000107\n")
    assert read_split(path) == ["000001", "000107"]
    path.write_text("000001\n../../etc\n")
    assert error_of(read_split, path) == f"{path}:2: id: expected one frame id such as 000107, got '../../etc'"
    path.write_text("\n")
    assert error_of(read_split, path) == f"{path}: expected frame ids, one a line, found none"


@needs_kitti
def test_real_frames():
    source = open_source(ROOT / "object")
    assert [f.name for f in source] == ["000107", "001691"]
    assert [Counter(o.label for o in f.labels) for f in source] == [
        {"Car": 7, "Misc": 1, "DontCare": 2},
        {"Car": 4, "Misc": 1},
    ]
    assert all(f.left.shape == f.right.shape == (375, 1242, 3) for f in source)
    sequence = open_source(ROOT / "sequence_02")
    assert len(sequence) == 20 and sequence[19].left.shape == (376, 1241, 3)
    assert sequence[2].stamp_ns == 1_207_352_900
    assert [len(read_split(ROOT / "splits" / f"{name}.txt")) for name in ("train", "val")] == [3712, 3769]


@needs_kitti
def test_archives_hold_every_split_id():
    ids = set(read_split(ROOT / "splits" / "train.txt")) | set(read_split(ROOT / "splits" / "val.txt"))
    assert ids == set(archive("label_2")) == set(archive("calib")) and tarfile.is_tarfile(ROOT / "label_2.tar.gz")
