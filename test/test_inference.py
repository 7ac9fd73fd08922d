# SPDX-License-Identifier: Apache-2.0
"""The engines: the same latents and boxes whatever runs the network, and the cache of converted graphs."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from codec_material import RIG, TAME_MODEL
from test_networks import vehicle_matching

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.inference import openvino
from sicm_ros.inference.engine import EngineError, no_lap, remote_engine, vehicle_engine
from sicm_ros.inference.graph_cache import graph_folder
from sicm_ros.model_store import load_model, save_model
from sicm_ros.preprocessing import prepare
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    left = np.kron(rng.integers(0, 255, (38, 125, 3)), np.ones((10, 10, 1)))[:375, :1242].astype(np.uint8)
    return left, np.roll(left, -12, 1)


@pytest.fixture(params=["remote", "vehicle"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with each place of matching."""
    if request.param == "remote":
        return TAME_MODEL
    net = vehicle_matching()
    save_model(tmp_path / "model", net.config, net.state_dict())
    return tmp_path / "model"


def close(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]) -> bool:
    return len(found) == len(expected) and all(
        ours is not None and theirs is not None and torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
        for ours, theirs in zip(found, expected, strict=True)
    )


def test_both_engines_compute_the_same(model: Path) -> None:
    stored = load_model(model)
    config = stored.config
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a stream for each
    try:
        vehicle = [vehicle_engine(stored, name) for name in ("torch", "openvino-float32")]
        remote = [remote_engine(stored, name) for name in ("torch", "openvino-float32")]
    finally:
        torch.set_num_threads(threads)
    assert [half.name for half in (*vehicle, *remote)] == ["torch", "openvino-float32"] * 2
    for count in (1, 3):
        views = torch.randn(2, count, 3, config.height, config.width, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected, found = (half(*views, no_lap) for half in vehicle)
            assert close(found, expected)
            latents = [x.round() for x in expected]
            expected_output, output = (half(*latents, no_lap)[:3] for half in remote)
            assert close(output, expected_output)
            # What one call gave is not overwritten by the next one.
            kept = output[2].clone()
            remote[1](*[x + 1 for x in latents], no_lap)
            assert torch.equal(output[2], kept)


def test_transposed_convolutions_are_the_convolutions_that_take_their_place(model: Path) -> None:
    net = load_model(model).net
    same = openvino._without_transposed(net.smfc_decoder)
    kinds = [type(module).__name__ for module in same.modules()]
    assert "_Interleaved" in kinds and kinds.count("ConvTranspose2d") < 3
    config, generator = net.config, torch.Generator().manual_seed(4)
    latents = torch.randn(2, 1, config.latent_channels, *config.latent_size, generator=generator)
    with torch.inference_mode():
        expected, found = (decoder(*latents, config.matching == "remote") for decoder in (net.smfc_decoder, same))
    views = [[view for scale in x.features if scale is not None for view in scale] for x in (expected, found)]
    assert len(views[0]) >= 4 and close(views[1], views[0])


@pytest.mark.slow
def test_bfloat16_costs_next_to_nothing() -> None:
    """Where the CPU has it; elsewhere "openvino" is float32, and nearer still."""
    stored = load_model("sicm-compact")
    name = f"openvino-{openvino.native_precision()}"
    vehicle, remote = vehicle_engine(stored, "auto"), remote_engine(stored, "openvino")
    assert vehicle.name == remote.name == name
    pair = render_pair(random_layout(np.random.default_rng(3), KITTI_RIG, *KITTI_SIZE), KITTI_RIG, *KITTI_SIZE, 3)
    left, right, _ = prepare(pair.left, pair.right, stored.transform, stored.device)
    with torch.inference_mode():
        expected = vehicle_engine(stored, "torch")(left, right, no_lap)
        found = vehicle(left, right, no_lap)
        entropy_model = stored.net.entropy_model
        coded = entropy_model.inverse_gain(*entropy_model.quantise(*expected, 3.0).latents(), 3.0)
        expected += remote_engine(stored, "torch")(*coded, no_lap)[:3]
        found += remote(*coded, no_lap)[:3]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).square().mean() < 0.02**2 * theirs.square().mean()


