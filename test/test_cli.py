# SPDX-License-Identifier: Apache-2.0
"""The command line: what a user types, sees and gets, and one line with exit status 2 for each kind of bad input."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk
from kitti_material import ROOT, archive, needs_kitti
from PIL import Image

from sicm_ros.cli.app import main
from sicm_ros.data.kitti import read_image, read_labels, write_labels, write_object_calib
from sicm_ros.evaluation.latency import Spread
from sicm_ros.geometry import Object3D, StereoRig

MODELS = Path(__file__).resolve().parent / "data" / "models"
TINY = str(MODELS / "tame")  # the tiny model whose boxes can exist
# KITTI's rig for images of 320x120 pixels.
RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
).scaled(320 / 1242, 120 / 375)
COMMANDS = [
    "encode",
    "decode",
    "inspect",
    "detect",
    "render",
    "score",
    "train",
    "train-system",
    "evaluate",
    "bench",
    "bag",
    "bag from-kitti",
    "bag play",
    "bag transcode",
    "demo",
]


@pytest.fixture
def sicm(capsys):
    """Runs ``sicm`` in this process: exit status, standard output, standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture
def fails(sicm):
    """Runs ``sicm`` on bad input: the one line on standard error after "error: "."""

    def run(*arguments) -> str:
        status, out, err = sicm(*arguments)
        assert status == 2 and out == "", (status, out, err)
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err[len("error: ") : -1]

    return run


