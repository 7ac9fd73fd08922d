# SPDX-License-Identifier: Apache-2.0
"""The vehicle's side: a rectified stereo pair to one packet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry import InputTransform, StereoRig
from ..inference import Engine
from ..inference.engine import vehicle_engine
from ..model_store import StoredModel, open_model
from ..preprocessing import InputError, prepare
from . import packet
from .payload import compress, least_bytes
from .range_coder import RangeCoder
from .rate_control import RateController, RateDecision
from .stage_clock import StageClock

__all__ = ["EncodedPair", "PairLatents", "StereoEncoder", "checked_rate"]


def checked_rate(model: StoredModel, rate: float | None) -> float:
    """A rate of a model, its default for None. Raises InputError if the model has no such rate."""
    if rate is None:
        return model.config.default_rate
    highest = model.config.highest_rate
    if not (math.isfinite(rate) and 0 <= rate <= highest):
        raise InputError(f"rate: expected 0 to {highest} for model {model.name}, got {rate:g}")
    return rate


@dataclass(frozen=True)
class EncodedPair:
    """A packet, with its estimated bits and the times of the stages.

    ``estimated_bits`` is the information content of the symbols under the coder's tables, ``stage_ms`` has milliseconds
    of "preprocess", "backbone", "smfc" and "entropy", ``cpu_ms`` the CPU time of this process, all threads, in each.
    """

    packet: bytes
    rate: float
    symbol_hash: int
    estimated_bits: float
    stage_ms: dict[str, float]
    cpu_ms: dict[str, float]


@dataclass(frozen=True)
class PairLatents:
    """A pair before gain and quantisation: latents (1, C, h, w) of both views, and what the packet says of the images.

    ``stage_ms`` and ``cpu_ms`` have milliseconds of "preprocess", "backbone" and "smfc".
    """

    left: Tensor
    right: Tensor
    transform: InputTransform
    rig: StereoRig
    stage_ms: dict[str, float]
    cpu_ms: dict[str, float]


class StereoEncoder:
    """Encodes stereo pairs with one model. Raises ModelError, EngineError and InputError.

    ``rate`` (None: the model's default) is in [0, model.config.highest_rate]; 0 gives the fewest bits, fractions lie
    between. ``engine`` runs the network; nodes and commands have "auto", which converts a model at its first use.
    """

    def __init__(
        self,
        model: str | Path | StoredModel,
        device: str | torch.device = "cpu",
        rate: float | None = None,
        engine: Engine = "torch",
    ) -> None:
        self.model = open_model(model, "vehicle", device)
        self._network = vehicle_engine(self.model, engine)
        self._prior = self.model.net.entropy_model.integer_prior()
        self._coder = RangeCoder(self.model.tables)
        self.rate = checked_rate(self.model, rate)

    def _checked(self, rate: float | None) -> float:
        return self.rate if rate is None else checked_rate(self.model, rate)

    @property
    def engine(self) -> str:
        """What runs the network: torch, openvino-bfloat16 or openvino-float32."""
        return self._network.name

    @property
    def least_bytes(self) -> int:
        """No packet of the model is shorter, whatever the images and the rate."""
        config = self.model.config
        return packet.OVERHEAD + least_bytes(self._coder, config.latent_channels, config.latent_size)

    def encode(self, left: np.ndarray, right: np.ndarray, rig: StereoRig, rate: float | None = None) -> EncodedPair:
        """Encode one pair: (H, W, 3) uint8 RGB each; ``rig`` is that of these images."""
        return self.encode_latents(self.latents(left, right, rig), self._checked(rate))

    def encode_within(
        self,
        left: np.ndarray,
        right: np.ndarray,
        rig: StereoRig,
        controller: RateController,
        max_bitrate: float,
        preferred_rate: float | None = None,
    ) -> RateDecision[EncodedPair]:
        """Encode one pair at a rate up to the preferred one such that ``max_bitrate`` (bits per second) is kept.

        The "entropy" time of what is sent includes the tries before it. Raises ValueError for a bad budget.
        """
        preferred = self._checked(preferred_rate)
        latents = self.latents(left, right, rig)
        decision = controller.encode(max_bitrate, preferred, lambda rate: self.encode_latents(latents, rate))
        if decision.sent is None:
            return decision
        wall, cpu = (
            sum(times)
            for times in zip(
                *((coded.stage_ms["entropy"], coded.cpu_ms["entropy"]) for coded in decision.tries), strict=True
            )
        )
        return replace(
            decision,
            sent=replace(
                decision.sent, stage_ms={**latents.stage_ms, "entropy": wall}, cpu_ms={**latents.cpu_ms, "entropy": cpu}
            ),
        )

    @torch.inference_mode()
    def latents(self, left: np.ndarray, right: np.ndarray, rig: StereoRig) -> PairLatents:
        """All of the encoder that does not depend on the rate."""
        clock = StageClock(self.model.device)
        left_view, right_view, transform = prepare(left, right, self.model.transform, self.model.device)
        clock.lap("preprocess")
        latents = self._network(left_view, right_view, clock.lap)
        return PairLatents(*latents, transform, rig, clock.stage_ms, clock.cpu_ms)

    @torch.inference_mode()
    def encode_latents(self, latents: PairLatents, rate: float | None = None) -> EncodedPair:
        """Gain, quantisation and entropy stage at one rate."""
        index = packet.rate_index(self._checked(rate))
        clock = StageClock(self.model.device)
        # The rate that the decoder will read, not the one that was asked for.
        entropy_model, rate = self.model.net.entropy_model, index / packet.RATE_STEPS
        coded = entropy_model.quantise(latents.left, latents.right, rate, self._prior)
        payload, symbol_hash, bits = compress(coded, self._coder)
        data = packet.pack(self.model.fingerprint, index, latents.transform, latents.rig, payload, symbol_hash)
        clock.lap("entropy")
        return EncodedPair(
            data,
            rate,
            symbol_hash,
            bits,
            latents.stage_ms | clock.stage_ms,
            latents.cpu_ms | clock.cpu_ms,
        )
