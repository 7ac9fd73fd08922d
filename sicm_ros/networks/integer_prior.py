# SPDX-License-Identifier: Apache-2.0
"""The entropy model evaluated in exact integers: the same scale indices and means on every device and library version.

Numbers are fixed point with ``FRACTION_BITS`` binary places, held in float64. A layer is one matrix product on unfolded
rows. Its weights are rounded to 16 bits with a power-of-two scale for each output channel, and every partial sum is a
multiple of that scale and stays below 2 ** 52 of it, which is checked when the layer is built; so the product is exact
whatever the order of summation, the number of threads or the batch. Rounding is ``floor`` between layers. There are no
convolution calls (Winograd and FFT variants round), and neither TF32 nor autocast applies to float64.

The order of coding is part of this module: cells are coded in steps, and all parameters of a step depend only on the
hyper-latents and on symbols of earlier steps. ``docs/packet.md`` states the arithmetic for other implementations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .entropy_layers import (
    LEAK,
    SCALE_LEVELS,
    SCALE_LOG2_MIN,
    SCALES_PER_OCTAVE,
    EntropyLayers,
    HyperDecoder,
    checkerboard_anchors,
    gaussian_bits,
    hyper_size,
    scale_table,
)

__all__ = ["FRACTION_BITS", "IntegerPrior", "QuantisedLatents", "Step", "symbol_limits", "to_maps"]

FRACTION_BITS = 10
ONE = float(1 << FRACTION_BITS)
WEIGHT_BITS = 15  # and a sign
_MAX_EXPONENT = 30  # of a channel's scale 2 ** -exponent
_LIMIT = float((1 << 21) - 1)  # activations saturate at about +-2048
_INPUT_LIMIT = float(1 << 22)  # no input of a layer is larger: decoded latents are a symbol plus a mean


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


# Called at each step with the scale indices (B, n, C), int64, and the means (B, n, C) in fixed point, of the n targets
# of the left view followed by those of the right view; returns the symbols, float64, of the same shape.
Coder = Callable[[Step, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class QuantisedLatents:
    """The symbols of a batch of pairs. ``hyper``: (B, Z, hz, wz) for each view. ``symbols`` and ``indices``, int64, one
    (B, n, C) for each step of ``steps``. ``decoded``: both latents (B, h * w, C) in fixed point."""

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
    left, right = [(rows / ONE).float().transpose(1, 2).unflatten(2, size).contiguous() for rows in decoded]
    return left, right


def _to_rows(maps: Tensor) -> Tensor:
    return maps.double().flatten(2).transpose(1, 2)


class _Linear:
    """A layer with the rounding and the activation that follow it; ``weight`` (inputs, outputs), ``bias`` (outputs).

    The layer itself is y = floor(x W + b + 1/2), saturated. ``leaky``: then max(y, floor(y / 64)). ``gate``: then
    clamp(floor(y / 4) + ONE / 2, 0, ONE). As floor(floor(a) / n) = floor(a / n), one ``floor`` does for both.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, device: torch.device, kind: str = "") -> None:
        assert bias is not None  # every convolution of the entropy model has one
        weight, bias = weight.detach().cpu().double(), bias.detach().cpu().double()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ValueError("entropy model: weights must be finite")
        # frexp: max |w| < 2 ** e, so that |w| 2 ** (15 - e) < 2 ** 15
        exponent = (WEIGHT_BITS - torch.frexp(weight.abs().amax(0))[1]).clamp(max=_MAX_EXPONENT)
        scale = torch.exp2(exponent.double())
        integer_weight = torch.round(weight * scale)
        integer_bias = torch.round(bias * ONE * scale)
        offset, slope = (2 * ONE + 0.5, 0.25) if kind == "gate" else (0.5, 1.0)
        bound = integer_weight.abs().sum(0) * _INPUT_LIMIT + integer_bias.abs() + 2 * offset * scale
        if bound.max() >= 2.0**52 or exponent.min() < 0:
            raise ValueError("entropy model: weights are too large for exact integer evaluation")
        # Scaling by a power of two is exact, so the shift after the product is folded into the operands.
        self.weight = (integer_weight * slope / scale).to(device).contiguous()
        self.bias = ((integer_bias / scale + offset) * slope).to(device)
        self.kind = kind

    def sums(self, x: Tensor) -> Tensor:
        """The sums before rounding, (B, n, outputs), of x (B, n, k); inputs from the k-th on count as zero."""
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight[: x.shape[-1]])
        return rows.view(*x.shape[:-1], len(self.bias))

    def add(self, sums: Tensor, x: Tensor, start: int) -> Tensor:
        """Add the contribution of x (B, n, k), the inputs from ``start`` on, to ``sums``, in place."""
        sums.view(-1, sums.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight[start : start + x.shape[-1]])
        return sums

    def rounded(self, sums: Tensor) -> Tensor:
        """Round, saturate, and apply the activation, in place: ``sums`` (B, n, outputs) is overwritten."""
        if self.kind == "gate":
            return sums.floor_().clamp_(0, ONE)
        sums.clamp_(-_LIMIT, _LIMIT)
        return (functional.leaky_relu_(sums, LEAK) if self.kind == "leaky" else sums).floor_()

    def __call__(self, x: Tensor) -> Tensor:
        return self.rounded(self.sums(x))