@pytest.fixture
def pair(tmp_path):
    """A stereo pair of noise and a calibration: arguments of encode and detect."""
    rng = np.random.default_rng(1)
    smooth = np.kron(rng.integers(0, 255, (12, 32, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    for side, shift in (("left", 0), ("right", 6)):
        Image.fromarray(np.roll(smooth, -shift, 1)).save(tmp_path / f"{side}.png")
    write_object_calib(tmp_path / "calib.txt", RIG)
    return [tmp_path / "left.png", tmp_path / "right.png", "--calib", tmp_path / "calib.txt"]


@pytest.fixture
def packet(sicm, pair, tmp_path):
    assert sicm("encode", *pair, "-o", tmp_path / "a.sicm", "--model", TINY, "--device", "cpu")[0] == 0
    return tmp_path / "a.sicm"


# ----------------------------------------------------------------------------------------------------------------- help


def test_every_command_explains_itself_with_an_example(sicm):
    status, out, _ = sicm("--help")
    assert status == 0 and all(name.split()[0] in out for name in COMMANDS)
    assert sicm()[:2] == (0, out)
    for name in COMMANDS:
        status, out, err = sicm(*name.split(), "--help")
        assert status == 0 and err == "" and "Usage" in out
        if name != "bag":
            assert f"sicm {name}" in " ".join(out.split("Examples")[1].split()), name


def test_help_tells_a_newcomer_what_to_do_next(sicm):
    out = " ".join(sicm("--help")[1].split())
    steps = [out.index(step) for step in ("sicm demo", "sicm encode", "sicm decode", "docs/ros.md")]
    assert steps == sorted(steps)


def test_version(sicm):
    assert sicm("--version")[:2] == (0, "sicm 0.1.0\n")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom sicm_ros.cli.app import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'rclpy', 'numpy', 'cv2', 'numba', 'PIL'} & set(sys.modules)\nassert not heavy, heavy"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------- codec


def test_encode_decode_inspect(sicm, pair, tmp_path):
    packet, detections, picture = tmp_path / "a.sicm", tmp_path / "a.txt", tmp_path / "a.png"
    status, out, _ = sicm("encode", *pair, "-o", packet, "--model", TINY, "--rate", "3", "--device", "cpu")
    size = packet.stat().st_size
    assert status == 0 and f"{size} bytes" in out and "tame, 3" in out
    assert f"{8 * size / (2 * 320 * 120):.4f} (the whole packet over both 320x120 images)" in out

    status, out, _ = sicm("inspect", packet)
    assert status == 0 and "320, 120" in out and f"{RIG.fx:.3f}" in out
    fields = json.loads(sicm("inspect", packet, "--json")[1])
    assert fields["packet_bytes"] == size and fields["rate"] == 3 and fields["source_size"] == [320, 120]
    assert fields["baseline_m"] == pytest.approx(RIG.baseline, rel=1e-5)

    status, out, _ = sicm(
        "decode",
        packet,
        "-o",
        detections,
        "--model",
        TINY,
        "--device",
        "cpu",
        "--picture",
        picture,
        "--left",
        pair[0],
        "--threshold",
        "0.3",
    )
    assert status == 0 and str(detections) in "".join(out.split()) and "entropy" in out  # a long path takes two lines
    found = read_labels(detections)
    assert found and all(o.score is not None and o.score >= 0.3 for o in found)
    assert read_image(picture).shape[0] > 500


def test_json_of_the_codec_commands(sicm, pair, tmp_path):
    coded = json.loads(sicm("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY, "-d", "cpu", "--json")[1])
    assert coded["bytes"] == (tmp_path / "a.sicm").stat().st_size and coded["rate"] == 2.0
    assert set(coded["stage_ms"]) == {"preprocess", "backbone", "smfc", "entropy"}
    decoded = json.loads(sicm("decode", tmp_path / "a.sicm", "-o", tmp_path / "a.txt", "-m", TINY, "--json")[1])
    assert decoded["bytes"] == coded["bytes"] and set(decoded["stage_ms"]) == {"entropy", "smfc", "analysis"}
    assert len(decoded["objects"]) == len(read_labels(tmp_path / "a.txt")) > 0 and decoded["refused"] == 0
    detected = json.loads(sicm("detect", *pair, "-o", tmp_path / "b.txt", "-m", TINY, "-d", "cpu", "--json")[1])
    assert len(detected["objects"]) == len(read_labels(tmp_path / "b.txt"))


def test_decode_says_how_many_boxes_cannot_exist(sicm, tmp_path):
    """Of a model of wild weights, none can."""
    tiny = str(MODELS / "tiny")
    arguments = ("decode", MODELS.parent / "tiny.sicm", "-o", tmp_path / "a.txt", "-m", tiny, "-d", "cpu")
    refused = json.loads(sicm(*arguments, "--json")[1])["refused"]
    assert refused > 0 and f"{refused} boxes that cannot exist" in sicm(*arguments)[1]
    assert read_labels(tmp_path / "a.txt") == []


def test_more_bits_at_a_higher_rate(sicm, pair, tmp_path):
    sizes = []
    for rate in (0, 5):
        sicm("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY, "-d", "cpu", "-r", rate)
        sizes.append((tmp_path / "a.sicm").stat().st_size)
    assert sizes[1] > sizes[0]


def test_detect_draws_ground_truth_beside_its_boxes(sicm, pair, tmp_path):
    car = Object3D("Car", (0, 0, 9, 9), 1.5, 1.6, 4.0, -6.0, 1.7, 15.0, 0.3, 0.2, 0.0, 0)
    write_labels(tmp_path / "label.txt", [car])
    arguments = ("detect", *pair, "-o", tmp_path / "a.txt", "-m", TINY, "-d", "cpu")
    assert sicm(*arguments, "--picture", tmp_path / "plain.png")[0] == 0
    assert sicm(*arguments, "--picture", tmp_path / "both.png", "--labels", tmp_path / "label.txt")[0] == 0
    assert (read_image(tmp_path / "plain.png") != read_image(tmp_path / "both.png")).any()


def test_decode_without_an_image_draws_the_view_from_above(sicm, packet, tmp_path):
    assert sicm("decode", packet, "-o", tmp_path / "a.txt", "-m", TINY, "-p", tmp_path / "a.jpg")[0] == 0
    assert read_image(tmp_path / "a.jpg").shape == (560, 520, 3)


def test_a_model_of_an_environment_variable_is_found_by_name(sicm, monkeypatch):
    monkeypatch.setenv("SICM_MODEL_PATH", str(MODELS))
    status, out, _ = sicm("inspect", "--model", "tame", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["model"] == "tame" and len(facts["fingerprint"]) == 16
    parts = facts["parts"]
    assert parts["total"]["parameters"] == sum(v["parameters"] for k, v in parts.items() if k != "total")
    assert "analysis" in sicm("inspect", "--model", "tame")[1]


def test_inspect_names_a_model_that_has_no_weights(sicm):
    status, out, _ = sicm("inspect", "--model", "mvsfc-r34", "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["model"] == "mvsfc-r34" and facts["latent"] == [192, 12, 40]
    assert facts["parts"]["total"]["parameters"] == pytest.approx(188.4e6, rel=0.01)


@needs_kitti
def test_a_real_pair(sicm, tmp_path):
    frame = ROOT / "object" / "training"
    pair = [frame / "image_2" / "000107.png", frame / "image_3" / "000107.png", "-c", frame / "calib" / "000107.txt"]
    assert sicm("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY)[0] == 0
    status, _, err = sicm(
        "decode",
        tmp_path / "a.sicm",
        "-o",
        tmp_path / "a.txt",
        "-m",
        TINY,
        "-p",
        tmp_path / "a.png",
        "--left",
        pair[0],
        "--labels",
        frame / "label_2" / "000107.txt",
    )
    assert (status, err) == (0, "") and read_image(tmp_path / "a.png").shape == (604, 2381, 3)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_wrong_usage(fails):
    assert fails("encode", "left.png") == "Missing argument 'RIGHT'."
    assert fails("nonsense") == "No such command 'nonsense'."
    assert "--pairs" in fails("bench", "--pairs", "none")
    assert fails("inspect").startswith("expected one thing to inspect")
    assert fails("inspect", "a.sicm", "--model", "x").startswith("expected one thing to inspect")


def test_bad_pairs(fails, pair, tmp_path):
    left, right, option, calib = pair
    end = ("-o", tmp_path / "a.sicm", "-m", TINY)
    missing = tmp_path / "none.png"
    assert fails("encode", missing, right, option, calib, *end) == f"{missing}: no such image"
    assert fails("encode", left, missing, option, calib, *end) == f"{missing}: no such image"
    assert fails("encode", left, right, option, tmp_path / "none.txt", *end) == f"{tmp_path / 'none.txt'}: no such file"
    assert fails("encode", left, calib, option, calib, *end).startswith(f"{calib}: expected a PNG or JPEG image")
    assert fails("encode", left, right, option, left, *end) == f"{left}: expected a text file, got binary data"
    Image.new("RGB", (64, 48)).save(missing)
    assert f"{missing}: size: expected 320x120" in fails("encode", left, missing, option, calib, *end)
    calib.write_text("P2: 1 2 3\n")
    assert fails("encode", *pair, *end) == f"{calib}:1: P2: expected 12 numbers (a 3x4 matrix), got 3"
    lines = [f"P2: {' '.join(map(str, RIG.p_left.ravel()))}\n"]
    calib.write_text("".join(lines))
    assert fails("detect", *pair, *end) == f"{calib}: P3: expected a line 'P3: <12 numbers>', found P2"
    assert not (tmp_path / "a.sicm").exists()


def test_images_too_low_for_the_model(fails, pair, tmp_path):
    for side in pair[:2]:
        Image.new("RGB", (64, 16)).save(side)
    assert "crop_top" in fails("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY)


def test_bad_options(fails, pair, tmp_path):
    out = tmp_path / "a.sicm"
    assert fails("encode", *pair, "-o", out, "-m", TINY, "--rate", "9") == "rate: expected 0 to 5 for model tame, got 9"
    assert "rate: expected 0 to 5" in fails("encode", *pair, "-o", out, "-m", TINY, "--rate", "nan")
    assert "nowhere" in fails("encode", *pair, "-o", out, "-m", "nowhere")
    assert "device 'abacus'" in fails("encode", *pair, "-o", out, "-m", TINY, "--device", "abacus")
    assert "expected an existing folder" in fails("encode", *pair, "-o", tmp_path / "no" / "a.sicm", "-m", TINY)
    assert "this is a folder" in fails("encode", *pair, "-o", tmp_path, "-m", TINY)
    detect = ("detect", *pair, "-o", tmp_path / "a.txt", "-m", TINY)
    assert fails(*detect, "--threshold", "2") == "--threshold: expected 0 to 1, got 2"
    assert fails(*detect, "--picture", "a.tiff").startswith("--picture: expected a name that ends in .png or .jpg")
    assert fails(*detect, "--labels", "a.txt").startswith("--labels: expected with --picture")


def test_bad_packets(fails, packet, pair, tmp_path):
    out = ("-o", tmp_path / "a.txt", "-m", TINY)
    data, bad = packet.read_bytes(), tmp_path / "bad.sicm"
    assert fails("decode", tmp_path / "none", *out).startswith(f"{tmp_path / 'none'}: expected a packet to read")
    for content, kind in (
        (b"", "not a packet"),
        (b"PNG, say", "not a packet"),
        (data[:60], "cut off"),
        (data[:-1], "cut off"),
        (data[:90] + b"?" + data[91:], "damaged"),
        (data[:4] + b"\x07" + data[5:], "version: expected"),
    ):
        bad.write_bytes(content)
        assert fails("decode", bad, *out).startswith(f"{bad}: ") and kind in fails("decode", bad, *out)
        assert kind in fails("inspect", bad)
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("crop_top: 20", "crop_top: 21"))
    assert "another model" in fails("decode", packet, "-o", tmp_path / "a.txt", "-m", other)
    Image.new("RGB", (64, 48)).save(pair[0])
    assert "size: expected 320x120 as in the packet" in fails(
        "decode", packet, *out, "--picture", tmp_path / "a.png", "--left", pair[0]
    )
    assert "--left" in fails("decode", packet, *out, "--left", pair[0])
    assert not (tmp_path / "a.txt").exists()


def test_bad_models(fails, tmp_path):
    assert "config.yaml" in fails("inspect", "--model", tmp_path)
    shutil.copytree(TINY, tmp_path / "cut")
    weights = tmp_path / "cut" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{weights}: not a weights file" in fails("inspect", "--model", tmp_path / "cut")


def test_inputs_are_not_written_over(fails, packet, pair, tmp_path):
    left, right, _, calib = pair
    before = {path: path.read_bytes() for path in (left, right, calib, packet)}
    refusal = "expected another name to write to, this is an input"
    for path in (left, right, calib):
        assert fails("encode", *pair, "-o", path, "-m", TINY) == f"{path}: {refusal}"
        assert fails("detect", *pair, "-o", path, "-m", TINY) == f"{path}: {refusal}"
    other = tmp_path / "a.txt"
    assert fails("detect", *pair, "-o", other, "-p", left, "-m", TINY) == f"{left}: {refusal}"
    assert fails("decode", packet, "-o", packet, "-m", TINY) == f"{packet}: {refusal}"
    assert fails("decode", packet, "-o", other, "-p", left, "--left", left, "-m", TINY) == f"{left}: {refusal}"
    other.write_text("")
    assert fails("detect", *pair, "-o", other, "-p", tmp_path / "a.png", "--labels", other, "-m", TINY).endswith(
        refusal
    )
    twice = tmp_path / "b.png"
    assert "given twice" in fails("decode", packet, "-o", twice, "-p", twice, "-m", TINY)
    assert {path: path.read_bytes() for path in before} == before


def test_a_full_disk_leaves_the_packet_and_the_boxes_of_before(fails, sicm, packet, pair, tmp_path):
    before = packet.read_bytes()
    with full_disk(50):
        assert fails("encode", *pair, "-o", packet, "-m", TINY, "-d", "cpu", "-r", "5") == f"{packet}: File too large"
        assert fails("encode", *pair, "-o", tmp_path / "b.sicm", "-m", TINY).endswith("b.sicm: File too large")
        boxes = tmp_path / "boxes.txt"
        assert fails("decode", packet, "-o", boxes, "-m", TINY, "-t", "0.1").endswith("boxes.txt: File too large")
    assert packet.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.sicm", "left.png", "right.png", "calib.txt"}


def test_warnings_about_the_camera(sicm, pair, tmp_path):
    """Swapped images, and a camera for which the model was not trained; the work is done nevertheless."""
    left, right, option, calib = pair
    out = ("-o", tmp_path / "a.txt", "-m", TINY, "-d", "cpu")
    for command in ("encode", "detect"):
        assert "swapped" not in sicm(command, *pair, *out)[2]
        status, _, err = sicm(command, right, left, option, calib, *out)
        assert status == 0 and err.count("left and right image seem to be swapped") == 1, err
    write_object_calib(calib, replace(RIG, right_translation=(-700.0, 0.0, 0.0)))
    for command in ("encode", "detect"):
        status, _, err = sicm(command, *pair, *out)
        assert status == 0 and "warning: focal length times baseline is " in err
    sicm("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY)
    assert "warning: focal length times baseline is " in sicm("decode", tmp_path / "a.sicm", *out)[2]


def test_no_packet_of_an_extreme_calibration(fails, pair, tmp_path):
    write_object_calib(pair[3], replace(RIG, fx=2e6))
    assert fails("encode", *pair, "-o", tmp_path / "a.sicm", "-m", TINY).startswith(
        "calibration: no packet can hold it"
    )
    assert not (tmp_path / "a.sicm").exists()


def test_thresholds_that_are_no_numbers(fails, pair, tmp_path):
    model = shutil.copytree(TINY, tmp_path / "m")
    text = (model / "config.yaml").read_text()
    (model / "config.yaml").write_text(text.replace("score_threshold: 0.5", "score_threshold: .nan"))
    message = fails("detect", *pair, "-o", tmp_path / "a.txt", "-m", model)
    assert message.endswith("config.yaml: analysis.score_threshold: expected 0 to 1, got nan")


def test_options_in_messages_exist(sicm):
    """Whatever looks like an option in a text of the package is one of a command, or of ROS 2."""
    words = {"--ros-args", "--enclave", "--log-level", "--help"}
    for name in ("", *COMMANDS):
        words |= set(re.findall(r"--[a-z][a-z-]*", sicm(*name.split(), "--help")[1]))
    package = Path(__file__).resolve().parents[1] / "sicm_ros"
    found = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value):
                    found += 1
                    assert word in words, f"{path.name}:{node.lineno}: {word}"
    assert found > 50


def test_the_options_that_a_bag_asks_for_are_there(fails, sicm, tmp_path):
    """A bag whose topics say nothing: both commands that tell so take the topics."""
    for command in ("play", "transcode"):
        words = sicm("bag", command, "--help")[1]
        assert all(option in words for option in ("--left-topic", "--right-topic", "--calib"))
    from sicm_ros.bags.topics import find_stereo_topics
    from sicm_ros.bags.types import BagError

    with pytest.raises(BagError, match="--left-topic and --right-topic"):
        find_stereo_topics(["/a", "/b"])


def test_a_traceback_is_there_for_those_who_ask(monkeypatch, pair, tmp_path):
    monkeypatch.setenv("SICM_DEBUG", "1")
    with pytest.raises(ValueError, match="rate: expected"):
        main(["encode", *map(str, pair), "-o", str(tmp_path / "a.sicm"), "-m", TINY, "--rate", "9"])


# ---------------------------------------------------------------------------------------------------------- data, score


@pytest.mark.slow
def test_render_writes_a_kitti_folder_that_scores_itself(sicm, tmp_path):
    status, out, _ = sicm("render", tmp_path / "kitti", "--count", "1", "--seed", "3")
    assert status == 0 and out.startswith("1 frames in ")
    labels = tmp_path / "kitti" / "training" / "label_2"
    (name,) = (p.stem for p in labels.glob("*.txt"))
    for folder in ("image_2", "image_3"):
        assert read_image(tmp_path / "kitti" / "training" / folder / f"{name}.png").shape == (375, 1242, 3)
    assert sicm("render", tmp_path / "again", "-n", "1", "--seed", "3")[0] == 0
    first, second = (read_image(tmp_path / k / "training" / "image_2" / f"{name}.png") for k in ("kitti", "again"))
    assert (first == second).all()


def test_bad_render(fails, tmp_path):
    assert fails("render", tmp_path / "a", "--layouts", tmp_path / "none").startswith("--layouts: expected a folder")
    (tmp_path / "split.txt").write_text("not an id\n")
    assert ":1: id: expected" in fails("render", tmp_path / "a", "--split", tmp_path / "split.txt")


def test_render_neither_replaces_images_of_the_user_nor_mixes_settings(sicm, fails, tmp_path):
    image = tmp_path / "mine" / "training" / "image_2" / "000000.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"mine")
    message = fails("render", tmp_path / "mine", "-n", "1")
    assert message == f"{image}: no rendering wrote this, so it stays: name another folder"
    assert image.read_bytes() == b"mine" and [p.name for p in (tmp_path / "mine" / "training").iterdir()] == ["image_2"]
    base = tmp_path / "rendered" / "training"
    (base / "label_2").mkdir(parents=True)
    (base / "rendered.json").write_text(json.dumps({"seed": 1, "layouts": "", "calib": ""}))
    (base / "label_2" / "000000.txt").write_text("")
    assert sicm("render", tmp_path / "rendered", "-n", "1", "--seed", "1")[0] == 0
    assert "rendered with other settings" in fails("render", tmp_path / "rendered", "-n", "1", "--seed", "2")
    (base / "rendered.json").write_text("{")
    assert "expected the recipe of a rendering" in fails("render", tmp_path / "rendered", "-n", "1", "--seed", "1")


@pytest.fixture
def scored(tmp_path):
    """Folders of labels and results of 60 frames, in which everything is found."""
    labels, results = tmp_path / "label_2", tmp_path / "results"
    for folder in (labels, results):
        folder.mkdir()
    for i in range(60):
        car = Object3D("Car", (400, 150, 500, 220), 1.5, 1.6, 4.0, -20 + i / 2, 1.7, 20.0, 0.1, 0.2, 0.0, 0)
        write_labels(labels / f"{i:06d}.txt", [car])
        write_labels(results / f"{i:06d}.txt", [Object3D(**{**vars(car), "score": 1 - i / 100})])
    return labels, results


@pytest.mark.slow
def test_score(sicm, scored, tmp_path):
    status, out, _ = sicm("score", *scored)
    assert status == 0 and "60 frames" in out and out.count("100.00") == 36
    table = json.loads(sicm("score", *scored, "--json")[1])
    assert table["frames"] == 60 and table["R40"]["3D"]["Car"] == pytest.approx([100, 100, 100])
    assert table["R11"]["2D"]["Cyclist"] == [None, None, None]
    (tmp_path / "split.txt").write_text("000003\n000004\n")
    assert json.loads(sicm("score", *scored, "--split", tmp_path / "split.txt", "--json")[1])["frames"] == 2


def test_bad_score(fails, scored, tmp_path):
    labels, results = scored
    assert "expected a folder of files" in fails("score", tmp_path / "none", results)
    (tmp_path / "empty").mkdir()
    assert "found none" in fails("score", labels, tmp_path / "empty")
    (tmp_path / "split.txt").write_text("000003\n999999\n")
    assert "999999.txt: no such file (1 of 2 are missing" in fails("score", *scored, "--split", tmp_path / "split.txt")
    line = (labels / "000000.txt").read_text()
    (results / "000001.txt").write_text(line)
    assert "000001.txt: score: expected a 16th column" in fails("score", *scored)
    (results / "000001.txt").write_text(line.replace("1.6", "wide"))
    assert fails("score", *scored) == f"{results / '000001.txt'}:1: width: expected a finite number, got 'wide'"
    (labels / "000000.txt").unlink()
    assert fails("score", *scored) == f"{labels / '000000.txt'}: no such file"


@pytest.mark.slow
@needs_kitti
def test_score_prints_the_official_figures(sicm, tmp_path):
    for name, texts in (("labels", archive("label_2")), ("results", archive("ap_reference/results"))):
        (tmp_path / name).mkdir()
        for frame in archive("ap_reference/results"):
            (tmp_path / name / f"{frame}.txt").write_bytes(texts[frame])
    out = sicm("score", tmp_path / "labels", tmp_path / "results")[1]
    rows = [line.split() for line in out.splitlines()]
    assert ["3D", "71.34", "60.60", "56.26", "68.56", "60.52", "58.34"] in rows


# ----------------------------------------------------------------------------------------------------------- the others


@pytest.mark.slow
def test_bench(sicm):
    report = json.loads(sicm("bench", "-m", TINY, "--pairs", "4", "--device", "cpu", "--json")[1])
    assert report["pairs"] == 4 and report["image_size"] == [1242, 375] and report["machine"]["torch"]
    for side, stages in report["stages_ms"].items():
        assert report["pairs_per_second"][side] == pytest.approx(1000 / stages["total"]["median"])
        assert all(0 < s["p5"] <= s["median"] <= s["p95"] for s in stages.values())
    assert report["bits_per_pixel"]["median"] == pytest.approx(8 * report["packet_bytes"]["median"] / (2 * 1242 * 375))
    assert report["peak_memory_mib"]["process"] > 50
    assert 0 < report["entropy_share"]["p5"] <= report["entropy_share"]["median"] < 1
    status, out, _ = sicm("bench", "-m", TINY, "-n", "2", "-d", "cpu", "--threads", "1")
    words = ("median ms", "analysis", "peak memory", "1 threads", "entropy stage")
    assert status == 0 and all(word in out for word in words)


def test_spread():
    spread = Spread.of(range(101))
    assert (spread.median, spread.p5, spread.p95) == (50, 5, 95)


def test_bad_bench_and_train(fails, tmp_path):
    assert "expected a KITTI folder" in fails("bench", "-m", TINY, "--kitti", tmp_path / "none")
    assert "expected a model folder" in fails("train", "--config", tmp_path / "none", "--out", tmp_path)
    assert "safetensors" in fails("train", "--config", TINY, "--out", tmp_path, "--start-from", tmp_path / "none")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 9)
    start = ("--start-from", tmp_path / "noise")
    assert "noise: not a weights file" in fails("train", "--config", TINY, "--out", tmp_path, *start)
    assert "--seed" in fails("train", "--config", TINY, "--out", tmp_path, "--seed", "-1")
    broken = Path(shutil.copytree(TINY, tmp_path / "broken"))
    (broken / "train.yaml").write_bytes(b"\x82\x83")
    assert "broken/train.yaml: not YAML" in fails("train", "--config", broken, "--out", tmp_path / "run")
    assert "expected one of wang, lei, liu, got lie" in fails("train-system", "lie", "--out", tmp_path / "run")
    assert f"{TINY}/train.yaml: expected" in fails("train", "--config", TINY, "--out", tmp_path / "run")


def test_bad_demo(fails, tmp_path, monkeypatch):
    pytest.importorskip("rclpy")
    assert "expected a KITTI folder" in fails("demo", "-m", TINY, "--kitti", tmp_path / "none", "--out", tmp_path)
    assert "nowhere" in fails("demo", "-m", "nowhere", "--out", tmp_path / "out")
    assert fails("demo", "-m", TINY, "--threshold", "-1").startswith("--threshold: expected 0 to 1")
    (tmp_path / "file").write_text("mine")
    assert "expected a folder to write into, this is a file" in fails("demo", "-m", TINY, "--out", tmp_path / "file")
    for domain in ("9999", "abc", "-1"):
        monkeypatch.setenv("ROS_DOMAIN_ID", domain)
        words = f"ROS_DOMAIN_ID: expected a number from 0 to 232, got '{domain}'"
        assert fails("demo", "-m", TINY, "--out", tmp_path / "out") == words


def test_bag_from_kitti(sicm, fails, tmp_path):
    training = tmp_path / "kitti" / "training"
    for folder in ("image_2", "image_3", "calib"):
        (training / folder).mkdir(parents=True)
    for folder in ("image_2", "image_3"):
        Image.new("RGB", (64, 48)).save(training / folder / "000001.png")
    write_object_calib(training / "calib" / "000001.txt", RIG)
    status, out, _ = sicm("bag", "from-kitti", tmp_path / "kitti", tmp_path / "bag")
    assert (status, out) == (0, f"1 pairs in {tmp_path / 'bag'}\n") and (tmp_path / "bag" / "metadata.yaml").is_file()
    assert "exists already" in fails("bag", "from-kitti", tmp_path / "kitti", tmp_path / "bag")
    assert "storage: expected" in fails("bag", "from-kitti", tmp_path / "kitti", tmp_path / "b2", "--storage", "tape")
    assert "expected a KITTI folder" in fails("bag", "from-kitti", tmp_path / "none", tmp_path / "b3")
    assert "expected a rosbag2 folder" in fails("bag", "play", tmp_path / "kitti")


def test_frames_of_the_demo_has_its_default_in_the_help(sicm):
    words = " ".join(sicm("demo", "--help")[1].replace("│", " ").split())
    assert "Default: 6 rendered ones, the first 20 of --kitti." in words
