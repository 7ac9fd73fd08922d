#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether a packet decodes to the same symbols whatever computes its probabilities.

    python benchmarks/exactness.py --pairs 500 --kitti KITTI --model sicm-compact --seed 1

Each pair is encoded under each setting: one thread or two, float32 or bf16 autocast around everything, one pair or four
at once, oneDNN off, reduced precision of float32 products (TF32, or bf16 on a CPU) allowed, OpenVINO where it is
installed, and a GPU where there is one. The network's latents round differently, so packets may differ. Each packet
must decode, under each setting, to what its own encoder coded: both hyper-latents, and every latent symbol of both
views with its table index and its fixed-point mean. Exits with 1 if one does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or a second thread on a busy machine waits by spinning

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pairs import console, frames, real_pairs, watched  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from sicm_ros.codec import packet  # noqa: E402
from sicm_ros.codec.payload import compress, decompress_batch  # noqa: E402
from sicm_ros.codec.range_coder import RangeCoder  # noqa: E402
from sicm_ros.inference import Engine  # noqa: E402
from sicm_ros.inference.engine import VehicleEngine, no_lap, vehicle_engine  # noqa: E402
from sicm_ros.model_store import StoredModel, load_model  # noqa: E402
from sicm_ros.networks.integer_prior import ONE, IntegerPrior, QuantisedLatents  # noqa: E402
from sicm_ros.preprocessing import prepare  # noqa: E402

BATCH = 4


@dataclass(frozen=True)
class Setting:
    """How the networks and the integer prior are evaluated; the default is the reference."""

    name: str
    threads: int = 1
    batch: int = 1
    autocast: torch.dtype | None = None
    onednn: bool = True
    precision: str = "highest"  # of float32 matrix products; TF32 follows it on a GPU
    device: str = "cpu"
    engine: Engine = "torch"


SETTINGS = [
    Setting("float32, 1 thread, batch 1"),
    Setting("2 threads", threads=2),
    Setting("bf16 autocast", autocast=torch.bfloat16),
    Setting("batch 4", batch=BATCH),
    Setting("oneDNN off", onednn=False),
    Setting("TF32 allowed", precision="medium"),
]
OPENVINO_SETTINGS = [Setting("OpenVINO, 2 threads, batch 4", threads=2, batch=BATCH, engine="openvino")]
GPU_SETTINGS = [
    Setting("GPU float32", device="cuda"),
    Setting("GPU TF32", precision="high", device="cuda"),
    Setting("GPU fp16, batch 4", batch=BATCH, autocast=torch.float16, precision="medium", device="cuda"),
]


@contextmanager
def applied(setting: Setting) -> Iterator[None]:
    """Evaluate with a setting; then as before."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32  # on by default, and not part of that precision
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.backends.mkldnn.flags(enabled=setting.onednn))
        if setting.autocast is not None:
            stack.enter_context(torch.autocast(setting.device, setting.autocast))
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.set_float32_matmul_precision, precision)
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", convolutions)
        torch.set_num_threads(setting.threads)
        torch.set_float32_matmul_precision(setting.precision)
        torch.backends.cudnn.allow_tf32 = setting.precision != "highest"
        yield


@dataclass(frozen=True)
class Coded:
    """A payload, and every integer that its encoder used."""

    payload: bytes
    symbol_hash: int
    integers: np.ndarray


def _flat(item: int, arrays: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([x[item].cpu().numpy().astype(np.int64).reshape(-1) for x in arrays])


def _coded_integers(coded: QuantisedLatents, item: int) -> np.ndarray:
    """Hyper-latents; then symbols, table indices and means, step by step."""
    arrays = [*coded.hyper]
    for step, symbols, indices in zip(coded.steps, coded.symbols, coded.indices, strict=True):
        values = torch.cat([coded.decoded[v].index_select(1, step.targets[v]) for v in (0, 1)], 1)
        arrays += [symbols, indices, values - symbols * ONE]
    return _flat(item, arrays)


class _Recorder:
    """An integer prior that keeps what the decoder sees."""

    def __init__(self, integers: IntegerPrior) -> None:
        self._integers = integers
        self.hyper_channels = integers.hyper_channels
        self.arrays: list[Tensor] = []

    def decode(self, hyper: tuple[Tensor, Tensor], size: tuple[int, int], read: Any) -> tuple[Tensor, Tensor]:
        self.arrays, code = [*hyper], self._integers.reader(read)

        def recorded(step: int, index: Any, mean: Any) -> Any:
            symbols = code(step, index, mean)
            self.arrays += [torch.as_tensor(x).clone() for x in (symbols, index, mean)]
            return symbols

        return self._integers.run(hyper, size, recorded)


class Machine:
    """A model on each device that the settings need."""

    def __init__(self, model: str, settings: Sequence[Setting]) -> None:
        self._models = {device: load_model(model, "both", device) for device in {"cpu", *(s.device for s in settings)}}
        self.coder = RangeCoder(self._models["cpu"].tables)
        self._networks: dict[str, VehicleEngine] = {}

    def _on(self, setting: Setting) -> StoredModel:
        return self._models[setting.device]

    def _network(self, setting: Setting) -> VehicleEngine:
        if setting.name not in self._networks:  # made with the setting's threads
            self._networks[setting.name] = vehicle_engine(self._on(setting), setting.engine)
        return self._networks[setting.name]

    @property
    def rate_count(self) -> int:
        """How many rates the model has."""
        return self._models["cpu"].config.rate_count

    def views(self, left: np.ndarray, right: np.ndarray) -> tuple[Tensor, Tensor]:
        """The network's input of both views (1, 3, H, W)."""
        model = self._models["cpu"]
        return prepare(left, right, model.transform, model.device)[:2]

    def encode(self, setting: Setting, group: Sequence[tuple[Tensor, Tensor]], rates: Sequence[float]) -> list[Coded]:
        """Encode pairs, each at its rate."""
        model, out = self._on(setting), []
        with applied(setting):
            for start in range(0, len(group), setting.batch):
                part = slice(start, start + setting.batch)
                left, right = (torch.cat([pair[v] for pair in group[part]]).to(model.device) for v in (0, 1))
                latents = self._network(setting)(left, right, no_lap)
                coded = model.net.entropy_model.quantise(*latents, torch.tensor(rates[part], device=model.device))
                for item in range(len(left)):
                    payload, symbol_hash, _ = compress(coded, self.coder, item)
                    out.append(Coded(payload, symbol_hash, _coded_integers(coded, item)))
        return out

    def decode(self, setting: Setting, payloads: Sequence[bytes]) -> list[Coded | None]:
        """Decode payloads; None for one whose end is not where it should be."""
        model, out = self._on(setting), []
        with applied(setting):
            recorder = _Recorder(model.net.entropy_model.integer_prior())
            for start in range(0, len(payloads), setting.batch):
                part = payloads[start : start + setting.batch]
                found = decompress_batch(part, self.coder, cast(IntegerPrior, recorder), model.config.latent_size)
                for item, (payload, one) in enumerate(zip(part, found, strict=True)):
                    coded = Coded(payload, one.symbol_hash, _flat(item, recorder.arrays))
                    out.append(coded if one.complete else None)
        return out


