# SPDX-License-Identifier: Apache-2.0
"""The remote side: one packet to features and 3D boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..geometry import Object3D
from ..inference import Engine
from ..inference.engine import remote_engine
from ..model_store import StoredModel, open_model
from ..networks.backbone import StereoFeatures
from .detector import Boxes, analyse
from .packet import (
    RATE_STEPS,
    ImplausiblePacketError,
    PacketError,
    PacketHeader,
    SymbolMismatchError,
    WrongModelError,
    payload_of,
    read_header,
)
from .payload import DecodedLatents, decompress_batch, symbol_count
from .range_coder import RangeCoder
from .stage_clock import StageClock

__all__ = ["DecodedPair", "StereoDecoder"]

T = TypeVar("T", PacketHeader, "DecodedPair")


@dataclass(frozen=True)
class DecodedPair:
    """The boxes of a packet, best first; ``refused`` more were left out because they cannot exist. ``stage_ms`` has
    milliseconds of "entropy", "smfc" and "analysis", ``cpu_ms`` the CPU time of this process, all threads, in each."""

    objects: list[Object3D]
    header: PacketHeader
    stage_ms: dict[str, float]
    cpu_ms: dict[str, float]
    refused: int = 0


class StereoDecoder:
    """Decodes packets of one model. ``score_threshold`` (None: the model's) may be set at any time.

    ``engine`` runs the network; nodes and commands have "auto", which converts a model at its first use. Raises
    ModelError and EngineError.
    """

    def __init__(
        self,
        model: str | Path | StoredModel,
        device: str | torch.device = "cpu",
        score_threshold: float | None = None,
        engine: Engine = "torch",
    ) -> None:
        self.model = open_model(model, "remote", device)
        self._network = remote_engine(self.model, engine)
        self._prior = self.model.net.entropy_model.integer_prior()
        self._coder = RangeCoder(self.model.tables)
        default = self.model.config.analysis.score_threshold
        self.score_threshold = default if score_threshold is None else score_threshold

    @property
    def engine(self) -> str:
        """What runs the network: torch, openvino-bfloat16 or openvino-float32."""
        return self._network.name

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
        transform = header.geometry.transform
        got = (transform.width, transform.height, transform.crop_top)
        if got != expected:
            raise ImplausiblePacketError(f"packet geometry: expected network size and crop {expected}, got {got}")
        if header.rate_index > config.highest_rate * RATE_STEPS:
            raise ImplausiblePacketError(f"packet rate: expected 0 to {config.highest_rate}, got {header.rate:g}")
        # No symbol takes more than the 24 bits of the coder's precision.
        most = 3 * symbol_count(config.latent_channels, config.hyper_channels, config.latent_size) + 8
        if header.payload_bytes > most:
            raise ImplausiblePacketError(f"packet payload: expected at most {most} bytes, got {header.payload_bytes}")
        return header, payload_of(data)

    def _latents(self, packets: Sequence[bytes]) -> tuple[list[PacketHeader | PacketError], list[DecodedLatents]]:
        """Header or error of each packet, and the latents of those without error, decoded together."""
        outcomes: list[PacketHeader | PacketError] = []
        payloads: list[tuple[int, PacketHeader, bytes]] = []
        for i, data in enumerate(packets):
            try:
                header, payload = self._checked(data)
            except PacketError as error:
                # Its traceback and that of its cause would keep frames alive, and the packet with them.
                error.__context__ = None
                outcomes.append(error.with_traceback(None))
            else:
                outcomes.append(header)
                payloads.append((i, header, payload))
        if not payloads:
            return outcomes, []
        decoded = decompress_batch(
            [payload for _, _, payload in payloads],
            self._coder,
            self._prior,
            self.model.config.latent_size,
        )
        sound = []
        for (i, header, _), latents in zip(payloads, decoded, strict=True):
            if latents.symbol_hash != header.symbol_hash:
                outcomes[i] = SymbolMismatchError(
                    f"packet symbols: expected hash {header.symbol_hash:08x}, got "
                    f"{latents.symbol_hash:08x}; both ends computed different probabilities, or the "
                    "packet was forged"
                )
            elif not latents.complete:
                outcomes[i] = SymbolMismatchError(
                    "packet symbols: expected a payload that ends with them, got one that does not; the packet was "
                    "forged"
                )
            else:
                sound.append(latents)
        return outcomes, sound

    def _scaled(
        self, headers: Sequence[PacketHeader], latents: Sequence[DecodedLatents]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both views' latents (B, C, h, w) after the inverse gain."""
        inverse_gain = self.model.net.entropy_model.inverse_gain
        if len(latents) == 1:
            return inverse_gain(latents[0].left, latents[0].right, headers[0].rate)
        left, right = torch.cat([x.left for x in latents]), torch.cat([x.right for x in latents])
        return inverse_gain(left, right, torch.tensor([header.rate for header in headers], dtype=torch.float32))

    @torch.inference_mode()
    def reconstruct(self, packet: bytes) -> StereoFeatures:
        """The features of both views at strides 4, 8 and 16. Raises a PacketError."""
        outcomes, latents = self._latents([packet])
        f0, f1, f2 = self.model.net.reconstruct(*self._scaled([_raised(outcomes[0])], latents)).features
        assert f0 is not None
        return f0, f1, f2

    @torch.inference_mode()
    def decode_batch(self, packets: Sequence[bytes]) -> list[DecodedPair | PacketError]:
        """The boxes of each packet, or its error. Packets without error are decoded as one batch.

        Times are the batch's, CPU times the packet's share of it.
        """
        clock = StageClock(self.model.device)
        outcomes, latents = self._latents(packets)
        headers = [outcome for outcome in outcomes if not isinstance(outcome, PacketError)]
        if not headers:
            return [outcome for outcome in outcomes if isinstance(outcome, PacketError)]
        clock.lap("entropy")
        geometries = [header.geometry for header in headers]
        output = self._network(*self._scaled(headers, latents), clock.lap)
        boxes = iter(analyse(self.model, output, geometries, self.score_threshold))
        clock.lap("analysis")  # with what the engine has counted so far
        cpu_ms = {stage: value / len(headers) for stage, value in clock.cpu_ms.items()}

        def pair(header: PacketHeader, found: Boxes) -> DecodedPair:
            return DecodedPair(found.objects, header, dict(clock.stage_ms), dict(cpu_ms), found.refused)

        return [outcome if isinstance(outcome, PacketError) else pair(outcome, next(boxes)) for outcome in outcomes]

    def decode(self, packet: bytes) -> DecodedPair:
        """The boxes of a packet. Raises a PacketError; the message is one line."""
        return _raised(self.decode_batch([packet])[0])


def _raised(outcome: T | PacketError) -> T:
    """What is not an error; an error is raised."""
    if isinstance(outcome, PacketError):
        try:
            raise outcome
        finally:
            del outcome  # no cycle of error, traceback and frame
    return outcome
