# SPDX-License-Identifier: Apache-2.0
"""Launch arguments as parameters of the nodes. Nothing is imported that a vehicle's ``ros2 launch`` may lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DECODER", "ENCODER", "OVERLAY", "PLAYER", "existing_file", "typed"]


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _names(text: str) -> list[str]:
    value = yaml.safe_load(text)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(text)
    return names


# The parameters that are launch arguments, too.
ENCODER: dict[str, Callable[[str], Any]] = {
    "model": str,
    "device": str,
    "engine": str,
    "rate": float,
    "max_bitrate": int,
    "sync": str,
    "image_transport": str,
    "autostart": _boolean,
    "use_sim_time": _boolean,
}
DECODER: dict[str, Callable[[str], Any]] = {
    "model": str,
    "device": str,
    "engine": str,
    "vehicles": _names,
    "score_threshold": float,
    "autostart": _boolean,
    "use_sim_time": _boolean,
}
PLAYER: dict[str, Callable[[str], Any]] = {
    "path": str,
    "frequency": float,
    "loop": _boolean,
    "lockstep": _boolean,
    "left_topic": str,
    "right_topic": str,
    "calib": str,
    "publish_clock": _boolean,
}
OVERLAY: dict[str, Callable[[str], Any]] = {"use_sim_time": _boolean}
_EXPECTED = {float: "a number", int: "an integer", _boolean: "true or false", _names: "names such as [car1, car2]"}


def typed(kinds: Mapping[str, Callable[[str], Any]], arguments: Mapping[str, str]) -> dict[str, Any]:
    """Those of ``kinds`` that ``arguments`` give a text that is not empty, as values of the parameters' types.

    What is left out stays as the parameter file has it. Raises ValueError for a text of another type.
    """
    values = {}
    for name, kind in kinds.items():
        text = arguments.get(name, "").strip()
        try:
            if text:
                values[name] = kind(text)
        except (KeyError, ValueError, yaml.YAMLError):
            raise ValueError(f"{name}: expected {_EXPECTED[kind]}, got {text!r}") from None
    return values


def existing_file(name: str, path: str) -> str:
    """The path. Raises ValueError where there is no file: ros2 launch would start the node without it."""
    if not Path(path).is_file():
        raise ValueError(f"{name}: expected a YAML file with parameters, there is no {path}")
    return path
