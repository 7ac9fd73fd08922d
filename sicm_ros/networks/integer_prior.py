# SPDX-License-Identifier: Apache-2.0
"""The entropy model evaluated in exact integers: the same scale indices and means on every device and library version.

The layers are those of ``integer_layers``. The order of coding is part of this module: cells are coded in steps, and
all parameters of a step depend only on the hyper-latents and on symbols of earlier steps. ``docs/packet.md`` states the
arithmetic for other implementations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .entropy_layers import (
    EntropyLayers,
    HyperDecoder,
    checkerboard_anchors,
    gaussian_bits,
    hyper_size,
    scale_table,
)
from .integer_layers import ONE, CompiledLayers, FloatLayers, Layers

__all__ = ["IntegerPrior", "QuantisedLatents", "Step", "symbol_limits", "to_maps"]


def symbol_limits() -> Tensor:
    """Limits, (SCALE_LEVELS,) int64: symbols coded with scale index i are in [-limits[i], limits[i]]."""
    return torch.ceil(6 * scale_table()).long().clamp(min=16)


@dataclass(frozen=True)
class Step:
    """Cells (flat, raster order) that are coded together; left view at 0, right view at 1.

    ``targets`` are coded in this step. ``refreshed`` cells get new view features, ``attended`` cells new attention.
    """

    targets: tuple[Tensor, Tensor]
    refreshed: tuple[Tensor, Tensor]
    attended: Tensor
    has_context: bool


# Called with the number of a step, its scale indices (B, n, C), and the means (B, n, C) in fixed point, of the n
# targets of the left view followed by those of the right view; returns the symbols, of the same shape. All three are
# what the layers compute with.
Coder = Callable[[int, Any, Any], Any]


@dataclass(frozen=True)
class QuantisedLatents:
    """The symbols of a batch of pairs. ``hyper``: (B, Z, hz, wz) for each view. ``symbols`` and ``indices``, int32, one
    (B, n, C) for each step of ``steps``. ``decoded``: both latents (B, h * w, C) in fixed point, int32."""

    size: tuple[int, int]
    hyper: tuple[Tensor, Tensor]
    steps: list[Step]
    symbols: list[Tensor]
    indices: list[Tensor]
    decoded: tuple[Tensor, Tensor]

    def latents(self) -> tuple[Tensor, Tensor]:
        """Both decoded latents (B, C, h, w), float32, before the inverse gain."""
        return to_maps(self.decoded, self.size)

    def latent_bits(self) -> tuple[Tensor, Tensor]:
        """Estimated bits (B,) of the latents of each view, without the hyper-latents."""
        log2_scales = torch.log2(scale_table(self.hyper[0].device))
        bits = [torch.zeros(len(self.hyper[0]), dtype=torch.float64, device=self.hyper[0].device) for _ in range(2)]
        for step, symbols, indices in zip(self.steps, self.symbols, self.indices, strict=True):
            # No symbol of the coder's tables is less likely than 2 ** -16.
            cost = gaussian_bits(symbols.double(), log2_scales[indices]).clamp(max=16).sum(-1)
            split = len(step.targets[0])
            bits[0] += cost[:, :split].sum(-1)
            bits[1] += cost[:, split:].sum(-1)
        return bits[0].float(), bits[1].float()


def to_maps(decoded: tuple[Tensor, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Fixed-point rows (B, h * w, C) of both views to float32 maps (B, C, h, w)."""
    left, right = [(rows.transpose(1, 2).contiguous() / ONE).unflatten(2, size) for rows in decoded]
    return left, right


def _chain(layers: list[Any], *parts: Any, into: Any = None) -> Any:
    """The last layer's result for what the first one takes; ``into`` as in the layers."""
    *others, last = layers
    for layer in others:
        parts = ((layer(*parts), None),)
    return last(*parts, into=into)


