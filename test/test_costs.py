# SPDX-License-Identifier: Apache-2.0
"""What a pair costs, without a clock: operations, copies, symbols and bytes against stored values.

A change that makes a frame dearer fails here on any machine, however busy. One that makes it cheaper does, too: then
the stored value is to be lowered, with the reason in the commit.
"""

from collections import Counter

import pytest
import torch
from codec_material import TAME_MODEL
from torch.utils._python_dispatch import TorchDispatchMode

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.codec.payload import symbol_count
from sicm_ros.data.rendered import rendered_frame
from sicm_ros.networks import integer_kernel

CONVOLUTIONS = ("conv2d", "conv_transpose2d")
# What may give the numbers that it takes, in another place; not "index", which takes as many as there are boxes.
MOVES = ("to", "reshape", "flatten", "contiguous", "clone", "cat", "index_select", "copy_", "pad")


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations, and the bytes that those write that only move numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function).split(".")[1]
        self.calls[name] += 1
        if name in MOVES and not (
            isinstance(args[0], torch.Tensor)
            and result.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
        ):
            self.moved += result.numel() * result.element_size()
        return result


# Of one pair, model "tame": convolutions, all operations of PyTorch, bytes that they move, products of integer layers.
ENCODE = {"convolutions": 97, "operations": 438, "moved": 771600, "products": 40}
DECODE = {"convolutions": 103, "operations": 634, "moved": 355368, "products": 40}


@pytest.fixture
def products(monkeypatch):
    """How often the integer layers multiply."""
    calls = []
    apply = integer_kernel.Weights.apply
    monkeypatch.setattr(
        integer_kernel.Weights, "apply", lambda self, *arguments: calls.append(1) or apply(self, *arguments)
    )
    return calls


def convolutions(operations: Operations) -> int:
    return sum(operations.calls[name] for name in CONVOLUTIONS)


def spent(work, products) -> dict[str, int]:
    work()  # what is made once
    products.clear()
    with Operations() as operations:
        work()
    return {
        "convolutions": convolutions(operations),
        "operations": sum(operations.calls.values()),
        "moved": operations.moved,
        "products": len(products),
    }


def test_a_pair_costs_what_it_did(products):
    frame = rendered_frame(0)
    encoder, decoder = StereoEncoder(TAME_MODEL), StereoDecoder(TAME_MODEL)
    packet = encoder.encode(frame.left, frame.right, frame.rig, rate=3).packet
    assert spent(lambda: encoder.encode(frame.left, frame.right, frame.rig, rate=3), products) == ENCODE
    assert spent(lambda: decoder.decode(packet), products) == DECODE


def test_a_pair_has_the_symbols_and_the_bytes_that_it_had():
    frame = rendered_frame(0)
    encoder = StereoEncoder("sicm-compact")
    config = encoder.model.config
    assert symbol_count(config.latent_channels, config.hyper_channels, config.latent_size) == 45504
    sizes = [len(encoder.encode(frame.left, frame.right, frame.rig, rate=rate).packet) for rate in (0, 3, 5)]
    # Processors round the network's latents differently; a per cent is far more than that ever made.
    assert sizes == pytest.approx([493, 1643, 4164], rel=0.01)


def test_batches_share_one_pass_of_the_network():
    frame = rendered_frame(0)
    encoder, decoder = StereoEncoder(TAME_MODEL), StereoDecoder(TAME_MODEL)
    packet = encoder.encode(frame.left, frame.right, frame.rig, rate=3).packet
    counts = []
    for count in (1, 4):
        with Operations() as operations:
            decoder.decode_batch([packet] * count)
        counts.append(convolutions(operations))
    assert counts[0] == counts[1] == DECODE["convolutions"]
