# SPDX-License-Identifier: Apache-2.0
"""Decoder of a packet's symbols in plain integers, written from docs/packet.md; shares no code with the package."""

import struct
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ONE, LIMIT = 1024, 2**21 - 1


def leaky(x):
    return np.maximum(x, x >> 6)


def gate(x):
    return np.clip((x >> 2) + 512, 0, 1024)


class Reference:
    """``weights``: tensors by name, entropy model's names without prefix, and the tables."""

    def __init__(self, weights: dict, size: tuple[int, int], raster: bool):
        self.w, (self.height, self.width), self.raster = weights, size, raster
        self.channels = weights["hyper_encoder.0.0.weight"].shape[1]
        self.hyper_channels = weights["hyper_encoder.0.0.weight"].shape[0]
        self.context_channels = weights["context.0.weight"].shape[0]
        self.limits = [max(16, int(np.ceil(6 * 2 ** (i / 7 - 3)))) for i in range(64)]
        ends = np.cumsum([2 * k + 1 for k in self.limits])
        self.latent_counts = np.split(weights["tables.latent"], ends[:-1])

    # ------------------------------------------------------------------------------------------ section 2

    def start(self, payload: bytes):
        self.words = list(struct.unpack(f"<{-(-len(payload) // 4)}I", payload + bytes(-len(payload) % 4)))
        self.state = 0
        while self.state < 2**32 and self.words:
            self.state = self.state * 2**32 + self.words.pop()

    def symbol(self, counts):
        m = len(counts)
        before = np.concatenate([[0], np.cumsum(counts.astype(np.int64))[:-1]])
        b = [int(c) * (2**24 - m) // 2**16 + k for k, c in enumerate(before)] + [2**24]
        q = self.state % 2**24
        k = max(i for i in range(m) if b[i] <= q)
        self.state = (self.state // 2**24) * (b[k + 1] - b[k]) + q - b[k]
        if self.state < 2**32 and self.words:
            self.state = self.state * 2**32 + self.words.pop()
        return k - m // 2

    # ------------------------------------------------------------------------------------------ section 4

    @staticmethod
    def layer(weight, bias, x):
        """weight (out, in) float, x (in,) integer."""
        largest = np.abs(weight.astype(np.float64)).max(1)
        s = np.minimum(15 - np.frexp(largest)[1].astype(np.int64), 30)
        scale = 2.0**s
        w = np.round(weight.astype(np.float64) * scale[:, None]).astype(np.int64)
        b = np.round(bias.astype(np.float64) * 1024 * scale).astype(np.int64)
        total = w @ x + b + np.where(s > 0, 2 ** np.maximum(s - 1, 0), 0)
        return np.clip(total >> s, -LIMIT, LIMIT)

    def conv(self, name, x, r, c, taps):
        """At one cell; ``x`` (channels, rows, columns); ``taps``: how many kernel elements are used."""
        weight = self.w[name + ".weight"]
        half = weight.shape[2] // 2
        used, values = [], []
        for i in range(taps):
            kr, kc = divmod(i, weight.shape[3])
            rr, cc = r + kr - half, c + kc - half
            inside = 0 <= rr < x.shape[1] and 0 <= cc < x.shape[2]
            used.append(weight[:, :, kr, kc])
            values.append(x[:, rr, cc] if inside else np.zeros(x.shape[0], np.int64))
        return self.layer(np.concatenate(used, 1), self.w[name + ".bias"], np.concatenate(values))

    def transposed(self, name, x, height, width):
        weight, bias = self.w[name + ".weight"], self.w[name + ".bias"]
        y = np.zeros((weight.shape[1], height, width), np.int64)
        for r in range(height):
            for c in range(width):
                used, values = [], []
                for kr in range(r % 2, 5, 2):
                    for kc in range(c % 2, 5, 2):
                        i, j = (r + 2 - kr) // 2, (c + 2 - kc) // 2
                        inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
                        used.append(weight[:, :, kr, kc].T)
                        values.append(x[:, i, j] if inside else np.zeros(x.shape[0], np.int64))
                y[:, r, c] = self.layer(np.concatenate(used, 1), bias, np.concatenate(values))
        return y

    def chain(self, name, x):
        layers = sorted({int(k.split(".")[2]) for k in self.w if k.startswith(name + ".")})
        for n, i in enumerate(layers):
            weight = self.w[f"{name}.{i}.weight"][:, :, 0, 0]
            x = self.layer(weight, self.w[f"{name}.{i}.bias"], leaky(x) if n else x)
        return x

    def base(self, v, z):
        half = (-(-self.height // 2), -(-self.width // 2))
        a = leaky(self.transposed(f"hyper_decoder.{v}.up1", z * ONE, *half))
        b = leaky(self.transposed(f"hyper_decoder.{v}.up2", a, self.height, self.width))
        return self.at_cells(f"hyper_decoder.{v}.out", b)

    def at_cells(self, name, x):
        out = np.zeros((len(self.w[name + ".bias"]), self.height, self.width), np.int64)
        for r in range(self.height):
            for c in range(self.width):
                out[:, r, c] = self.conv(name, x, r, c, 9)
        return out

    # ------------------------------------------------------------------------------------------ section 3

    def steps(self):
        cells = [(r, c) for r in range(self.height) for c in range(self.width)]
        if not self.raster:
            even, odd = [x for x in cells if sum(x) % 2 == 0], [x for x in cells if sum(x) % 2 == 1]
            return [(even, odd), (odd, even)]
        waves = [[(r, c) for r, c in cells if c + 3 * r == t] for t in range(self.width + 3 * (self.height - 1))]
        return [(wave, wave) for wave in waves if wave]

    def decode(self, payload: bytes):
        """Hyper-latents, latents' symbols in the order of coding, and both latents in fixed point (C, h, w)."""
        self.start(payload)
        zh, zw = -(-self.height // 4), -(-self.width // 4)
        z = np.zeros((2, self.hyper_channels, zh, zw), np.int64)
        for v in range(2):
            for k in range(self.hyper_channels):
                for i in range(zh * zw):
                    z[v, k].reshape(-1)[i] = self.symbol(self.w["tables.hyper"][v, k])
        base = [self.base(v, z[v]) for v in range(2)]
        f = self.context_channels
        u = np.zeros((2, f, self.height, self.width), np.int64)
        t = np.zeros((2, f, self.height, self.width), np.int64)
        decoded = np.zeros((2, self.channels, self.height, self.width), np.int64)
        both = np.zeros((self.channels, self.height, self.width), np.int64)
        everywhere = [(r, c) for r in range(self.height) for c in range(self.width)]
        all_symbols = []
        for number, step in enumerate(self.steps()):
            context = [{}, {}]
            for v in range(2):
                for r, c in step[v]:
                    if self.raster:
                        context[v][r, c] = self.conv(f"context.{v}", decoded[v], r, c, 12)
                    elif number == 1:
                        context[v][r, c] = self.conv(f"context.{v}", both, r, c, 25)
                    else:
                        context[v][r, c] = np.zeros(f, np.int64)
                for r, c in everywhere if not self.raster and number == 0 else step[v]:
                    own = context[v].get((r, c), np.zeros(f, np.int64))
                    u[v, :, r, c] = self.chain(f"view_features.{v}", np.concatenate([base[v][:, r, c], own]))
            parameters = []
            for v in range(2):
                for r, c in step[v] if self.raster else everywhere:
                    t[v, :, r, c] = self.chain(f"attention.{v}", np.concatenate([u[v, :, r, c], u[1 - v, :, r, c]]))
                for r, c in step[v]:
                    g = gate(self.conv(f"attention_gate.{v}", t[v], r, c, 5 if self.raster else 9))
                    m = (g * u[1 - v, :, r, c]) >> 10
                    parameters.append(
                        self.chain(f"estimator.{v}", np.concatenate([base[v][:, r, c], m, context[v][r, c]]))
                    )
            e = np.array(parameters)
            index = np.clip((7 * e[:, : self.channels] + 21 * 1024 + 512) >> 10, 0, 63).reshape(-1)
            symbols = np.zeros(len(index), np.int64)
            for i in range(64):
                for k in np.flatnonzero(index == i):
                    symbols[k] = self.symbol(self.latent_counts[i])
            all_symbols.append(symbols)
            values = symbols.reshape(-1, self.channels) * ONE + e[:, self.channels :]
            places = [(0, *cell) for cell in step[0]] + [(1, *cell) for cell in step[1]]
            for (v, r, c), value in zip(places, values, strict=True):
                decoded[v, :, r, c] = both[:, r, c] = value
        if self.state or self.words:
            raise ValueError("the payload does not end with the symbols")
        return z, np.concatenate(all_symbols), decoded


def decode_packet(packet: bytes, weights_file: Path, size: tuple[int, int]):
    """What ``Reference.decode`` gives for a packet of a checkerboard model, after the checks of section 1 and 5."""
    magic, version = packet[:4], packet[4]
    payload_bytes, symbol_hash = struct.unpack_from("<II", packet, 65)
    assert magic == b"SICM" and version == 1 and len(packet) == 77 + payload_bytes
    assert struct.unpack("<I", packet[-4:])[0] == zlib.crc32(packet[:-4])
    prefix = "entropy_model."
    weights = {
        k.removeprefix(prefix): w for k, w in load_file(weights_file).items() if k.startswith((prefix, "tables."))
    }
    z, symbols, decoded = Reference(weights, size, raster=False).decode(packet[73:-4])
    coded = np.concatenate([z.reshape(-1), symbols]).astype("<i2").tobytes()
    assert zlib.crc32(coded) == symbol_hash
    return z, symbols, decoded
