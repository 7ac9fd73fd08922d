# SPDX-License-Identifier: Apache-2.0
"""The compiled integer layers: exact for any input, and equal to those in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_entropy_model import CONTEXTS, entropy_model, latents
from torch.utils._python_dispatch import TorchDispatchMode

from sicm_ros.networks.integer_kernel import Rows, Weights, padded
from sicm_ros.networks.integer_layers import CompiledLayers, FloatLayers
from sicm_ros.networks.integer_prior import IntegerPrior

LARGEST = (1 << 22) - 1  # no input of a layer is larger


def products(rows: np.ndarray, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sums in 64 bits, from their lower and their upper 32."""
    batch, count, outputs = len(rows), len(near), weights.shape[1]
    taken = Rows(*rows.shape)
    taken.put(np.arange(rows.shape[1]), rows)
    halves = []
    for shift in (0, 32):
        layer = Weights(weights, np.zeros(outputs, int), np.full(outputs, shift), [(near.shape[1], rows.shape[2])])
        out = Rows(batch, count, outputs)
        layer.apply([(taken, near)], -(1 << 62), 1 << 62, 0, out, np.arange(count))
        assert not out.out[0].reshape(batch, count, padded(outputs))[:, :, outputs:].any()
        halves.append(out.values.astype(np.int64))
    return (halves[1] << 32) | (halves[0] & 0xFFFFFFFF)


def by_numpy(rows: np.ndarray, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    gathered = rows[:, near].reshape(len(rows), len(near), -1)
    return gathered.astype(np.int64) @ weights.astype(np.int64)


def test_of_nothing_there_is_nothing():
    assert not products(np.zeros((1, 0, 16), np.int32), np.zeros((0, 1), np.int64), np.ones((16, 4), np.int32)).size


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 25),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(0, 22),
    st.integers(0, 15),
)
def test_products_are_exact(seed, batch, count, taps, channels, outputs, input_bits, weight_bits):
    rng = np.random.default_rng(seed)
    high = min(1 << input_bits, LARGEST)
    rows = rng.integers(-high, high + 1, (batch, 9, channels)).astype(np.int32)
    near = rng.integers(0, 9, (count, taps))
    weights = rng.integers(-(1 << weight_bits), (1 << weight_bits) + 1, (taps * channels, outputs)).astype(np.int32)
    assert (products(rows, near, weights) == by_numpy(rows, near, weights)).all()


@pytest.mark.parametrize("value", [32767, -32768, 32768, -32769, LARGEST, -LARGEST, 181])
@pytest.mark.parametrize("weight", [1 << 15, -(1 << 15), (1 << 15) - 1, 11585])
def test_sums_that_would_pass_32_bits_are_exact(value, weight):
    """Every product as large as can be, and of one sign."""
    rows = np.full((1, 30, 48), value, np.int32)
    near = np.arange(25)[None].repeat(7, 0)
    weights = np.full((25 * 48, 16), weight, np.int32)
    assert (products(rows, near, weights) == 1200 * value * weight).all()


@pytest.mark.parametrize("kind", ["", "leaky", "gate"])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("wide", [False, True])
def test_a_layer_rounds_as_in_float64(kind, spread, wide):
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((40, 21), (21,)))
    weight[3, 4] = weight[:, 4].abs().max() * 2  # exponents differ
    rows = (torch.randn(2, 33, 40, generator=generator, dtype=torch.float64) * 1024 * spread).round()
    rows[0, 0] = LARGEST if wide else 1
    expected = FloatLayers(torch.device("cpu")).layer(weight, bias, kind)((rows, None))
    compiled, taken = CompiledLayers(), Rows(*rows.shape)
    taken.put(np.arange(rows.shape[1]), rows.int().numpy())
    found = compiled.layer(weight, bias, kind)((taken, None)).values
    assert torch.equal(torch.from_numpy(found).double(), expected)
    assert len(expected.unique()) > (1 if kind == "gate" else 20)


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_step_of_an_encoder_waits_for_its_device(context):
    """What reads a number of a tensor, or makes one from numbers, would stop a GPU between the steps."""
    net = entropy_model(context, channels=8, hyper_channels=4, rate_count=3)
    y = latents(4, 8, (5, 9))
    prior = IntegerPrior(net, FloatLayers(torch.device("cpu")))
    net.quantise(*y, 1.5, prior)  # tables are made once
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function).split(".")[1])
            return function(*args, **(kwargs or {}))

    with Calls():
        net.quantise(*y, 1.5, prior)
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "unique", "lift_fresh"}
    assert calls and not waiting & set(calls)


def test_float64_that_is_emulated_is_refused(monkeypatch):
    gpu = torch.device("cuda")
    assert FloatLayers(gpu).device == gpu
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    assert FloatLayers(torch.device("cpu"))
    with pytest.raises(ValueError, match="must be unset"):
        FloatLayers(gpu)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("loud", [1.0, 40.0, 4000.0])
def test_the_prior_is_the_same_compiled_and_in_float64(context, loud):
    """On latents as they are, and on what no image gives, which leaves 16 bits."""
    net = entropy_model(context, channels=20, hyper_channels=8, seed=2)
    y = latents(4, 20, (6, 11), batch=2, loud=loud)
    hyper = tuple((x[:, :8, ::4, ::4][:, :, :2, :3] * 3).round().clamp(-63, 63) for x in y)
    expected = IntegerPrior(net, FloatLayers(torch.device("cpu"))).quantise(y, hyper)
    found = IntegerPrior(net).quantise(y, hyper)
    for ours, theirs in zip(
        (*found.symbols, *found.indices, *found.decoded),
        (*expected.symbols, *expected.indices, *expected.decoded),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    if loud > 1000:
        assert expected.decoded[0].abs().max() > 1 << 15
