# SPDX-License-Identifier: Apache-2.0
"""Models of this package through packets: the default model, and MVSFC-Net as in the paper."""

from __future__ import annotations

import time

from ...codec.decoder import StereoDecoder
from ...codec.encoder import StereoEncoder
from ...data.source import StereoFrame
from ...inference import Engine
from ...model_store import StoredModel
from ...networks.complexity import count_complexity
from .system import Complexity, Outcome

__all__ = ["PacketSystem"]


class PacketSystem:
    """A model through packets, at its whole rates."""

    def __init__(self, model: StoredModel, score_threshold: float, engine: Engine = "torch") -> None:
        self.points = tuple(float(rate) for rate in range(int(model.config.highest_rate) + 1))
        self.complexity = Complexity(*count_complexity(model.config)["total"])
        self.weights = f"{model.fingerprint:016x}"
        self._encoder = StereoEncoder(model, engine=engine)
        self._decoder = StereoDecoder(model, score_threshold=score_threshold, engine=engine)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        coded = self._encoder.encode(frame.left, frame.right, frame.rig, rate=point)
        encoded = time.process_time()
        objects = self._decoder.decode(coded.packet).objects
        decoded = time.process_time()
        return Outcome(len(coded.packet), objects, encoded - begin, decoded - encoded, coded.estimated_bits / 8)
