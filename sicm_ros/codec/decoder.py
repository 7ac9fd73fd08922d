# SPDX-License-Identifier: Apache-2.0
"""The remote side: one packet to features and 3D boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..geometry import Object3D
from ..model_store import StoredModel, open_model
from ..networks.backbone import StereoFeatures
from . import prior
from .detector import analyse
from .encoder import StageClock
from .packet import (
    RATE_STEPS,
    ImplausiblePacketError,
    PacketHeader,
    SymbolMismatchError,
    WrongModelError,
    payload_of,
    read_header,
)
from .range_coder import RangeCoder

__all__ = ["DecodedPair", "StereoDecoder"]


@dataclass(frozen=True)
class DecodedPair:
    """The boxes of a packet, best first; ``stage_ms`` has milliseconds of "entropy", "smfc" and "analysis", ``cpu_ms``
    the CPU time of this process, all threads, in each."""

    objects: list[Object3D]
    header: PacketHeader
    stage_ms: dict[str, float]
    cpu_ms: dict[str, float]


class StereoDecoder:
    """Decodes packets of one model. ``score_threshold`` (None: the model's) may be set at any time."""

    def __init__(
        self, model: str | Path | StoredModel, device: str | torch.device = "cpu", score_threshold: float | None = None
    ) -> None:
        self.model = open_model(model, "remote", device)
        self._coder = RangeCoder(self.model.tables)
        default = self.model.config.analysis.score_threshold
        self.score_threshold = default if score_threshold is None else score_threshold

    def _checked(self, data: bytes) -> tuple[PacketHeader, bytes]:
        """Header and payload of a packet that this model's encoder may have written."""
        header = read_header(data)
        model, config = self.model, self.model.config
        if header.fingerprint != model.fingerprint:
            raise WrongModelError(
                f"packet of another model: expected fingerprint {model.fingerprint:016x} "
                f"({model.name}), got {header.fingerprint:016x}"
            )
        expected = (config.width, config.height, config.crop_top)
        if (header.width, header.height, header.crop_top) != expected:
            raise ImplausiblePacketError(
                f"packet geometry: expected network size and crop {expected}, got "
                f"{(header.width, header.height, header.crop_top)}"
            )
        if header.rate_index > (config.rates - 1) * RATE_STEPS:
            raise ImplausiblePacketError(f"packet rate: expected 0 to {config.rates - 1}, got {header.rate:g}")
        # No symbol takes more than the 24 bits of the coder's precision.
        most = 3 * prior.symbol_count(config.latent_channels, config.hyper_channels, config.latent_size) + 8
        if header.payload_bytes > most:
            raise ImplausiblePacketError(f"packet payload: expected at most {most} bytes, got {header.payload_bytes}")
        return header, payload_of(data)

    def _features(self, data: bytes) -> tuple[StereoFeatures, PacketHeader, StageClock]:
        model, net = self.model, self.model.net
        clock = StageClock(self.model.device)
        header, payload = self._checked(data)
        decoded = prior.decompress(payload, self._coder, net.entropy_model.integer_prior(), model.config.latent_size)
        if decoded.symbol_hash != header.symbol_hash:
            raise SymbolMismatchError(
                f"packet symbols: expected hash {header.symbol_hash:08x}, got "
                f"{decoded.symbol_hash:08x}; both ends computed different probabilities, or the "
                "packet was forged"
            )
        if not decoded.complete:
            raise SymbolMismatchError(
                "packet symbols: expected a payload that ends with them, got one that does not; the packet was forged"
            )
        clock.lap("entropy")
        latents = net.entropy_model.inverse_gain(decoded.left, decoded.right, header.rate)
        features = net.reconstruct(*latents)
        clock.lap("smfc")
        return features, header, clock

    @torch.inference_mode()
    def reconstruct(self, packet: bytes) -> StereoFeatures:
        """The features of both views at strides 4, 8 and 16. Raises a PacketError."""
        return self._features(packet)[0]

    @torch.inference_mode()
    def decode(self, packet: bytes) -> DecodedPair:
        """The boxes of a packet. Raises a PacketError; the message is one line."""
        features, header, clock = self._features(packet)
        objects = analyse(self.model, features, header.transform(), header.rig, self.score_threshold)
        clock.lap("analysis")
        return DecodedPair(objects, header, clock.stage_ms, clock.cpu_ms)
