# SPDX-License-Identifier: Apache-2.0
"""Latents to bytes and back, exactly; images to packets to boxes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_material import DATA, RIG, TAME_MODEL, TINY, TINY_MODEL, entropy_model, latents
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import Reference, decode_packet
from safetensors.torch import load_file
from test_networks import vehicle_matching

from sicm_ros.codec import packet
from sicm_ros.codec.decoder import DecodedPair, StereoDecoder
from sicm_ros.codec.detector import StereoDetector, analyse
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.codec.packet import DamagedPacketError, TruncatedPacketError
from sicm_ros.codec.payload import compress, decompress
from sicm_ros.codec.range_coder import RangeCoder, SymbolDecoder, SymbolEncoder
from sicm_ros.geometry import InputGeometry
from sicm_ros.model_store import ModelError, load_model, save_model
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.entropy_tables import TOTAL, EntropyTables, TableError
from sicm_ros.networks.integer_prior import QuantisedLatents, symbol_limits
from sicm_ros.preprocessing import InputError, prepare

CONTEXTS = ["raster", "checkerboard"]


@pytest.fixture(scope="module", params=CONTEXTS)
def model(request: pytest.FixtureRequest) -> tuple[StereoEntropyModel, RangeCoder]:
    net = entropy_model(request.param, channels=8, hyper_channels=4, rate_count=3)
    return net, RangeCoder(EntropyTables.build(net))


def symbols_of(coded: QuantisedLatents, item: int = 0) -> np.ndarray:
    return np.concatenate([x[item].numpy().reshape(-1) for x in [*coded.hyper, *coded.symbols]]).astype(np.int64)


def assert_decodes(net: StereoEntropyModel, coder: RangeCoder, coded: QuantisedLatents, item: int = 0) -> bytes:
    payload, symbol_hash, _ = compress(coded, coder, item)
    decoded = decompress(payload, coder, net.integer_prior(), coded.size)
    assert decoded.symbol_hash == symbol_hash and decoded.complete
    left, right = coded.latents()
    assert torch.equal(decoded.left[0], left[item]) and torch.equal(decoded.right[0], right[item])
    return payload


# ------------------------------------------------------------------------------------------------ exactness


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.01, 1.0, 10.0, 1000.0, 1e8]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.floats(0, 2),
)
def test_any_latent_comes_back(
    model: tuple[StereoEntropyModel, RangeCoder], seed: int, loud: float, height: int, width: int, rate: float
) -> None:
    net, coder = model
    assert_decodes(net, coder, net.quantise(*latents(seed, 8, (height, width), loud=loud), rate))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_latents_that_are_no_numbers_come_back_as_something(
    model: tuple[StereoEntropyModel, RangeCoder], value: float
) -> None:
    net, coder = model
    left, right = latents(0, 8, (3, 4))
    left[0, 1, 1, 2] = value
    coded = net.quantise(left, right)
    assert torch.isfinite(coded.latents()[0]).all()
    assert_decodes(net, coder, coded)


def test_evaluation_returns_what_a_decoder_gets(model: tuple[StereoEntropyModel, RangeCoder]) -> None:
    net, coder = model
    y = latents(4, 8, (5, 20), batch=2)
    rate = torch.tensor([0.5, 2.0])
    with torch.inference_mode():
        out = net(*y, rate)
    coded = net.quantise(*y, rate)
    for item in range(2):
        payload, _, _ = compress(coded, coder, item)
        decoded = decompress(payload, coder, net.integer_prior(), (5, 20))
        left, right = net.inverse_gain(decoded.left, decoded.right, rate[item])
        assert torch.equal(left[0], out.left[item]) and torch.equal(right[0], out.right[item])


@pytest.mark.filterwarnings("ignore:TF32")
def test_the_same_integers_whatever_the_settings(model: tuple[StereoEntropyModel, RangeCoder]) -> None:
    net, coder = model
    y = latents(5, 8, (5, 20), batch=4, loud=4.0)
    whole = net.quantise(*y)
    payloads = [compress(whole, coder, item)[0] for item in range(4)]
    integers = net.integer_prior()
    scaled = net.gain(*y)

    def check(batch: bool) -> None:
        for item in range(4):
            own = slice(None) if batch else slice(item, item + 1)
            hyper = (whole.hyper[0][own], whole.hyper[1][own])
            coded = integers.quantise((scaled[0][own], scaled[1][own]), hyper)
            assert compress(coded, coder, item if batch else 0)[0] == payloads[item]
            decoded = decompress(payloads[item], coder, integers, (5, 20))
            assert torch.equal(decoded.right[0], whole.latents()[1][item])

    check(batch=True)
    check(batch=False)
    with torch.autocast("cpu", torch.bfloat16):
        check(batch=False)
    with torch.backends.mkldnn.flags(enabled=False):
        check(batch=False)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(2)
        check(batch=False)
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision(precision)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_gpu_codes_what_the_cpu_decodes(context: str) -> None:
    net = entropy_model(context, channels=32, hyper_channels=16)
    coder = RangeCoder(EntropyTables.build(net))
    y = latents(6, 32, (5, 20))
    torch.backends.cuda.matmul.allow_tf32 = True
    on_gpu = entropy_model(context, channels=32, hyper_channels=16).cuda()
    with torch.autocast("cuda", torch.float16):
        coded = on_gpu.quantise(*(x.cuda() for x in y))
    payload, symbol_hash, _ = compress(coded, coder)
    decoded = decompress(payload, coder, net.integer_prior(), (5, 20))
    assert decoded.complete and decoded.symbol_hash == symbol_hash
    assert torch.equal(decoded.left, coded.latents()[0].cpu())


@pytest.mark.parametrize("context", CONTEXTS)
def test_bits_are_those_of_the_payload(context: str) -> None:
    net = entropy_model(context, channels=32, hyper_channels=16, rate_count=6)
    coder = RangeCoder(EntropyTables.build(net))
    y = latents(6, 32, (5, 20), loud=3.0)
    for rate in (0.0, 5.0):
        coded = net.quantise(*y, rate)
        payload, _, information = compress(coded, coder)
        out = net(*y, rate)
        estimate = (out.bits_left + out.bits_right).item()
        assert 8 * len(payload) == pytest.approx(information, abs=0.001 * information + 64)
        assert 8 * len(payload) == pytest.approx(estimate, rel=0.02)
        assert_decodes(net, coder, coded)


# ------------------------------------------------------------------------------------------------ the coder


def test_tables() -> None:
    tables = EntropyTables.build(entropy_model("checkerboard", hyper_channels=3))
    limits = symbol_limits().tolist()
    assert limits[0] == limits[9] == 16 and limits[63] == 384 and tables.hyper.shape == (2, 3, 127)
    for row, limit in zip(tables.latent_rows, limits, strict=True):
        assert len(row) == 2 * limit + 1 and row.sum() == TOTAL and row.min() >= 1
        assert (row == row[::-1]).all() and row.argmax() == limit
    assert tables.latent_rows[0][16] > 65400  # a deviation of 1/8: nearly always zero
    again = EntropyTables.from_tensors(tables.tensors())
    assert (again.latent == tables.latent).all() and (again.hyper == tables.hyper).all()


@pytest.mark.parametrize("spoil", ["sum", "zero", "short", "missing"])
def test_spoilt_tables_are_refused(spoil: str) -> None:
    tensors = {k: v.clone() for k, v in EntropyTables.build(entropy_model("checkerboard")).tensors().items()}
    if spoil == "sum":
        tensors["tables.latent"][16] -= 1
    elif spoil == "zero":
        tensors["tables.hyper"][1, 0, :2] = torch.tensor([0, tensors["tables.hyper"][1, 0, :2].sum()])
    elif spoil == "short":
        tensors["tables.latent"] = tensors["tables.latent"][:-1]
    else:
        del tensors["tables.hyper"]
    with pytest.raises(TableError, match="tables.hyper" if spoil in ("zero", "missing") else "tables.latent"):
        EntropyTables.from_tensors(tensors)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 2**31))
def test_the_coder_survives_any_bytes(payload: bytes, seed: int) -> None:
    coder = _coder()
    decoder = SymbolDecoder(coder, payload)
    rng = np.random.default_rng(seed)
    assert np.abs(decoder.hyper(1, (2, 2, 3))).max() <= 63
    indices = rng.integers(0, 64, 500)
    assert (np.abs(decoder.latents(indices)) <= symbol_limits().numpy()[indices]).all()


def test_coder_round_trip_of_the_largest_symbols() -> None:
    coder = _coder()
    indices = np.arange(64).repeat(2)
    symbols = symbol_limits().numpy()[indices] * np.array([1, -1] * 64)
    encoder = SymbolEncoder(coder)
    encoder.hyper(0, np.full((2, 1, 2), -63))
    encoder.latents(symbols, indices)
    decoder = SymbolDecoder(coder, encoder.finish())
    assert (decoder.hyper(0, (2, 1, 2)) == -63).all() and not decoder.at_end()
    assert (decoder.latents(indices) == symbols).all() and decoder.at_end()


def _coder(cache: list[RangeCoder] = []) -> RangeCoder:  # noqa: B006 (a cache)
    if not cache:
        cache.append(RangeCoder(EntropyTables.build(entropy_model("checkerboard"))))
    return cache[0]


# ------------------------------------------------------------------------------------------------ frozen streams


def test_frozen_packet() -> None:
    """A packet of a former version of this code decodes to the same symbols, here and in the plain-integer decoder."""
    data = (DATA / "tiny.sicm").read_bytes()
    expected = np.load(DATA / "tiny.symbols.npz")
    model = load_model(TINY_MODEL)
    header, payload = packet.unpack(data)
    assert header.fingerprint == model.fingerprint and header.rate == 3.25 and len(data) == 77 + len(payload)
    decoded = decompress(payload, RangeCoder(model.tables), model.net.entropy_model.integer_prior(), (3, 9))
    assert decoded.complete and decoded.symbol_hash == header.symbol_hash
    hyper, symbols, latents = decode_packet(data, TINY_MODEL / "weights.safetensors", (3, 9))
    assert (symbols == expected["latents"]).all()
    assert (hyper[0] == expected["hyper_left"]).all() and (hyper[1] == expected["hyper_right"]).all()
    assert (decoded.left[0].double().numpy() * 1024 == latents[0]).all()
    assert (decoded.right[0].double().numpy() * 1024 == latents[1]).all()
    assert StereoDecoder(model).decode(data).header == header


def test_frozen_raster_payload() -> None:
    expected = np.load(DATA / "raster.symbols.npz")
    payload = (DATA / "raster.payload").read_bytes()
    tensors = load_file(DATA / "raster.safetensors")
    tables = EntropyTables.from_tensors(tensors)
    net = StereoEntropyModel(4, 2, "raster", 1).eval()
    net.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("tables.")})
    decoded = decompress(payload, RangeCoder(tables), net.integer_prior(), (5, 9))
    hyper, symbols, latents = Reference({k: v.numpy() for k, v in tensors.items()}, (5, 9), raster=True).decode(payload)
    assert decoded.complete and (symbols == expected["latents"]).all() and (hyper[1] == expected["hyper_right"]).all()
    assert (decoded.left[0].double().numpy() * 1024 == latents[0]).all()
    assert (decoded.right[0].double().numpy() * 1024 == latents[1]).all()


@pytest.mark.parametrize("context", CONTEXTS)
def test_features_of_any_width_follow_the_specification(context: str) -> None:
    net = entropy_model(context, rate_count=1, context_channels=4)
    coder = RangeCoder(EntropyTables.build(net))
    coded = net.quantise(*latents(3, 4, (5, 9), loud=2.0))
    payload, symbol_hash, _ = compress(coded, coder)
    decoded = decompress(payload, coder, net.integer_prior(), (5, 9))
    assert decoded.complete and decoded.symbol_hash == symbol_hash
    weights = {**net.state_dict(), **EntropyTables.build(net).tensors()}
    hyper, symbols, values = Reference(
        {k: v.numpy() for k, v in weights.items()}, (5, 9), raster=context == "raster"
    ).decode(payload)
    assert (hyper[0] == coded.hyper[0][0].numpy()).all() and len(symbols) == 2 * 4 * 5 * 9
    assert (decoded.left[0].double().numpy() * 1024 == values[0]).all()


# ------------------------------------------------------------------------------------------------ both ends


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    left = np.kron(rng.integers(0, 255, (38, 125, 3)), np.ones((10, 10, 1)))[:375, :1242].astype(np.uint8)
    return left, np.roll(left, -12, 1)


def test_images_to_packet_to_boxes(pair: tuple[np.ndarray, np.ndarray]) -> None:
    encoder, decoder = StereoEncoder(TAME_MODEL), StereoDecoder(TAME_MODEL)
    encoded = encoder.encode(*pair, RIG, rate=4.2)
    assert set(encoded.stage_ms) == {"preprocess", "backbone", "smfc", "entropy"}
    assert encoded.rate == pytest.approx(4.2, abs=1 / 1024)
    assert len(encoded.packet) - 77 == pytest.approx(encoded.estimated_bits / 8, abs=8)
    decoded = decoder.decode(encoded.packet)
    assert set(decoded.stage_ms) == {"entropy", "smfc", "analysis"}
    header = decoded.header
    assert header.rate == encoded.rate
    assert header.symbol_hash == encoded.symbol_hash and header.geometry.camera_rig.fx == pytest.approx(RIG.fx)
    assert header.geometry.transform == encoder.model.transform(1242, 375)
    assert decoded.objects and all(o.label in TINY.classes and 0.5 < o.score <= 1 for o in decoded.objects)
    assert [o.score for o in decoded.objects] == sorted((o.score for o in decoded.objects), reverse=True)
    # The features are those of the network's own evaluation mode.
    both = load_model(TAME_MODEL)
    with torch.inference_mode():
        left, right, _ = prepare(*pair, both.transform, both.device)
        expected, _, _ = both.net.compress(both.net.features(left, right), encoded.rate)
    for ours, theirs in zip(decoder.reconstruct(encoded.packet), expected.features, strict=True):
        assert torch.allclose(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1])
    decoder.score_threshold = 1.0
    assert decoder.decode(encoded.packet).objects == []


def test_a_model_that_matches_on_the_vehicle(
    pair: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The boxes of random weights can hardly exist.
    monkeypatch.setattr("sicm_ros.networks.detection.can_exist", lambda boxes, *_: np.isfinite(boxes).all(1))
    net = vehicle_matching()
    save_model(tmp_path / "model", net.config, net.state_dict())
    encoder = StereoEncoder(tmp_path / "model")
    decoder = StereoDecoder(tmp_path / "model", score_threshold=0.0)
    assert encoder.model.half == "vehicle" and decoder.model.half == "remote"
    encoded = encoder.encode(*pair, RIG, rate=2)
    found = decoder.decode(encoded.packet)
    # The way through one network that has both halves.
    both = load_model(tmp_path / "model")
    with torch.inference_mode():
        left, right, transform = prepare(*pair, both.transform, both.device)
        reconstruction, _, _ = both.net.compress(both.net.features(left, right), encoded.rate)
        output = both.net.detect_decoded(reconstruction)
        expected = analyse(both, output, [InputGeometry(transform, RIG)], 0.0)[0].objects
    assert len(found.objects) == len(expected) > 0
    for ours, theirs in zip(found.objects, expected, strict=True):
        assert ours.label == theirs.label and ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert ours.z == pytest.approx(theirs.z, rel=1e-4)
    # f0 is decoded where somebody asks for it.
    features = decoder.reconstruct(encoded.packet)
    assert [tuple(f.shape[1:]) for f, _ in features] == [(8, 16, 32), (16, 8, 16), (16, 4, 8)]


def test_a_batch_decodes_to_what_its_packets_do_and_keeps_errors_apart(pair: tuple[np.ndarray, np.ndarray]) -> None:
    encoder, decoder = StereoEncoder(TAME_MODEL), StereoDecoder(TAME_MODEL)
    other_rig = replace(RIG, fx=700.0, fy=700.0)
    small = tuple(np.ascontiguousarray(view[:300, :1000]) for view in pair)
    packets = [encoder.encode(*pair, RIG, rate=0).packet, encoder.encode(*small, other_rig, rate=4.5).packet]
    forged = bytearray(packets[0])
    forged[-4] ^= 1
    outcomes = decoder.decode_batch([packets[0], bytes(forged), packets[1], packets[1][:50], packets[0]])
    assert [type(x) for x in outcomes] == [
        DecodedPair,
        DamagedPacketError,
        DecodedPair,
        TruncatedPacketError,
        DecodedPair,
    ]
    for outcome, data in zip(outcomes[::2], (*packets, packets[0]), strict=True):
        alone = decoder.decode(data)
        assert outcome.header == alone.header and len(outcome.objects) == len(alone.objects) > 0
        for ours, theirs in zip(outcome.objects, alone.objects, strict=True):
            # A batch is summed in another order: that much and no more, of metres at most a few hundred.
            np.testing.assert_allclose(ours.corners(), theirs.corners(), rtol=1e-4, atol=1e-3)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    assert decoder.decode_batch([]) == []


def test_rate_changes_size(pair: tuple[np.ndarray, np.ndarray]) -> None:
    encoder = StereoEncoder(TINY_MODEL, rate=0.0)
    assert encoder.rate == 0.0 and StereoEncoder(TINY_MODEL).rate == TINY.default_rate
    small, large = encoder.encode(*pair, RIG), encoder.encode(*pair, RIG, rate=5)
    assert small.rate == 0 and large.rate == 5 and len(small.packet) < len(large.packet)


def test_halves_load_only_their_part(pair: tuple[np.ndarray, np.ndarray]) -> None:
    vehicle, remote = StereoEncoder(TINY_MODEL).model, StereoDecoder(TINY_MODEL).model
    assert not hasattr(vehicle.net, "analysis") and not hasattr(vehicle.net, "smfc_decoder")
    assert not hasattr(remote.net, "backbone") and not hasattr(remote.net, "smfc_encoder")
    assert vehicle.fingerprint == remote.fingerprint
    assert vehicle.reference_focal_baseline == pytest.approx(RIG.focal_baseline * 96 / 355)
    assert vehicle.reference_focal_baseline == remote.reference_focal_baseline


def test_a_half_cannot_do_the_other_ones_work() -> None:
    vehicle = load_model(TINY_MODEL, "vehicle")
    assert StereoEncoder(vehicle).model is vehicle
    for kind in (StereoDecoder, StereoDetector):
        with pytest.raises(ModelError, match="model tiny: expected it loaded with half=.* got 'vehicle'"):
            kind(vehicle)
    both = load_model(TINY_MODEL)
    assert StereoEncoder(both).model is StereoDecoder(both).model is StereoDetector(both).model


def test_uncompressed_detector(pair: tuple[np.ndarray, np.ndarray]) -> None:
    detector = StereoDetector(TAME_MODEL)
    objects = detector.detect(*pair, RIG)
    assert objects and all(o.score > 0.5 for o in objects)
    detector.score_threshold = 1.0
    assert detector.detect(*pair, RIG) == []


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda left, right: (left, right[:-1]),
            "left and right image: expected equal sizes, got 1242x375 and 1242x374",
        ),
        (lambda left, right: (left.astype(np.float32), right), "left image: expected uint8 RGB .* got float32"),
        (
            lambda left, right: (left, right[..., 0]),
            r"right image: expected uint8 RGB of shape .* got uint8 \(375, 1242\)",
        ),
        (lambda left, right: (left, None), "right image: expected uint8 RGB .* got NoneType"),
        (lambda left, right: (left[:20], right[:20]), "image size 1242x20: crop_top"),
    ],
)
def test_images_that_cannot_be_encoded(pair: tuple[np.ndarray, np.ndarray], spoil, message: str) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match=message) as error:
        StereoEncoder(TINY_MODEL).encode(*spoil(*pair), RIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [-0.1, 5.1, float("nan")])
def test_rates_that_the_model_has_not(pair: tuple[np.ndarray, np.ndarray], rate: float) -> None:
    with pytest.raises(InputError, match="rate: expected 0 to 5 for model tiny"):
        StereoEncoder(TINY_MODEL).encode(*pair, RIG, rate=rate)
    with pytest.raises(InputError, match="rate: expected 0 to 5"):
        StereoEncoder(TINY_MODEL, rate=rate)


def test_codec_runs_without_ros_and_training_libraries() -> None:
    code = (
        "import sys; absent = ('rclpy', 'compressai', 'constriction', 'torchvision', 'matplotlib', 'scipy'); "
        "sys.modules.update(dict.fromkeys(absent)); "  # an import of one of them fails
        "import sicm_ros.codec.encoder, sicm_ros.codec.decoder, sicm_ros.codec.detector"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])


@pytest.mark.parametrize("model", [TINY_MODEL, TAME_MODEL])
def test_no_packet_is_shorter_than_the_least(pair: tuple[np.ndarray, np.ndarray], model: Path) -> None:
    encoder = StereoEncoder(model)
    grey = np.full_like(pair[0], 128)
    flat = encoder.encode(grey, grey, RIG, rate=0.0)
    assert packet.OVERHEAD <= encoder.least_bytes <= len(flat.packet)
    # The shortest payload that these tables allow: every symbol the likeliest of the narrowest table.
    coder = RangeCoder(encoder.model.tables)
    symbols = SymbolEncoder(coder)
    for view in (0, 1):
        likeliest = encoder.model.tables.hyper[view].argmax(1).astype(np.int32) - 63
        symbols.hyper(view, np.tile(likeliest[:, None, None], (1, 1, 3)))
    symbols.latents(np.zeros(2 * 4 * 27, np.int32), np.zeros(2 * 4 * 27, np.int32))
    shortest = packet.OVERHEAD + len(symbols.finish())
    assert shortest - 8 <= encoder.least_bytes <= shortest
