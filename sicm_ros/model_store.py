# SPDX-License-Identifier: Apache-2.0
"""Stored models: ``models/<name>/`` has ``config.yaml``, ``weights.safetensors``, ``SHA256SUMS`` and ``MODEL_CARD.md``.

The weights file holds the state dict of the whole network (the priors of its anchors are in it) and the coder's integer
tables. Each half loads its own part of it. ``SHA256SUMS``, as ``sha256sum`` writes and checks it, tells damaged
weights; without it they are loaded as they are. Nothing that can run code is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import write_whole
from .geometry import InputTransform, input_transform
from .networks.config import PACKET_VERSION, MvsfcConfig
from .networks.entropy_model import StereoEntropyModel
from .networks.entropy_tables import EntropyTables, TableError
from .networks.mvsfc_net import Half, MvsfcNet

__all__ = [
    "DEFAULT_MODEL",
    "ModelError",
    "StoredModel",
    "fingerprint",
    "list_models",
    "load_config",
    "load_model",
    "model_folder",
    "open_model",
    "read_weights",
    "save_model",
    "search_path",
    "torch_device",
]

DEFAULT_MODEL = "sicm-compact"
CONFIG_FILE, WEIGHTS_FILE, SUMS_FILE = "config.yaml", "weights.safetensors", "SHA256SUMS"
_HALVES = {
    "vehicle": ("backbone.", "matching.", "smfc_encoder.", "entropy_model."),
    "remote": ("smfc_decoder.", "analysis.", "entropy_model."),
}
_REFERENCE = "analysis.anchors.reference_focal_baseline"
# What may be changed in config.yaml without making another model of it.
_FREE_FIELDS = {"lambdas", "default_rate"}
_FREE_ANALYSIS_FIELDS = {"score_calibration", "score_threshold", "nms_iou", "dropout"}
# Fields that came after the first packets were stored: left out of the fingerprint where they have the old meaning.
_LATER_FIELDS = {
    "latent_stride": 32,
    "strided_stem": False,
    "context_channels": None,
    "matching": "remote",
    "joint_features": True,
}
_LATER_ANALYSIS_FIELDS = {"disparity_refinement": 0}
_ADAPTER = TypeAdapter(MvsfcConfig)


class ModelError(ValueError):
    """A model that is missing, incomplete or malformed; the message names the file and the field."""


@dataclass(frozen=True)
class StoredModel:
    """A loaded model. ``net`` is in evaluation mode on its device and has only the modules of ``half``.

    ``fingerprint`` (64 bits) is that of the whole model, whichever half is loaded. ``reference_focal_baseline`` is the
    focal length times baseline, in pixel metres of the network's input, that the depth priors were made with.
    """

    name: str
    path: Path
    config: MvsfcConfig
    half: Half
    net: MvsfcNet
    tables: EntropyTables
    fingerprint: int
    reference_focal_baseline: float

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the model detects, in the order of its outputs."""
        return self.config.classes

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The loss's weight at each rate that this model can code at; 0 is the index of the fewest bits."""
        return self.config.lambdas[: self.config.rate_count]

    def transform(self, source_width: int, source_height: int) -> InputTransform:
        """From camera images of this size to the network's input. Raises GeometryError."""
        return input_transform(source_width, source_height, self.config.crop_top, self.config.width, self.config.height)


# ---------------------------------------------------------------------------------------------------- where


def search_path() -> Iterator[Path]:
    """Folders with models, in order of precedence."""
    for entry in os.environ.get("SICM_MODEL_PATH", "").split(os.pathsep):
        if entry:
            yield Path(entry)
    for prefix in [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]:
        if prefix:
            yield Path(prefix) / "share" / "sicm_ros" / "models"
    yield Path(__file__).resolve().parents[1] / "models"


def list_models(trained: bool = True) -> dict[str, Path]:
    """The models that can be loaded by name, with their folders; with ``trained`` False those without weights too."""
    found: dict[str, Path] = {}
    for folder in search_path():
        for config in sorted(folder.glob(f"*/{CONFIG_FILE}")):
            if not trained or (config.parent / WEIGHTS_FILE).is_file():
                found.setdefault(config.parent.name, config.parent)
    return found


