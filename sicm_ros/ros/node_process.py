# SPDX-License-Identifier: Apache-2.0
"""Nodes that another program starts as processes of their own. Nothing of ROS is imported."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["NodeProcess", "image_profile_variables"]


class NodeProcess:
    """``python -m sicm_ros.nodes.<module>`` with parameters. It ends when this process does.

    Its output goes to ``log``, or where this process's goes. ``environment`` are variables beside those of this
    process.
    """

    def __init__(
        self,
        module: str,
        parameters: Mapping[str, object],
        namespace: str = "",
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = module, log
        arguments = [sys.executable, "-m", f"sicm_ros.nodes.{module}", "--ros-args"]
        if namespace:
            arguments += ["-r", f"__ns:={namespace}"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        variables = {**os.environ, **(environment or {})}
        root = str(Path(__file__).resolve().parents[2])
        paths = variables.get("PYTHONPATH", "").split(os.pathsep)
        if root not in paths:
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, *paths]))
        output = None if log is None else log.open("wb")
        try:
            self._process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env=variables,
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def status(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def failure(self) -> str:
        """What there is to say of a process that ended: its status, and its last words where they are kept."""
        words = f"the {self.name} ended with status {self.status()}"
        if self.log is None:
            return words
        lines = self.log.read_text(errors="replace").strip().splitlines()
        last = "\n".join(f"  {line}" for line in lines[-15:])
        return f"{words}; its last words ({self.log}):\n{last}"

    def stop(self) -> None:
        """SIGINT, and SIGKILL where that does not help."""
        for number, seconds in ((signal.SIGINT, 8.0), (signal.SIGKILL, 5.0)):
            if self.status() is None:
                self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return


def _end_with_parent() -> None:
    # PR_SET_PDEATHSIG: even a killed parent leaves no nodes behind.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def image_profile_variables() -> dict[str, str]:
    """Environment variables for publishers of images: the Fast DDS profile of the source tree or an install.

    A profile that the user has chosen stays.
    """
    here = Path(__file__).resolve()
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix, *map(str, here.parents)]
    folders = [here.parents[2], *(Path(prefix) / "share" / "sicm_ros" for prefix in prefixes if prefix)]
    files = (folder / "config" / "fastdds_images.xml" for folder in folders)
    profile = next((path for path in files if path.is_file()), None)
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    return {name: os.environ.get(name, str(profile)) for name in names} if profile is not None else {}