def test_packets_of_one_engine_decode_with_the_other(pair: tuple[np.ndarray, np.ndarray]) -> None:
    encoders = [StereoEncoder(TAME_MODEL, engine=name) for name in ("torch", "openvino-float32")]
    decoders = [StereoDecoder(TAME_MODEL, engine=name) for name in ("torch", "openvino-float32")]
    for encoder in encoders:
        encoded = encoder.encode(*pair, RIG, rate=3)
        assert set(encoded.stage_ms) == {"preprocess", "backbone", "smfc", "entropy"}
        first, second = (decoder.decode(encoded.packet) for decoder in decoders)
        assert set(second.stage_ms) == {"entropy", "smfc", "analysis"}
        assert len(first.objects) == len(second.objects) > 0
        for ours, theirs in zip(first.objects, second.objects, strict=True):
            assert ours.label == theirs.label and ours.score == pytest.approx(theirs.score, abs=1e-4)
            assert ours.z == pytest.approx(theirs.z, rel=1e-3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_graphs_are_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_model(TAME_MODEL)
    vehicle_engine(stored, "openvino")
    folder = graph_folder(stored, "vehicle")
    assert set(files(folder)) == {"0.xml", "0.bin", "1.xml", "1.bin", "SHA256SUMS"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def converted(*_: object) -> None:
        raise AssertionError("converted again")

    with monkeypatch.context() as patch:
        patch.setattr("sicm_ros.inference.openvino._convert", converted)
        vehicle_engine(stored, "openvino")
    # Other weights are another model.
    changed = {name: tensor * 1.5 if name == "backbone.stem.0.weight" else tensor for name, tensor in weights(stored)}
    save_model(folder.parents[3] / "changed", stored.config, changed)
    other = load_model(folder.parents[3] / "changed")
    assert graph_folder(other, "vehicle") != folder
    vehicle_engine(other, "openvino")
    assert len(list(folder.parent.iterdir())) == 2


def weights(stored):
    return stored.net.state_dict().items()


def test_a_damaged_graph_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_model(TAME_MODEL)
    graphs = openvino._convert
    made: list[list] = []
    monkeypatch.setattr(openvino, "_convert", lambda *arguments: made.append(graphs(*arguments)) or made[0])
    views = torch.randn(2, 1, 3, 96, 288, generator=torch.Generator().manual_seed(2))
    expected = vehicle_engine(stored, "openvino")(*views, no_lap)
    folder = graph_folder(stored, "vehicle")
    whole = files(folder)
    path, middle = folder / "1.bin", len(whole["1.bin"]) // 2
    flipped = whole["1.bin"][:middle] + bytes([whole["1.bin"][middle] ^ 64]) + whole["1.bin"][middle + 1 :]
    monkeypatch.setattr(openvino, "_convert", lambda *_: made.append(made[0]) or made[0])
    for count, damage in enumerate((flipped, whole["1.bin"][:-8], None), 2):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        found = vehicle_engine(stored, "openvino")(*views, no_lap)
        assert len(made) == count and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert files(folder) == whole


def test_no_place_for_the_cache_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert vehicle_engine(load_model(TAME_MODEL), "openvino").name.startswith("openvino-")


def _make(queue, start) -> None:
    start.wait()
    stored = load_model(TAME_MODEL)
    queue.put([x.sum().item() for x in vehicle_engine(stored, "openvino")(*torch.ones(2, 1, 3, 96, 288), no_lap)])


@pytest.mark.slow
def test_several_processes_may_convert_at_once() -> None:
    context = multiprocessing.get_context("spawn")
    queue, start = context.Queue(), context.Barrier(3)
    processes = [context.Process(target=_make, args=(queue, start)) for _ in range(3)]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sums[0] == sums[1] == sums[2]
    folder = graph_folder(load_model(TAME_MODEL), "vehicle")
    assert os.listdir(folder.parent) == [folder.name]


def test_wrong_requests_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_model(TAME_MODEL)
    with pytest.raises(
        EngineError, match=r"engine: expected one of auto, torch, openvino, openvino-float32, got 'tensorrt'"
    ):
        vehicle_engine(stored, "tensorrt")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"not installed: pip install -r requirements/openvino\.txt"):
        remote_engine(stored, "openvino")
    assert remote_engine(stored, "auto").name == "torch"


@pytest.mark.parametrize(
    ("offered", "capabilities", "expected"),
    [
        (["FP32", "BF16"], {"avx512_bf16": True}, "bfloat16"),
        (["FP32", "BF16"], {"avx2": True, "avx2_vnni_2": True}, "float32"),  # converts bfloat16, but has no products
        (["FP32"], {"amx_bf16": True}, "float32"),
    ],
)
def test_bfloat16_where_the_processor_multiplies_it(
    offered: list[str], capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(openvino, "core", lambda: SimpleNamespace(get_property=lambda *_: offered))
    assert openvino.native_precision() == expected


def test_what_cannot_be_converted_runs_in_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such\noperation")

    stored = load_model(TAME_MODEL)
    monkeypatch.setattr("openvino.convert_model", fail)
    with pytest.raises(EngineError, match="cannot convert the network: no such operation"):
        vehicle_engine(stored, "openvino")
    assert vehicle_engine(stored, "auto").name == "torch"
    assert "no such operation; PyTorch runs the network" in caplog.text


def test_signals_do_no_harm_after_engines_are_gone() -> None:
    """OpenVINO's CPU plugin leaves a thread with a signal stack that is no more, if there were several of its Cores."""
    code = f"""
import gc, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from codec_material import TAME_MODEL
from sicm_ros.inference.engine import remote_engine, vehicle_engine
from sicm_ros.model_store import load_model
signal.signal(signal.SIGUSR1, lambda *_: None)
engines = [make(load_model(TAME_MODEL), "openvino") for make in (vehicle_engine, remote_engine)]
while engines:
    del engines[0]
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
