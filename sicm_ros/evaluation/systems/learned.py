# SPDX-License-Identifier: Apache-2.0
"""Learned codecs beside the uncompressed detector, as systems of the comparison, and their trained weights.

Weights are in ``systems/NAME`` in a folder of SICM_MODEL_PATH or in one with models: ``weights.safetensors``, and
``training.json``, which says beside which detector they were trained and for how long.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...codec.detector import analyse
from ...data.source import StereoFrame
from ...files import write_whole
from ...geometry import InputGeometry
from ...model_store import ModelError, StoredModel, read_weights, search_path
from ...networks.config import MvsfcConfig
from ...preprocessing import prepare
from .image_codec import CodecError
from .stereo_codec import Scales, StereoCodec, detect, source_of, to_eight_bits
from .system import Complexity, Outcome, SystemKind
from .uncompressed import detector_complexity

__all__ = ["LearnedSystem", "codec_complexity", "learned_kind", "load_codec", "save_codec"]

WEIGHTS_FILE, FACTS_FILE = "weights.safetensors", "training.json"
# CompressAI keeps the coder's tables among the weights; they are made from them.
_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table", "quantiles")


def _stored(codec: StereoCodec) -> dict[str, Tensor]:
    return {k: v for k, v in codec.state_dict().items() if k.rpartition(".")[2] not in _TABLES}


def save_codec(folder: Path, codec: StereoCodec, facts: Mapping[str, object]) -> None:
    """Write weights and ``facts`` of the training; "fingerprint" must be among them, the detector's in hexadecimal."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in _stored(codec).items()}
    weights = folder / WEIGHTS_FILE
    write_whole(weights, lambda path: save_file(tensors, path))
    number = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = json.dumps({"system": codec.name, **facts, "sha256": number}, indent=2)
    write_whole(folder / FACTS_FILE, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _folder(name: str) -> Path | None:
    folders = (path / "systems" / name for path in search_path())
    return next((folder for folder in folders if (folder / WEIGHTS_FILE).is_file()), None)


def _missing(kind: type[StereoCodec]) -> str:
    absent = kind.absent()
    if not absent and _folder(kind.name) is None:
        absent = (
            f"has no weights: sicm train-system {kind.name} --data KITTI --out DIR/systems/{kind.name}, then "
            "SICM_MODEL_PATH=DIR"
        )
    return absent


def load_codec(kind: type[StereoCodec], model: StoredModel) -> StereoCodec:
    """The trained codec, ready to code. Raises CodecError where weights are absent, damaged, or of another detector."""
    folder = _folder(kind.name)
    if folder is None:
        raise CodecError(f"{kind.name} {_missing(kind)}")
    facts = _facts(folder / FACTS_FILE)
    if facts.get("fingerprint") != f"{model.fingerprint:016x}":
        raise CodecError(
            f"{folder}: expected weights that were trained beside the detector {model.name} "
            f"({model.fingerprint:016x}), got some of {facts.get('fingerprint')}"
        )
    weights = folder / WEIGHTS_FILE
    try:
        tensors = read_weights(weights)
        damaged = hashlib.sha256(weights.read_bytes()).hexdigest() != facts.get("sha256")
    except (ModelError, OSError) as error:
        raise CodecError(str(error)) from None
    if damaged:
        raise CodecError(f"{weights}: not the file that {FACTS_FILE} beside it has the SHA-256 of: it is damaged")
    codec = kind(model.config)
    expected = {name: tuple(value.shape) for name, value in _stored(codec).items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        name = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CodecError(f"{weights}: tensor {name}: expected {expected.get(name)}, got {found.get(name)}")
    codec.load_state_dict(tensors, strict=False)
    codec.to(model.device).eval().requires_grad_(False)
    codec.prepare_coder()
    return codec


def _weights_number(name: str) -> str:
    folder = _folder(name)
    assert folder is not None  # its weights have been loaded
    return str(_facts(folder / FACTS_FILE)["sha256"])


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CodecError(f"{path}: expected facts of the training: {' '.join(str(error).split())}") from None
    if not isinstance(facts, dict):
        raise CodecError(f"{path}: expected facts of the training, got {type(facts).__name__}")
    return facts


@torch.no_grad()
def codec_complexity(codec: StereoCodec, config: MvsfcConfig) -> Complexity:
    """The codec's own cost for a pair; a context counts as often as training evaluates it, which is once for a raster
    scan of the whole latent."""
    device = next(codec.parameters()).device
    if codec.codes == "images":
        shapes = [(3, config.height, config.width)]
    else:
        strides = zip(config.channels, (4, 8, 16), strict=True)
        shapes = [(c, -(-config.height // s), -(-config.width // s)) for c, s in strides]
    source: Scales = tuple(
        (torch.zeros(1, *shape, device=device), torch.zeros(1, *shape, device=device)) for shape in shapes
    )
    was_training = codec.training
    with FlopCounterMode(display=False) as counter:
        codec.train()(source, 0)
    codec.train(was_training)
    return Complexity(sum(p.numel() for p in codec.parameters()), counter.get_total_flops() // 2)


class LearnedSystem:
    """A learned codec at its rates, with the uncompressed detector behind it."""

    def __init__(self, kind: type[StereoCodec], model: StoredModel, score_threshold: float) -> None:
        self._model, self._threshold = model, score_threshold
        self._codec = load_codec(kind, model)
        self.points = tuple(float(rate) for rate in range(len(self._codec.lambdas)))
        self.weights = _weights_number(kind.name)
        own, behind = codec_complexity(self._codec, model.config), detector_complexity(model)
        self.complexity = Complexity(own.parameters + behind.parameters, own.macs + behind.macs)

    # Not inference_mode: CompressAI's masked convolutions write their weights anew.
    @torch.no_grad()
    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        model, codec, rate = self._model, self._codec, int(point)
        begin = time.process_time()
        left, right, transform = prepare(frame.left, frame.right, model.transform, model.device)
        source = source_of(codec, model.net, left, right)
        data = codec.compress(source, rate)
        encoded = time.process_time()
        decoded = codec.decompress(data, rate)
        if codec.codes == "images":
            decoded = tuple((to_eight_bits(left), to_eight_bits(right)) for left, right in decoded)
        output = detect(codec, model.net, decoded)
        found = analyse(model, output, [InputGeometry(transform, frame.rig)], self._threshold)[0]
        detected = time.process_time()
        estimate = float(codec(source, rate).bits.sum()) / 8
        return Outcome(len(data), found.objects, encoded - begin, detected - encoded, estimate)


def learned_kind(kind: type[StereoCodec]) -> SystemKind:
    """The row of a learned codec."""
    return SystemKind(
        kind.name,
        kind.title,
        kind.note,
        lambda model, threshold: LearnedSystem(kind, model, threshold),
        lambda: _missing(kind),
    )
