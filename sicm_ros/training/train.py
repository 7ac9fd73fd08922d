# SPDX-License-Identifier: Apache-2.0
"""The training command: detector, codec, both together (paper, section IV-A), then the entropy model once more.

A run can be killed at any moment: it goes on from its last checkpoint with the same order of samples.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import torch
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.seed import seed_everything
from torch import nn

from ..model_store import load_config
from ..networks.mvsfc_net import MvsfcNet
from .augmentation import augment
from .config import TrainConfig, TrainError, load_train_config
from .run_files import Log, export_model, save_checkpoint
from .samples import SampleStore
from .stages import STAGES, Progress, Trainee, learning_rate, prepare_stage, rate_of_step
from .stores import Mixture, make_stores, open_stores
from .targets import Batch, anchor_priors, collate
from .validation import validate

__all__ = ["run"]

REPORT_STEPS = 20


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
        make_stores(model_config, train, roots, held_out, Path(splits) if splits else None, out, workers, talk)
    fabric.barrier()
    mixture, validation = open_stores(out, roots)

    net = MvsfcNet(model_config)
    first = mixture.stores[0]
    anchor_priors(
        net.analysis.anchors, model_config.classes, ((first.labels(i), first.rig(i)) for i in range(len(first)))
    )
    if start_from:
        from safetensors.torch import load_file

        net.load_state_dict(load_file(start_from), strict=False)
    _channels_last(net)
    trainee = Trainee(net, train)
    steps = tuple(
        e * max(1, len(mixture) // (train.batch_size * fabric.world_size)) if name in chosen else 0
        for e, name in zip(train.epochs, STAGES, strict=True)
    )
    progress = Progress(steps, max_minutes)  # type: ignore[arg-type]
    checkpoint = out / "checkpoint.pt"
    loaded: dict[str, Any] | None = None
    if resume and checkpoint.is_file():
        # weights_only: a checkpoint is tensors and numbers, nothing that could run code.
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(loaded["net"])
        progress = Progress(steps, max_minutes, **loaded["progress"])  # type: ignore[arg-type]
        talk(f"resumed: stage {STAGES[progress.stage]}, step {progress.step}, minute {progress.minutes:.1f}")

    log = Log(out, fabric.is_global_zero, progress.step)
    while progress.stage < len(STAGES):
        if steps[progress.stage]:
            _train_stage(fabric, trainee, train, progress, mixture, validation, checkpoint, loaded, talk, log)
        loaded = None
        progress.stage, progress.stage_step = progress.stage + 1, 0
        if fabric.is_global_zero:
            export_model(net, folder, out)
    log.close()
    fabric.barrier()
    talk(f"model written to {out / 'model'}")
    return out / "model"


def _train_stage(
    fabric: lightning_fabric.Fabric,
    trainee: Trainee,
    config: TrainConfig,
    progress: Progress,
    mixture: Mixture,
    validation: dict[str, SampleStore],
    checkpoint: Path,
    loaded: dict[str, Any] | None,
    say: Callable[[str], None],
    log: Log,
) -> None:
    stage, net = STAGES[progress.stage], trainee.net
    prepare_stage(net, stage, config.frozen_norms)
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
        rate = rate_of_step(stage, config, net.config, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, progress)
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
            save_checkpoint(checkpoint, net, optimizer, progress)
            last_save = time.monotonic()
        # All processes have the same minutes; the others wait for the first one in their next step.
        if progress.minutes - last_validation > config.validation_minutes:
            if fabric.is_global_zero:
                _report(net, validation, stage, config.frozen_norms, fabric.device, say, progress.step, log)
            last_validation = progress.minutes
    if fabric.is_global_zero:
        save_checkpoint(checkpoint, net, optimizer, progress)
        _report(net, validation, stage, config.frozen_norms, fabric.device, say, progress.step, log)
    fabric.barrier()


def _report(
    net: MvsfcNet,
    validation: dict[str, SampleStore],
    stage: str,
    frozen_norms: bool,
    device: torch.device,
    say: Callable[[str], None],
    step: int,
    log: Log,
) -> None:
    rates = [None] if stage == "detector" else [None, net.config.default_rate if net.config.variable_rate else 0.0]
    for part, store in validation.items():
        for rate in rates:
            figures = validate(net, store, rate, device)
            name = f"{part} " + ("uncompressed" if rate is None else f"rate {rate:g}")
            say(f"validation {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
            log.validation(step, name, figures)
    prepare_stage(net, stage, frozen_norms)
