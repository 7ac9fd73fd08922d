# SPDX-License-Identifier: Apache-2.0
"""A compared system: a stereo pair to bytes, and bytes to boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from ...data.source import StereoFrame
from ...geometry import Object3D
from ...model_store import StoredModel

__all__ = ["Complexity", "Outcome", "SequenceSystem", "System", "SystemKind"]


class Outcome(NamedTuple):
    """What a pair became."""

    size: int  # bytes that are sent, 0 for the uncompressed detector
    objects: list[Object3D]  # boxes in the camera image
    encode_s: float  # CPU seconds on the vehicle, the scaling of the images included
    decode_s: float  # CPU seconds at the other end, the detection included
    estimate: float | None = None  # bytes by the likelihoods of an entropy model, where there is one


class Complexity(NamedTuple):
    """Columns of the paper's table IV, for one pair with the detection; NaN where nobody counts them."""

    parameters: float
    macs: float  # multiply-accumulates


class System(Protocol):
    """A way from a pair to boxes at several qualities."""

    @property
    def points(self) -> Sequence[float]:
        """Its qualities, from few bytes to many."""

    @property
    def complexity(self) -> Complexity:
        """What its networks cost."""

    @property
    def weights(self) -> str:
        """What tells weights of its own from others, empty where it has none beside the detector's."""

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """Code a pair and detect. Raises CodecError."""


@runtime_checkable
class SequenceSystem(System, Protocol):
    """A system of ``sequences``, which predicts pairs from those before."""

    def prepare(self, frames: Iterable[StereoFrame], point: float) -> None:
        """Code a whole drive from its start; ``run`` then takes these frames, at this point. Raises CodecError."""


def _nothing_missing() -> str:
    return ""


@dataclass(frozen=True)
class SystemKind:
    """One row of the comparison, before it is built."""

    name: str  # in commands and files
    title: str  # in tables and figures
    note: str  # what is faithful to its source and what is substituted
    build: Callable[[StoredModel, float], System]  # model of the detector, least score of a box; raises CodecError
    missing: Callable[[], str] = _nothing_missing  # why it cannot run here, in one line; empty if it can
    sequences: bool = False  # it codes whole drives, see ``SequenceSystem``
