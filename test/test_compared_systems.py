# SPDX-License-Identifier: Apache-2.0
"""Systems of the comparison beside image codecs by ffmpeg: features as pictures, drives as videos, VTM, AVIF."""

import dataclasses
import sys
import tempfile

import numpy as np
import pytest
from codec_material import TAME_MODEL

from sicm_ros.data.rendered import rendered_frame
from sicm_ros.evaluation.systems import SYSTEMS, drive_video, image_codec, vtm
from sicm_ros.evaluation.systems.avif import Avif, read_avif
from sicm_ros.evaluation.systems.feature_video import FeatureVideo
from sicm_ros.evaluation.systems.hevc import HEVC, code_hevc_luma
from sicm_ros.evaluation.systems.image_codec import CodecError
from sicm_ros.evaluation.systems.system import SequenceSystem
from sicm_ros.evaluation.systems.uncompressed import Uncompressed
from sicm_ros.evaluation.systems.video import CodedLuma, picture_sizes
from sicm_ros.evaluation.systems.vtm import Vtm, code_vtm_luma, vtm_missing
from sicm_ros.evaluation.systems.vvc import VVC, code_vvc_luma
from sicm_ros.model_store import load_model
from sicm_ros.preprocessing import resize_view

FRAME = rendered_frame(1)
VIEWS = [np.ascontiguousarray(view[100:164, 300:396]) for view in (FRAME.left, FRAME.right)]
LUMA = np.stack([view[..., 1] for view in VIEWS]).astype(np.uint16) * 4


