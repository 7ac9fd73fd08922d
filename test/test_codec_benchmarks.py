# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the codec, on tiny models: what they compare, and that they notice what they are for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_material import TINY, TINY_MODEL, entropy_model, latents

from sicm_ros.codec.payload import compress, decompress, decompress_batch
from sicm_ros.codec.range_coder import RangeCoder
from sicm_ros.networks.entropy_tables import TOTAL, EntropyTables
from sicm_ros.networks.integer_prior import IntegerPrior
from sicm_ros.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import coders
import context
import entropy_cost
import exactness

pytestmark = pytest.mark.filterwarnings("ignore:TF32")


@pytest.mark.parametrize("kind", ["raster", "checkerboard"])
def test_four_pairs_at_once_are_four_single_ones(kind: str) -> None:
    """Symbol for symbol, index for index, mean for mean; with an odd number of cells, so that the views differ."""
    net = entropy_model(kind, channels=8, hyper_channels=4, rate_count=3)
    coder, size = RangeCoder(EntropyTables.build(net)), (5, 9)
    y, rate = latents(7, 8, size, batch=4), torch.tensor([0.0, 0.5, 1.25, 2.0])
    whole = net.quantise(*y, rate)
    payloads = []
    for item in range(4):
        own = slice(item, item + 1)
        single = net.quantise(y[0][own], y[1][own], rate[own])
        for a, b in zip(
            [*whole.hyper, *whole.symbols, *whole.indices, *whole.decoded],
            [*single.hyper, *single.symbols, *single.indices, *single.decoded],
            strict=True,
        ):
            assert torch.equal(a[item], b[0])
        payloads.append(compress(whole, coder, item)[0])
        assert payloads[-1] == compress(single, coder)[0]
    left, right = whole.latents()
    for item, decoded in enumerate(decompress_batch(payloads, coder, net.integer_prior(), size)):
        alone = decompress(payloads[item], coder, net.integer_prior(), size)
        assert decoded.complete and alone.complete and decoded.symbol_hash == alone.symbol_hash
        assert torch.equal(decoded.left[0], left[item]) and torch.equal(decoded.right, alone.right)
        assert torch.equal(alone.right[0], right[item])


def pairs(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input of the tiny model."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(1, 3, 96, 288, generator=generator), torch.randn(1, 3, 96, 288, generator=generator))
        for _ in range(count)
    ]


def test_exactness_of_the_tiny_model() -> None:
    settings = exactness.SETTINGS + exactness.OPENVINO_SETTINGS
    machine = exactness.Machine(str(TINY_MODEL), settings)
    equal, other, integers = exactness.compare(machine, settings, pairs(4), [0.0, 1.5, 3.0, 5.0])
    assert (equal == 4).all() and equal.shape == (len(settings), len(settings))
    # Both hyper-latents, and symbol, index and mean of each element of both latents.
    assert integers == 4 * 2 * (2 * 1 * 3 + 3 * 4 * 3 * 9)
    assert other[0] == 0
    before = torch.get_num_threads()
    with exactness.applied(settings[1]):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("part", ["index", "mean"])