def _pointwise(net: nn.Sequential, layers: Layers) -> list[Any]:
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    kinds = ["leaky"] * (len(convs) - 1) + [""]
    return [layers.layer(x.weight[:, :, 0, 0].t(), x.bias, kind) for x, kind in zip(convs, kinds, strict=True)]


def _taps(kernel: int, kind: str) -> list[tuple[int, int]]:
    """Rows and columns of the kernel that are used: all of them, those before the middle (A), or with it (B)."""
    count = {"full": kernel * kernel, "A": kernel * kernel // 2, "B": kernel * kernel // 2 + 1}[kind]
    return [divmod(i, kernel) for i in range(count)]


def _unfolded(conv: nn.Conv2d, taps: str, layers: Layers, kind: str = "") -> Any:
    """The layer that does ``conv`` on rows gathered at ``_taps``."""
    weight = torch.cat([conv.weight[:, :, r, c].t() for r, c in _taps(conv.kernel_size[0], taps)])
    return layers.layer(weight, conv.bias, kind)


def _neighbours(cells: Tensor, size: tuple[int, int], kernel: int, kind: str) -> Tensor:
    """Flat indices (n, taps) of the neighbours of ``cells`` (n,); beyond the border h * w, where a zero row is kept."""
    height, width = size
    taps = torch.tensor(_taps(kernel, kind)) - kernel // 2
    rows = cells[:, None] // width + taps[:, 0]
    columns = cells[:, None] % width + taps[:, 1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width)


class _Upsampling:
    """A transposed 5x5 convolution of stride 2, and a leaky unit, as one product on 3x3 neighbourhoods.

    Its columns are the four parities of the output's row and column; each column has its own exponent. Output 2 m + p
    takes input m + d through kernel element p + 2 - 2 d.
    """

    def __init__(self, conv: nn.ConvTranspose2d, layers: Any) -> None:
        assert conv.bias is not None
        # (inputs, outputs, row, column), with zeros for a sixth row and column
        kernel = functional.pad(conv.weight.detach(), (0, 1, 0, 1))
        blocks = []
        for row, column in _taps(3, "full"):
            elements = [(p + 4 - 2 * row, q + 4 - 2 * column) for p in (0, 1) for q in (0, 1)]
            blocks.append(torch.cat([kernel[:, :, r, c] for r, c in elements], 1))
        self.layers, self.layer = layers, layers.layer(torch.cat(blocks), conv.bias.repeat(4), "leaky")

    def __call__(self, x: Any, near: Any, size: tuple[int, int], out: tuple[int, int]) -> Any:
        """Rows (B, h * w + 1, C) of ``size``, the last of zeros, to such rows of ``out``; ``near``: the 3x3 neighbours
        of all cells."""
        return self.layers.interleaved(self.layer((x, near)), size, out)


class _HyperDecoder:
    def __init__(self, net: HyperDecoder, layers: Any) -> None:
        self.layers = layers
        self.up1, self.up2 = _Upsampling(net.up1, layers), _Upsampling(net.up2, layers)
        self.out = _unfolded(net.out, "full", layers)

    def __call__(self, z: Any, plan: _Plan) -> Any:
        (near1, near2, near3), (size1, size2, size3) = plan.around, plan.sizes
        x = self.up2(self.up1(z, near1, size1, size2), near2, size2, size3)
        return self.out((x, near3))


@dataclass(frozen=True)
class _Plan:
    """All index tables for one size of the latent, in the form that the layers take, but for the steps."""

    steps: list[Step]
    targets: list[tuple[Any, Any]]  # those of each step
    refreshed: list[tuple[Any, Any]]
    attended: list[Any]
    alone: list[tuple[list[Any], list[Any], Any]]  # all three as tables (n, 1)
    context: list[tuple[Any, Any]]  # for each step, neighbours of the targets in the context convolution
    attention: list[tuple[Any, Any]]  # and in the attention's convolution
    sizes: list[tuple[int, int]]  # of the hyper-latent, of what lies between, and of the latent
    around: list[Any]  # 3x3 neighbours of all their cells


class IntegerPrior:
    """Integer copy of those layers of an entropy model that a decoder needs, on their device."""

    def __init__(self, model: EntropyLayers, layers: Layers | None = None) -> None:
        """``layers``: the compiled ones on a CPU, else PyTorch's, unless given."""
        self.device = next(model.parameters()).device
        if layers is None:
            layers = CompiledLayers() if self.device.type == "cpu" else FloatLayers(self.device)
        self._layers: Any = layers
        self.channels, self.hyper_channels = model.channels, model.hyper_channels
        self.context_channels = model.context_channels
        self.raster = model.context_kind == "raster"
        self._hyper = [_HyperDecoder(net, layers) for net in model.hyper_decoder]
        self._context = [_unfolded(conv, "A" if self.raster else "full", layers) for conv in model.context]
        self._features = [_pointwise(net, layers) for net in model.view_features]
        self._attention = [_pointwise(net, layers) for net in model.attention]
        taps = "B" if self.raster else "full"
        self._gate = [_unfolded(conv, taps, layers, "gate") for conv in model.attention_gate]
        # The context comes last in the estimator's input, too, so that the first pass can leave it out.
        self._estimator = [_pointwise(net, layers) for net in model.estimator]
        self._limits = symbol_limits().double().to(self.device)
        self._plans: dict[tuple[int, int], _Plan] = {}

    # ------------------------------------------------------------------------------------------------ order

    def _steps(self, size: tuple[int, int]) -> list[Step]:
        height, width = size
        cells = torch.arange(height * width)
        if not self.raster:
            first = [cells[anchors.flatten()] for anchors in checkerboard_anchors(height, width)]
            second = (first[1], first[0])
            return [Step((first[0], first[1]), (cells, cells), cells, False), Step(second, second, cells, True)]
        # The farthest that a raster-scan cell looks ahead is two columns to the right in the row above. So all cells of
        # equal column + 3 row can be coded at once; what each of them sees is just what it sees in raster order.
        time = cells % width + 3 * (cells // width)
        waves = [cells[time == t] for t in range(int(time.max()) + 1)]
        return [Step((wave, wave), (wave, wave), wave, True) for wave in waves if len(wave)]

    def _plan(self, size: tuple[int, int]) -> _Plan:
        if size not in self._plans:
            to, table = self.device, self._layers.table
            height, width = size
            steps = self._steps(size)
            kinds = ("A", "B") if self.raster else ("full", "full")

            def both(pair: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
                return table(pair[0]), table(pair[1])

            def around(kernel: int, kind: str) -> list[tuple[Any, Any]]:
                return [
                    both((_neighbours(s.targets[0], size, kernel, kind), _neighbours(s.targets[1], size, kernel, kind)))
                    for s in steps
                ]

            sizes = [hyper_size(height, width), (-(-height // 2), -(-width // 2)), size]
            plan = _Plan(
                [
                    Step(
                        (s.targets[0].to(to), s.targets[1].to(to)),
                        (s.refreshed[0].to(to), s.refreshed[1].to(to)),
                        s.attended.to(to),
                        s.has_context,
                    )
                    for s in steps
                ],
                [both(s.targets) for s in steps],
                [both(s.refreshed) for s in steps],
                [table(s.attended) for s in steps],
                [
                    (
                        [table(x[:, None]) for x in s.targets],
                        [table(x[:, None]) for x in s.refreshed],
                        table(s.attended[:, None]),
                    )
                    for s in steps
                ],
                around(5, kinds[0]),
                around(3, kinds[1]),
                sizes,
                [table(_neighbours(torch.arange(h * w), (h, w), 3, "full")) for h, w in sizes],
            )
            self._plans = {size: plan}  # a model has one size; keep no more
        return self._plans[size]

    # ------------------------------------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def run(self, hyper: tuple[Tensor, Tensor], size: tuple[int, int], code: Coder) -> tuple[Tensor, Tensor]:
        """Go through the steps, asking ``code`` for the symbols of each; both latents (B, h * w, C) in fixed point.

        ``hyper``: symbols of the hyper-latents (B, Z, hz, wz) of each view, any dtype.
        """
        plan, layers = self._plan(size), self._layers
        batch, cells, wide = hyper[0].shape[0], size[0] * size[1], self.context_channels
        base = [net(layers.with_zero(z * ONE), plan) for net, z in zip(self._hyper, hyper, strict=True)]
        decoded = [layers.result(batch, cells, self.channels) for _ in range(2)]
        # In the checkerboard the second pass sees one map of both views: each cell is known in exactly one of them.
        known = [layers.zeros(batch, cells + 1, self.channels)] * 2
        if self.raster:
            known = [known[0], layers.zeros(batch, cells + 1, self.channels)]
        features = [layers.zeros(batch, cells, wide) for _ in range(2)]
        attention = [layers.zeros(batch, cells + 1, wide) for _ in range(2)]
        for i, step in enumerate(plan.steps):
            targets, refreshed, attended = plan.targets[i], plan.refreshed[i], plan.attended[i]
            each_target, each_refreshed, each_attended = plan.alone[i]
            context: list[list[Any]] = [[], []]
            if step.has_context:
                context = [[(self._context[v]((known[v], plan.context[i][v])), None)] for v in (0, 1)]
            for v in (0, 1):
                parts = [(base[v], each_refreshed[v]), *context[v]]
                _chain(self._features[v], *parts, into=(features[v], refreshed[v]))
            seen = [(x, each_attended) for x in features]
            outputs = []
            for v in (0, 1):
                _chain(self._attention[v], seen[v], seen[1 - v], into=(attention[v], attended))
                weight = self._gate[v]((attention[v], plan.attention[i][v]))
                other = layers.scaled(features[1 - v], targets[v], weight)
                parts = [(base[v], each_target[v]), (other, None), *context[v]]
                outputs.append(_chain(self._estimator[v], *parts))
            index, mean = layers.parameters((outputs[0], outputs[1]))
            symbols = code(i, index, mean)
            for v, rows in enumerate(layers.values(symbols, mean, [len(t) for t in step.targets])):
                layers.keep(decoded[v], targets[v], rows)
                if i + 1 < len(plan.steps):
                    layers.put(known[v], targets[v], rows)
        return layers.tensor(decoded[0]), layers.tensor(decoded[1])

    def quantise(self, y: tuple[Tensor, Tensor], hyper: tuple[Tensor, Tensor]) -> QuantisedLatents:
        """The symbols of latents ``y``, (B, C, h, w) each after the gain, given those of the hyper-latents."""
        layers, size = self._layers, (y[0].shape[-2], y[0].shape[-1])
        plan, maps = self._plan(size), (layers.maps(y[0]), layers.maps(y[1]))
        all_symbols: list[Tensor] = []
        all_indices: list[Tensor] = []

        def code(step: int, index: Any, mean: Any) -> Any:
            symbols = layers.nearest(maps, plan.targets[step], index, mean, self._limits)
            all_symbols.append(layers.tensor(symbols))
            all_indices.append(layers.tensor(index))
            return symbols

        decoded = self.run(hyper, size, code)
        return QuantisedLatents(size, hyper, plan.steps, all_symbols, all_indices, decoded)

    def decode(
        self, hyper: tuple[Tensor, Tensor], size: tuple[int, int], read: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """As ``run``; ``read`` gets the scale indices of a step and gives the symbols, both (B, n, C) int32."""
        return self.run(hyper, size, self.reader(read))

    def reader(self, read: Callable[[np.ndarray], np.ndarray]) -> Coder:
        """What ``run`` asks, for ``read`` as in ``decode``."""

        def code(step: int, index: Any, mean: Any) -> Any:
            return self._layers.symbols(read(self._layers.tensor(index).cpu().numpy()))

        return code
