# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: a CSV of every point, the paper's tables and figures, and one page that holds all."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import torch
from jinja2 import Environment, StrictUndefined

from .. import __version__
from ..files import write_whole
from ..model_store import load_model
from .figures import Panel, box_grid, figure_png, figure_svg, metric_name, rate_curves
from .frames import LabelledFrames
from .latency import Spread, describe_machine
from .outcomes import Outcomes
from .rate_distortion import LEAST_OVERLAP
from .summary import KEY_METRICS, METRICS, Bounded, Comparison, Gap, Precision
from .systems import PACKETS, PAPER_HEIGHT

__all__ = ["ABLATION", "Facts", "Table", "box_pictures", "facts", "points_csv", "tables", "write_report"]

# The paper's table III and figure 5: with and without joint coding of the features; titles of systems.
ABLATION = ("mvsfc-paper", "mvsfc-without-smfc")
_TABLES: tuple[tuple[str, str, tuple[Precision, ...]], ...] = (
    ("I", "3D boxes", (("Car", "3D"), ("Pedestrian", "3D"))),
    ("II", "bird's-eye view", (("Car", "BEV"), ("Pedestrian", "BEV"))),
    ("", "bird's-eye view at IoU 0.5", (("Car", "BEV loose"),)),
)
_FIGURES: tuple[tuple[str, str, tuple[Precision, ...]], ...] = (
    ("figure-2", "Figure 2: AP of 3D boxes", (("Car", "3D"), ("Pedestrian", "3D"))),
    ("figure-3", "Figure 3: AP in bird's-eye view", (("Car", "BEV"), ("Pedestrian", "BEV"))),
    ("figure-bev50", "Cars in bird's-eye view at IoU 0.5, which varies least", (("Car", "BEV loose"),)),
)
MIDDLE_QP = 37.0  # at which the paper measures the times of image codecs


@dataclass
class Table:
    """A table of text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    remark: str = ""


@dataclass
class Facts:
    """What a reader needs to repeat a comparison, as names and values, and why systems are missing."""

    title: str
    values: list[tuple[str, str]]
    missing: Mapping[str, str]


def facts(frames: LabelledFrames, model: str, command: str, missing: Mapping[str, str], cluster: str) -> Facts:
    """What to know of a comparison that ``command`` made on this machine, or on ``cluster``, with the detector
    ``model``."""
    stored = load_model(model)
    machine = describe_machine(torch.device("cpu"))
    kind = f"rendered with seed {frames.seed}" if frames.rendered else "camera images"
    versions = [f"Python {machine['python']}", f"PyTorch {machine['torch']}"]
    for name in ("numpy", "compressai", "imageio-ffmpeg", "pillow", "bjontegaard"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    values = [
        ("frames", f"{len(frames)}, {kind}, {frames.names[0]} to {frames.names[-1]}"),
        ("detector", f"{stored.name}, {stored.fingerprint:016x}, on {stored.config.width}x{stored.config.height}"),
        ("command", command),
        ("sicm_ros", __version__),
        ("software", ", ".join(versions)),
        (
            "machine",
            "those of a cluster"
            if cluster
            else f"{machine['cpu']}, {machine['cores']} cores, each process on one thread",
        ),
        ("average precision", "KITTI's, R40, moderate; IoU as the columns say"),
    ]
    return Facts(f"sicm evaluate: {len(frames)} {'rendered ' if frames.rendered else ''}frames", values, missing)


def box_pictures(
    outcomes: Outcomes, frames: LabelledFrames, comparison: Comparison, model: str, count: int
) -> list[tuple[str, str, bytes]]:
    """Figure 4: the ``count`` frames with most objects, boxes of every system; name of the file, caption, PNG.

    Each system is shown at the point whose mean bytes come nearest to the model's packets at their default rate, and
    detections above the model's threshold. Systems that code larger images, which look alike, are left out.
    """
    config = load_model(model).config
    packets = [p for p in comparison.points.get(PACKETS, []) if p.point == config.default_rate]
    wanted = packets[0].size if packets else 3000.0
    kinds = [kind for kind in comparison.kinds if not kind.name.endswith(f"-{PAPER_HEIGHT}")]
    if not kinds:
        return []
    labels, _ = outcomes.labels(frames.names)
    shown = [[o for o in objects if o.label in config.classes and 0 < o.z < 60] for objects in labels]
    order = sorted(range(len(shown)), key=lambda i: (-len(shown[i]), i))[:count]
    panels: dict[str, list[Panel]] = {frames.names[i]: [] for i in order}
    for kind in kinds:
        point = min(comparison.points[kind.name], key=lambda p: abs(math.log(max(p.size, 1) / wanted)))
        found = outcomes.of(kind.name)[point.point]
        for name, row in panels.items():
            boxes = [o for o in found[name].objects if (o.score or 0.0) >= config.analysis.score_threshold]
            row.append(Panel(kind.title, found[name].size, boxes))
    made = []
    for number, i in enumerate(order, 1):
        name = frames.names[i]
        grid = box_grid(frames.frame(name), panels[name], shown[i])
        good, data = cv2.imencode(".png", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        assert good
        caption = f"Frame {name}, each system at the point nearest to {wanted:.0f} bytes a pair"
        made.append((f"figure-4-{number}.png", caption, data.tobytes()))
    return made


def points_csv(comparison: Comparison) -> str:
    """A row for each system and point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    key = [f"{metric_name(metric)} {end}" for metric in KEY_METRICS for end in ("p5", "p95")]
    writer.writerow(
        ["system", "point", "frames", "bytes", "bytes by likelihood", "bits per pixel"]
        + ["encode CPU s", "decode CPU s", *map(metric_name, METRICS), *key]
    )
    for kind in comparison.kinds:
        for p in comparison.points[kind.name]:
            bounds = [value for metric in KEY_METRICS for value in p.bounds[metric]]
            row = [kind.name, f"{p.point:g}", comparison.frames, f"{p.size:.1f}"]
            row += ["" if p.estimate is None else f"{p.estimate:.1f}", f"{p.bits_per_pixel:.5f}"]
            row += [f"{p.encode_s.median:.4f}", f"{p.decode_s.median:.4f}"]
            row += [_number(value, 2) for value in (*(p.precision[metric] for metric in METRICS), *bounds)]
            writer.writerow(row)
    return text.getvalue()