def model_folder(name_or_path: str | Path, trained: bool = True) -> Path:
    """The folder of a model that is named, or is that folder. Raises ModelError if there is none."""
    path = Path(name_or_path)
    if path.is_dir():
        return path
    models = list_models(trained)
    if str(name_or_path) not in models:
        files = f"{CONFIG_FILE} and {WEIGHTS_FILE}" if trained else CONFIG_FILE
        raise ModelError(
            f"model {str(name_or_path)!r} not found: expected a folder with {files}, or one of "
            f"{', '.join(sorted(models)) or '(no model is installed)'}"
        )
    return models[str(name_or_path)]


# ---------------------------------------------------------------------------------------------------- config


def _unknown_key(data: object, kind: Any, where: str = "") -> str | None:
    """The first key of ``data`` that the dataclass ``kind`` has no field for."""
    if not (dataclasses.is_dataclass(kind) and isinstance(data, Mapping)):
        return None
    hints = typing.get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            return f"{where}{key}"
        inner = _unknown_key(value, hints[key], f"{where}{key}.")
        if inner:
            return inner
    return None


def load_config(path: Path) -> MvsfcConfig:
    """Read a ``config.yaml``. Raises ModelError, naming the field."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror or e}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ModelError(f"{path}: not YAML: {' '.join(str(e).split())}") from None
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise ModelError(f"{path}: expected fields of a model's configuration, got {type(data).__name__}")
    unknown = _unknown_key(data, MvsfcConfig)
    if unknown:
        raise ModelError(f"{path}: unknown key {unknown!r}")
    try:
        config = _ADAPTER.validate_python(data)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {field}: {first['msg']}, got {first['input']!r}") from None
    for name, value, high in (
        ("default_rate", config.default_rate, config.highest_rate),
        ("analysis.score_threshold", config.analysis.score_threshold, 1),
        ("analysis.nms_iou", config.analysis.nms_iou, 1),
    ):
        if not 0 <= value <= high:  # not a number is not either
            raise ModelError(f"{path}: {name}: expected 0 to {high}, got {value:g}")
    if not all(0 < value < math.inf for value in config.lambdas):
        raise ModelError(f"{path}: lambdas: expected positive numbers, got {list(config.lambdas)}")
    return config


def _canonical(config: MvsfcConfig) -> bytes:
    def meaning(data: Mapping[str, object], free: set[str], later: Mapping[str, object]) -> dict[str, object]:
        return {k: v for k, v in data.items() if k not in free and v != later.get(k, ...)}

    data = _ADAPTER.dump_python(config, mode="json")
    kept = meaning(data, _FREE_FIELDS, _LATER_FIELDS)
    kept["rates"] = config.rate_count
    kept["analysis"] = meaning(data["analysis"], _FREE_ANALYSIS_FIELDS, _LATER_ANALYSIS_FIELDS)
    return json.dumps(kept, sort_keys=True).encode()


# ---------------------------------------------------------------------------------------------------- weights


def fingerprint(config: MvsfcConfig, tensors: Mapping[str, Tensor]) -> int:
    """64 bits of BLAKE2b over everything that the two ends must share: packet version, network, weights, tables."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(b"sicm_ros %d " % PACKET_VERSION + _canonical(config))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest(), "little")


