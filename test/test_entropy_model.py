# SPDX-License-Identifier: Apache-2.0
"""The entropy model in training, and its evaluation in integers."""

import copy

import pytest
import torch
from codec_material import entropy_model, latents
from torch import nn

from sicm_ros.networks import entropy_model as em
from sicm_ros.networks.entropy_layers import checkerboard_anchors, gate, gaussian_bits, scale_table
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.integer_prior import ONE, IntegerPrior, Step

CONTEXTS = ["raster", "checkerboard"]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize("context", CONTEXTS)
def test_parameters_are_those_of_the_paper_network(context: str) -> None:
    net = StereoEntropyModel(192, 128, context)
    assert count(net.hyper_encoder, net.hyper_decoder) == pytest.approx(8.07e6, rel=0.01)
    assert count(net.context, net.view_features, net.attention, net.attention_gate, net.estimator) == pytest.approx(
        10.64e6, rel=0.01
    )


@pytest.mark.parametrize("context", CONTEXTS)
def test_narrow_features_make_a_small_model(context: str) -> None:
    wide, narrow = (
        entropy_model(context, 16, 8, 1, context_channels=None),
        entropy_model(context, 16, 8, 1, context_channels=16),
    )
    assert wide.context_channels == 32 and wide.estimator[0][-1].out_channels == 32
    # Between the features a quarter, at the ends a half.
    assert count(narrow.attention_gate, narrow.view_features) / count(
        wide.attention_gate, wide.view_features
    ) == pytest.approx(0.25, abs=0.01)
    assert count(narrow.context) == count(wide.context) / 2
    for width in (6, 12):  # of a latent of 4 channels
        with pytest.raises(ValueError, match=f"context_channels: expected a multiple of 4 up to 8, got {width}"):
            entropy_model(context, context_channels=width)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("size", [(5, 20), (1, 1), (2, 7), (4, 8)])
def test_any_size_comes_back(context: str, size: tuple[int, int]) -> None:
    net = entropy_model(context, rate_count=3)
    left, right = latents(0, 4, size, batch=2)
    for training in (True, False):
        out = net.train(training)(left, right, torch.tensor([0.0, 1.7]))
        assert out.left.shape == out.right.shape == left.shape
        assert out.bits_left.shape == out.bits_right.shape == (2,)
        assert (out.bits_left > 0).all() and torch.isfinite(out.bits_right).all()


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_parameter_learns_also_in_mixed_precision(context: str) -> None:
    net = entropy_model(context, rate_count=3).train()
    left, right = (x.requires_grad_() for x in latents(0, 4, (6, 10), batch=2, loud=1.0))
    bits = []
    for mixed in (False, True):
        net.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = net(left, right, torch.tensor([0.0, 1.5]))
        assert out.bits_left.dtype == out.left.dtype == torch.float32
        ((out.bits_left + out.bits_right).sum() + (out.left**2 + out.right**2).sum()).backward()
        for name, p in net.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
        bits.append((out.bits_left + out.bits_right).sum().item())
    assert left.grad is not None and left.grad.abs().max() > 0
    assert bits[1] == pytest.approx(bits[0], rel=0.02)


@pytest.mark.slow
def test_training_lowers_the_rate() -> None:
    torch.manual_seed(0)
    net = StereoEntropyModel(4, 4, "checkerboard").train()
    base = nn.functional.interpolate(torch.randn(4, 4, 2, 4) * 4, scale_factor=4)
    left, right = base + 0.3 * torch.randn_like(base), base + 0.3 * torch.randn_like(base)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    bits = []
    for _ in range(150):
        out = net(left, right)
        loss = (out.bits_left + out.bits_right).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bits.append(loss.item())
    # 4096 symbols, which would cost 4.05 bits each under one normal density; but neighbours are nearly equal.
    assert bits[0] > 4.05 * 4096 and bits[-1] < 3.5 * 4096


