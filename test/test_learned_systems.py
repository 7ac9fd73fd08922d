# SPDX-License-Identifier: Apache-2.0
"""The learned codecs of the comparison: bytes, shapes, gradients, a short training, and what is said of bad weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_networks import SMALL, small_net

from sicm_ros.data.rendered import rendered_frame
from sicm_ros.evaluation.systems import LEARNED_CODECS, SYSTEMS, compressai_layers
from sicm_ros.evaluation.systems.image_codec import CodecError
from sicm_ros.evaluation.systems.latents import LatentCoder
from sicm_ros.evaluation.systems.learned import codec_complexity, load_codec, save_codec
from sicm_ros.evaluation.systems.stereo_codec import PAPER_LAMBDAS, Scales, StereoCodec, detect, source_of
from sicm_ros.model_store import load_config, load_model, save_model
from sicm_ros.networks.entropy_layers import HyperEncoder
from sicm_ros.training import train_system
from sicm_ros.training.config import TrainConfig
from sicm_ros.training.loader import StepBatches
from sicm_ros.training.samples import build_store
from sicm_ros.training.stores import Mixture
from sicm_ros.training.targets import anchor_priors
from sicm_ros.training.train_system import CodecTrainee, run_system

CONFIG = replace(SMALL, height=64, width=256)
MODELS = Path(__file__).parents[1] / "models"
NAMES = list(LEARNED_CODECS)


def fresh(name: str) -> StereoCodec:
    kind = LEARNED_CODECS[name]
    if absent := kind.absent():
        pytest.skip(absent)
    torch.manual_seed(0)
    return kind(CONFIG)


def made(name: str) -> StereoCodec:
    """A codec whose entropy model fits its latents a little, as it does after some training: hyper-latents that are not
    all zero, and deviations of the latents that are of order one."""
    codec = fresh(name)
    with torch.no_grad():
        for module in codec.modules():
            if isinstance(module, HyperEncoder):
                module[-1].weight *= 30
            if isinstance(module, LatentCoder):
                bias = module.codec.y.entropy_parameters[-1].bias
                bias[: len(bias) // 2] = 3.0
                module.log_gain += 1.0
    return codec


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored model, untrained."""
    folder = tmp_path_factory.mktemp("models") / "detector"
    save_model(folder, CONFIG, small_net(height=64, width=256).state_dict())
    return folder


