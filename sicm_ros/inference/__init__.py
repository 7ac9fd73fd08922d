# SPDX-License-Identifier: Apache-2.0
"""The two halves of the network as functions, and the engines that run them.

What lies between the network's input and the latents, and between the dequantised latents and the raw outputs, may be
computed by whatever is fastest here. The entropy model is not among it: both ends must agree on its integers, see
``networks.integer_prior``.
"""

from typing import Literal, TypeAlias, get_args

__all__ = ["ENGINES", "Engine"]

# Here, since the command line and the nodes' parameters need the names before PyTorch is imported.
# "openvino" computes in bfloat16 where the processor does so itself, "openvino-float32" never.
Engine: TypeAlias = Literal["auto", "torch", "openvino", "openvino-float32"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
