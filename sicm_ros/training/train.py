# SPDX-License-Identifier: Apache-2.0
"""The training command: detector, codec, both together (paper, section IV-A), then the entropy model once more.

A run can be killed at any moment: it goes on from its last checkpoint with the same order of samples.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning_fabric
import numpy as np
import torch
import yaml
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.seed import seed_everything
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from ..data.kitti import read_split
from ..geometry import InputTransform
from ..model_store import load_config, save_model
from ..networks.config import MvsfcConfig
from ..networks.mvsfc_net import MvsfcNet
from ..render.layouts import KITTI_SIZE
from .augmentation import augment
from .losses import feature_error, task_loss, view_weights
from .samples import SampleStore, build_store
from .targets import Batch, anchor_priors, collate
from .validation import validate

__all__ = ["STAGES", "TrainConfig", "TrainError", "run"]

STAGES = ("detector", "codec", "joint", "entropy")
REPORT_STEPS = 20


class TrainError(ValueError):
    """A training that cannot start; the message names the file or the option, and what was expected."""


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class TrainConfig:
    """``train.yaml`` beside a model's ``config.yaml``. Four values stand for the four stages.

    The last stage is not the paper's: with everything else at rest, the entropy model learns to spend fewer bits on the
    latents that it gets. It costs a fraction of the joint stage and changes no feature but for rounding.
    """

    epochs: tuple[int, int, int, int] = (80, 20, 80, 0)
    batch_size: Annotated[int, Field(ge=1)] = 4  # of each process
    learning_rate: tuple[float, float, float, float] = (1e-4, 1e-4, 1e-4, 1e-4)
    final_learning_rate: float = 5e-6
    warmup_steps: int = 0
    gradient_clip: float = 0.1
    weight_decay: float = 0.0
    # weights of the reconstructed features' squared error, which counts most on objects, in the codec and joint stages
    feature_loss: tuple[float, float] = (0.0, 0.0)
    codec_task_loss: bool = True  # the codec stage has the task's loss, as in the paper; else the feature loss alone
    frozen_norms: bool = False  # batch norms rest in the first stage too, for a training from trained weights
    uncompressed_share: float = 0.0  # of the joint stage's steps that train the detector without the codec
    samples: int = 3712  # rendered where there are no images
    validation_samples: int = 200
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"  # auto: bf16-mixed where the processor computes in it
    checkpoint_minutes: float = 5.0
    validation_minutes: float = 10.0
    rate: int = 0  # index into lambdas, for a model of a single rate
    seed: int = 1


class _Trainee(nn.Module):
    """The network with its losses, so that distributed training sees one forward pass."""

    def __init__(self, net: MvsfcNet, config: TrainConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: Batch, stage: str, rate: int | None) -> dict[str, Tensor]:
        """The loss and its terms; ``rate`` None trains without the codec."""
        net = self.net
        if stage == "entropy":
            with torch.no_grad():
                latents = net.latents(net.features(batch.left, batch.right))
            coded = net.entropy_model(*latents, float(rate or 0) if net.config.variable_rate else 0.0)
            bits = (coded.bits_left + coded.bits_right).mean() / (net.config.height * net.config.width)
            return {"loss": bits, "bpp": bits}
        features = net.features(batch.left, batch.right)
        if rate is None:
            task = task_loss(net.detect(features), batch, net.analysis.anchors)
            return {
                "loss": task.total,
                "class": task.classification,
                "box": task.regression,
                "disparity": task.disparity,
            }
        reconstruction, bits_left, bits_right = net.compress(features, float(rate) if net.config.variable_rate else 0.0)
        bits = (bits_left + bits_right).mean() / (net.config.height * net.config.width)
        # Equation 8 over lambda: the same optimum, and steps of one size at every rate.
        loss, terms = bits / net.config.lambdas[rate], {"bpp": bits}
        if stage != "codec" or self.config.codec_task_loss:
            task = task_loss(net.detect(reconstruction), batch, net.analysis.anchors)
            loss = loss + task.total
            terms |= {"class": task.classification, "box": task.regression, "disparity": task.disparity}
        weight = self.config.feature_loss[stage == "joint"]
        if weight:
            # The joint stage lets it shape the features too: towards ones that the codec can carry.
            terms["feature"] = feature_error(reconstruction, features, view_weights(batch))
            loss = loss + weight * terms["feature"]
        return {"loss": loss, **terms}


def _trained(net: MvsfcNet, stage: str) -> list[str]:
    """State-dict prefixes of what a stage trains; parameters of batch norms belong to the first stage alone."""
    return {
        "detector": ["backbone.", "analysis."],
        "codec": ["smfc_encoder.", "entropy_model.", "smfc_decoder."],
        "joint": [""],
        "entropy": ["entropy_model."],
    }[stage]


def _prepare(net: MvsfcNet, stage: str, frozen_norms: bool) -> None:
    """Set what is trained in ``stage``: gradients, and batch norms frozen after the first stage, or in it too."""
    prefixes = _trained(net, stage)
    for name, p in net.named_parameters():
        # Without the error of the features, gains would only shrink.
        kept = stage == "entropy" and "_gain" in name
        p.requires_grad_(not kept and any(name.startswith(prefix) for prefix in prefixes))
    net.train()
    if stage != "detector" or frozen_norms:
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eval()
                for p in module.parameters():
                    p.requires_grad_(False)


@dataclass
class _Progress:
    """How far a run is. The schedule follows the steps, or the minutes where those run out first."""

    total_steps: tuple[int, int, int, int]
    max_minutes: float | None
    step: int = 0
    stage_step: int = 0
    minutes: float = 0.0
    stage: int = 0

    def stage_fraction(self) -> float:
        """How much of the present stage is done, 0 to 1."""
        share = self.total_steps[self.stage] / sum(self.total_steps)
        by_steps = self.stage_step / max(self.total_steps[self.stage], 1)
        if self.max_minutes is None or share == 0:
            return by_steps if share else 1.0
        start = sum(self.total_steps[: self.stage]) / sum(self.total_steps)
        return max(by_steps, (self.minutes / self.max_minutes - start) / share)


def _learning_rate(config: TrainConfig, progress: _Progress) -> float:
    """Cosine from the stage's learning rate to the final one, after a linear warm-up."""
    top = config.learning_rate[progress.stage]
    cosine = (1 + math.cos(math.pi * min(progress.stage_fraction(), 1.0))) / 2
    warm = min(1.0, (progress.stage_step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * (config.final_learning_rate + (top - config.final_learning_rate) * cosine)


@dataclass(frozen=True)
class Mixture:
    """Stores that are sampled together; ``shares`` of the samples come from each (they add up to 1)."""

    stores: tuple[SampleStore, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        """Store and sample of each place of an epoch, which depend on the arguments alone.

        An epoch is as long as all stores together. Each store is gone through in passes of its own, however many its
        share makes, in a new order each time.
        """
        counts = [round(share * len(self)) for share in self.shares]
        counts[int(np.argmax(counts))] += len(self) - sum(counts)
        which = np.random.default_rng((seed, epoch)).permutation(np.repeat(np.arange(len(counts)), counts))
        places = []
        for number, (store, count) in enumerate(zip(self.stores, counts, strict=True)):
            turns = np.arange(epoch * count, (epoch + 1) * count)
            orders = {
                turn: np.random.default_rng((seed, number, int(turn), 3)).permutation(len(store))
                for turn in np.unique(turns // len(store))
            }
            places.append(iter([int(orders[t // len(store)][t % len(store)]) for t in turns]))
        return [(int(number), next(places[number])) for number in which]


def _batches(
    mixture: Mixture, config: TrainConfig, net: MvsfcNet, rank: int, world: int, start: int, device: torch.device
) -> Iterator[Batch]:
    """Endless batches of this process, from step ``start`` on; the order depends on the seed and the step alone."""
    per_step = config.batch_size * world
    epoch_steps = max(1, len(mixture) // per_step)
    step, epoch = start, -1
    order: list[tuple[int, int]] = []
    while True:
        if step // epoch_steps != epoch:
            epoch = step // epoch_steps
            order = mixture.order(config.seed, epoch)
        first = (step % epoch_steps) * per_step + rank * config.batch_size
        chosen = [order[i % len(order)] for i in range(first, first + config.batch_size)]
        rng = np.random.default_rng((config.seed, 7, step, rank))
        samples = [augment(mixture.stores[number][i], rng) for number, i in chosen]
        yield collate(samples, net.config.classes, device)
        step += 1


def bfloat16_is_native() -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it does not, oneDNN emulates it, slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "arm_bf16"))


def _channels_last(net: MvsfcNet) -> None:
    """2D convolutions in channels-last order: a third faster on a CPU, more on a GPU."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_train_config(folder: Path) -> TrainConfig:
    """``train.yaml`` of a model folder. Raises TrainError in one line."""
    path = folder / "train.yaml"
    try:
        return TypeAdapter(TrainConfig).validate_python(yaml.safe_load(path.read_text()) or {})
    except FileNotFoundError:
        raise TrainError(f"{path}: expected a file with the training's settings") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except yaml.YAMLError as error:
        raise TrainError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None


def parse_root(text: str) -> tuple[Path, float | None]:
    """``ROOT`` or ``ROOT:SHARE`` as the command line takes it. Raises TrainError where the share is none."""
    root, colon, share = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    try:
        value = float(share)
    except ValueError:
        raise TrainError(f"--data: expected ROOT or ROOT:SHARE with a number as share, got {text}") from None
    if not 0 < value <= 1:
        raise TrainError(f"--data: expected a share above 0 and at most 1, got {text}")
    return Path(root), value


def _shares(given: Sequence[float | None], sizes: Sequence[int]) -> tuple[float, ...]:
    """Shares that add up to 1: those that were given, and by size what is left for the others."""
    fixed = sum(share or 0.0 for share in given)
    free = sum(size for share, size in zip(given, sizes, strict=True) if share is None)
    if fixed > 1 + 1e-6 or (free and fixed >= 1) or (not free and abs(fixed - 1) > 0.01):
        raise TrainError(f"--data: expected shares that add up to 1, or less where a root has none, got {fixed:g}")
    return tuple(
        (1 - fixed) * size / free if share is None else share for share, size in zip(given, sizes, strict=True)
    )


def _frame_ids(root: Path, splits: Path | None, held_out: bool) -> dict[str, list[str]]:
    """Names of the frames of a KITTI root to train on and to validate on.

    Chosen by ``splits``, else by the root's own ImageSets; else, where none are held out elsewhere, every tenth one is.
    """
    labels = root / "training" / "label_2"
    if not labels.is_dir():
        raise TrainError(
            f"{labels}: expected a folder of KITTI labels (with calib, and image_2 and image_3 if there are images)"
        )
    folder = splits or root / "ImageSets"
    if splits or (folder / "train.txt").is_file():
        return {part: read_split(folder / f"{part}.txt") for part in ("train", "val")}
    every = sorted(p.stem for p in labels.glob("*.txt"))
    if held_out:
        return {"train": every, "val": []}
    return {"train": [e for i, e in enumerate(every) if i % 10 != 9], "val": every[9::10]}


def _stores(
    config: MvsfcConfig,
    train: TrainConfig,
    data: Sequence[str],
    validate_on: Sequence[Path],
    splits: Path | None,
    out: Path,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Make the training and validation samples, once, in ``out``; ``_opened`` opens them."""
    columns = InputTransform(*KITTI_SIZE, config.crop_top, config.width, config.height).scaled_width
    if columns < 0.9 * config.width:
        say(
            f"config: width {config.width} is {100 - 100 * columns / config.width:.0f} % padding: KITTI's images, "
            f"scaled to height {config.height}, have {columns} columns"
        )

    def build(name: str, root: Path | None, ids: list[str], count: int, seed: int) -> None:
        began = time.monotonic()

        def report(done: int, total: int) -> None:
            if done % 100 == 0 or done == total:
                rate = done / (time.monotonic() - began)
                say(f"{name} samples: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")

        build_store(out / "samples" / name, config, root, ids, count, seed, workers, report)

    roots: list[Path | None] = [parse_root(text)[0] for text in data] or [None]
    made = []
    for number, root in enumerate(roots):
        suffix = f"-{number + 1}" if number else ""
        ids = _frame_ids(root, splits, bool(validate_on)) if root else {"train": [], "val": []}
        made.append(f"train{suffix}")
        build(made[-1], root, ids["train"], train.samples, train.seed + number)
        chosen = ids["val"][: train.validation_samples]
        if chosen or root is None:
            made.append(f"val{suffix}")
            build(made[-1], root, chosen, train.validation_samples, train.seed + 1000)
    for number, root in enumerate(validate_on):
        every = _frame_ids(root, None, True)["train"]
        made.append(f"val-real-{number + 1}" if (root / "training" / "image_2").is_dir() else f"val-extra-{number + 1}")
        build(made[-1], root, every, len(every), train.seed + 1000)
    (out / "samples" / "stores.json").write_text(json.dumps({"stores": made}))


def _opened(out: Path, data: Sequence[str]) -> tuple[Mixture, dict[str, SampleStore]]:
    """What to train on, and the validation sets by name."""
    names = json.loads((out / "samples" / "stores.json").read_text())["stores"]
    stores = {name: SampleStore(out / "samples" / name) for name in names}
    training = tuple(store for name, store in stores.items() if name.startswith("train"))
    given = [parse_root(text)[1] for text in data] or [None]
    shares = _shares(given, [len(store) for store in training])
    return Mixture(training, shares), {name: store for name, store in stores.items() if name.startswith("val")}


def run(
    config_path: str | Path,
    data: str | Path | Sequence[str] | None,
    out: str | Path,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    seed: int | None = None,
    processes: int = 1,
    workers: int = 1,
    splits: str | Path | None = None,
    start_from: str | Path | None = None,
    stages: str | None = None,
    samples: int | None = None,
    validate_on: Sequence[str | Path] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Train the model whose folder (with config.yaml and train.yaml) is ``config_path``; weights go to ``out/model``.

    ``data`` is a KITTI root or several, each as ``ROOT`` or ``ROOT:SHARE`` (of the samples); None draws layouts at
    random and renders them. ``validate_on`` are roots to validate on beside those that ``data`` holds out; with any, a
    root without ImageSets holds out none. ``processes`` train data-parallel (under
    torchrun its own number counts). ``stages`` limits the run, e.g. "codec,joint"; ``start_from`` is a state dict in
    safetensors to begin with; ``samples`` takes the place of train.yaml's. Raises TrainError on bad settings.
    """
    folder, out = Path(config_path), Path(out)
    model_config, train = load_config(folder / "config.yaml"), load_train_config(folder)
    recipe = out / "samples" / "train" / "index.json"
    if resume and samples is None and recipe.is_file():
        samples = json.loads(recipe.read_text())["recipe"]["count"]
    given = {name: value for name, value in (("seed", seed), ("samples", samples)) if value is not None}
    train = TrainConfig(**{**train.__dict__, **given})
    chosen = tuple(stages.split(",")) if stages else STAGES
    if not set(chosen) <= set(STAGES):
        raise TrainError(f"stages: expected some of {','.join(STAGES)}, got {stages}")
    accelerator = {"auto": "auto", "cpu": "cpu"}.get(device, "cuda")
    parallel = processes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    # Joint steps with and without the codec use different parameters, which data-parallel training has to be told.
    strategy = DDPStrategy(find_unused_parameters="joint" in chosen) if parallel else "auto"
    on_gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    precision = train.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu or bfloat16_is_native() else "32-true"
    fabric = lightning_fabric.Fabric(accelerator=accelerator, devices=processes, strategy=strategy, precision=precision)
    fabric.launch()
    out.mkdir(parents=True, exist_ok=True)
    talk = say if fabric.is_global_zero else (lambda _: None)
    if processes > 1 and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    seed_everything(train.seed, verbose=False)
    roots = [] if data is None else [str(data)] if isinstance(data, (str, Path)) else list(data)
    if fabric.is_global_zero:
        held_out = [Path(root) for root in validate_on]
        _stores(model_config, train, roots, held_out, Path(splits) if splits else None, out, workers, talk)
    fabric.barrier()
    mixture, validation = _opened(out, roots)

    net = MvsfcNet(model_config)
    first = mixture.stores[0]
    anchor_priors(
        net.analysis.anchors, model_config.classes, ((first.labels(i), first.rig(i)) for i in range(len(first)))
    )
    if start_from:
        from safetensors.torch import load_file

        net.load_state_dict(load_file(start_from), strict=False)
    _channels_last(net)
    trainee = _Trainee(net, train)
    steps = tuple(
        e * max(1, len(mixture) // (train.batch_size * fabric.world_size)) if name in chosen else 0
        for e, name in zip(train.epochs, STAGES, strict=True)
    )
    progress = _Progress(steps, max_minutes)  # type: ignore[arg-type]
    checkpoint = out / "checkpoint.pt"
    loaded: dict[str, Any] | None = None
    if resume and checkpoint.is_file():
        # weights_only: a checkpoint is tensors and numbers, nothing that could run code.
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(loaded["net"])
        progress = _Progress(steps, max_minutes, **loaded["progress"])  # type: ignore[arg-type]
        talk(f"resumed: stage {STAGES[progress.stage]}, step {progress.step}, minute {progress.minutes:.1f}")

    log = _Log(out, fabric.is_global_zero, progress.step)
    while progress.stage < len(STAGES):
        if steps[progress.stage]:
            _train_stage(fabric, trainee, train, progress, mixture, validation, checkpoint, loaded, talk, log)
        loaded = None
        progress.stage, progress.stage_step = progress.stage + 1, 0
        if fabric.is_global_zero:
            _export(net, folder, out)
    log.close()
    fabric.barrier()
    talk(f"model written to {out / 'model'}")
    return out / "model"


def _train_stage(
    fabric: lightning_fabric.Fabric,
    trainee: _Trainee,
    config: TrainConfig,
    progress: _Progress,
    mixture: Mixture,
    validation: dict[str, SampleStore],
    checkpoint: Path,
    loaded: dict[str, Any] | None,
    say: Callable[[str], None],
    log: _Log,
) -> None:
    stage, net = STAGES[progress.stage], trainee.net
    _prepare(net, stage, config.frozen_norms)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.Adam(
        parameters, lr=config.learning_rate[progress.stage], weight_decay=config.weight_decay
    )
    wrapped, optimizer = fabric.setup(trainee, optimizer)
    if loaded is not None:  # now that the parameters are where the training runs
        optimizer.load_state_dict(loaded["optimizer"])
    batches = _batches(mixture, config, net, fabric.global_rank, fabric.world_size, progress.step, fabric.device)
    sums: dict[str, float] = {}
    last_time = last_save = time.monotonic()
    began_fraction, began_minutes = progress.stage_fraction(), progress.minutes
    last_validation = progress.minutes
    while progress.stage_fraction() < 1:
        rate = _rate_of_step(stage, config, net.config, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(config, progress)
        # The quantisation noise of a step depends on the step alone, so that a resumed run repeats it.
        torch.manual_seed((config.seed * 1_000_003 + progress.step) * fabric.world_size + fabric.global_rank)
        terms = wrapped(next(batches), stage, rate)
        fabric.backward(terms["loss"])
        fabric.clip_gradients(wrapped, optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        now = time.monotonic()
        # Every process takes the first one's clock, so that all end a stage at the same step.
        minutes = torch.tensor(progress.minutes + (now - last_time) / 60, dtype=torch.float64)
        progress.minutes = float(fabric.broadcast(minutes)) if fabric.world_size > 1 else float(minutes)
        last_time = now
        progress.step += 1
        progress.stage_step += 1
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / REPORT_STEPS
        if progress.step % REPORT_STEPS == 0:
            done = progress.stage_fraction()
            left = (1 - done) / max(done - began_fraction, 1e-6) * (progress.minutes - began_minutes)
            log.write(progress, stage, optimizer.param_groups[0]["lr"], sums)
            say(
                f"{stage} step {progress.stage_step} ({100 * done:.0f} %, {progress.minutes:.1f} min, "
                f"about {left:.0f} min of the stage left) " + " ".join(f"{k} {v:.3f}" for k, v in sums.items())
            )
            sums = {}
        if not math.isfinite(float(terms["loss"].detach())):
            raise TrainError(
                f"loss: expected a finite value, got {float(terms['loss'])} at step {progress.step}; "
                "resume with a lower learning rate"
            )
        if fabric.is_global_zero and (now - last_save) / 60 > config.checkpoint_minutes:
            _save(checkpoint, net, optimizer, progress)
            last_save = time.monotonic()
        # All processes have the same minutes; the others wait for the first one in their next step.
        if progress.minutes - last_validation > config.validation_minutes:
            if fabric.is_global_zero:
                _report(net, validation, stage, config.frozen_norms, fabric.device, say, progress.step, log)
            last_validation = progress.minutes
    if fabric.is_global_zero:
        _save(checkpoint, net, optimizer, progress)
        _report(net, validation, stage, config.frozen_norms, fabric.device, say, progress.step, log)
    fabric.barrier()


def _rate_of_step(stage: str, config: TrainConfig, model: MvsfcConfig, step: int) -> int | None:
    """Which rate a step trains: none in the detector stage; drawn at random where one model covers all rates.

    Every process draws the same, so that all use the same parameters in a step.
    """
    if stage == "detector":
        return None
    rng = np.random.default_rng((config.seed, 11, step))
    if stage == "joint" and rng.random() < config.uncompressed_share:
        return None
    return int(rng.integers(model.rates)) if model.variable_rate else config.rate


def _report(
    net: MvsfcNet,
    validation: dict[str, SampleStore],
    stage: str,
    frozen_norms: bool,
    device: torch.device,
    say: Callable[[str], None],
    step: int,
    log: _Log,
) -> None:
    rates = [None] if stage == "detector" else [None, net.config.default_rate if net.config.variable_rate else 0.0]
    for part, store in validation.items():
        for rate in rates:
            figures = validate(net, store, rate, device)
            name = f"{part} " + ("uncompressed" if rate is None else f"rate {rate:g}")
            say(f"validation {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
            log.validation(step, name, figures)
    _prepare(net, stage, frozen_norms)


def _save(path: Path, net: MvsfcNet, optimizer: Any, progress: _Progress) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {
            "step": progress.step,
            "stage_step": progress.stage_step,
            "minutes": progress.minutes,
            "stage": progress.stage,
        },
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _export(net: MvsfcNet, folder: Path, out: Path) -> None:
    """Weights and configuration as a model folder that every command takes.

    Kernels are kept in half precision, which halves what a repository has to hold; priors, biases and norms are not.
    The coder's tables are made from the rounded weights.
    """

    def stored(name: str, value: Tensor) -> Tensor:
        halve = value.is_floating_point() and value.ndim >= 2 and ".prior_" not in name
        return (value.half() if halve else value).contiguous()

    save_model(out / "model", net.config, {k: stored(k, v) for k, v in net.state_dict().items()})


class _Log:
    """Loss terms to ``metrics.csv``, a row every REPORT_STEPS steps; these and validation figures to TensorBoard."""

    FIELDS = ("step", "stage", "minutes", "learning_rate", "loss", "class", "box", "disparity", "bpp", "feature")

    def __init__(self, out: Path, active: bool, step: int) -> None:
        self.path = out / "metrics.csv"
        # What a killed run logged after its last checkpoint is hidden.
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step or None) if active else None

    def write(self, progress: _Progress, stage: str, learning_rate: float, terms: dict[str, float]) -> None:
        """The means of the last steps' loss terms."""
        if self.board is None:
            return
        new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(
                {
                    "step": progress.step,
                    "stage": stage,
                    "minutes": round(progress.minutes, 2),
                    "learning_rate": learning_rate,
                    **{k: round(v, 5) for k, v in terms.items()},
                }
            )
        for name, value in {"learning rate": learning_rate, **terms}.items():
            self.board.add_scalar(f"{stage}/{name}", value, progress.step)

    def validation(self, step: int, name: str, figures: dict[str, float]) -> None:
        """AP and the other figures on held-out samples; ``name`` tells with which rate."""
        if self.board is not None:
            for key, value in figures.items():
                self.board.add_scalar(f"validation {name}/{key}", value, step)

    def close(self) -> None:
        """Write what is still buffered."""
        if self.board is not None:
            self.board.close()
