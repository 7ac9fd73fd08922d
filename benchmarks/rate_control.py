#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rate control on real, rendered and worst frames: what each budget gives, in virtual time.

    python benchmarks/rate_control.py --kitti KITTI/sequence_02 --budgets 60 150 300 600

Frames come at 10 Hz, give or take ``--jitter``; each sequence is looped. For each budget (kbit/s on the wire) and
sequence it prints the frames, those dropped because not even the lowest rate fitted, the fullest second (counted anew
from the packets that were sent, not asked of the controller), the mean use of the budget, the mean rate, its largest
rise and fall from one sent frame to the next, its mean change, and how often the entropy stage ran for a frame. Ends
with status 1 if any second holds more than its budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pairs import console
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sicm_ros.codec.encoder import EncodedPair, PairLatents, StereoEncoder
from sicm_ros.codec.rate_control import BitWindow, RateController, RateDecision, wire_bits
from sicm_ros.data.kitti import open_source
from sicm_ros.data.rendered import rendered_frame
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE

SECOND = 10**9
HZ = 10
REPOSITORY = Path(__file__).resolve().parents[1]


def worst_frames(encoder: StereoEncoder, seed: int) -> dict[str, list[PairLatents]]:
    """Frames that no camera gives, and the hardest changes between them (2 s of each where they take turns)."""
    width, height = KITTI_SIZE
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]

    def analysed(left: np.ndarray, right: np.ndarray) -> PairLatents:
        return encoder.latents(left, right, KITTI_RIG)

    def board(size: int) -> PairLatents:
        image = np.repeat((255 * ((rows // size + columns // size) % 2)).astype(np.uint8)[..., None], 3, 2)
        return analysed(image, 255 - image)

    black = analysed(np.zeros((height, width, 3), np.uint8), np.zeros((height, width, 3), np.uint8))
    noise = [analysed(*rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)) for _ in range(4)]
    coarse = np.repeat(np.repeat(rng.integers(0, 2, (2, 48, 156, 3), dtype=np.uint8) * 255, 8, 1), 8, 2)
    blocks = analysed(*np.ascontiguousarray(coarse[:, :height, :width]))
    return {
        "black": [black],
        "noise": noise,
        "random blocks of 8": [blocks],
        "checkerboard of 1": [board(1)],
        "checkerboard of 8": [board(8)],
        "checkerboard of 32": [board(32)],
        "black, blocks in turn": [black, blocks],
        "black, then blocks": [black] * 2 * HZ + [blocks] * 2 * HZ,
        "black, one of blocks": [black] * 2 * HZ + [blocks],
    }


def fullest_second(sent: Sequence[tuple[int, int]]) -> int:
    """Most bits in any [t, t + 1 s) of (time, bits): one that begins with a packet."""
    return max((sum(bits for time, bits in sent if start <= time < start + SECOND) for start, _ in sent), default=0)


def control(
    encoder: StereoEncoder,
    sequence: Sequence[PairLatents],
    budget: int,
    preferred: float,
    frames: int,
    jitter_s: float,
    seed: int,
) -> tuple[list[int], list[RateDecision[EncodedPair]]]:
    """Times in nanoseconds and decisions of ``frames`` frames."""
    clock = [0]
    controller = RateController(encoder.model.config.highest_rate, BitWindow(lambda: clock[0]))
    rng = np.random.default_rng(seed)
    times: list[int] = []
    decisions = []
    for i in range(frames):
        clock[0] = round(SECOND * (1 + i / HZ + rng.uniform(-jitter_s, jitter_s)))
        decisions.append(
            controller.encode(budget, preferred, partial(encoder.encode_latents, sequence[i % len(sequence)]))
        )
        times.append(clock[0])
    return times, decisions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument(
        "--kitti",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data" / "kitti" / "sequence_02",
        help="real pairs: an odometry sequence, a raw drive or an object folder (default: %(default)s)",
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[60, 150, 300, 600], help="kbit/s")
    parser.add_argument("--rate", type=float, help="preferred rate (default: the model's highest)")
    parser.add_argument("--frames", type=int, default=200, help="of each sequence")
    parser.add_argument("--jitter", type=float, default=0.005, help="seconds that a frame may be early or late")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = StereoEncoder(options.model)
    highest = encoder.model.config.highest_rate
    preferred = highest if options.rate is None else options.rate

    sequences: dict[str, list[PairLatents]] = {}
    if options.kitti.is_dir():
        source = open_source(options.kitti)
        real = [source[i] for i in range(min(len(source), 50))]
        sequences[f"real {options.kitti.name}"] = [encoder.latents(f.left, f.right, f.rig) for f in real]
    else:
        print(f"no folder {options.kitti}: without real pairs", file=sys.stderr)
    rendered = [rendered_frame(i, options.seed) for i in range(20)]
    sequences["rendered, all cuts"] = [encoder.latents(f.left, f.right, f.rig) for f in rendered]
    sequences.update(worst_frames(encoder, options.seed))

    console.print(
        f"{encoder.model.name} ({encoder.model.fingerprint:016x}), {options.frames} frames a sequence at {HZ} Hz "
        f"+- {1e3 * options.jitter:g} ms, preferred rate {preferred:g}\n",
        highlight=False,
    )
    table = Table("sequence", "kbit/s at the lowest rate", "at the highest", box=MARKDOWN)
    for name, sequence in sequences.items():
        sizes = [np.mean([wire_bits(encoder.encode_latents(x, r).packet) for x in sequence]) for r in (0.0, highest)]
        table.add_row(name, f"{sizes[0] * HZ / 1e3:.0f}", f"{sizes[1] * HZ / 1e3:.0f}")
    console.print(table)
    table = Table(
        "kbit/s",
        "sequence",
        "frames",
        "dropped",
        "fullest second",
        "used",
        "mean rate",
        "largest rise",
        "largest fall",
        "mean change",
        "tries",
        box=MARKDOWN,
    )
    exceeded = False
    budgets = [round(1e3 * kilobits) for kilobits in options.budgets]
    for budget in track(budgets, "budgets", console=Console(stderr=True)):
        for name, sequence in sequences.items():
            times, decisions = control(
                encoder, sequence, budget, preferred, options.frames, options.jitter, options.seed
            )
            sent = [(time, wire_bits(d.sent.packet)) for time, d in zip(times, decisions, strict=True) if d.sent]
            rates = [d.sent.rate for d in decisions if d.sent] or [0.0]
            fullest, mean = fullest_second(sent), sum(bits for _, bits in sent) * HZ / len(decisions)
            exceeded |= fullest > budget
            steps = np.diff(rates, append=rates[-1])
            row = (
                f"{budget / 1e3:g}",
                name,
                len(decisions),
                len(decisions) - len(sent),
                f"{100 * fullest / budget:.1f} %",
                f"{100 * mean / budget:.1f} %",
                f"{np.mean(rates):.2f}",
                f"{steps.max():.2f}",
                f"{max(0.0, -steps.min()):.2f}",
                f"{np.abs(steps).mean():.3f}",
                f"{np.mean([len(d.tries) for d in decisions]):.2f}",
            )
            table.add_row(*map(str, row))
    console.print(table)
    if exceeded:
        print("a second holds more than its budget", file=sys.stderr)
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
