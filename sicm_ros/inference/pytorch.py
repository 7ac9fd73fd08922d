# SPDX-License-Identifier: Apache-2.0
"""Both halves in PyTorch, as they were trained, on any device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..model_store import StoredModel
from ..networks.detection import AnalysisOutput

__all__ = ["TorchRemote", "TorchVehicle"]


class TorchVehicle:
    """See ``engine.VehicleEngine``."""

    name = "torch"

    def __init__(self, model: StoredModel) -> None:
        self._net = model.net

    def __call__(self, left: Tensor, right: Tensor, lap: Callable[[str], None]) -> tuple[Tensor, Tensor]:
        features = self._net.features(left, right)
        lap("backbone")
        latents = self._net.latents(features)
        lap("smfc")
        return latents


class TorchRemote:
    """See ``engine.RemoteEngine``."""

    name = "torch"

    def __init__(self, model: StoredModel) -> None:
        self._net = model.net

    def __call__(self, left: Tensor, right: Tensor, lap: Callable[[str], None]) -> AnalysisOutput:
        reconstruction = self._net.reconstruct(left, right, with_f0=False)
        lap("smfc")
        output = self._net.detect_decoded(reconstruction)
        lap("analysis")
        return output
