# SPDX-License-Identifier: Apache-2.0
"""Files of the user: written whole or not at all, and never in place of an input."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk

from sicm_ros.data.kitti import write_labels, write_object_calib
from sicm_ros.files import check_outputs, write_whole
from sicm_ros.geometry import Object3D
from sicm_ros.pictures import write_picture
from sicm_ros.render.layouts import KITTI_RIG

REPOSITORY = Path(__file__).resolve().parents[1]
CAR = Object3D("Car", (0, 0, 9, 9), 1.5, 1.6, 4.0, -6.0, 1.7, 15.0, 0.3, 0.2, 0.0, 0)


@pytest.mark.parametrize(
    "name, write",
    [
        ("labels.txt", lambda path: write_labels(path, [CAR] * 100)),
        ("calib.txt", lambda path: write_object_calib(path, KITTI_RIG)),
        ("picture.png", lambda path: write_picture(path, np.random.default_rng(1).integers(0, 255, (90, 90, 3), "u1"))),
        ("picture.JPG", lambda path: write_picture(path, np.random.default_rng(1).integers(0, 255, (90, 90, 3), "u1"))),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, name, write):
    path = tmp_path / name
    path.write_bytes(b"of yesterday")
    with full_disk(200), pytest.raises(OSError) as error:
        write(path)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(path)
    assert path.read_bytes() == b"of yesterday" and list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.read_bytes() != b"of yesterday" and list(tmp_path.iterdir()) == [path]


def test_rights_and_links_stay(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to("file")
    write_whole(link, lambda beside: beside.write_text("new"))
    assert link.is_symlink() and path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "other", lambda beside: beside.write_text("new"))
    finally:
        os.umask(mask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640


def test_names_as_long_as_names_may_be(tmp_path):
    for name in ("x" * 251 + ".txt", "é" * 125 + ".txt", "箱" * 83 + ".txt"):
        write_whole(tmp_path / name, lambda beside: beside.write_text("new"))
        assert (tmp_path / name).read_text() == "new"


def test_devices_and_pipes_are_written_as_they_are(tmp_path):
    write_whole("/dev/null", lambda path: path.write_text("nothing"))
    assert not Path("/dev/null").is_file()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = "import sys; print(open(sys.argv[1]).read(), end='')"
    with subprocess.Popen([sys.executable, "-c", code, str(pipe)], stdout=subprocess.PIPE) as reader:
        write_whole(pipe, lambda path: path.write_text("through"))
        assert reader.stdout.read() == b"through"
    assert pipe.is_fifo()
    code = (
        "from sicm_ros.files import write_whole; print('before', flush=True)\n"
        "write_whole('/dev/stdout', lambda path: path.open('a').write('between\\n')); print('after')"
    )
    with (tmp_path / "out").open("a") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=REPOSITORY, check=True)
    assert (tmp_path / "out").read_text() == "before\nbetween\nafter\n"


def test_a_folder_without_rights_is_named(tmp_path):
    with pytest.raises(OSError) as error:
        write_whole(tmp_path / "none" / "a.txt", lambda beside: beside.write_text("new"))
    assert error.value.filename == str(tmp_path / "none" / "a.txt")


def test_outputs_are_other_files_than_inputs_and_than_each_other(tmp_path):
    packet, link, hard = tmp_path / "a.sicm", tmp_path / "link", tmp_path / "hard"
    packet.write_bytes(b"packet")
    link.symlink_to(packet)
    hard.hardlink_to(packet)
    for output in (packet, link, hard, tmp_path / "x" / ".." / "a.sicm"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="expected another name to write to, this is an input"):
            check_outputs([output], [None, packet])
    with pytest.raises(ValueError, match="this one is given twice"):
        check_outputs([tmp_path / "new.png", None, tmp_path / "new.png"])
    check_outputs([packet, tmp_path / "new"], [tmp_path / "other"])