def psnr(a, b, peak=255):
    return 10 * np.log10(peak**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


@pytest.fixture(scope="module")
def model():
    return load_model(TAME_MODEL)


def test_programs_that_are_missing_are_named_in_one_line(monkeypatch):
    monkeypatch.setattr(image_codec, "_encoders", lambda: "")
    monkeypatch.setenv("PATH", "")
    for name in ("hevc-feature", "vvc-feature", "hevc-video", "vvc-video", "vtm-feature", "vtm-intra", "vtm-inter-288"):
        missing = SYSTEMS[name].missing()
        assert missing.startswith("needs VTM's EncoderApp" if "vtm" in name else "needs ffmpeg"), name
        assert "\n" not in missing
    assert not SYSTEMS["jpeg"].missing()


# --------------------------------------------------------------------------------------------------------- features


def test_without_loss_in_the_pictures_boxes_are_those_of_the_detector(model):
    seen = []

    def lossless(pictures, qp):
        seen.append((pictures, qp))
        return CodedLuma(pictures, 1000, 0.25, 0.0)

    outcome = FeatureVideo(lossless, model, 0.3).run(FRAME, 27.0)
    ((pictures, qp),) = seen
    # Four channels at each scale: 2 by 2 tiles of 24x72, then all four tiles in a row.
    assert qp == 27 and pictures.shape == (2, 48 + 12 + 6, 144) and pictures.max() == 1023
    assert outcome.size == 1000 + 12 and outcome.encode_s > 0.25 and outcome.decode_s > 0
    expected = Uncompressed(model, 0.3).run(FRAME, 0.0).objects
    assert outcome.objects and abs(len(outcome.objects) - len(expected)) <= 0.1 * len(expected)
    best = expected[0].bbox
    assert min(np.abs(np.subtract(found.bbox, best)).max() for found in outcome.objects) < 8


@pytest.mark.parametrize("name", ["hevc-feature", "vvc-feature"])
def test_features_by_a_video_codec(model, name):
    system = SYSTEMS[name].build(model, 0.3)
    few, many = (system.run(FRAME, system.points[i]) for i in (0, -1))
    assert 12 < 3 * few.size < many.size and many.objects
    assert few.encode_s > 0 and few.decode_s > 0


@pytest.mark.parametrize("code", [code_hevc_luma, code_vvc_luma])
def test_pictures_of_ten_bits(code):
    few, many = code(LUMA, 42), code(LUMA, 22)
    assert many.pictures.dtype == np.uint16 and many.pictures.shape == LUMA.shape
    assert few.size < many.size / 3
    assert 20 < psnr(LUMA, few.pictures, 1023) < psnr(LUMA, many.pictures, 1023) - 6


# ----------------------------------------------------------------------------------------------------------- drives


def drive(count, name="frame"):
    """A view that moves by four pixels a frame."""
    return [
        dataclasses.replace(
            FRAME, name=f"{name}{i}", left=np.roll(FRAME.left, 4 * i, 1), right=np.roll(FRAME.right, 4 * i, 1)
        )
        for i in range(count)
    ]


@pytest.fixture(params=["hevc-video", "vvc-video"])
def video(request, model):
    kind = SYSTEMS[request.param]
    assert kind.sequences and not kind.missing()
    return kind.build(model, 0.3)


def test_a_drive_as_two_videos(video, model, monkeypatch):
    frames, seen = drive(4), []
    monkeypatch.setattr(video._detector, "detect_scaled", lambda *views_and_rig: seen.append(views_and_rig) or ["box"])
    assert isinstance(video, SequenceSystem)
    video.prepare(iter(frames), 27.0)
    outcomes = [video.run(frame, 27.0) for frame in frames]
    # Pictures after the first are predicted.
    assert all(0 < 2 * outcome.size < outcomes[0].size for outcome in outcomes[1:])
    assert all(outcome.objects == ["box"] and outcome.encode_s > 0 < outcome.decode_s for outcome in outcomes)
    for frame, (left, right, _) in zip(frames, seen, strict=True):
        transform = model.transform(frame.left.shape[1], frame.left.shape[0])
        assert psnr(resize_view(frame.left, transform), left) > 27
        assert psnr(resize_view(frame.right, transform), right) > 27
    # Of another drive, the first picture is an intra picture again.
    others = drive(2, "other")
    video.prepare(others, 27.0)
    assert video.run(others[0], 27.0).size == outcomes[0].size
    for frame, point in ((frames[0], 27.0), (others[0], 32.0)):
        with pytest.raises(
            CodecError, match=r"^\w+ at \d\d: expected a frame of the drive and the point prepared last$"
        ):
            video.run(frame, point)


def test_pictures_do_not_depend_on_those_after_them(video):
    # Beyond a group of 8 pictures, and with an end inside of one.
    streams = {count: video._encode(drive(count), 37)[0] for count in (5, 9, 11)}
    whole = [stream.read() for stream in streams[11]]
    for count in (5, 9):
        for stream, of_all in zip(streams[count], whole, strict=True):
            assert of_all.startswith(stream.read())


def test_a_drive_that_cannot_be_coded(video):
    with pytest.raises(CodecError, match=r"^ffmpeg .+: .+$"):
        video.prepare([], 27.0)
    with pytest.raises(CodecError, match=r"^ffmpeg .+$") as error:
        video.prepare(drive(2), 99.0)
    assert "\n" not in str(error.value)
    with pytest.raises(CodecError):
        video.run(FRAME, 99.0)


def test_damaged_streams(video):
    (stream, _), names = video._encode(drive(3), 37)
    data = stream.read()
    of = HEVC if "hevc" in video._video.container else VVC
    assert len(picture_sizes(data, of)) == len(names) == 3
    shape = video._shape
    for damaged in (b"no stream at all", data[: len(data) // 3]):
        with tempfile.TemporaryFile() as file:
            file.write(damaged)
            with pytest.raises(CodecError, match=r"^(ffmpeg .+: .+|\w+: expected 3 pictures of .+)$") as error:
                drive_video.decode(file, of, 3, shape)
        assert "\n" not in str(error.value)
    with pytest.raises(CodecError, match="expected a picture at the end of the stream, got 7 other bytes"):
        picture_sizes(b"\0\0\1" + bytes([0, 17 << 3, 1, 2]), VVC)


# -------------------------------------------------------------------------------------------------------------- VTM

# Programs that check what they are given, and code without loss.
ENCODER = """
import sys, zlib, pathlib
words = sys.argv[1:]
short = dict(zip(words[:18:2], words[1:18:2]))
long = dict(word[2:].split("=") for word in words[18:])
if int(short["-q"]) > 63:
    sys.exit("Error: QP\\nexceeds")
data = pathlib.Path(short["-i"]).read_bytes()
wide = {"8": 1, "10": 2}[long["InputBitDepth"]]
samples = {"420": 1.5, "400": 1}[long["InputChromaFormat"]]
assert len(data) == int(short["-f"]) * int(short["-wdt"]) * int(short["-hgt"]) * wide * samples
assert long["TemporalSubsampleRatio"] == long["ConformanceWindowMode"] == "1" and short["-fr"] == "10"
kind = pathlib.Path(short["-c"]).read_text()
units = [b"\\1\\x79of parameters", b"\\1\\1" + kind.encode() + b":" + zlib.compress(data).hex().encode()]
pathlib.Path(short["-b"]).write_bytes(b"".join(b"\\0\\0\\1" + unit for unit in units))
"""
DECODER = """
import sys, zlib, pathlib
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert words["-d"] in ("8", "10")
data = pathlib.Path(words["-b"]).read_bytes().split(b":")[1]
pathlib.Path(words["-o"]).write_bytes(zlib.decompress(bytes.fromhex(data.decode())))
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("EncoderAppStatic", ENCODER), ("DecoderAppStatic", DECODER)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("VTM_CFG", raising=False)
    return tmp_path


def test_what_vtm_is_asked_for(pretended, monkeypatch):
    assert vtm_missing() == "needs VTM's encoder_intra_vtm.cfg: set VTM_CFG to its folder"
    (pretended / "cfg").mkdir()
    for name, text in (("encoder_intra_vtm.cfg", "I"), ("encoder_lowdelay_P_vtm.cfg", "P")):
        (pretended / "cfg" / name).write_text(text)
    assert not vtm_missing()
    for mode, letter in (("intra", b"I"), ("inter", b"P")):
        streams, decode = [], vtm.decode
        with monkeypatch.context() as patch:
            patch.setattr(vtm, "decode", lambda *call, s=streams, d=decode: s.append(call[0]) or d(*call))
            coded = Vtm(mode).code(*VIEWS, 37)
        (stream,) = streams
        assert stream.split(b"\0\0\1")[2][2:3] == letter
        assert coded.size == len(stream) - len(b"\0\0\1\1\x79of parameters")
        assert psnr(VIEWS[0], coded.left) > 30 and psnr(VIEWS[1], coded.right) > 30
        assert coded.encode_s > 0 and coded.decode_s > 0
    assert np.array_equal(code_vtm_luma(LUMA, 37).pictures, LUMA)
    for call, start in (
        (lambda: Vtm("intra").code(*VIEWS, 99), "EncoderApp: Error: QP exceeds"),
        (lambda: vtm.decode(b"no stream", 8), "DecoderApp: "),
    ):
        with pytest.raises(CodecError) as error:
            call()
        assert str(error.value).startswith(start) and "\n" not in str(error.value)
    monkeypatch.setenv("VTM_CFG", str(pretended))
    assert "set VTM_CFG" in vtm_missing()
    with pytest.raises(CodecError, match="set VTM_CFG"):
        code_vtm_luma(LUMA, 37)


@pytest.mark.slow
def test_vtm_itself():
    if vtm_missing():
        pytest.skip(vtm_missing())
    intra, inter = (Vtm(mode).code(*VIEWS, 37) for mode in ("intra", "inter"))
    assert 0 < inter.size < intra.size
    assert all(psnr(view, coded) > 24 for view, coded in zip(VIEWS * 2, (*intra[:2], *inter[:2]), strict=True))
    luma = code_vtm_luma(LUMA, 27)
    assert psnr(LUMA, luma.pictures, 1023) > 30
    with pytest.raises(CodecError, match=r"^DecoderApp: .+$"):
        vtm.decode(b"no stream", 8)


# ------------------------------------------------------------------------------------------------------------- AVIF


def test_damaged_avif_files():
    assert Avif().code(*VIEWS, 50).left.shape == VIEWS[0].shape
    for data in (b"", b"no image", b"\0\0\0\x20ftypavif" + bytes(40)):
        with pytest.raises(CodecError, match=rf"^avif: expected a whole file, got {len(data)} bytes: .+$") as error:
            read_avif(data)
        assert "\n" not in str(error.value)