def test_gains() -> None:
    net = entropy_model("checkerboard", rate_count=6)
    x = torch.ones(1, 4, 1, 1)
    scaled = [net.gain(x, x, r)[0].mean().item() for r in range(6)]
    assert scaled == sorted(scaled) and scaled[5] / scaled[0] > 3
    between = net.gain(x, x, 2.5)[1].mean().item()
    assert between == pytest.approx((scaled[2] * scaled[3]) ** 0.5, rel=1e-5)
    back = net.inverse_gain(*net.gain(x, 2 * x, 2.5), 2.5)
    assert torch.allclose(back[1], 2 * x)
    # One rate for each image of a batch.
    batch = net.gain(x.repeat(2, 1, 1, 1), x.repeat(2, 1, 1, 1), torch.tensor([0.0, 5.0]))[0]
    assert batch.mean((1, 2, 3)).tolist() == pytest.approx([scaled[0], scaled[5]])
    single = entropy_model("checkerboard", rate_count=1)
    assert single.gain(x, x, 0.0)[0] is x and "log_gain" not in single.state_dict()


def test_rates_order_the_bits() -> None:
    net = entropy_model("checkerboard", channels=8, rate_count=6)
    y = latents(1, 8, (5, 20), loud=3.0)
    bits = [sum(b.item() for b in net(*y, rate)[2:]) for rate in (0.0, 1.0, 2.5, 4.0, 5.0)]
    assert bits == sorted(bits)


def test_gaussian_bits() -> None:
    scales = scale_table()
    assert scales[0] == 0.125 and scales[-1] == 64.0 and len(scales) == 64
    symbols = torch.arange(-400, 401, dtype=torch.float64)
    for i in (0, 21, 40, 63):
        mass = torch.exp2(-gaussian_bits(symbols, torch.log2(scales[i])))
        assert mass.sum() == pytest.approx(1.0, abs=1e-6)
        if i:  # Sheppard's correction holds where a unit step is small
            deviation = (mass * symbols**2).sum().sqrt().item()
            assert deviation == pytest.approx((scales[i].item() ** 2 + 1 / 12) ** 0.5, rel=0.01)
    # Outliers keep a gradient, in single precision, too.
    x = torch.tensor([100.0, -300.0], requires_grad=True)
    gaussian_bits(x, torch.tensor([-3.0, 0.0])).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[0] > 0 > x.grad[1]


# ------------------------------------------------------------------------------------------------ causality


