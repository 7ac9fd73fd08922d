# SPDX-License-Identifier: Apache-2.0
"""The training command: detector, codec, both together (paper, section IV-A), then the entropy model once more.

A run can be killed at any moment: it goes on from its last checkpoint with the same order of samples.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning_fabric
import torch
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.seed import seed_everything
from torch import Tensor, distributed, nn

from ..model_store import load_config
from ..networks.anchors import Anchors
from ..networks.config import MvsfcConfig
from ..networks.mvsfc_net import MvsfcNet
from ..processor import bfloat16_is_native
from .config import TrainConfig, TrainError, load_train_config
from .initial_weights import adopt
from .loader import StepBatches, TrainingBatch, load_batches
from .run_files import export_model, log_losses, log_validation, open_loggers, save_checkpoint
from .samples import SampleStore, recorded_count
from .stages import STAGES, MvsfcTrainee, Progress, Stage, Trainee, learning_rate
from .stores import Mixture, make_stores, open_stores
from .targets import anchor_priors

__all__ = ["Session", "channels_last", "fabric_arguments", "open_session", "run", "train"]

REPORT_STEPS = 20
# How long a process waits for another one: as long as that may render (under torchrun), or validate.
PATIENCE = timedelta(days=2)
GPU_LOADERS = 4  # processes that make batches for a GPU, at most, where none were asked for


def channels_last(net: nn.Module) -> None:
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
    loaders: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train the model whose folder (with config.yaml and train.yaml) is ``config_path``; weights go to ``out/model``.

    ``data`` is a KITTI root or several, each as ``ROOT`` or ``ROOT:SHARE`` (of the samples); None draws layouts at
    random and renders them. ``validate_on`` are roots to validate on beside those that ``data`` holds out; with any, a
    root without ImageSets holds out none. ``processes`` train data-parallel (under
    torchrun its own number counts). ``stages`` limits the run, e.g. "codec,joint"; ``start_from`` is a state dict in
    safetensors to begin with; ``samples`` takes the place of train.yaml's. ``workers`` processes make the samples,
    before the training; ``loaders`` processes for each training process make batches of them: by default none on a CPU,
    which the training fills, and some for a GPU. Raises TrainError on bad settings.
    """
    folder, out = Path(config_path), Path(out)
    model_config, config = load_config(folder / "config.yaml"), _settings(folder, out, seed, samples, resume)
    chosen = _chosen_stages(stages)
    if unknown := set(config.class_weights) - set(model_config.classes):
        classes = ", ".join(model_config.classes)
        raise TrainError(f"{folder / 'train.yaml'}: class_weights: expected some of {classes}, got {min(unknown)}")
    joint = "joint" in chosen
    session = open_session(
        model_config, config, data, out, joint, device, processes, workers, splits, validate_on, loaders, say
    )
    net = _new_net(model_config, session.mixture.stores[0], start_from, session.say)
    trainee, steps = MvsfcTrainee(net, config), _stage_steps(config, session.mixture, session.fabric.world_size, chosen)
    train(session, trainee, net.analysis.anchors, steps, max_minutes, resume, lambda _: export_model(net, folder, out))
    session.say(f"model written to {out / 'model'}")
    return out / "model"


@dataclass(frozen=True)
class Session:
    """One process of a training, with its samples."""

    fabric: lightning_fabric.Fabric
    config: TrainConfig
    classes: tuple[str, ...]
    mixture: Mixture
    validation: dict[str, SampleStore]
    loaders: int
    out: Path
    say: Callable[[str], None]  # of the first process; the others say nothing