def test_exactness_notices_a_setting_under_which_one_integer_differs(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = IntegerPrior.run

    def wrong(self: IntegerPrior, hyper, size, code):  # noqa: ANN001, ANN202
        def shifted(step, index, mean):  # noqa: ANN001, ANN202
            if torch.is_autocast_enabled("cpu"):
                changed = index if part == "index" else mean
                changed[0, 0, 0] = changed[0, 0, 0] - 1 if changed[0, 0, 0] else 1
            return code(step, index, mean)

        return run(self, hyper, size, shifted)

    monkeypatch.setattr(IntegerPrior, "run", wrong)
    machine, settings = exactness.Machine(str(TINY_MODEL), exactness.SETTINGS), exactness.SETTINGS
    equal, _, _ = exactness.compare(machine, settings, pairs(2), [3.0, 5.0])
    mixed = np.array([s.autocast is not None for s in settings])
    assert (equal[np.ix_(~mixed, ~mixed)] == 2).all() and (equal[np.ix_(mixed, mixed)] == 2).all()
    assert (equal[np.ix_(~mixed, mixed)] == 0).all() and (equal[np.ix_(mixed, ~mixed)] == 0).all()


@pytest.mark.parametrize("kind", ["raster", "checkerboard"])
def test_bits_counted_in_each_way(kind: str) -> None:
    net = entropy_model(kind, channels=16, hyper_channels=8, rate_count=3)
    coder = RangeCoder(EntropyTables.build(net))
    y = latents(1, 16, (5, 20), loud=3.0)
    with torch.inference_mode():
        bits = entropy_cost.costs(net, coder, (y[0], y[1]), 1.0)
    assert bits["real"] == pytest.approx(bits["tables"], abs=0.001 * bits["tables"] + 64)
    assert bits["estimate"] == pytest.approx(bits["real"], rel=0.02)
    assert bits["float, same values"] == pytest.approx(bits["real"], rel=0.01)
    if kind == "checkerboard":
        assert bits["float codec"] == pytest.approx(bits["real"], rel=0.02)
    # Tables that expect nothing in particular show in the real bytes, and only there.
    rows = [np.full(len(row), TOTAL // len(row), np.int32) for row in coder.tables.latent_rows]
    for row in rows:
        row[0] += TOTAL - row.sum()
    nothing = RangeCoder(EntropyTables(np.concatenate(rows), coder.tables.hyper))
    with torch.inference_mode():
        flat = entropy_cost.costs(net, nothing, (y[0], y[1]), 1.0)
    assert flat["real"] > 1.03 * bits["real"]
    assert flat["estimate"] == bits["estimate"] and flat["float, same values"] == bits["float, same values"]


@pytest.mark.slow
def test_all_range_coders_code_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        ans = coders.compressai().ans
    except ImportError as e:
        pytest.skip(f"no CompressAI: {e}")
    pytest.importorskip("constriction")
    net = entropy_model("checkerboard", channels=16, hyper_channels=8)
    tables = EntropyTables.build(net)
    pair = coders.PairSymbols.of(net.quantise(*latents(6, 16, (5, 20), loud=8.0)))
    ours, theirs, library = coders.Ours(tables), coders.CompressAi(tables, ans), coders.Constriction(tables)
    seconds, size, other = coders.compare(pair, ours, theirs, library, turns=2)
    assert other == pytest.approx(size, rel=0.01) and size > 1000
    assert len(seconds) == 8 and all(len(v) == 2 for v in seconds.values())
    monkeypatch.setattr(theirs, "decode", lambda *a: [x + 1 for x in coders.CompressAi.decode(theirs, *a)])
    with pytest.raises(ValueError, match="CompressAI's coder: expected the symbols back"):
        coders.compare(pair, ours, theirs, library, turns=0)


def test_training_of_either_context_starts_alike_and_saves_bytes() -> None:
    nets = context.untrained(TINY, 1)
    assert all(torch.equal(a, b) for a, b in zip(*(net.state_dict().values() for net in nets.values()), strict=True))
    data = torch.stack([torch.cat(latents(seed, 4, (3, 9), loud=6.0)) for seed in range(8)])
    config = TrainConfig(learning_rate=(0.0, 1e-2, 0.0, 0.0), gradient_clip=5.0)
    for net in nets.values():
        before = context.payload_bytes(net, data).mean()
        context.train(net, data, config, 20, 1)
        assert context.payload_bytes(net, data).mean() < 0.9 * before


def test_sequential_passes() -> None:
    nets = {kind: entropy_model(kind, channels=4, hyper_channels=2) for kind in context.CONTEXTS}
    times = context.decoding_times(nets, (5, 9), 1, 1)
    assert times["checkerboard"].passes == 3
    # One for each diagonal of the raster's wave, and the hyper-decoder.
    assert times["raster"].passes == 1 + 9 + 3 * 4
    assert all(len(t.cpu) == 1 and t.cpu[0] > 0 for t in times.values())
