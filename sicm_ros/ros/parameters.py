# SPDX-License-Identifier: Apache-2.0
"""Parameters with a description, a range and a validation, declared from one table for each node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

__all__ = ["ParameterError", "ParameterSpec", "declare"]


class ParameterError(ValueError):
    """A start-up parameter out of its range or type; the message names it and what is expected."""


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter. ``runtime`` ones may be set while the node runs, all others are read at start-up or configure."""

    name: str
    default: bool | int | float | str | tuple[str, ...]
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    runtime: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """For ``ros2 param describe`` and for rclpy's own check of type and range."""
        result = ParameterDescriptor(name=self.name, description=self.description, read_only=not self.runtime)
        if self.choices:
            result.additional_constraints = "one of: " + ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                result.floating_point_range = [
                    FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum), step=0.0)
                ]
            else:
                result.integer_range = [IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=1)]
        return result

    def check(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None."""
        if self.choices and value not in self.choices:
            return f"{self.name}: expected one of {', '.join(self.choices)}, got {value!r}"
        return None


def declare(
    node: Node, specs: Sequence[ParameterSpec], on_change: Callable[[dict[str, Any]], str | None] | None = None
) -> None:
    """Declare the table on ``node``. Raises ParameterError for a bad start-up value.

    ``on_change`` sees the changed runtime parameters before they hold, and may return why they are refused.
    """
    table = {spec.name: spec for spec in specs}
    for spec in specs:
        try:
            value = _declare(node, spec).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            expected = {
                bool: "true or false",
                int: "an integer",
                float: "a number",
                str: "text",
                tuple: "a list of texts",
            }[type(spec.default)]
            if spec.minimum is not None:
                expected += f" in [{spec.minimum:g}, {spec.maximum:g}]"
            given = " ".join(str(error).split())
            raise ParameterError(f"parameter {spec.name}: expected {expected}: {given}") from None
        problem = spec.check(value)
        if problem:
            raise ParameterError(f"parameter {problem}")

    def validate(parameters: list[Parameter]) -> SetParametersResult:
        changed = {p.name: p.value for p in parameters if p.name in table}
        problems = [problem for name, value in changed.items() if (problem := table[name].check(value))]
        if not problems and changed and on_change is not None:
            refused = on_change(changed)
            problems = [refused] if refused else []
        return SetParametersResult(successful=not problems, reason="; ".join(problems))

    doubles = [spec.name for spec in specs if isinstance(spec.default, float)]

    def convert(parameters: list[Parameter]) -> list[Parameter]:
        return [_as_double(p) if p.name in doubles else p for p in parameters]

    node.add_pre_set_parameters_callback(convert)
    node.add_on_set_parameters_callback(validate)


def _as_double(parameter: Parameter) -> Parameter:
    """ROS takes ``rate:=0`` for an integer, which it refuses for a parameter of type double."""
    if parameter.type_ != Parameter.Type.INTEGER:
        return parameter
    return Parameter(parameter.name, Parameter.Type.DOUBLE, float(parameter.value))


def _declare(node: Node, spec: ParameterSpec) -> Parameter:
    """Declare one parameter. Raises rclpy's exceptions for a value of another type or out of range."""
    default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    if isinstance(default, float):
        # The value given at start has to be seen before its type is fixed.
        given = node.declare_parameter(spec.name, default, ParameterDescriptor(dynamic_typing=True))
        node.undeclare_parameter(spec.name)
        if given.type_ == Parameter.Type.INTEGER:
            return node.declare_parameter(spec.name, _as_double(given).value, spec.descriptor(), ignore_override=True)
    return node.declare_parameter(spec.name, default, spec.descriptor())
