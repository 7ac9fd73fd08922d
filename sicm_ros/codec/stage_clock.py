# SPDX-License-Identifier: Apache-2.0
"""Wall and CPU time of the stages of a pair."""

from __future__ import annotations

import time

import torch

__all__ = ["StageClock"]


class StageClock:
    """Wall and CPU time of consecutive stages; on a GPU each one waits for its kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stage_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """End a stage; one that has ended before goes on."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, cpu = time.perf_counter(), time.process_time()
        self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + 1e3 * (now - self._last)
        self.cpu_ms[stage] = self.cpu_ms.get(stage, 0.0) + 1e3 * (cpu - self._last_cpu)
        self._last, self._last_cpu = now, cpu