def open_session(
    model_config: MvsfcConfig,
    config: TrainConfig,
    data: str | Path | Sequence[str] | None,
    out: Path,
    joint: bool,
    device: str,
    processes: int,
    workers: int,
    splits: str | Path | None,
    validate_on: Sequence[str | Path],
    loaders: int | None,
    say: Callable[[str], None],
) -> Session:
    """Make the samples in ``out``, start the other processes, and open the samples in each.

    ``joint``: whether parameters are used in some steps and not in others. The other arguments are those of ``run``.
    """
    roots = [] if data is None else [str(data)] if isinstance(data, (str, Path)) else list(data)
    fabric = lightning_fabric.Fabric(**fabric_arguments(device, processes, config.precision, joint))
    # Before Fabric starts the others: rendering may take longer than one process waits for another.
    if _is_first_process():
        held_out = [Path(root) for root in validate_on]
        make_stores(model_config, config, roots, held_out, Path(splits) if splits else None, out, workers, say)
    fabric.launch()
    if not fabric.is_global_zero:
        say = _say_nothing
    if loaders is None:
        loaders = _default_loaders(fabric.device, processes)
    if fabric.device.type == "cpu" and (processes > 1 or loaders):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes - loaders))
    seed_everything(config.seed, verbose=False)
    fabric.barrier()  # the samples are there
    mixture, validation = open_stores(out, roots)
    return Session(fabric, config, model_config.classes, mixture, validation, loaders, out, say)


def train(
    session: Session,
    trainee: Trainee,
    anchors: Anchors,
    steps: tuple[int, int, int, int],
    max_minutes: float | None,
    resume: bool,
    export: Callable[[Progress], None],
) -> None:
    """Take what is trained through its stages of so many ``steps``; ``export`` writes it after each.

    ``anchors``: the detector's, with their priors. ``resume`` goes on from the checkpoint, where there is one.
    """
    fabric, config, out = session.fabric, session.config, session.out
    progress = Progress(steps, max_minutes)
    state: dict[str, Any] = {}
    if resume and (out / "checkpoint.pt").is_file():
        # weights_only: a checkpoint is tensors and numbers, nothing that could run code.
        state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
        trainee.net.load_state_dict(state["net"])
        progress = Progress(steps, max_minutes, **state["progress"])
        session.say(f"resumed: stage {STAGES[progress.stage]}, step {progress.step}, minute {progress.minutes:.1f}")
    # The anchors stay on the CPU with the labels, while the net goes to the device.
    anchors = copy.deepcopy(anchors)
    made = StepBatches(session.mixture, config, session.classes, anchors, fabric.global_rank, fabric.world_size)
    batches = load_batches(made, progress.step, session.loaders, fabric.device)
    trainer = Trainer(fabric, trainee, config, progress, batches, session.validation, out, session.say)
    while progress.stage < len(STAGES):
        trainer.train_stage(state)
        state = {}
        progress.stage, progress.stage_step = progress.stage + 1, 0
        if fabric.is_global_zero:
            export(progress)
    trainer.close()


def _settings(folder: Path, out: Path, seed: int | None, samples: int | None, resume: bool) -> TrainConfig:
    """``train.yaml`` with what the command sets; a run that goes on keeps its number of samples."""
    config = load_train_config(folder)
    if resume and samples is None:
        samples = recorded_count(out / "samples" / "train")
    given = {name: value for name, value in (("seed", seed), ("samples", samples)) if value is not None}
    return TrainConfig(**{**config.__dict__, **given})


def _chosen_stages(text: str | None) -> tuple[Stage, ...]:
    chosen = text.split(",") if text else STAGES
    if not set(chosen) <= set(STAGES):
        raise TrainError(f"stages: expected some of {','.join(STAGES)}, got {text}")
    return cast(tuple[Stage, ...], tuple(chosen))


def fabric_arguments(device: str, processes: int, precision: str, joint: bool) -> dict[str, Any]:
    """What Fabric is made with. ``device``: auto, cpu, cuda, or one GPU as cuda:N; ``joint``: that stage is trained.

    Raises TrainError on another device, and on one GPU for several processes.
    """
    parallel = processes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    accelerator, colon, index = device.partition(":")
    if accelerator not in ("auto", "cpu", "cuda") or (colon and not (accelerator == "cuda" and index.isdecimal())):
        raise TrainError(f"device: expected auto, cpu, cuda or cuda:N, got {device}")
    if colon and parallel:
        raise TrainError(f"device: expected cuda for several processes, which take a GPU each, got {device}")
    on_gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu or bfloat16_is_native() else "32-true"
    # Joint steps with and without the codec use different parameters, which data-parallel training has to be told.
    strategy = DDPStrategy(find_unused_parameters=joint, timeout=PATIENCE) if parallel else "auto"
    devices = [int(index)] if colon else processes
    return {"accelerator": accelerator, "devices": devices, "strategy": strategy, "precision": precision}


