# SPDX-License-Identifier: Apache-2.0
"""``sicm evaluate``: what it writes, how it goes on, and what it says of bad input."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from codec_material import TAME_MODEL, TINY_MODEL
from needs import missing

from sicm_ros.cli.app import main
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import KittiError, KittiObject
from sicm_ros.data.rendered import render_dataset
from sicm_ros.evaluation.comparison import chosen_systems, compare_systems
from sicm_ros.evaluation.frames import LabelledFrames
from sicm_ros.evaluation.kitti_ap import LOW_SCORE, evaluate
from sicm_ros.evaluation.outcomes import OutcomeError, Outcomes
from sicm_ros.evaluation.systems import SYSTEMS, image_codec
from sicm_ros.model_store import load_model

MISSING = missing("bjontegaard", "matplotlib", "jinja2", "distributed")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SHIPPED = "sicm-compact"  # some of its boxes are right, so that no AP is zero
FEW = "uncompressed,packets,jpeg"


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """Three labelled frames with images."""
    root = tmp_path_factory.mktemp("kitti")
    render_dataset(root, count=3, seed=5)
    return root


@pytest.fixture(scope="module")
def report(kitti, tmp_path_factory):
    """The report of three systems on them."""
    out = tmp_path_factory.mktemp("report")
    run("--data", kitti, "--systems", FEW, "--anchors", "jpeg", "--pictures", 1, "--out", out, model=SHIPPED)
    return out


def run(*arguments, model=TAME_MODEL):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--model", str(model), "--workers", "1", *map(str, arguments)])
    return ended.value.code


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "points.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(out: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if "CPU" not in name} for row in rows(out)]


def test_points_are_what_the_parts_give(kitti, report):
    """Bytes, likelihoods, bits per pixel and AP of the packets at one rate, computed here from the codec itself."""
    source = KittiObject(kitti)
    frames = [source[i] for i in range(3)]
    encoder, decoder = StereoEncoder(SHIPPED), StereoDecoder(SHIPPED, score_threshold=LOW_SCORE)
    coded = [encoder.encode(f.left, f.right, f.rig, rate=3.0) for f in frames]
    found = [decoder.decode(c.packet).objects for c in coded]
    table = evaluate([f.labels for f in frames], found, ["Car", "Pedestrian"])["R40"]
    (row,) = [r for r in rows(report) if (r["system"], r["point"]) == ("packets", "3")]
    sizes = [len(c.packet) for c in coded]
    assert float(row["bytes"]) == pytest.approx(np.mean(sizes), abs=0.06)
    assert float(row["bytes by likelihood"]) == pytest.approx(np.mean([c.estimated_bits for c in coded]) / 8, abs=0.06)
    pixels = 2 * frames[0].left.shape[0] * frames[0].left.shape[1]
    assert float(row["bits per pixel"]) == pytest.approx(8 * np.mean(sizes) / pixels, abs=1e-5)
    for name, kind, metric in (("Car 3D@0.7", "Car", "3D"), ("Car BEV@0.5", "Car", "BEV loose")):
        assert float(row[name]) == pytest.approx(table[metric][kind][1], abs=0.006)
    assert float(row["Car BEV@0.5"]) > 5


def test_a_report_is_whole(report):
    found = rows(report)
    assert [(r["system"], r["point"]) for r in found] == [
        ("uncompressed", "0"),
        *(("packets", str(i)) for i in range(6)),
        *(("jpeg", str(q)) for q in (5, 10, 20, 40, 70, 90)),
    ]
    sizes = {name: [float(r["bytes"]) for r in found if r["system"] == name] for name in ("packets", "jpeg")}
    assert all(values == sorted(values) and values[0] > 0 for values in sizes.values())
    page = (report / "index.html").read_text()
    outside = re.search(r"""(src|href)=["'](?!#|data:)|url\((?!["']?#)|@import|<script""", page)
    assert not outside, "it holds all that it needs"
    for words in (
        "Table I:",
        "Table II:",
        "Table IV",
        "Bytes of a pair",
        "Every point",
        "Figure 2",
        "Figure 3",
        "JPEG",
    ):
        assert words in page, words
    assert page.count("<svg") == 3 and page.count("data:image/png;base64,") == 1
    for name in ("figure-2", "figure-3", "figure-bev50"):
        assert (report / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert cv2.imread(str(report / f"{name}.png")).std() > 10
    grid = cv2.imread(str(report / "figure-4-1.png"))
    assert grid.shape[2] == 3 and grid.std() > 20
    # Labels are blue, detections red.
    blue, green, red = (grid[..., c].astype(int) for c in range(3))
    assert ((blue > 200) & (red < 110) & (green < 160)).sum() > 50


def test_a_second_run_does_nothing_again_and_more_systems_are_added(kitti, report, tmp_path, capsys):
    out = shutil.copytree(report, tmp_path / "out")
    before = rows(out)
    assert run("--data", kitti, "--systems", FEW, "--anchors", "jpeg", "--out", out, model=SHIPPED) == 0
    assert rows(out) == before  # times, too: nothing was measured again
    assert run("--data", kitti, "--systems", f"{FEW},{TINY_MODEL}", "--out", out, "--json", model=SHIPPED) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert table["frames"] == 3 and len(rows(out)) == len(before) + 6
    assert rows(out)[: len(before)] == before


def test_frames_without_images_are_rendered(kitti, tmp_path):
    root = tmp_path / "layouts"
    for folder in ("label_2", "calib"):
        shutil.copytree(kitti / "training" / folder, root / "training" / folder)
    split = tmp_path / "split.txt"
    split.write_text("000002\n000000\n")
    data = LabelledFrames.open(root, split)
    assert data.rendered and data.names == ("000002", "000000")
    first, again = data.frame("000002"), data.frame("000002")
    np.testing.assert_array_equal(first.left, again.left)
    assert first.left.shape == (375, 1242, 3) and first.labels
    other = LabelledFrames.open(root, split, seed=7).frame("000002")
    assert not np.array_equal(first.left, other.left)
    assert run("--data", root, "--split", split, "--count", 1, "--systems", "jpeg", "--out", tmp_path / "out") == 0
    assert {row["frames"] for row in rows(tmp_path / "out")} == {"1"}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_processes_change_nothing(kitti, report, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sicm_ros.cli.app", "evaluate", "--data", str(kitti)]
    command += ["--systems", FEW, "--anchors", "jpeg", "--pictures", "1", "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        if (out / "outcomes.sqlite3").is_file() and kept_outcomes(out):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "index.html").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert untimed(out) == untimed(report)
    for name in ("figure-2.svg", "figure-4-1.png"):
        assert (out / name).read_bytes() == (report / name).read_bytes()


def kept_outcomes(folder: Path) -> int:
    with sqlite3.connect(f"file:{folder / 'outcomes.sqlite3'}?mode=ro", uri=True) as database:
        try:
            return database.execute("select count(*) from outcomes").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def test_the_ablation_has_its_table_and_figure(kitti, tmp_path):
    """Table III and figure 5, for models of these names."""
    for name, source in (("mvsfc-paper", TAME_MODEL), ("mvsfc-without-smfc", TINY_MODEL)):
        shutil.copytree(source, tmp_path / name)
    models = ",".join(str(tmp_path / name) for name in ("mvsfc-paper", "mvsfc-without-smfc"))
    out = tmp_path / "out"
    arguments = ("--count", 1, "--systems", f"{models},jpeg", "--anchors", "jpeg", "--pictures", 0, "--out", out)
    assert run("--data", kitti, *arguments) == 0
    assert (out / "figure-5.svg").is_file() and "Table III: without SMFC, against JPEG" in (
        out / "index.html"
    ).read_text()


def test_frames_are_checked_before_the_work(kitti, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("000000\n000001\n000000\n")
    with pytest.raises(KittiError, match=r"split.txt: expected each frame once, 000000 is in it 2 times"):
        LabelledFrames.open(kitti, split)
    split.write_text("000000\n000009\n")
    with pytest.raises(KittiError, match=r"000009.txt: no such file \(1 frames of .*split.txt have none\)"):
        LabelledFrames.open(kitti, split)


def test_bad_input_is_one_line(kitti, report, tmp_path, capsys):
    def said(*arguments):
        assert run(*arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    assert "label_2: expected a folder of label files" in said("--data", tmp_path, "--out", tmp_path / "o")
    assert "--systems: webp: expected one of uncompressed, packets, " in said(
        "--data", kitti, "--systems", "jpeg,webp", "--out", tmp_path / "o"
    )
    text = said("--data", kitti, "--systems", "jpeg", "--out", report, "--model", TINY_MODEL)
    assert "outcomes.sqlite3: expected the outcomes of model " in text
    assert "--anchors: expected names of systems, got vvc-intr" in said(
        "--data", kitti, "--systems", "jpeg", "--anchors", "vvc-intr", "--out", tmp_path / "o"
    )
    split = tmp_path / "split.txt"
    split.write_text("000001\n000002\n")
    assert "expected the outcomes of frames" in said(
        "--data", kitti, "--split", split, "--systems", "jpeg", "--out", report, "--model", SHIPPED
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "outcomes.sqlite3").write_bytes(b"no database" * 100)
    assert "cannot keep the outcomes" in said("--data", kitti, "--systems", "jpeg", "--out", tmp_path / "bad")


def test_what_cannot_run_is_said_and_left_out(kitti, tmp_path, monkeypatch, capsys):
    def without_ffmpeg():
        raise ImportError

    monkeypatch.setattr(image_codec, "_encoders", without_ffmpeg)
    assert run("--data", kitti, "--count", 1, "--systems", "vvc-intra,jpeg", "--out", tmp_path / "out") == 0
    line = "vvc-intra is left out: needs ffmpeg with libx265 and libvvenc: pip install -r requirements/evaluate.txt"
    assert line in capsys.readouterr().err
    assert line.split(": ", 1)[1] in (tmp_path / "out" / "index.html").read_text()
    assert run("--data", kitti, "--systems", "vvc-intra", "--out", tmp_path / "none") == 2


def test_a_system_of_drives_gets_all_frames_in_order(kitti, tmp_path, capsys):
    drive = tmp_path / "drive" / "training"
    for number, place in enumerate(("000001", "000001", "000000")):  # it stands still, then it is elsewhere
        for folder, suffix in (("image_2", "png"), ("image_3", "png"), ("label_2", "txt"), ("calib", "txt")):
            (drive / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(kitti / "training" / folder / f"{place}.{suffix}", drive / folder / f"{number:06d}.{suffix}")
    command = ("--data", drive.parent, "--systems", "hevc-video,hevc-intra", "--anchors", "hevc-intra")
    assert run(*command, "--drive", "--out", tmp_path / "out") == 0
    video, intra = ([r for r in rows(tmp_path / "out") if r["system"] == name] for name in ("hevc-video", "hevc-intra"))
    assert len(video) == len(intra) == 6 and {r["frames"] for r in video} == {"3"}
    # The second pair costs next to nothing; in another order it would cost as much as the others.
    assert all(0.5 < float(a["bytes"]) / float(b["bytes"]) < 0.85 for a, b in zip(video, intra, strict=True))
    capsys.readouterr()
    assert run(*command, "--out", tmp_path / "none") == 0
    assert "hevc-video is left out: codes drives: say --drive if the frames" in capsys.readouterr().err


def test_the_list_names_every_system(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--list"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SYSTEMS)


def test_outcomes_keep_what_they_got(kitti, tmp_path):
    data = LabelledFrames.open(kitti, count=2)
    chosen, missing_ones = chosen_systems(["uncompressed", "uncompressed"], data, str(TAME_MODEL))
    assert [kind.name for kind, _ in chosen] == ["uncompressed"] and not missing_ones
    outcomes = compare_systems(data, str(TAME_MODEL), chosen, tmp_path / "out")
    kept = outcomes.of("uncompressed")
    system = SYSTEMS["uncompressed"].build(load_model(TAME_MODEL), LOW_SCORE)
    assert kept[0.0]["000001"].objects == system.run(data.frame("000001"), 0.0).objects
    labels, pixels = outcomes.labels(["000001", "000000"])
    assert labels == [data.frame(name).labels for name in ("000001", "000000")] and pixels == [375 * 1242] * 2
    assert outcomes.complexity("uncompressed") == system.complexity and outcomes.complexity("other") is None

    class Retrained:
        complexity, weights = system.complexity, "others"

    outcomes.begin("uncompressed", Retrained())
    assert outcomes.of("uncompressed") == {} and not outcomes.done(), "outcomes of other weights are gone"
    outcomes.close()
    with pytest.raises(OutcomeError, match="expected the outcomes of seed 3, there are those of None"):
        recipe = {"data": str(kitti.resolve()), "frames": data.selection, "seed": 3, "score threshold": LOW_SCORE}
        Outcomes(tmp_path / "out", {**recipe, "model": f"{load_model(TAME_MODEL).fingerprint:016x}"})
