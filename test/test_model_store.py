# SPDX-License-Identifier: Apache-2.0
"""Stored models: what is written is read, and what is wrong is named."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from codec_material import RIG, TINY, TINY_MODEL, tiny_net
from full_disk import full_disk
from safetensors.torch import load_file, save_file

from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.codec.packet import WrongModelError
from sicm_ros.model_store import ModelError, list_models, load_config, load_model, read_weights, save_model
from sicm_ros.networks.config import MvsfcConfig

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "tiny"))


def refused(folder: Path, match: str, half: str = "both") -> None:
    with pytest.raises(ModelError, match=match) as error:
        load_model(folder, half)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    net = tiny_net()
    number = save_model(tmp_path / "m", TINY, net.state_dict())
    model = load_model(tmp_path / "m")
    assert model.name == "m" and model.config == TINY and model.fingerprint == number
    assert model.classes == TINY.classes and model.lambdas == TINY.lambdas
    assert model.transform(1242, 375).crop_top == 20 and model.device.type == "cpu"
    assert not model.net.training and not any(p.requires_grad for p in model.net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], tensor), name
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["SHA256SUMS", "config.yaml", "weights.safetensors"]
    assert (tmp_path / "m" / "weights.safetensors").stat().st_mode & 0o444 == 0o444
    # The same weights under another name are the same model.
    assert save_model(tmp_path / "n", TINY, net.state_dict()) == number


def test_a_config_that_says_the_same_keeps_its_comments(tmp_path: Path) -> None:
    net = tiny_net()
    save_model(tmp_path, TINY, net.state_dict())
    path = tmp_path / "config.yaml"
    path.write_text("# why it is so\n" + path.read_text())
    save_model(tmp_path, TINY, net.state_dict())
    assert path.read_text().startswith("# why it is so")
    save_model(tmp_path, replace(TINY, default_rate=3.0), net.state_dict())
    assert not path.read_text().startswith("#") and load_config(path).default_rate == 3.0


def test_fingerprint(stored: Path) -> None:
    first = load_model(stored).fingerprint
    assert all(load_model(stored, half).fingerprint == first for half in ("vehicle", "remote"))  # type: ignore[arg-type]
    path = stored / "weights.safetensors"
    tensors = load_file(path)
    for name in ("backbone.stem.0.weight", "entropy_model.hyper_density.1.means", "analysis.anchors.prior_mean"):
        changed = {k: v.clone() for k, v in tensors.items()}
        changed[name].view(-1)[0] += 1e-3
        save_file(changed, path)
        assert load_model(stored, "remote").fingerprint != first, name
    save_file(tensors, path)
    config = stored / "config.yaml"
    text = config.read_text()
    assert "score_threshold: 0.5" in text and "default_rate: 2.0" in text
    config.write_text(text.replace("threshold: 0.5", "threshold: 0.1").replace("default_rate: 2", "default_rate: 1"))
    changed_config = load_model(stored)
    assert changed_config.config.analysis.score_threshold == 0.1 and changed_config.fingerprint == first
    config.write_text(text.replace("crop_top: 20", "crop_top: 21"))
    assert load_model(stored).fingerprint != first


def test_a_packet_of_other_weights_is_refused(stored: Path) -> None:
    import numpy as np

    from sicm_ros.codec.decoder import StereoDecoder

    image = np.zeros((375, 1242, 3), np.uint8)
    data = StereoEncoder(TINY_MODEL).encode(image, image, RIG).packet
    path = stored / "weights.safetensors"
    tensors = load_file(path)
    tensors["smfc_decoder.unit0.left.0.bias"] = tensors["smfc_decoder.unit0.left.0.bias"] + 1
    save_file(tensors, path)
    with pytest.raises(WrongModelError, match="packet of another model"):
        StereoDecoder(stored).decode(data)


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, share = tmp_path / "a", tmp_path / "b", tmp_path / "prefix" / "share" / "sicm_ros" / "models"
    for folder in (first, second, share):
        shutil.copytree(TINY_MODEL, folder / "mine")
    shutil.copytree(TINY_MODEL, share / "installed")
    monkeypatch.setenv("SICM_MODEL_PATH", f"{first}:{second}")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "prefix"))
    assert list_models()["mine"] == first / "mine" and list_models()["installed"] == share / "installed"
    assert load_model("installed").path == share / "installed"
    assert load_model(second / "mine").path == second / "mine"
    (first / "mine" / "weights.safetensors").unlink()
    assert list_models()["mine"] == second / "mine"


def test_no_such_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(TINY_MODEL, tmp_path / "mine")
    monkeypatch.setenv("SICM_MODEL_PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"model 'other' not found: expected a folder .*or one of .*mine"):
        load_model("other")


@pytest.mark.parametrize(
    "text, match",
    [
        ("hight: 96", "unknown key 'hight'"),
        ("analysis: {anchors: {sizes: 3}}", "unknown key 'analysis.anchors.sizes'"),
        ("height: tall", "height: .*integer.*got 'tall'"),
        ("channels: [1, 2]", "channels.2: "),
        ("context: spiral", "context: .*'raster' or 'checkerboard'.*got 'spiral'"),
        ("[1, 2]", "expected fields of a model's configuration, got list"),
        ("a: [", "not YAML"),
        ("default_rate: .nan", "default_rate: expected 0 to 0, got nan"),
        ("default_rate: 1", "default_rate: expected 0 to 0, got 1"),
        ("analysis: {score_threshold: .nan}", "analysis.score_threshold: expected 0 to 1, got nan"),
        ("analysis: {nms_iou: .inf}", "analysis.nms_iou: expected 0 to 1, got inf"),
        ("lambdas: [1, .nan]", r"lambdas: expected positive numbers, got \[1.0, nan\]"),
        ("latent_channels: 3", "no network has these sizes: channels: expected an even number, got 3"),
    ],
)
def test_wrong_configurations_are_named(stored: Path, text: str, match: str) -> None:
    (stored / "config.yaml").write_text(text)
    refused(stored, f"config.yaml: {match}")


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    save_model(tmp_path / "m", TINY, tiny_net().state_dict())
    path = tmp_path / "m" / "weights.safetensors"
    good = path.read_bytes()
    for middle in (len(good) // 4, len(good) // 2, len(good) - 500):
        path.write_bytes(good[:middle] + bytes(b ^ 0x10 for b in good[middle : middle + 400]) + good[middle + 400 :])
        refused(tmp_path / "m", "weights.safetensors: expected the SHA-256 .* of SHA256SUMS, got .* damaged")
    path.write_bytes(good)
    number = load_model(tmp_path / "m").fingerprint
    # As the program of the same name reads it, and as it writes it.
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "m", capture_output=True, check=True)
    subprocess.run("sha256sum -b * > SHA256SUMS", shell=True, cwd=tmp_path / "m", check=True)
    assert load_model(tmp_path / "m").fingerprint == number
    # Weights from before there were checksums.
    (tmp_path / "m" / "SHA256SUMS").unlink()
    assert load_model(tmp_path / "m").fingerprint == number


def test_the_weights_that_are_shipped_have_checksums() -> None:
    for path in REPOSITORY.glob("models/*/*.safetensors"):
        listed = (path.parent / "SHA256SUMS").read_text()
        assert f"  {path.name}\n" in listed, f"run: cd {path.parent} && sha256sum *.safetensors > SHA256SUMS"
        assert read_weights(path)


def test_a_full_disk_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    net = tiny_net()
    number = save_model(tmp_path / "m", TINY, net.state_dict())
    with torch.no_grad():
        net.smfc_decoder.unit0.left[0].bias += 1
    with full_disk(20_000), pytest.raises(OSError, match="weights.safetensors"):
        save_model(tmp_path / "m", TINY, net.state_dict())
    assert load_model(tmp_path / "m").fingerprint == number


def test_wrong_weights_are_named(stored: Path) -> None:
    path = stored / "weights.safetensors"
    tensors = load_file(path)

    def store(**changes: torch.Tensor | None) -> None:
        save_file({k: v for k, v in (tensors | changes).items() if v is not None}, path)

    name = "smfc_encoder.unit0.left.0.bias"
    store(**{name: None})
    refused(stored, f"tensor {name} is missing")
    assert load_model(stored, "remote").half == "remote"  # needs no such tensor
    store(**{name: torch.zeros(5)})
    refused(stored, rf"tensor {name}: expected shape \(4,\), got \(5,\)", "vehicle")
    store(**{"backbone.tail": torch.zeros(5)})
    refused(stored, "tensor backbone.tail is not one of the network")
    store(**{"tables.latent": None})
    refused(stored, "missing tensor 'tables.latent'")
    store(**{"entropy_model.context.0.bias": torch.full((8,), float("nan"))})
    refused(stored, "entropy model: weights must be finite")
    path.write_bytes(path.read_bytes()[:1000])
    refused(stored, "weights.safetensors: not a weights file")
    path.unlink()
    refused(stored, "weights.safetensors: no such file")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta:-3"])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}': expected cpu, or a GPU") as error:
        load_model(TINY_MODEL, device=device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mvsfc-r34", "sicm-compact"])
def test_shipped_configurations(name: str) -> None:
    config = load_config(REPOSITORY / "models" / name / "config.yaml")
    if name == "mvsfc-r34":
        assert config == MvsfcConfig()
    else:
        assert config.context == "checkerboard" and config.rate_count == 6
