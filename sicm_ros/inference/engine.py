# SPDX-License-Identifier: Apache-2.0
"""What an engine is, and which one runs a half of a model."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, overload

from torch import Tensor

from ..model_store import StoredModel
from ..networks.detection import AnalysisOutput
from . import ENGINES, Engine
from .pytorch import TorchRemote, TorchVehicle

__all__ = [
    "EngineError",
    "Lap",
    "RemoteEngine",
    "VehicleEngine",
    "no_lap",
    "remote_engine",
    "vehicle_engine",
]

Lap: TypeAlias = Callable[[str], None]  # called with the name of a stage at its end

_log = logging.getLogger(__name__)


def no_lap(stage: str) -> None:
    """A ``Lap`` for those who do not time the stages."""


class EngineError(ValueError):
    """An engine that cannot run here; the message is one line and says what is expected."""


class VehicleEngine(Protocol):
    """The vehicle's half; ``name``: torch, or openvino with its precision."""

    name: str

    def __call__(self, left: Tensor, right: Tensor, lap: Lap) -> tuple[Tensor, Tensor]:
        """Normalised views (B, 3, H, W) -> both views' latents (B, C, h, w), float32, before the gain. The stages are
        "backbone" and "smfc"."""


class RemoteEngine(Protocol):
    """The remote half; ``name`` as on the vehicle."""

    name: str

    def __call__(self, left: Tensor, right: Tensor, lap: Lap) -> AnalysisOutput:
        """Dequantised latents (B, C, h, w) of both views, after the inverse gain -> what boxes are decoded from, with
        or without the disparity. The stages are "smfc" and "analysis"."""


def _with_openvino(model: StoredModel, engine: Engine) -> bool:
    """Whether OpenVINO is to run a model. Raises EngineError."""
    if engine not in ENGINES:
        raise EngineError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    installed = importlib.util.find_spec("openvino") is not None
    if engine.startswith("openvino"):
        if model.device.type != "cpu":
            raise EngineError(f"engine: expected auto or torch on {model.device}, OpenVINO runs on the CPU here")
        if not installed:
            raise EngineError("engine: OpenVINO is not installed: pip install -r requirements/openvino.txt")
    return installed and engine != "torch" and model.device.type == "cpu"


def vehicle_engine(model: StoredModel, engine: Engine = "auto") -> VehicleEngine:
    """What runs the vehicle's half of ``model``. ``auto``: OpenVINO on a CPU where it is installed, else PyTorch; where
    OpenVINO fails, PyTorch, with a warning in the log. Raises EngineError."""
    return _openvino(model, engine, "vehicle") or TorchVehicle(model)


def remote_engine(model: StoredModel, engine: Engine = "auto") -> RemoteEngine:
    """What runs the remote half of ``model``, as ``vehicle_engine``."""
    return _openvino(model, engine, "remote") or TorchRemote(model)


@overload
def _openvino(model: StoredModel, engine: Engine, half: Literal["vehicle"]) -> VehicleEngine | None: ...
@overload
def _openvino(model: StoredModel, engine: Engine, half: Literal["remote"]) -> RemoteEngine | None: ...
def _openvino(model: StoredModel, engine: Engine, half: str) -> VehicleEngine | RemoteEngine | None:
    """OpenVINO's engine of a half, or None where PyTorch is to run it."""
    if not _with_openvino(model, engine):
        return None
    from .openvino import ConversionError, OpenVinoRemote, OpenVinoVehicle

    try:
        float32 = engine == "openvino-float32"
        return OpenVinoVehicle(model, float32) if half == "vehicle" else OpenVinoRemote(model, float32)
    except ConversionError as error:
        if engine != "auto":
            raise EngineError(f"engine: {error}") from None
        _log.warning("engine: %s; PyTorch runs the network", error)
        return None
