# SPDX-License-Identifier: Apache-2.0
"""The image codecs of the comparison: real programs, real bytes."""

import numpy as np
import pytest
from codec_material import TAME_MODEL

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.detector import StereoDetector
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.rendered import rendered_frame
from sicm_ros.evaluation.systems import IMAGE_CODECS, video
from sicm_ros.evaluation.systems.image_codec import CodecError, CodedViews, ffmpeg, nal_units
from sicm_ros.evaluation.systems.packets import PacketSystem
from sicm_ros.evaluation.systems.uncompressed import ImageSystem, Uncompressed
from sicm_ros.model_store import load_model


@pytest.fixture(scope="module")
def views():
    frame = rendered_frame(1)
    return frame.left[100:260, 300:652].copy(), frame.right[100:260, 300:652].copy()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


# VTM takes minutes, see test_compared_systems.py
@pytest.mark.parametrize("name", [name for name in IMAGE_CODECS if not name.startswith("vtm-")])
def test_more_bytes_give_better_images(views, name):
    codec = IMAGE_CODECS[name]
    assert not codec.missing()
    few, many = (codec.code(*views, codec.points[i]) for i in (0, 3))
    assert few.left.shape == few.right.shape == views[0].shape
    assert 0 < 2 * few.size < many.size
    for view, low, high in zip(views, few[:2], many[:2], strict=True):
        assert 18 < psnr(view, low) < psnr(view, high) - 3
    assert many.encode_s > 0 and many.decode_s > 0


def test_a_prediction_from_the_left_view_is_worth_its_name(views):
    sizes = {name: IMAGE_CODECS[name].code(*views, 37) for name in ("hevc-intra", "hevc-inter", "vvc-intra")}
    sizes |= {name: IMAGE_CODECS[name].code(*views, 37) for name in ("vvc-inter", "vvc-inter-one-qp")}
    assert sizes["hevc-inter"].size < 0.95 * sizes["hevc-intra"].size
    assert sizes["vvc-inter-one-qp"].size < 0.95 * sizes["vvc-intra"].size
    # The low-delay configuration saves bytes at the right view's expense.
    assert sizes["vvc-inter"].size < sizes["vvc-inter-one-qp"].size
    right = [psnr(views[1], sizes[name].right) for name in ("vvc-inter", "vvc-inter-one-qp")]
    assert right[0] < right[1] - 0.5
    # One QP means that both views are about as good.
    assert abs(psnr(views[0], sizes["vvc-inter-one-qp"].left) - right[1]) < 1.5


@pytest.mark.parametrize("name", [name for name in IMAGE_CODECS if name.startswith(("hevc-", "vvc-"))])
def test_no_words_of_an_encoder_are_in_its_stream(views, name, monkeypatch):
    outputs = []
    monkeypatch.setattr(video, "ffmpeg", lambda *call: outputs.append(ffmpeg(*call)) or outputs[-1])
    IMAGE_CODECS[name].code(*views, 47)
    assert len(outputs) == 2 and outputs[0].startswith(b"\0\0") and b"warning" not in outputs[0]


@pytest.mark.parametrize("name", ["hevc-intra", "hevc-inter", "vvc-intra", "vvc-inter", "vvc-inter-one-qp"])
def test_the_left_view_knows_nothing_of_the_right_one(views, name):
    """Neither a filter over time nor a look ahead mixes the views."""
    codec, other = IMAGE_CODECS[name], views[1][::-1, ::-1].copy()
    np.testing.assert_array_equal(codec.code(*views, 37).left, codec.code(views[0], other, 37).left)


def test_what_ffmpeg_says_is_one_line():
    with pytest.raises(CodecError, match=r"^ffmpeg -f hevc -i - -f null: .+$") as error:
        ffmpeg(["-f", "hevc", "-i", "-", "-f", "null"], b"no stream")
    assert "\n" not in str(error.value)


def test_units_of_a_byte_stream():
    assert nal_units(b"\0\0\0\1ab\0\0\1c\0\0\0\1d") == [b"ab", b"c", b"d"]
    assert nal_units(b"") == []


class Lossless:
    name, title, note, points = "lossless", "lossless", "", (0,)

    def missing(self):
        return ""

    def code(self, left, right, point):
        return CodedViews(left, right, 7, 0.25, 0.0)


def test_systems_detect_what_their_parts_detect():
    frame, model = rendered_frame(1), load_model(TAME_MODEL)
    boxes = StereoDetector(model, score_threshold=0.3).detect(frame.left, frame.right, frame.rig)
    assert boxes
    plain = Uncompressed(model, 0.3).run(frame, 0.0)
    assert plain.objects == boxes and plain.size == 0 and plain.decode_s > 0
    lossless = ImageSystem(Lossless(), model, 0.3).run(frame, 0)
    assert lossless.objects == boxes and lossless.size == 7 and lossless.encode_s > 0.25
    # Through larger images the geometry stays, so that only the smoothing differs.
    larger = ImageSystem(Lossless(), model, 0.3, 288).run(frame, 0)
    assert larger.size == 7 and larger.objects
    best = boxes[0]
    again = min(larger.objects, key=lambda o: abs(o.bbox[0] - best.bbox[0]) + abs(o.bbox[1] - best.bbox[1]))
    assert np.abs(np.subtract(again.bbox, best.bbox)).max() < 8
    features = PacketSystem(model, 0.3)
    assert features.points == (0, 1, 2, 3, 4, 5)
    packet = StereoEncoder(model).encode(frame.left, frame.right, frame.rig, rate=2.0).packet
    coded = features.run(frame, 2.0)
    assert coded.size == len(packet)
    assert coded.estimate < coded.size < coded.estimate + 100
    assert coded.objects == StereoDecoder(model, score_threshold=0.3).decode(packet).objects