def _number(value: float, digits: int, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.{digits}f}" if math.isfinite(value) else ""


def _bounded(figure: Bounded, digits: int = 1) -> str:
    if not math.isfinite(figure.value):
        return "–"
    text = _number(figure.value, digits, True)
    if math.isfinite(figure.low):
        text += f" ({_number(figure.low, digits, True)} to {_number(figure.high, digits, True)})"
    return text


def tables(comparison: Comparison) -> list[Table]:
    """The paper's tables I to IV, and what they leave out."""
    titles = {kind.name: kind.title for kind in comparison.kinds}
    made = []
    for anchor, gaps in comparison.gaps.items():
        for number, what, metrics in _TABLES:
            label = f"Table {number}: " if number else ""
            made.append(_gap_table(f"{label}{what}, against {titles[anchor]}", gaps, metrics, titles))
        named = {name: title for name, title in titles.items() if title in ABLATION}
        if len(named) == len(ABLATION):
            metrics = (("Car", "3D"), ("Pedestrian", "3D"))
            made.append(_gap_table(f"Table III: without SMFC, against {titles[anchor]}", gaps, metrics, named))
    made += [_equal_table(comparison, metric) for metric in comparison.targets]
    return [*made, _cost_table(comparison)]


def _gap_table(
    title: str, gaps: Mapping[Precision, Mapping[str, Gap]], metrics: Sequence[Precision], names: Mapping[str, str]
) -> Table:
    header = ["system"]
    for metric in metrics:
        header += [f"{metric_name(metric)} BD-rate, %", "BD-AP, points"]
    if len(metrics) > 1:
        header += ["mean BD-rate, %", "mean BD-AP"]
    rows = []
    for name, shown in names.items():
        found = [gaps[metric][name] for metric in metrics if name in gaps[metric]]
        if len(found) < len(metrics):
            continue
        row = [shown]
        for gap in found:
            row += [_bounded(gap.rate), _bounded(gap.precision)]
        if len(metrics) > 1:
            for part in ("rate", "precision"):
                mean = sum(getattr(gap, part).value for gap in found) / len(found)
                row.append(_number(mean, 1, True) or "–")
        rows.append(row)
    remark = (
        "In brackets the middle 90 % of a bootstrap over the frames. A dash: the curves share less than "
        f"{LEAST_OVERLAP:.0%} of the smaller range of AP (for BD-AP: of bytes), so that there is no such figure; see "
        "the bytes at equal AP."
    )
    return Table(title, header, rows, remark)


def _equal_table(comparison: Comparison, metric: Precision) -> Table:
    targets = comparison.targets[metric]
    best = comparison.points["uncompressed"][0].precision[metric]
    header = ["system", *(f"{target:.1f} (uncompressed less {best - target:.0f})" for target in targets)]
    titles = {kind.name: kind.title for kind in comparison.kinds}
    rows = [
        [titles[name], *(f"{value:.0f}" if math.isfinite(value) else "–" for value in values)]
        for name, values in comparison.equal[metric].items()
    ]
    remark = "A dash: not reached, or already surpassed at the system's fewest bytes."
    return Table(f"Bytes of a pair at equal AP, {metric_name(metric)}", header, rows, remark)


