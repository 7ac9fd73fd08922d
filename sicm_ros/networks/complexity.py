# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of the network, by part (paper, table IV)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .config import MvsfcConfig
from .entropy_model import StereoEntropyModel
from .mvsfc_net import MvsfcNet

__all__ = ["count_complexity"]


def count_complexity(config: MvsfcConfig) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-accumulates of one stereo pair at inference, by part; counted on shapes alone.

    The disparity head, and what decodes f0, count only where inference needs them. A transposed convolution counts at
    its input's size. The context model counts as one pass over the whole latent, which is what the raster scan adds up
    to.
    """
    with torch.device("meta"):
        net = MvsfcNet(replace(config, variable_rate=False)).eval()
        views = [torch.empty(1, 3, config.height, config.width) for _ in range(2)]
        latents = [torch.empty(1, config.latent_channels, *config.latent_size) for _ in range(2)]

        def macs(module: nn.Module, *inputs: Any) -> tuple[int, Any]:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = module(*inputs)
            return counter.get_total_flops() // 2, out

        def parameters(module: nn.Module) -> int:
            return sum(p.numel() for p in module.parameters())

        counts = {}
        backbone, features = macs(net.backbone, *views)
        counts["backbone"] = (parameters(net.backbone), backbone)
        volumes = None
        if net.matching is not None:
            matching, (volumes, _) = macs(net.matching, features)
            counts["matching"] = (parameters(net.matching), matching)
        counts["smfc_encoder"] = (parameters(net.smfc_encoder), macs(net.smfc_encoder, features, volumes)[0])
        counts["entropy_model"] = (parameters(net.entropy_model), 0)
        counts["smfc_decoder"] = (parameters(net.smfc_decoder), macs(net.smfc_decoder, *latents, volumes is None)[0])
        unused = 0 if config.analysis.depth_feedback else parameters(net.analysis.disparity_head)
        counts["analysis"] = (parameters(net.analysis) - unused, macs(net.analysis, features, volumes)[0])
    # Not on meta tensors: it leaves autocast, which has no meta device. In training mode it is one pass.
    entropy_model = StereoEntropyModel.from_config(config).train()
    counts["entropy_model"] = (
        counts["entropy_model"][0],
        macs(entropy_model, *(torch.zeros(x.shape) for x in latents), 0.0)[0],
    )
    counts["total"] = (sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values()))
    return counts