def _chain(layers: list[_Linear], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _pointwise(net: nn.Sequential, device: torch.device) -> list[_Linear]:
    layers = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    kinds = ["leaky"] * (len(layers) - 1) + [""]
    return [_Linear(x.weight[:, :, 0, 0].t(), x.bias, device, kind) for x, kind in zip(layers, kinds, strict=True)]


def _taps(kernel: int, kind: str) -> list[tuple[int, int]]:
    """Rows and columns of the kernel that are used: all of them, those before the middle (A), or with it (B)."""
    count = {"full": kernel * kernel, "A": kernel * kernel // 2, "B": kernel * kernel // 2 + 1}[kind]
    return [divmod(i, kernel) for i in range(count)]


def _unfolded(conv: nn.Conv2d, taps: str, device: torch.device, kind: str = "") -> _Linear:
    """The layer that does ``conv`` on rows gathered at ``_taps``."""
    weight = torch.cat([conv.weight[:, :, r, c].t() for r, c in _taps(conv.kernel_size[0], taps)])
    return _Linear(weight, conv.bias, device, kind)


def _neighbours(cells: Tensor, size: tuple[int, int], kernel: int, kind: str) -> Tensor:
    """Flat indices (n, taps) of the neighbours of ``cells`` (n,); beyond the border h * w, where a zero row is kept."""
    height, width = size
    taps = torch.tensor(_taps(kernel, kind)) - kernel // 2
    rows = cells[:, None] // width + taps[:, 0]
    columns = cells[:, None] % width + taps[:, 1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, m, C) at ``index`` (n, taps): (B, n, taps * C)."""
    count, taps = index.shape
    return rows.index_select(1, index.reshape(-1)).view(rows.shape[0], count, taps * rows.shape[2])


def _with_zero(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(rows.shape[0], 1, rows.shape[2])], 1)


class _Upsampling:
    """A transposed 5x5 convolution of stride 2, and a leaky unit, as one product on 3x3 neighbourhoods.

    Its columns are the four parities of the output's row and column; each column has its own exponent. Output 2 m + p
    takes input m + d through kernel element p + 2 - 2 d.
    """

    def __init__(self, conv: nn.ConvTranspose2d, device: torch.device) -> None:
        assert conv.bias is not None
        # (inputs, outputs, row, column), with zeros for a sixth row and column
        kernel = functional.pad(conv.weight.detach(), (0, 1, 0, 1))
        blocks = []
        for row, column in _taps(3, "full"):
            elements = [(p + 4 - 2 * row, q + 4 - 2 * column) for p in (0, 1) for q in (0, 1)]
            blocks.append(torch.cat([kernel[:, :, r, c] for r, c in elements], 1))
        self.layer = _Linear(torch.cat(blocks), conv.bias.repeat(4), device, "leaky")

    def __call__(self, x: Tensor, near: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """Rows (B, h * w, C) of ``size`` to rows of ``out``; ``near``: the 3x3 neighbours of all cells."""
        y = self.layer(_gather(_with_zero(x), near)).unflatten(2, (2, 2, -1)).unflatten(1, size)
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, : out[0], : out[1]].flatten(1, 2)


class _HyperDecoder:
    def __init__(self, net: HyperDecoder, device: torch.device) -> None:
        self.up1, self.up2 = _Upsampling(net.up1, device), _Upsampling(net.up2, device)
        self.out = _unfolded(net.out, "full", device)

    def __call__(self, z: Tensor, plan: _Plan) -> Tensor:
        (near1, near2, near3), (size1, size2, size3) = plan.around, plan.sizes
        x = self.up2(self.up1(z, near1, size1, size2), near2, size2, size3)
        return self.out(_gather(_with_zero(x), near3))


@dataclass(frozen=True)
class _Plan:
    """All index tables for one size of the latent."""

    steps: list[Step]
    context: list[tuple[Tensor, Tensor]]  # for each step, neighbours of the targets in the context convolution
    attention: list[tuple[Tensor, Tensor]]  # and in the attention's convolution
    sizes: list[tuple[int, int]]  # of the hyper-latent, of what lies between, and of the latent
    around: list[Tensor]  # 3x3 neighbours of all their cells


class IntegerPrior:
    """Integer copy of those layers of an entropy model that a decoder needs, on their device."""

    def __init__(self, model: EntropyLayers) -> None:
        self.device = next(model.parameters()).device
        self.channels, self.hyper_channels = model.channels, model.hyper_channels
        self.context_channels = model.context_channels
        self.raster = model.context_kind == "raster"
        self._hyper = [_HyperDecoder(net, self.device) for net in model.hyper_decoder]
        self._context = [_unfolded(conv, "A" if self.raster else "full", self.device) for conv in model.context]
        self._features = [_pointwise(net, self.device) for net in model.view_features]
        self._attention = [_pointwise(net, self.device) for net in model.attention]
        taps = "B" if self.raster else "full"
        self._gate = [_unfolded(conv, taps, self.device, "gate") for conv in model.attention_gate]
        # The context comes last in the estimator's input, too, so that the first pass can leave it out.
        self._estimator = [_pointwise(net, self.device) for net in model.estimator]
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
            to = self.device
            height, width = size
            steps = self._steps(size)
            kinds = ("A", "B") if self.raster else ("full", "full")

            def around(kernel: int, kind: str) -> list[tuple[Tensor, Tensor]]:
                return [
                    (
                        _neighbours(s.targets[0], size, kernel, kind).to(to),
                        _neighbours(s.targets[1], size, kernel, kind).to(to),
                    )
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
                around(5, kinds[0]),
                around(3, kinds[1]),
                sizes,
                [_neighbours(torch.arange(h * w), (h, w), 3, "full").to(to) for h, w in sizes],
            )
            self._plans = {size: plan}  # a model has one size; keep no more
        return self._plans[size]

    # ------------------------------------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def run(self, hyper: tuple[Tensor, Tensor], size: tuple[int, int], code: Coder) -> tuple[Tensor, Tensor]:
        """Go through the steps, asking ``code`` for the symbols of each; both latents (B, h * w, C) in fixed point.

        ``hyper``: symbols of the hyper-latents (B, Z, hz, wz) of each view, any dtype.
        """
        plan = self._plan(size)
        batch, cells, wide = hyper[0].shape[0], size[0] * size[1], self.context_channels
        base = [net(_to_rows(z.to(self.device)) * ONE, plan) for net, z in zip(self._hyper, hyper, strict=True)]

        def zeros(rows: int, channels: int) -> Tensor:
            return torch.zeros(batch, rows, channels, dtype=torch.float64, device=self.device)

        decoded = [zeros(cells + 1, self.channels) for _ in range(2)]
        # In the checkerboard the second pass sees one map of both views: each cell is known in exactly one of them.
        known = decoded if self.raster else [zeros(cells + 1, self.channels)] * 2
        features = [zeros(cells, wide) for _ in range(2)]
        attention = [zeros(cells + 1, wide) for _ in range(2)]
        # What the base features add to the first layers is the same in every step.
        feature_base = [self._features[v][0].sums(base[v]) for v in (0, 1)]
        estimator_base = [self._estimator[v][0].sums(base[v]) for v in (0, 1)]
        for step, near, reach in zip(plan.steps, plan.context, plan.attention, strict=True):
            context = [self._context[v](_gather(known[v], near[v])) for v in (0, 1)] if step.has_context else None
            for v in (0, 1):
                first, *others = self._features[v]
                x = feature_base[v].index_select(1, step.refreshed[v])
                x = first.rounded(x if context is None else first.add(x, context[v], wide))
                features[v].index_copy_(1, step.refreshed[v], _chain(others, x))
            seen = [f.index_select(1, step.attended) for f in features]
            outputs = []
            for v in (0, 1):
                first, *others = self._attention[v]
                x = first.rounded(first.add(first.sums(seen[v]), seen[1 - v], wide))
                attention[v].index_copy_(1, step.attended, _chain(others, x))
                weight = self._gate[v](_gather(attention[v], reach[v]))
                other = features[1 - v].index_select(1, step.targets[v]).mul_(weight).mul_(1 / ONE).floor_()
                first, *others = self._estimator[v]
                x = estimator_base[v].index_select(1, step.targets[v])
                x = first.add(x, other, wide)
                x = x if context is None else first.add(x, context[v], 2 * wide)
                outputs.append(_chain(others, first.rounded(x)))
            log2_scale, mean = torch.cat(outputs, 1).chunk(2, -1)
            index = (log2_scale * (SCALES_PER_OCTAVE / ONE) + (0.5 - SCALE_LOG2_MIN * SCALES_PER_OCTAVE)).floor_()
            symbols = code(step, index.clamp_(0, SCALE_LEVELS - 1).long(), mean)
            values = (symbols * ONE + mean).split([len(t) for t in step.targets], 1)
            for v in (0, 1):
                decoded[v].index_copy_(1, step.targets[v], values[v])
                if known[v] is not decoded[v]:
                    known[v].index_copy_(1, step.targets[v], values[v])
        return decoded[0][:, :-1], decoded[1][:, :-1]

    def quantise(self, y: tuple[Tensor, Tensor], hyper: tuple[Tensor, Tensor]) -> QuantisedLatents:
        """The symbols of latents ``y``, (B, C, h, w) each after the gain, given those of the hyper-latents."""
        size = (y[0].shape[-2], y[0].shape[-1])
        rows = [_to_rows(x.to(self.device)) for x in y]
        steps: list[Step] = []
        all_symbols: list[Tensor] = []
        all_indices: list[Tensor] = []

        def code(step: Step, index: Tensor, mean: Tensor) -> Tensor:
            wanted = torch.cat([r.index_select(1, t) for r, t in zip(rows, step.targets, strict=True)], 1)
            limit = self._limits[index]
            symbols = torch.floor(wanted - mean / ONE + 0.5).nan_to_num(0.0).clamp(-limit, limit)
            steps.append(step)
            all_symbols.append(symbols.long())
            all_indices.append(index)
            return symbols

        decoded = self.run(hyper, size, code)
        return QuantisedLatents(size, hyper, steps, all_symbols, all_indices, decoded)
