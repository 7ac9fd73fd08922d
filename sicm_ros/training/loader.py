# SPDX-License-Identifier: Apache-2.0
"""Batches for training: augmented, collated and matched with the anchors on the CPU, in processes beside the training
where there are any."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..networks.anchors import Anchors
from .augmentation import augment
from .config import TrainConfig
from .stores import Mixture
from .targets import Targets, collate, match

__all__ = ["StepBatches", "TrainingBatch", "load_batches"]


class TrainingBatch:
    """Normalised views (B, 3, H, W) float32 and what the losses compare the output for them with."""

    def __init__(self, left: Tensor, right: Tensor, targets: Targets) -> None:
        self.left, self.right, self.targets = left, right, targets

    def map(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        """The batch with ``change`` done to each tensor."""
        return TrainingBatch(change(self.left), change(self.right), self.targets.map(change))

    def pin_memory(self) -> TrainingBatch:
        """The batch in memory that a GPU can copy from while it computes; ``DataLoader`` calls this."""
        return self.map(Tensor.pin_memory)


class StepBatches(Dataset[TrainingBatch]):
    """The batch of each step of one process of the training; the step, the process and the seed alone decide on it."""

    def __init__(
        self,
        mixture: Mixture,
        config: TrainConfig,
        classes: tuple[str, ...],
        anchors: Anchors,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """``anchors``, on the CPU, with their priors; ``rank`` of ``world_size`` data-parallel processes."""
        self.mixture, self.classes, self.anchors = mixture, classes, anchors
        self.class_weights = [config.class_weights.get(name, 1.0) for name in classes]
        self.seed, self.batch_size = config.seed, config.batch_size
        self.rank, self.per_step = rank, config.batch_size * world_size
        self.epoch_steps = max(1, len(mixture) // self.per_step)
        self._epoch, self._order = -1, list[tuple[int, int]]()

    def __getitem__(self, step: int) -> TrainingBatch:
        if step // self.epoch_steps != self._epoch:
            self._epoch = step // self.epoch_steps
            self._order = self.mixture.order(self.seed, self._epoch)
        first = (step % self.epoch_steps) * self.per_step + self.rank * self.batch_size
        chosen = [self._order[i % len(self._order)] for i in range(first, first + self.batch_size)]
        rng = np.random.default_rng((self.seed, 7, step, self.rank))
        batch = collate([augment(self.mixture.stores[number][i], rng) for number, i in chosen], self.classes)
        return TrainingBatch(batch.left, batch.right, match(batch, self.anchors, self.class_weights))


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)  # as PyTorch does for itself


def load_batches(batches: StepBatches, start: int, workers: int, device: torch.device) -> Iterator[TrainingBatch]:
    """Endless batches on ``device``, from step ``start`` on; ``workers`` processes make them, 0 for this one."""
    loader = DataLoader(
        batches,
        batch_size=None,  # a step is a batch already
        sampler=itertools.count(start),
        num_workers=workers,
        # Not forked: a fork of a process with threads (of PyTorch, of OpenCV) may hang.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        # Its own, since the loader draws from it: the noise of the first step must not depend on that.
        generator=torch.Generator(),
    )
    for batch in loader:
        yield batch.map(lambda tensor: tensor.to(device, non_blocking=True))
