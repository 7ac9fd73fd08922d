# SPDX-License-Identifier: Apache-2.0
"""Training of the learned codecs that are compared with, beside a trained detector that stays as it is.

The same samples, batches and losses as for this package's own models, in two of their stages: "codec" on the rate and
the squared error alone, which needs no detector behind it, then "joint" on the detector's loss as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.systems import LEARNED_CODECS
from ..evaluation.systems.learned import save_codec
from ..evaluation.systems.stereo_codec import Scales, StereoCodec, detect, source_of
from ..files import write_whole
from ..model_store import load_model
from ..networks.backbone import StereoFeatures
from ..networks.detection import AnalysisOutput
from ..networks.mvsfc_net import MvsfcNet
from .config import TrainConfig, TrainError
from .loader import TrainingBatch
from .losses import feature_error, rate_distortion_loss, task_loss
from .samples import SampleStore, recorded_count
from .stages import Progress, Stage, Trainee, rest_norms, task_terms
from .targets import Targets
from .train import channels_last, open_session, train
from .validation import validate

__all__ = ["CodecTrainee", "run_system"]

CODEC_SHARE = 0.25  # of the steps, without the detector's loss
SETTINGS = TrainConfig(
    learning_rate=(0.0, 5e-4, 3e-4, 0.0),
    final_learning_rate=1e-5,
    warmup_steps=100,  # before that, the decoders' inverse normalisations may blow up
    gradient_clip=1.0,
    samples=5000,
    validation_samples=120,
)


class CodecTrainee(Trainee):
    """A learned codec with its losses; the detector is beside it."""

    net: StereoCodec

    def __init__(self, codec: StereoCodec, detector: MvsfcNet, seed: int) -> None:
        super().__init__()
        self.net, self.detector, self.seed = codec, detector, seed

    def forward(self, batch: TrainingBatch, stage: Stage, rate: int | None) -> dict[str, Tensor]:
        """See ``Trainee``: equation 8, with the codec's squared error beside the task's loss."""
        assert rate is not None
        codec = self.net
        with torch.no_grad():
            source = source_of(codec, self.detector, batch.left, batch.right)
        coded = codec(source, rate)
        bits = coded.bits.mean() / (codec.size[0] * codec.size[1])
        error = _squared_error(codec, coded.decoded, source, batch.targets)
        distortion = codec.distortion_weight[stage == "joint"] * error
        terms = {"bpp": bits, "error": error}
        if stage == "joint":
            task = task_loss(detect(codec, self.detector, coded.decoded), batch.targets)
            distortion = distortion + task.total
            terms |= task_terms(task)
        return {"loss": rate_distortion_loss(bits, distortion, codec.lambdas[rate]), **terms}

    def prepare(self, stage: Stage) -> None:
        """See ``Trainee``. The detector is in training mode, without which some have no disparity; its norms rest."""
        self.net.train()
        self.detector.train().requires_grad_(False)
        rest_norms(self.detector)

    def rate_of_step(self, stage: Stage, step: int) -> int | None:
        """See ``Trainee``."""
        return int(np.random.default_rng((self.seed, 11, step)).integers(len(self.net.lambdas)))

    def validate(self, stage: Stage, store: SampleStore, device: torch.device) -> dict[str, dict[str, float]]:
        """See ``Trainee``: at the lowest, a middle and the highest rate."""
        highest = len(self.net.lambdas) - 1
        self.net.eval()

        def figures(rate: int) -> dict[str, float]:
            def coding(left: Tensor, right: Tensor) -> tuple[AnalysisOutput, Tensor]:
                coded = self.net(source_of(self.net, self.detector, left, right), rate)
                return detect(self.net, self.detector, coded.decoded), coded.bits

            return validate(self.detector, store, None, device, coding)

        return {f"rate {rate}": figures(rate) for rate in sorted({0, (highest + 1) // 2, highest})}


def _squared_error(codec: StereoCodec, decoded: Scales, source: Scales, targets: Targets) -> Tensor:
    """Of normalised images, the mean over both views; of features as in the training of this package's own codec."""
    if codec.codes == "images":
        pairs = zip(decoded[0], source[0], strict=True)
        return torch.stack([(a.float() - b.float()).square().mean() for a, b in pairs]).mean()
    return feature_error(_features(decoded), _features(source), (targets.left_weight, targets.right_weight))


def _features(scales: Scales) -> StereoFeatures:
    f0, f1, f2 = scales
    return f0, f1, f2


def run_system(
    name: str,
    model: str | Path,
    data: str | Path | Sequence[str] | None,
    out: str | Path,
    max_steps: int,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    seed: int = 1,
    processes: int = 1,
    workers: int = 1,
    splits: str | Path | None = None,
    samples: int | None = None,
    validate_on: Sequence[str | Path] = (),
    loaders: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train the codec of one of the ``LEARNED_CODECS`` beside the detector ``model``; weights go to ``out``.

    The training ends after ``max_steps`` batches or ``max_minutes``, whichever is first. The other arguments are those
    of ``train.run``. Raises TrainError on bad settings, ModelError on the model.
    """
    out = Path(out)
    if name not in LEARNED_CODECS:
        raise TrainError(f"system: expected one of {', '.join(LEARNED_CODECS)}, got {name}")
    if absent := LEARNED_CODECS[name].absent():
        raise TrainError(f"{name} {absent}")
    stored = load_model(model)
    if resume and samples is None:
        samples = recorded_count(out / "samples" / "train")
    config = replace(SETTINGS, seed=seed, samples=samples or SETTINGS.samples)
    begun = {"system": name, "detector": f"{stored.fingerprint:016x}"}
    note = out / "run.json"
    if resume and note.is_file() and (found := json.loads(note.read_text(encoding="utf-8"))) != begun:
        raise TrainError(f"{note}: expected a run of {begun} to go on with, found {found}")
    session = open_session(
        stored.config, config, data, out, True, device, processes, workers, splits, validate_on, loaders, say
    )
    if session.fabric.is_global_zero:
        write_whole(note, lambda path: path.write_text(json.dumps(begun) + "\n", encoding="utf-8"))
    codec = LEARNED_CODECS[name](stored.config)
    channels_last(codec)
    first = round(CODEC_SHARE * max_steps)

    def export(progress: Progress) -> None:
        facts = {
            "detector": stored.name,
            "fingerprint": f"{stored.fingerprint:016x}",
            "steps": progress.step,
            "pairs": progress.step * config.batch_size * session.fabric.world_size,
            "minutes": round(progress.minutes, 1),
            "seed": config.seed,
        }
        save_codec(out, codec, facts)

    trainee = CodecTrainee(codec, stored.net, config.seed)
    steps = (0, first, max_steps - first, 0)
    train(session, trainee, stored.net.analysis.anchors, steps, max_minutes, resume, export)
    session.say(f"weights written to {out}")
    return out
