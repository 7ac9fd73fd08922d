# SPDX-License-Identifier: Apache-2.0
"""What the processor can compute."""

from __future__ import annotations

import torch

__all__ = ["bfloat16_is_native"]


def bfloat16_is_native() -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it does not, oneDNN emulates it, slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "arm_bf16"))