def a_source(codec: StereoCodec, seed: int = 0) -> Scales:
    """What the codec codes, with the smoothness of images: low frequencies alone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, 1, 3, 8, 32, generator=generator)
    left, right = (torch.nn.functional.interpolate(x, size=(64, 256), mode="bilinear") for x in coarse)
    with torch.no_grad():
        return source_of(codec, small_net(height=64, width=256), left, right)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_decode_to_what_the_estimate_is_of(name: str) -> None:
    codec = made(name).eval().requires_grad_(False)
    codec.prepare_coder()
    source = a_source(codec)
    sizes = []
    for rate in (0, 3, 5):
        data = codec.compress(source, rate)
        assert data == codec.compress(source, rate)
        decoded, coded = codec.decompress(data, rate), codec(source, rate)
        for scale, other, original in zip(decoded, coded.decoded, source, strict=True):
            assert [x.shape for x in scale] == [x.shape for x in original]
            for a, b in zip(scale, other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert coded.bits.shape == (1,)
        estimate = float(coded.bits) / 8
        assert 0.97 * estimate - 8 < len(data) < 1.02 * estimate + 16
        sizes.append(len(data))
    assert sizes == sorted(sizes) and (sizes[-1] > 1.05 * sizes[0] or name == "lei")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_the_detector_rests(name: str) -> None:
    trainee = CodecTrainee(made(name), small_net(height=64, width=256), 1)
    trainee.prepare("joint")
    codec = trainee.net
    views = torch.randn(2, 2, 3, 64, 256)
    loss = torch.zeros(())
    for rate in range(len(codec.lambdas)):
        source = source_of(codec, trainee.detector, *views)
        coded = codec(source, rate)
        assert coded.bits.shape == (2,)
        output = detect(codec, trainee.detector, coded.decoded)
        loss = loss + coded.bits.sum() / 1e3 + sum(x.square().mean() for x in output if x is not None)
        loss = loss + sum(view.square().mean() for scale in coded.decoded for view in scale)
    loss.backward()
    learning = [(k, p) for k, p in codec.named_parameters() if p.requires_grad]
    assert [k for k, p in learning if p.grad is None or not p.grad.any()] == []
    assert [k for k, p in codec.named_parameters() if not p.requires_grad and not k.endswith("quantiles")] == []
    assert not any(p.requires_grad or p.grad is not None for p in trainee.detector.parameters())


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> StepBatches:
    store = build_store(tmp_path_factory.mktemp("samples"), CONFIG, None, [], 2, seed=3)
    net = small_net(height=64, width=256)
    anchor_priors(net.analysis.anchors, CONFIG.classes, [(store.labels(i), store.rig(i)) for i in range(len(store))])
    return StepBatches(Mixture((store,), (1.0,)), TrainConfig(batch_size=2), CONFIG.classes, net.analysis.anchors)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name: str, batches: StepBatches) -> None:
    trainee = CodecTrainee(fresh(name), small_net(height=64, width=256), 1)
    batch = batches[0]
    adam = torch.optim.Adam([p for p in trainee.net.parameters() if p.requires_grad], 3e-4)
    for stage, steps in (("codec", 18), ("joint", 4)):
        trainee.prepare(stage)  # type: ignore[arg-type]
        losses = []
        for _ in range(steps):
            torch.manual_seed(0)  # the same noise
            terms = trainee(batch, stage, 3)  # type: ignore[arg-type]
            losses.append(float(terms["loss"].detach()))
            terms["loss"].backward()
            adam.step()
            adam.zero_grad()
        assert losses[-1] < losses[0]
        assert {"loss", "bpp", "error"} <= terms.keys() and ("disparity" in terms) == (stage == "joint")


def test_a_rate_is_drawn_from_the_step_alone() -> None:
    trainee = CodecTrainee(made("lei"), small_net(), 1)
    rates = [trainee.rate_of_step("codec", step) for step in range(60)]
    assert set(rates) == set(range(6))
    assert rates == [trainee.rate_of_step("joint", step) for step in range(60)]


@pytest.fixture
def stored(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the weights of every system, untrained."""
    model = load_model(detector)
    for name, kind in LEARNED_CODECS.items():
        if not kind.absent():
            save_codec(tmp_path / "systems" / name, made(name), {"fingerprint": f"{model.fingerprint:016x}"})
    monkeypatch.setenv("SICM_MODEL_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_system_codes_and_detects(name: str, stored: Path, detector: Path) -> None:
    made(name)
    kind, model, frame = SYSTEMS[name], load_model(detector), rendered_frame(1)
    assert kind.missing() == "" and "after" in kind.note and kind.title.endswith("]")
    system = kind.build(model, 0.3)
    assert system.points == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert system.complexity.macs > 1e8 and system.complexity.parameters > 1e6
    first, again = system.run(frame, 2.0), system.run(frame, 2.0)
    assert (first.size, first.objects) == (again.size, again.objects)
    assert first.estimate is not None and first.size == pytest.approx(first.estimate, rel=0.03, abs=16)
    assert first.encode_s > 0 and first.decode_s > 0


def test_bad_weights_are_said_in_a_line(stored: Path, detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lei = load_model(detector), LEARNED_CODECS["lei"]
    folder = stored / "systems" / "lei"
    weights, facts = (folder / "weights.safetensors").read_bytes(), (folder / "training.json").read_text()

    def fails(match: str) -> None:
        with pytest.raises(CodecError, match=match) as error:
            load_codec(lei, model)
        assert "\n" not in str(error.value)

    damaged = bytearray(weights)
    damaged[-5] ^= 1
    (folder / "weights.safetensors").write_bytes(damaged)
    fails("it is damaged")
    (folder / "weights.safetensors").write_bytes(weights[:1000])
    fails("not a weights file")
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "training.json").write_text(facts.replace(f"{model.fingerprint:016x}", "0" * 16))
    fails("trained beside the detector detector")
    (folder / "training.json").write_text("[]")
    fails("expected facts of the training, got list")
    (folder / "training.json").unlink()
    fails("expected facts of the training")
    save_codec(folder, lei(replace(model.config), (1.0, 2.0)), {"fingerprint": f"{model.fingerprint:016x}"})
    fails(r"tensor entropy_model.log_gain: expected \(2, 6, 48\), got \(2, 2, 48\)")
    monkeypatch.setenv("SICM_MODEL_PATH", str(stored / "nowhere"))
    fails("lei has no weights: sicm train-system lei")
    assert SYSTEMS["lei"].missing().startswith("has no weights: sicm train-system lei")


def test_absent_compressai_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressai_layers.importlib.util, "find_spec", lambda name: None)
    for name in ("wang", "liu"):
        assert SYSTEMS[name].missing() == "needs CompressAI: pip install -r requirements/evaluate.txt"
        with pytest.raises(ValueError, match=f"^{name} needs CompressAI: pip install"):
            run_system(name, MODELS, None, "nowhere", 1)
    assert "CompressAI" not in SYSTEMS["lei"].missing()


def test_the_systems_are_listed_without_importing_compressai() -> None:
    code = "import sys; from sicm_ros.evaluation.systems import SYSTEMS; [k.missing() for k in SYSTEMS.values()]; "
    code += "sys.exit('compressai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_codecs_are_of_the_default_models_size(name: str) -> None:
    kind = LEARNED_CODECS[name]
    if absent := kind.absent():
        pytest.skip(absent)
    config = load_config(MODELS / "sicm-compact" / "config.yaml")
    codec = kind(config)
    assert len(codec.lambdas) == 6 and (codec.lambdas == PAPER_LAMBDAS) == (codec.codes == "images")
    cost = codec_complexity(codec, config)
    assert 5e9 < cost.macs < 12e9 and 1e6 < cost.parameters < 6e6


def test_a_training_resumes_and_leaves_a_system(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(train_system.SETTINGS, validation_samples=1, batch_size=2)
    monkeypatch.setattr(train_system, "SETTINGS", few)
    said: list[str] = []
    out = tmp_path / "systems" / "lei"
    run_system("lei", detector, None, out, 4, device="cpu", samples=2, say=said.append)
    facts = json.loads((out / "training.json").read_text())
    model = load_model(detector)
    assert facts | {"minutes": 0, "sha256": ""} == {
        "system": "lei",
        "detector": "detector",
        "fingerprint": f"{model.fingerprint:016x}",
        "steps": 4,
        "pairs": 8,
        "minutes": 0,
        "seed": 1,
        "sha256": "",
    }
    assert any("validation val rate 3" in line for line in said) and "weights written" in said[-1]
    run_system("lei", detector, None, out, 8, device="cpu", resume=True, say=said.append)
    assert json.loads((out / "training.json").read_text())["steps"] > 4
    monkeypatch.setenv("SICM_MODEL_PATH", str(tmp_path))
    assert load_codec(LEARNED_CODECS["lei"], model).latent_size == (4, 16)


def test_unknown_systems_are_said() -> None:
    with pytest.raises(ValueError, match="expected one of wang, lei, liu, got lie"):
        run_system("lie", MODELS, None, "nowhere", 1)