def _cost_table(comparison: Comparison) -> Table:
    header = ["system", "GMAC", "parameters, M", "at point", "bytes", "encode, CPU s", "decode, CPU s"]
    rows = []
    for kind in comparison.kinds:
        points, complexity = comparison.points[kind.name], comparison.complexity[kind.name]
        middle = next((p for p in points if p.point == MIDDLE_QP), points[len(points) // 2])
        row = [kind.title, _number(complexity.macs / 1e9, 1), _number(complexity.parameters / 1e6, 1)]
        row += [f"{middle.point:g}", f"{middle.size:.0f}" if middle.size else ""]
        rows.append([*row, *(_times(spread) for spread in (middle.encode_s, middle.decode_s))])
    remark = "One thread. Decoding includes the detection, encoding the scaling of the images: median (p5 to p95)."
    return Table("Table IV: costs of a pair", header, rows, remark)


def _times(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.p5:.3f} to {spread.p95:.3f})"


def _point_table(comparison: Comparison) -> Table:
    header = ["system", "point", "bytes", "by likelihood", "bits per pixel", *map(metric_name, METRICS)]
    rows = []
    for kind in comparison.kinds:
        for p in comparison.points[kind.name]:
            row = [kind.title, f"{p.point:g}", f"{p.size:.0f}", "" if p.estimate is None else f"{p.estimate:.0f}"]
            row.append(f"{p.bits_per_pixel:.4f}")
            for metric in METRICS:
                text = _number(p.precision[metric], 1)
                if metric in p.bounds and text:
                    text += " ±" + _number((p.bounds[metric][1] - p.bounds[metric][0]) / 2, 1)
                row.append(text)
            rows.append(row)
    return Table("Every point", header, rows, "± is half of the middle 90 % of a bootstrap over the frames.")


_PAGE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ facts.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #1b2430; }
h2 { margin-top: 2.2em; border-bottom: 1px solid #d5dbe3; }
table { border-collapse: collapse; font-size: 13px; margin: 0.6em 0; }
td, th { padding: 0.2em 0.7em; border-bottom: 1px solid #e3e8ef; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
td.words, th.words { text-align: left; white-space: normal; }
tr:hover { background: #f3f6fa; }
.wide { overflow-x: auto; }
.remark, figcaption { color: #55606f; font-size: 13px; }
figure { margin: 1em 0; }
figure svg, figure img { max-width: 100%; height: auto; }
dt { font-weight: 600; float: left; clear: left; width: 12em; }
dd { margin-left: 12.5em; overflow-wrap: anywhere; }
</style>
<h1>{{ facts.title }}</h1>
<dl>
{% for name, value in facts.values %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<h2>Curves</h2>
{% for caption, svg in curves %}
<figure>{{ svg | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Tables</h2>
{% for table in tables %}
<h3>{{ table.title }}</h3>
<div class="wide"><table>
<tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="remark">{{ table.remark }}</p>
{% endfor %}
{% if pictures %}
<h2>Figure 4: boxes</h2>
<p class="remark">Truth blue, predictions red, in the left image and from above.</p>
{% for caption, data in pictures %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endif %}
<h2>Systems</h2>
<table>
<tr><th>name</th><th>in tables</th><th class="words">what it is</th></tr>
{% for kind in kinds %}
<tr><td>{{ kind.name }}</td><td>{{ kind.title }}</td><td class="words">{{ kind.note }}</td></tr>
{% endfor %}
{% for name, reason in facts.missing.items() %}
<tr><td>{{ name }}</td><td>left out</td><td class="words">{{ reason }}</td></tr>
{% endfor %}
</table>
</html>
""")


def write_report(
    comparison: Comparison, folder: Path, known: Facts, pictures: Iterable[tuple[str, str, bytes]] = ()
) -> Path:
    """Write ``points.csv``, the figures as PNG and SVG, the pictures, and ``index.html``, which holds them all.

    ``pictures``: name of the file, caption and PNG of each. Returns the path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [kind.name for kind in comparison.kinds]
    curves = []
    wanted = [(*figure, names) for figure in _FIGURES]
    ablation = [kind.name for kind in comparison.kinds if kind.title in ABLATION]
    if len(ablation) == len(ABLATION):
        ablation += [name for name in names if name == "vvc-intra"]
        wanted.append(("figure-5", "Figure 5: without SMFC", (("Car", "3D"), ("Pedestrian", "3D")), ablation))
    for name, caption, metrics, shown in wanted:
        figure = rate_curves(comparison, metrics, shown)
        svg = figure_svg(figure)
        _write(folder / f"{name}.svg", svg)
        _write(folder / f"{name}.png", figure_png(figure))
        text = svg.decode()
        curves.append((caption, text[text.index("<svg") :]))
    shown_pictures = []
    for name, caption, png in pictures:
        _write(folder / name, png)
        shown_pictures.append((caption, base64.b64encode(png).decode()))
    _write(folder / "points.csv", points_csv(comparison).encode())
    page = _PAGE.render(
        facts=known,
        curves=curves,
        tables=[*tables(comparison), _point_table(comparison)],
        pictures=shown_pictures,
        kinds=comparison.kinds,
    )
    _write(folder / "index.html", page.encode())
    return folder / "index.html"


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda beside: beside.write_bytes(data))