def _same(encoded: Coded, decoded: Coded | None) -> bool:
    return (
        decoded is not None
        and decoded.symbol_hash == encoded.symbol_hash
        and np.array_equal(decoded.integers, encoded.integers)
    )


def compare(
    machine: Machine, settings: Sequence[Setting], group: Sequence[tuple[Tensor, Tensor]], rates: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of ``group`` that come back equal, and that have other bytes than under the first setting, by encode
    setting (rows; columns: decode setting); and the number of integers compared in each cell."""
    equal = np.zeros((len(settings), len(settings)), int)
    encoded = [machine.encode(setting, group, rates) for setting in settings]
    other = np.array([sum(a.payload != b.payload for a, b in zip(row, encoded[0], strict=True)) for row in encoded])
    # Byte-identical packets are decoded once; the four of a batch stay those of four different pairs.
    payloads = [{coded[i].payload: None for coded in encoded} for i in range(len(group))]
    rounds = max(len(p) for p in payloads)
    for column, setting in enumerate(settings):
        found: dict[tuple[int, bytes], Coded | None] = {}
        for k in range(rounds):
            which = [(i, list(p)[k]) for i, p in enumerate(payloads) if k < len(p)]
            found |= zip(which, machine.decode(setting, [payload for _, payload in which]), strict=True)
        for row, coded in enumerate(encoded):
            equal[row, column] = sum(_same(one, found[i, one.payload]) for i, one in enumerate(coded))
    return equal, other, sum(one.integers.size for one in encoded[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--kitti", type=Path, help="folder with KITTI sources (object, odometry); else rendered alone")
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--seed", type=int, default=1, help="of the rendered pairs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "TF32 acceleration")
    torch.set_num_threads(1)
    settings = SETTINGS + (OPENVINO_SETTINGS if importlib.util.find_spec("openvino") else [])
    settings += GPU_SETTINGS if torch.cuda.is_available() else []
    machine = Machine(options.model, settings)
    equal = np.zeros((len(settings), len(settings)), int)
    other, integers, done = np.zeros(len(settings), int), 0, 0
    group, rates = [], []
    for i, frame in enumerate(watched(frames(options.pairs, options.kitti, options.seed), options.pairs)):
        group.append(machine.views(frame.left, frame.right))
        # All trained rates and those half way between them, in turn.
        rates.append(packet.rate_index(i % (2 * machine.rate_count - 1) / 2) / packet.RATE_STEPS)
        if len(group) == BATCH or i + 1 == options.pairs:
            group_equal, group_other, group_integers = compare(machine, settings, group, rates)
            equal, other, integers, done = equal + group_equal, other + group_other, integers + group_integers, i + 1
            group, rates = [], []
    real = len(real_pairs(done, options.kitti))
    console.print(f"{options.model}: {done} pairs ({real} real), {integers} integers a cell", highlight=False)
    numbers = [f"({k + 1})" for k in range(len(settings))]
    table = Table(
        "encoded with",
        "",
        *numbers,
        "other bytes",
        title="pairs whose packet decodes to what was encoded, with each setting",
    )
    for k, setting in enumerate(settings):
        table.add_row(setting.name, numbers[k], *(str(n) for n in equal[k]), str(other[k]))
    console.print(table)
    console.print("other bytes: packets that differ from the first row's; the network's latents may round differently")
    if not torch.cuda.is_available():
        console.print("no GPU here: not compared")
    failures = int((done - equal).sum())
    console.print(
        "every packet decodes to the same integers with every setting"
        if not failures
        else f"{failures} of {equal.size * done} decodings differ"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