def float_parameters(net: StereoEntropyModel, y: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Log2-scales and means (view, 2C, h, w) of the training path, without its noise."""
    monkeypatch.setattr(em, "_noisy", lambda x: x)
    with torch.no_grad():
        z = [torch.round(x) for x in net._hyper_latents(tuple(latents(9, 4, y[0].shape[-2:])))]
        hyper = tuple(net.hyper_decoder[v](z[v], tuple(y[0].shape[-2:])) for v in (0, 1))
        predict = net._predict_raster if net.context_kind == "raster" else net._predict_checkerboard
        scales, means = predict(tuple(y), hyper)
    return torch.stack([torch.cat([scales[v], means[v]], 1)[0] for v in (0, 1)])


@pytest.mark.parametrize("cell", [(0, 0), (2, 3), (3, 6), (4, 8)])
@pytest.mark.parametrize("view", [0, 1])
def test_raster_cells_depend_on_earlier_cells_only(
    cell: tuple[int, int], view: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = entropy_model("raster")
    y = latents(0, 4, (5, 9))
    before = float_parameters(net, y, monkeypatch)
    y[view][0, :, cell[0], cell[1]] += 50
    changed = (float_parameters(net, y, monkeypatch) != before).any(1).flatten(1)
    number = cell[0] * 9 + cell[1]
    assert not changed[:, : number + 1].any()
    if number < 44:
        assert changed[:, number + 1].all()  # the next cell, in both views


@pytest.mark.parametrize("view", [0, 1])
def test_checkerboard_anchors_depend_on_the_hyperprior_only(view: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = entropy_model("checkerboard")
    y = latents(0, 4, (5, 9))
    before = float_parameters(net, y, monkeypatch)
    anchors = checkerboard_anchors(5, 9)
    for row, column in [(2, 4), (2, 3)]:
        moved = [x.clone() for x in y]
        moved[view][0, :, row, column] += 50
        changed = (float_parameters(net, moved, monkeypatch) != before).any(1)
        assert not changed[0][anchors[0]].any() and not changed[1][anchors[1]].any()
        if anchors[view][row, column]:
            assert changed[1 - view, row, column], "the cell at the same place of the other view"
            assert changed[view, row, column + 1] and changed[view, row - 1, column]
        else:
            assert not changed.any()


# ------------------------------------------------------------------------------------------------ integers


def test_waves_see_what_a_raster_scan_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    net = entropy_model("raster")
    y = latents(0, 4, (6, 11))
    waves = net.quantise(*y)
    assert len(waves.steps) == 11 + 3 * 5

    def one_by_one(self: IntegerPrior, size: tuple[int, int]) -> list[Step]:
        cells = torch.arange(size[0] * size[1]).split(1)
        return [Step((c, c), (c, c), c, True) for c in cells]

    monkeypatch.setattr(IntegerPrior, "_steps", one_by_one)
    scan = IntegerPrior(net).quantise(net.gain(*y), waves.hyper)
    assert len(scan.steps) == 66
    assert torch.equal(scan.decoded[0], waves.decoded[0]) and torch.equal(scan.decoded[1], waves.decoded[1])


@pytest.mark.parametrize("context", CONTEXTS)
def test_integers_agree_with_floats(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same symbols cost within 1 % of what the floating-point parameters would make them cost."""
    net = entropy_model(context, channels=16, hyper_channels=8, seed=5)
    y = latents(1, 16, (5, 20), loud=2.0)
    coded = net.quantise(*y)
    decoded = coded.latents()
    monkeypatch.setattr(em, "_noisy", lambda x: x)
    # Rounding what is decoded already changes nothing, so this is one pass over decoded values.
    monkeypatch.setattr(em, "_round_through", lambda x: x)
    with torch.no_grad():
        hyper = tuple(net.hyper_decoder[v](coded.hyper[v].float(), (5, 20)) for v in (0, 1))
        predict = net._predict_raster if context == "raster" else net._predict_checkerboard
        scales, means = predict(decoded, hyper)
        exact = torch.cat(coded.latent_bits()).sum()
        bits = sum(gaussian_bits(decoded[v] - means[v], scales[v]).clamp(max=16).sum() for v in (0, 1))
    assert exact == pytest.approx(bits.item(), rel=0.01)
    rows = [coded.decoded[v][0].t().reshape(16, 5, 20) / ONE for v in (0, 1)]
    assert all(torch.equal(r.float(), d[0]) for r, d in zip(rows, decoded, strict=True))
    # Means agree as well: what is left after the symbol is a mean.
    residual = torch.stack([decoded[v] - means[v] for v in (0, 1)])
    assert (residual - residual.round()).abs().quantile(0.99) < 0.05


def test_weights_that_integers_cannot_hold_are_refused() -> None:
    net = entropy_model("checkerboard")
    for value in (float("nan"), float("inf"), 1e6):
        broken = copy.deepcopy(net)
        with torch.no_grad():
            broken.estimator[0][0].weight[0, 0] = value
        with pytest.raises(ValueError, match="entropy model: weights"):
            broken.integer_prior()


def test_integer_prior_follows_the_weights() -> None:
    net = entropy_model("checkerboard")
    y = latents(0, 4, (3, 4))
    first = net(*y).bits_left
    assert net.integer_prior() is net.integer_prior()
    with torch.no_grad():
        net.estimator[0][-1].bias += 1.0
    assert net(*y).bits_left != first


def test_gate_is_the_sigmoid_it_stands_for() -> None:
    x = torch.linspace(-4, 4, 81)
    assert (gate(x) - torch.sigmoid(x)).abs().max() < 0.13
    assert gate(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]