def _is_first_process() -> bool:
    """Known before Fabric starts the others: torchrun sets RANK, Fabric LOCAL_RANK in those that it starts."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _say_nothing(_: str) -> None:
    pass


def _default_loaders(device: torch.device, processes: int) -> int:
    if device.type == "cpu":
        return 0
    return min(GPU_LOADERS, max(1, (os.cpu_count() or 1) // processes - 1))


def _new_net(
    config: MvsfcConfig, store: SampleStore, start_from: str | Path | None, say: Callable[[str], None]
) -> MvsfcNet:
    """The network before its first step; the priors of its anchors are those of the store's labels."""
    net = MvsfcNet(config)
    labels = ((store.labels(i), store.rig(i)) for i in range(len(store)))
    anchor_priors(net.analysis.anchors, config.classes, labels)
    if start_from:
        from safetensors.torch import load_file

        untouched, partial = adopt(net, load_file(start_from))
        say(f"{start_from}: {len(untouched)} tensors of the network are not in it, {len(partial)} have more channels")
    channels_last(net)
    return net


def _stage_steps(
    config: TrainConfig, mixture: Mixture, world_size: int, chosen: Sequence[Stage]
) -> tuple[int, int, int, int]:
    epoch = max(1, len(mixture) // (config.batch_size * world_size))
    steps = [e * epoch if name in chosen else 0 for e, name in zip(config.epochs, STAGES, strict=True)]
    return steps[0], steps[1], steps[2], steps[3]


class Trainer:
    """One process of a training: takes the network through a stage, logs, validates and keeps checkpoints."""

    def __init__(
        self,
        fabric: lightning_fabric.Fabric,
        trainee: Trainee,
        config: TrainConfig,
        progress: Progress,
        batches: Iterator[TrainingBatch],
        validation: dict[str, SampleStore],
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self.fabric, self.config, self.progress, self.batches = fabric, config, progress, batches
        self.trainee = trainee
        self.validation, self.say = validation, say
        self.checkpoint = out / "checkpoint.pt"
        self.loggers = open_loggers(out, progress.step, fabric.is_global_zero, say)
        # Of the loss terms since the last report, on the device: to look at them there would make a step wait for it.
        self._sums: dict[str, Tensor] = {}
        self._gradients = torch.zeros((), device=fabric.device)  # the sum of their norms
        self._clock = time.monotonic()
        self._clock_group: Any = None
        if fabric.world_size > 1:
            # On the CPU whatever the training runs on, so that no GPU has to finish for it.
            self._clock_group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return STAGES[self.progress.stage]

    def train_stage(self, state: dict[str, Any]) -> None:
        """Train what is left of the present stage; ``state``: the checkpoint to go on from, empty for none.

        Raises TrainError if a loss or a gradient is not finite.
        """
        progress, config = self.progress, self.config
        # Not to be trained, or finished by the run that this one goes on from.
        if not progress.total_steps[progress.stage] or progress.stage_fraction() >= 1:
            return
        wrapped, optimizer = self._prepare(state)
        began_fraction, began_minutes = progress.stage_fraction(), progress.minutes
        self._clock = last_save = time.monotonic()
        last_validation = progress.minutes
        while progress.stage_fraction() < 1:
            self._step(wrapped, optimizer)
            self._advance_clock()
            progress.step += 1
            progress.stage_step += 1
            if progress.step % REPORT_STEPS == 0:
                done = progress.stage_fraction()
                left = (1 - done) / max(done - began_fraction, 1e-6) * (progress.minutes - began_minutes)
                self._report(optimizer.param_groups[0]["lr"], left)
            if self.fabric.is_global_zero and (time.monotonic() - last_save) / 60 > config.checkpoint_minutes:
                self._save(optimizer)
                last_save = time.monotonic()
            # All processes have the same minutes; the others wait for the first one in their next step.
            if progress.minutes - last_validation > config.validation_minutes:
                if self.fabric.is_global_zero:
                    self._validate()
                last_validation = progress.minutes
        if self.fabric.is_global_zero:
            # In this order: a checkpoint of a finished stage says that it has been validated.
            self._finite_sums()
            self._validate()
            self._save(optimizer)
        self._sums = {}
        self.fabric.barrier()

    def close(self) -> None:
        """Write what the logs still hold, when every process is done."""
        for logger in self.loggers:
            logger.finalize("success")
        self.fabric.barrier()

    def _prepare(self, state: dict[str, Any]) -> tuple[Any, Any]:
        """The network and its optimiser as Fabric runs them in the present stage."""
        config = self.config
        self.trainee.prepare(self.stage)
        parameters = [p for p in self.trainee.net.parameters() if p.requires_grad]
        adam: torch.optim.Optimizer = torch.optim.Adam(
            parameters, lr=config.learning_rate[self.progress.stage], weight_decay=config.weight_decay
        )
        wrapped, optimizer = self.fabric.setup(self.trainee, adam)
        if state:  # now that the parameters are where the training runs
            optimizer.load_state_dict(state["optimizer"])
            sums = state.get("sums", {})
            self._sums = {k: torch.tensor(v, dtype=torch.float64, device=self.fabric.device) for k, v in sums.items()}
        return wrapped, optimizer

    def _step(self, wrapped: Any, optimizer: Any) -> None:
        """One step; nothing in it waits for a GPU."""
        fabric, config, step = self.fabric, self.config, self.progress.step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, self.progress)
        batch = next(self.batches)
        # The quantisation noise of a step depends on the step alone, so that a resumed run repeats it.
        torch.manual_seed((config.seed * 1_000_003 + step) * fabric.world_size + fabric.global_rank)
        terms = wrapped(batch, self.stage, self.trainee.rate_of_step(self.stage, step))
        fabric.backward(terms["loss"])
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
        self._gradients = self._gradients + cast(Tensor, norm)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in terms.items():
            share = value.detach().double() / REPORT_STEPS
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    def _advance_clock(self) -> None:
        """Count the minutes. Every process takes the first one's, so that all end a stage at the same step."""
        now = time.monotonic()
        minutes = torch.tensor(self.progress.minutes + (now - self._clock) / 60, dtype=torch.float64)
        if self._clock_group is not None:
            distributed.broadcast(minutes, 0, self._clock_group)
        self.progress.minutes, self._clock = float(minutes), now

    def _finite_sums(self) -> dict[str, float]:
        """The sums, looked at once in many steps: what is not finite once stays so in them, and spoils the weights."""
        sums = {name: float(value) for name, value in self._sums.items()}
        if not all(map(math.isfinite, [*sums.values(), float(self._gradients)])):
            raise TrainError(
                f"loss: expected finite values and gradients, got others in the {REPORT_STEPS} steps before step "
                f"{self.progress.step}; resume with a lower learning rate"
            )
        return sums

    def _report(self, rate: float, minutes_left: float) -> None:
        """Log the means of the terms since the last report; ``rate``: that of learning."""
        progress, terms = self.progress, self._finite_sums()
        log_losses(self.loggers, progress, rate, terms)
        self.say(
            f"{self.stage} step {progress.stage_step} ({100 * progress.stage_fraction():.0f} %, "
            f"{progress.minutes:.1f} min, about {minutes_left:.0f} min of the stage left) "
            + " ".join(f"{k} {v:.3f}" for k, v in terms.items())
        )
        self._sums = {}

    def _save(self, optimizer: Any) -> None:
        save_checkpoint(self.checkpoint, self.trainee.net, optimizer, self.progress, self._finite_sums())

    def _validate(self) -> None:
        for part, store in self.validation.items():
            for what, figures in self.trainee.validate(self.stage, store, self.fabric.device).items():
                name = f"{part} {what}"
                self.say(f"validation {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
                log_validation(self.loggers, self.progress, name, figures)
        self.trainee.prepare(self.stage)
