# SPDX-License-Identifier: Apache-2.0
"""What the encoder and the decoder node share: a managed (lifecycle) node that brings itself up where asked to."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from sicm_ros.inference import ENGINES
from sicm_ros.ros.diagnostics import DiagnosticsWriter, Problems, Status
from sicm_ros.ros.parameters import ParameterSpec, declare
from sicm_ros.ros.run_node import NodeError
from sicm_ros.ros.stop_signals import Stopped, unless_stopped

__all__ = ["COMMON_PARAMETERS", "ManagedNode", "is_out_of_memory", "set_network_threads"]

COMMON_PARAMETERS = (
    ParameterSpec("model", "sicm-compact", "name of a model in models/, or the path of a model's folder"),
    ParameterSpec("device", "cpu", "where the network runs: cpu, cuda or cuda:N"),
    ParameterSpec(
        "engine",
        "auto",
        "what runs the network: torch, openvino (in bfloat16 where the CPU has it), openvino-float32, or the fastest "
        "that is installed; openvino converts a model at its first start, some seconds",
        choices=ENGINES,
    ),
    ParameterSpec(
        "threads",
        0,
        "CPU threads of the network; 0 for half as many as there are cores, 1 to 8, and for all in a decoder of "
        "several vehicles",
        0,
        256,
    ),
    ParameterSpec("autostart", True, "configure and activate at start; false to leave that to a lifecycle manager"),
    ParameterSpec("lazy", True, "compute nothing while nobody subscribes to the output"),
)


def set_network_threads(count: int, alone: bool = False) -> None:
    """The parameter ``threads``, before a model is loaded; ``alone``: nothing else on this machine is as busy."""
    import torch

    # Half: images, ROS and, where both halves of a link run on one machine, the other one need cores, too, and threads
    # that wait for each other on too few cores are slower than fewer of them.
    if not count and "OMP_NUM_THREADS" in os.environ:  # which PyTorch goes by
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(count or (cores if alone else min(8, max(1, cores // 2))))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU had no memory left."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


class ManagedNode(LifecycleNode):
    """A lifecycle node with parameters, diagnostics and counted problems.

    A subclass has ``configure``, ``activate``, ``deactivate``, ``cleanup`` (all without arguments; an exception in the
    first two fails the transition, with one line in the log) and ``collect`` for the diagnostics.
    """

    def __init__(
        self, name: str, parameters: Sequence[ParameterSpec], on_change: Callable[[dict[str, Any]], str | None]
    ) -> None:
        super().__init__(name)
        self.state = "unconfigured"
        self._stop = threading.Event()
        self._failure = self._fallback = ""
        declare(self, parameters, on_change)
        self.problems = Problems(self.get_logger().warning)
        self._diagnostics = DiagnosticsWriter(self, self._collect)

    def start(self, stop: threading.Event) -> None:
        """Bring the node up if ``autostart`` is set. Raises NodeError if that fails.

        From now on, ``stop`` ends a transition that takes long.
        """
        self._stop = stop
        if not self.value("autostart"):
            return
        for trigger in (self.trigger_configure, self.trigger_activate):
            if stop.is_set():
                return
            if trigger() != TransitionCallbackReturn.SUCCESS and not stop.is_set():
                raise NodeError(self._failure or f"{self.get_name()}: transition failed")

    def close(self) -> None:
        """Bring the node down from whatever state it is in."""
        if self.state == "active":
            self.trigger_deactivate()
        if self.state == "inactive":
            self.trigger_cleanup()

    def value(self, parameter: str) -> Any:
        """The present value of a parameter."""
        return self.get_parameter(parameter).value

    def fall_back(self, message: str) -> None:
        """Say, in the log and the diagnostics, that the node goes on in a worse way until it is configured again."""
        self._fallback = message
        self.get_logger().error(message)

    # ------------------------------------------------------------------------------------------ for the subclass

    def configure(self) -> None:
        """Load the model, create publishers."""
        raise NotImplementedError

    def activate(self) -> None:
        """Begin to work; publishers are enabled already."""
        raise NotImplementedError

    def deactivate(self) -> None:
        """Stop working; also called after a failed ``activate``."""
        raise NotImplementedError

    def cleanup(self) -> None:
        """Free what ``configure`` made; also called after a failed ``configure``."""
        raise NotImplementedError

    def collect(self) -> list[Status]:
        """The diagnostics of an active node."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition; see ``configure``."""
        try:
            # In a thread, since a lifecycle manager's call of this blocks the one that takes signals.
            configured = self._attempt(lambda: unless_stopped(self.configure, self._stop), "configure")
        except Stopped:
            return TransitionCallbackReturn.FAILURE
        if not configured:
            self.cleanup()
            return TransitionCallbackReturn.FAILURE
        self.state, self._fallback = "inactive", ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition; see ``activate``."""
        super().on_activate(state)
        if not self._attempt(self.activate, "activate"):
            self.deactivate()
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self.state = "active"
        self.get_logger().info("active")
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition; see ``deactivate``."""
        self.state = "inactive"
        self.deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition; see ``cleanup``."""
        self.state = "unconfigured"
        self.cleanup()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition: down from any state."""
        if self.state == "active":
            self.deactivate()
        if self.state != "unconfigured":
            self.cleanup()
        self.state = "finalized"
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition: back to unconfigured, from where it can be configured again."""
        self.on_shutdown(state)
        self.state = "unconfigured"
        return TransitionCallbackReturn.SUCCESS

    def _attempt(self, step: Callable[[], None], name: str) -> bool:
        try:
            step()
            return True
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the node stays up and can be tried again
            self._failure = f"{self.get_name()}: cannot {name}: {' '.join(str(error).split()) or type(error).__name__}"
            self.get_logger().error(self._failure)
            if not isinstance(error, (ValueError, OSError, ImportError)):
                self.get_logger().debug(traceback.format_exc())
            return False

    def _collect(self) -> list[Status]:
        lifecycle = Status("lifecycle")
        lifecycle.set(state=self.state)
        if self._failure and self.state == "unconfigured":
            lifecycle.report("ERROR", self._failure)
        elif self.state != "active":
            lifecycle.report("OK", f"{self.state}: does nothing until it is activated")
        else:
            lifecycle.report("OK", "active")
        if self._fallback:
            lifecycle.report("WARN", self._fallback)
        return [lifecycle, *(self.collect() if self.state == "active" else [])]