def _check_sum(path: Path) -> None:
    """Raise ModelError if a file is not the one that ``SHA256SUMS`` beside it names; where that does not, it passes."""
    sums = path.with_name(SUMS_FILE)
    try:
        lines = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as e:
        raise ModelError(f"{sums}: expected checksums as sha256sum writes them: {e}") from None
    expected = next((fields[0] for fields in lines if len(fields) == 2 and fields[1].lstrip("*") == path.name), None)
    if expected is None:
        return
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return  # the reader of the file has the better words
    if found != expected:
        raise ModelError(
            f"{path}: expected the SHA-256 {expected[:16]}... of {SUMS_FILE}, got {found[:16]}...: the file is "
            f"damaged; if it was replaced, replace {SUMS_FILE} as well"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ModelError."""
    _check_sum(path)
    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{path}: not a weights file: {' '.join(str(e).split())}") from None


def torch_device(name: str | torch.device) -> torch.device:
    """A device that exists here. Raises ModelError."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ModelError(f"device {str(name)!r}: expected cpu, or a GPU that PyTorch can use here: {reason}") from None
    return device


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL, half: Half = "both", device: str | torch.device = "cpu"
) -> StoredModel:
    """Load a model by name or from a folder. Raises ModelError."""
    target = torch_device(device)
    folder = model_folder(name_or_path)
    config = load_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    tensors = read_weights(path)
    number = fingerprint(config, tensors)
    try:
        tables = EntropyTables.from_tensors(tensors)
    except TableError as e:
        raise ModelError(f"{path}: {e}") from None
    try:
        net = MvsfcNet(config, half)
    except (ValueError, RuntimeError, ZeroDivisionError) as e:
        raise ModelError(f"{folder / CONFIG_FILE}: no network has these sizes: {' '.join(str(e).split())}") from None
    prefixes = tuple({p for group in _HALVES.values() for p in group}) if half == "both" else _HALVES[half]
    expected = net.state_dict()
    state = {name: t for name, t in tensors.items() if name.startswith(prefixes)}
    for name in [*expected, *state]:
        if name not in state:
            raise ModelError(f"{path}: tensor {name} is missing")
        if name not in expected:
            raise ModelError(f"{path}: tensor {name} is not one of the network that {CONFIG_FILE} describes")
        if state[name].shape != expected[name].shape:
            raise ModelError(
                f"{path}: tensor {name}: expected shape {tuple(expected[name].shape)}, got {tuple(state[name].shape)}"
            )
    net.load_state_dict(state)
    net.to(target).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.dim() == 4:  # a third of the backbone's time on a CPU
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if tables.hyper.shape[1] != config.hyper_channels:
        raise ModelError(
            f"{path}: tables.hyper: expected {config.hyper_channels} channels, got {tables.hyper.shape[1]}"
        )
    try:
        net.entropy_model.integer_prior()
    except ValueError as e:
        raise ModelError(f"{path}: {e}") from None
    reference = float(tensors[_REFERENCE]) if _REFERENCE in tensors else 0.0
    return StoredModel(folder.resolve().name, folder, config, half, net, tables, number, reference)


def open_model(model: str | Path | StoredModel, half: Half, device: str | torch.device) -> StoredModel:
    """A model by name or folder, or a loaded one, moved to ``device``. Raises ModelError if it lacks the half."""
    if not isinstance(model, StoredModel):
        return load_model(model, half, device)
    if model.half not in (half, "both"):
        raise ModelError(f"model {model.name}: expected it loaded with half={half!r} or 'both', got {model.half!r}")
    model.net.to(torch_device(device))
    return model


def save_model(folder: str | Path, config: MvsfcConfig, state_dict: Mapping[str, Tensor]) -> int:
    """Write a trained network, with the coder's tables made from it; returns the fingerprint.

    A ``config.yaml`` with the same content is kept, with its comments.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entropy_model = StereoEntropyModel.from_config(config)
    prefix = "entropy_model."
    entropy_model.load_state_dict({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}
    tensors |= EntropyTables.build(entropy_model).tensors()
    config_path = folder / CONFIG_FILE
    if not config_path.exists() or load_config(config_path) != config:
        text = yaml.safe_dump(_ADAPTER.dump_python(config, mode="json"), sort_keys=False)
        write_whole(config_path, lambda path: path.write_text(text, encoding="utf-8"))
    # A kill between the two leaves weights without a checksum, never with a wrong one.
    sums = folder / SUMS_FILE
    sums.unlink(missing_ok=True)
    weights = folder / WEIGHTS_FILE
    write_whole(weights, lambda path: _save(tensors, path))
    number = hashlib.sha256(weights.read_bytes()).hexdigest()
    write_whole(sums, lambda path: path.write_text(f"{number}  {WEIGHTS_FILE}\n", encoding="utf-8"))
    return fingerprint(config, tensors)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as e:  # a full disk, for instance
        raise OSError(str(e)) from None
