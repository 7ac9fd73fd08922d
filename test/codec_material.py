# SPDX-License-Identifier: Apache-2.0
"""Small random models for tests, and what is frozen in ``test/data``.

Run this file to write ``test/data`` again; only where the format or the network changes, and say so in the commit.

``models/tiny``: a whole model of random weights (checkerboard context, six rates) and ``tiny.sicm``, a packet of it.
None of its boxes can exist.
``models/tame``: the same with a detection head whose activations are of order one, so that its boxes can exist.
``raster.safetensors``: an entropy model alone (raster context, one rate) and ``raster.payload``, the bytes of a latent.
``*.symbols.npz``: the symbols in both, step by step.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sicm_ros.codec import packet
from sicm_ros.codec.payload import compress
from sicm_ros.codec.range_coder import RangeCoder
from sicm_ros.geometry import InputTransform, StereoRig
from sicm_ros.model_store import load_model, save_model
from sicm_ros.networks.config import AnalysisConfig, AnchorConfig, MvsfcConfig
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.entropy_tables import EntropyTables
from sicm_ros.networks.integer_prior import QuantisedLatents
from sicm_ros.networks.mvsfc_net import MvsfcNet

DATA = Path(__file__).resolve().parent / "data"
TINY_MODEL = DATA / "models" / "tiny"
TAME_MODEL = DATA / "models" / "tame"
RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)
TINY = MvsfcConfig(
    height=96,
    width=288,
    crop_top=20,
    classes=("Car", "Pedestrian"),
    blocks=(1, 1, 1),
    stem_channels=4,
    channels=(4, 4, 4),
    joint_channels=(4, 4),
    latent_channels=4,
    hyper_channels=2,
    attention="epipolar",
    decoder_feedback=False,
    pad_features=False,
    context="checkerboard",
    variable_rate=True,
    default_rate=2.0,
    analysis=AnalysisConfig(
        correlation_bins=(4, 4),
        concat_bins=2,
        concat_channels=2,
        fusion_channels=(8, 16, 24),
        head_channels=(4, 4),
        head_output_kernel=1,
        dropout=0.0,
        disparity_bins=8,
        disparity_channels=(4,),
        anchors=AnchorConfig(scales=2, ratios=(1.0,)),
        score_threshold=0.5,
    ),
)


def lively(net: torch.nn.Module, seed: int) -> None:
    """Random weights under which every part of the codec has something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 4:
                fan_in = p[0].numel() if "up" not in name else p.shape[0] * 6
                p.copy_(torch.randn(p.shape, generator=generator) * 1.4 / fan_in**0.5)
            elif name.endswith("bias") and "output" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)


def tiny_net() -> MvsfcNet:
    """The network of ``models/tiny``."""
    torch.manual_seed(1)
    net = MvsfcNet(TINY)
    lively(net, 1)
    with torch.no_grad():
        head, anchors = net.analysis.head, net.analysis.anchors
        head.class_output.bias.zero_()
        head.box_output.weight.mul_(0.1)
        anchors.reference_focal_baseline.fill_(RIG.focal_baseline * 96 / 355)
        anchors.prior_mean[...] = torch.tensor([15.0, 0.0, 1.0, 1.6, 1.5, 3.9])
        anchors.prior_std[...] = 0.5
    return net


def tame_net() -> MvsfcNet:
    """The network of ``models/tame``: batch norms of the visual analysis have the statistics of a random packet."""
    net = tiny_net().eval()
    norms = [m for m in net.analysis.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    generator = torch.Generator().manual_seed(5)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 36, generator=generator), (TINY.height, TINY.width))
    with torch.no_grad():
        net.detect(net.compress(net.features(image, image.roll(-3, 3)), TINY.default_rate)[0])
        net.analysis.head.box_output.weight.mul_(0.3)
        weight = net.analysis.head.class_output.weight
        weight.mul_(1e-7)  # no batch norm before it
        weight[4].mul_(-2)  # boxes of both classes
    return net.eval()


def latents(seed: int, channels: int, size: tuple[int, int], batch: int = 1, loud: float = 6.0) -> list[torch.Tensor]:
    """Latents (B, C, h, w) of both views, louder in some channels than in others."""
    generator = torch.Generator().manual_seed(seed)
    loudness = loud * torch.exp(torch.randn(1, channels, 1, 1, generator=generator))
    return [torch.randn(batch, channels, *size, generator=generator) * loudness for _ in range(2)]


def entropy_model(
    context: str,
    channels: int = 4,
    hyper_channels: int = 2,
    rate_count: int = 1,
    seed: int = 3,
    context_channels: int | None = None,
) -> StereoEntropyModel:
    """A lively entropy model in evaluation mode."""
    torch.manual_seed(seed)
    net = StereoEntropyModel(channels, hyper_channels, context, rate_count, context_channels).eval()
    lively(net, seed)
    return net


def save_symbols(path: Path, coded: QuantisedLatents) -> None:
    """Hyper-latents and latents, in the order of coding, as int16."""
    np.savez_compressed(
        path,
        hyper_left=coded.hyper[0][0].numpy().astype(np.int16),
        hyper_right=coded.hyper[1][0].numpy().astype(np.int16),
        latents=np.concatenate([s[0].reshape(-1).numpy() for s in coded.symbols]).astype(np.int16),
    )


def main() -> None:
    save_model(TINY_MODEL, TINY, tiny_net().state_dict())
    save_model(TAME_MODEL, TINY, tame_net().state_dict())
    model = load_model(TINY_MODEL)
    index = packet.rate_index(3.25)
    coded = model.net.entropy_model.quantise(*latents(2, 4, TINY.latent_size), index / packet.RATE_STEPS)
    payload, symbol_hash, _ = compress(coded, RangeCoder(model.tables))
    (DATA / "tiny.sicm").write_bytes(
        packet.pack(model.fingerprint, index, InputTransform(1242, 375, 20, 288, 96), RIG, payload, symbol_hash)
    )
    save_symbols(DATA / "tiny.symbols.npz", coded)

    raster = entropy_model("raster")
    tables = EntropyTables.build(raster)
    save_file(raster.state_dict() | tables.tensors(), DATA / "raster.safetensors")
    coded = raster.quantise(*latents(4, 4, (5, 9)))
    (DATA / "raster.payload").write_bytes(compress(coded, RangeCoder(tables))[0])
    save_symbols(DATA / "raster.symbols.npz", coded)


if __name__ == "__main__":
    main()
