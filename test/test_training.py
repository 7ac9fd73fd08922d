# SPDX-License-Identifier: Apache-2.0
"""Training: samples, augmentation, targets, losses, and runs that repeat and resume."""

from __future__ import annotations

import copy
import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lightning_fabric
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_networks import SMALL, small_net
from torch.utils._python_dispatch import TorchDispatchMode

from sicm_ros.evaluation.recall import count_found, count_invented, depth_errors
from sicm_ros.geometry import Object3D, StereoRig, project
from sicm_ros.model_store import load_config, load_model
from sicm_ros.networks.anchors import RIG_FIELDS, Anchors
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.training.augmentation import mirror, photometric, zoom
from sicm_ros.training.config import TrainConfig, TrainError, load_train_config
from sicm_ros.training.loader import StepBatches, TrainingBatch, load_batches
from sicm_ros.training.losses import disparity_loss, feature_error, rate_distortion_loss, task_loss
from sicm_ros.training.samples import Sample, SampleStore, build_store, recorded_count
from sicm_ros.training.stages import MvsfcTrainee, Stage, prepare_stage
from sicm_ros.training.stores import Mixture, complete_shares, make_stores, parse_root
from sicm_ros.training.targets import (
    Batch,
    anchor_priors,
    assign,
    collate,
    disparity_weights,
    match,
    object_row,
    stride4_disparity,
    view_weights,
)
from sicm_ros.training.train import fabric_arguments, run

SIZES = {"height": 64, "width": 256}
MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """A few rendered samples of random layouts, at a small network's size."""
    config = replace(SMALL, **SIZES)
    return build_store(tmp_path_factory.mktemp("samples"), config, None, [], 12, seed=3)


def test_samples_are_kept_and_made_anew_when_the_recipe_changes(store: SampleStore, tmp_path: Path) -> None:
    config = replace(SMALL, **SIZES)
    stamp = (store.root / "images.u8").stat().st_mtime_ns
    assert len(build_store(store.root, config, None, [], 12, seed=3)) == 12
    assert (store.root / "images.u8").stat().st_mtime_ns == stamp
    a, b = (
        build_store(tmp_path / "a", config, None, [], 2, seed=3),
        build_store(tmp_path / "b", config, None, [], 2, seed=4),
    )
    assert np.array_equal(a.images, store.images[:2]) and not np.array_equal(a.images, b.images)


def test_mirror_keeps_the_geometry(store: SampleStore) -> None:
    """In the mirrored sample, boxes project to the mirrored places of the other view and disparities still match."""
    for i in range(4):
        sample = store[i]
        flipped = mirror(sample)
        width = sample.left.shape[1]
        assert np.array_equal(flipped.left, sample.right[:, ::-1])
        assert flipped.rig.focal_baseline == pytest.approx(sample.rig.focal_baseline, rel=1e-6)
        for o, m in zip(sample.labels, flipped.labels, strict=True):
            if o.label == "DontCare":
                continue
            old = np.sort(project(sample.rig.p_right, o.corners())[0][:, 0])
            new = np.sort(width - 1 - project(flipped.rig.p_left, m.corners())[0][:, 0])
            np.testing.assert_allclose(old, new, atol=1e-6)
        twice = mirror(flipped)
        assert np.array_equal(twice.left, sample.left)
        known = (twice.disparity > 0) & (sample.disparity > 0)
        assert known.mean() > 0.3 * (sample.disparity > 0).mean()
        assert np.median(np.abs(twice.disparity - sample.disparity)[known]) < 0.1


def test_a_zoom_keeps_the_geometry(store: SampleStore) -> None:
    """Boxes project to their new 2D boxes, and disparities are those of the new rig."""
    moved = 0
    for i in range(6):
        sample = store[i]
        zoomed = zoom(sample, np.random.default_rng(i))
        h, w = sample.disparity.shape
        assert zoomed.left.shape == sample.left.shape and zoomed.disparity.shape == (h, w)
        scale = zoomed.rig.fx / sample.rig.fx
        assert 1.0 <= scale < 1.22 and zoomed.rig.focal_baseline == pytest.approx(scale * sample.rig.focal_baseline)
        assert zoomed.disparity.max() <= scale * sample.disparity.max() + 1e-3
        for o in zoomed.labels:
            if o.label == "DontCare":
                continue
            old = next(p for p in sample.labels if (p.x, p.z) == (o.x, o.z))
            assert o.truncated >= old.truncated - 1e-6
            if o.truncated > old.truncated + 1e-6:
                continue
            # What lies at the old box's corner is now at the new one's.
            point = np.array([o.x, o.y - o.height / 2, o.z])
            before, after = project(sample.rig.p_left, point)[0], project(zoomed.rig.p_left, point)[0]
            sides = np.array(o.bbox).reshape(2, 2) - after
            np.testing.assert_allclose(sides[:, 0], (np.array(old.bbox)[[0, 2]] - before[0]) * scale, atol=0.5)
            moved += 1
    assert moved > 3


def test_photometric_distortion_is_seeded_and_keeps_the_pair_alike(store: SampleStore) -> None:
    sample = store[0]
    a = photometric(sample.left, sample.right, np.random.default_rng(5))
    b = photometric(sample.left, sample.right, np.random.default_rng(5))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    before = sample.left.mean() - sample.right.mean()
    assert abs((a[0].mean() - a[1].mean()) - before) < 20


def test_disparity_of_a_block_is_its_middle_or_its_nearest_surface() -> None:
    disparity = np.full((8, 8), 10.0, np.float32)
    disparity[0:4, 2:4] = 30.0
    disparity[4:8, 4:8] += np.arange(4) * 0.1
    np.testing.assert_allclose(stride4_disparity(disparity), [[30.0, 10.0], [10.0, 10.15]], atol=1e-6)


def test_priors_follow_the_labels(store: SampleStore) -> None:
    anchors = Anchors(replace(SMALL, **SIZES))
    anchor_priors(anchors, ("Car", "Pedestrian"), [(store.labels(i), store.rig(i)) for i in range(len(store))])
    z = anchors.prior_mean[0, :, 0].view(4, 3)
    assert (z[:-1, 1] > z[1:, 1]).all(), "larger anchors stand for nearer cars"
    assert float(anchors.reference_focal_baseline) == pytest.approx(store.rig(0).focal_baseline, rel=0.02)
    assert anchors.prior_mean[0, 0, 3:].tolist() == pytest.approx([1.63, 1.53, 3.88], abs=0.25)


def test_priors_need_objects() -> None:
    with pytest.raises(ValueError, match="class Car: expected at least 2 labelled objects"):
        anchor_priors(Anchors(SMALL), SMALL.classes, [([], StereoRig(100, 100, 64, 32, (0, 0, 0), (-50, 0, 0)))])


def test_every_object_gets_an_anchor_and_ignored_regions_are_not_background() -> None:
    anchors = Anchors(SMALL)
    rig = StereoRig(100.0, 100.0, 64.0, 32.0, (0.0, 0.0, 0.0), (-50.0, 0.0, 0.0))
    small = Object3D("Car", (60.0, 30.0, 67.0, 36.0), 1.5, 1.6, 3.9, 0, 1.6, 25.0, 0.1, 0.1, 0.0, 0)
    wide = replace(small, bbox=(10.0, 10.0, 60.0, 40.0), z=5.0)
    region = replace(small, label="DontCare", bbox=(80.0, 20.0, 110.0, 50.0))
    rows = torch.tensor([object_row(o, rig) for o in (small, wide, region)], dtype=torch.float32)
    a = assign(anchors, rows, torch.tensor([0, 0, -1]), torch.ones(len(anchors.boxes), dtype=torch.bool))
    assert set(a.object_index.tolist()) == {0, 1}
    assert not a.background[a.anchor_index].any()
    inside = ((anchors.boxes[:, :2] > rows[2, :2]) & (anchors.boxes[:, :2] < rows[2, 2:4])).all(1)
    assert inside.any() and not a.background[inside].any()
    counts = torch.bincount(a.object_index).float()
    torch.testing.assert_close(a.weight, counts[a.object_index].rsqrt())


def test_disparity_loss_is_least_at_the_truth() -> None:
    truth = torch.full((1, 2, 3), 5.25)
    truth[0, 0, 0] = 0
    bins = torch.arange(16.0)[None, :, None, None]
    losses = [
        float(disparity_loss(-(bins - guess).abs().expand(1, 16, 2, 3) * 2, truth))
        for guess in (2.25, 4.25, 5.25, 7.25)
    ]
    assert losses.index(min(losses)) == 2
    unknown = disparity_loss(torch.randn(1, 16, 2, 3, requires_grad=True), torch.zeros(1, 2, 3))
    assert float(unknown.detach()) == 0.0


def test_a_small_object_counts_as_much_as_a_large_one_for_the_disparity() -> None:
    disparity = torch.full((1, 40, 100), 4.0)  # background 50 m away, where focal length times baseline is 200
    disparity[0, 10:13, 20:24] = 200 / 39.0  # 12 cells of a car's rear
    disparity[0, 20:36, 60:92] = 200 / 9.0
    disparity[0, 30:36, 60:66] = 200 / 5.0  # something before it
    rows = torch.zeros(3, 11)
    rows[0, :7] = torch.tensor([78.0, 38.0, 97.0, 53.0, 0, 0, 40.0])
    rows[1, :7] = torch.tensor([240.0, 80.0, 367.0, 143.0, 0, 0, 10.0])
    rows[2, :4] = torch.tensor([0.0, 0.0, 399.0, 159.0])
    rigs = torch.zeros(1, 8)
    rigs[0, RIG_FIELDS.index("focal_baseline")] = 200.0
    weights = disparity_weights(Batch(torch.empty(1), torch.empty(1), disparity, rigs, [rows], [torch.zeros(3)]))
    assert weights.shape == disparity.shape
    assert weights[0, 10:13, 20:24].unique().tolist() == [pytest.approx(200 / 12)]
    car = disparity[0, 20:36, 60:92] == disparity[0, 20, 60]
    assert weights[0, 20:36, 60:92][car].unique().tolist() == [1.0]  # 476 cells: more than enough already
    weights[0, 10:13, 20:24] = 1.0
    assert (weights == 1).all()


def test_what_the_left_view_weighs_the_right_one_weighs_where_it_is_seen() -> None:
    disparity = torch.zeros(1, 8, 20)
    disparity[0, 4, 10:12] = 12.0  # three cells
    rows = torch.zeros(1, 11)
    rows[0, :7] = torch.tensor([40.0, 16.0, 47.0, 19.0, 0, 0, 20.0])
    rigs = torch.zeros(1, 8)
    rigs[0, RIG_FIELDS.index("focal_baseline")] = 240.0
    left, right = view_weights(Batch(torch.empty(1), torch.empty(1), disparity, rigs, [rows], [torch.zeros(1)]))
    assert left[0, 4, 10:12].tolist() == right[0, 4, 7:9].tolist() == [20.0, 20.0]  # the most that a cell may count
    assert left.sum() == right.sum() == 8 * 20 - 2 + 2 * 20

    # An error there counts twenty times, one at a coarser scale as much as the cells that it holds.
    features = tuple((torch.randn(1, 3, 8 >> i, 20 >> i), torch.randn(1, 3, 8 >> i, 20 >> i)) for i in range(3))
    for level in range(3):
        errors = []
        for row, column in ((4, 10), (0, 0)):
            wrong = [(a.clone(), b.clone()) for a, b in features]
            wrong[level][0][:, :, row >> level, column >> level] += 1.0
            errors.append(float(feature_error(tuple(wrong), features, (left, right))))
        assert errors[0] == pytest.approx(20 * errors[1], rel=1e-4)
        cells = (8 >> level) * (20 >> level)
        mean = float((1 / features[level][0].var((0, 2, 3))).mean()) / cells / 6  # of six maps one has it
        assert float(feature_error(tuple(wrong), features)) == pytest.approx(mean, rel=1e-4)


def test_a_large_channel_does_not_hide_what_is_lost_in_the_others() -> None:
    features = tuple((torch.randn(1, 4, 8, 20), torch.randn(1, 4, 8, 20)) for _ in range(3))
    for maps in features:
        for view in maps:
            view[:, 0] *= 100.0
    # Three of four channels are their mean alone, the large one is all there.
    lost = tuple(
        tuple(torch.where(torch.arange(4)[:, None, None] == 0, v, v.mean((2, 3), True)) for v in m) for m in features
    )
    assert float(feature_error(lost, features)) == pytest.approx(0.75, rel=0.01)  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_batch_can_be_learnt(store: SampleStore) -> None:
    """Every term falls far when the network sees the same two pairs again and again."""
    config = replace(SMALL, **SIZES)
    torch.manual_seed(0)
    net = small_net(**SIZES).train()
    anchor_priors(net.analysis.anchors, config.classes, [(store.labels(i), store.rig(i)) for i in range(len(store))])
    batch = collate([store[0], store[1]], config.classes)
    assert sum(int((c >= 0).sum()) for c in batch.classes) > 0
    targets = match(batch, net.analysis.anchors)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    history = []
    for _ in range(300):
        loss = task_loss(net.detect(net.features(batch.left, batch.right)), targets)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append([float(x.detach()) for x in loss])
    first, last = np.array(history[0]), np.mean(history[-5:], 0)
    assert (last < [0.5, 0.2, 0.5] * first).all(), (first, last)


def small_model(folder: Path, epochs: list[int], **changes: object) -> Path:
    """A model folder of a network that trains in seconds."""
    folder.mkdir()
    config = {
        "height": 64,
        "width": 256,
        "classes": ["Car"],
        "blocks": [1, 1, 1],
        "stem_channels": 8,
        "channels": [8, 16, 16],
        "joint_channels": [8, 8],
        "latent_channels": 8,
        "hyper_channels": 8,
        "attention": "epipolar",
        "pad_features": False,
        "context": "checkerboard",
        "variable_rate": True,
        "analysis": {
            "correlation_bins": [8, 8],
            "concat_bins": 4,
            "concat_channels": 4,
            "fusion_channels": [16, 40, 80],
            "head_stride": 8,
            "head_channels": [16, 16],
            "head_output_kernel": 1,
            "disparity_bins": 16,
            "disparity_channels": [8],
            "depth_feedback": True,
            "anchors": {"base_size": 12.0, "scales": 4, "scales_per_octave": 2.0},
        },
    }
    train = {
        "epochs": [*epochs, 0, 0, 0, 0][:4],
        "batch_size": 2,
        "learning_rate": [1e-3, 1e-3, 1e-4, 1e-3],
        "gradient_clip": 5.0,
        "samples": 20,
        "validation_samples": 2,
        "feature_loss": [1.0, 0.5],
        "uncompressed_share": 0.3,
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    return folder


def rows_of(out: Path, validation: bool = False) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` with the losses, or those with the validations."""
    with (out / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if bool(row.get("validation")) == validation]


def losses(out: Path) -> list[tuple[str, str, str]]:
    return [(row["step"], row["stage"], row["loss"]) for row in rows_of(out)]


def scalars(out: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


@pytest.mark.slow
def test_three_stages_resume_with_the_same_losses_and_leave_a_model(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", [2, 4, 2], checkpoint_minutes=0.0)
    said: list[str] = []
    model = run(folder, None, tmp_path / "whole", device="cpu", say=said.append)
    whole = losses(tmp_path / "whole")
    assert [row[1] for row in whole] == ["detector"] + ["codec"] * 2 + ["joint"]
    assert load_config(model / "config.yaml") == load_config(folder / "config.yaml")
    assert load_model(model).fingerprint != 0
    assert any(line.startswith("validation val rate 0") for line in said)
    bpp = scalars(tmp_path / "whole", "codec/bpp")
    assert [step for step, _ in bpp] == [int(row[0]) for row in whole if row[1] == "codec"]
    validations = scalars(tmp_path / "whole", "validation val rate 0/Car 2D")
    assert [step for step, _ in validations] == [60, 80]  # after the codec stage and after the joint one
    validated = rows_of(tmp_path / "whole", validation=True)
    assert [row["step"] for row in validated if row["validation"] == "val rate 0"] == ["60", "80"]
    assert all(float(row["Car 2D"]) >= 0 for row in validated)

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("codec step 20 "):
            raise Killed

    shutil.copytree(tmp_path / "whole" / "samples", tmp_path / "killed" / "samples")
    # A run that dies in the middle of a stage goes on from its checkpoint.
    with pytest.raises(Killed):
        run(folder, None, tmp_path / "killed", device="cpu", say=kill)
    run(folder, None, tmp_path / "killed", resume=True, device="cpu", say=said.append)
    assert any(line.startswith("resumed: stage codec, step 39") for line in said)
    # It says which rows it makes anew, and has none twice.
    assert "metrics.csv: 1 rows after step 39 removed" in said
    assert losses(tmp_path / "killed") == whole
    assert [r["Car 2D"] for r in rows_of(tmp_path / "killed", validation=True)] == [r["Car 2D"] for r in validated]
    for tag in ("codec/bpp", "detector/loss", "validation val rate 0/Car 2D"):
        assert scalars(tmp_path / "killed", tag) == scalars(tmp_path / "whole", tag), tag


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Without the sums of the loss terms, which checkpoints have held since the loggers are Fabric's."""
    folder = small_model(tmp_path / "model", [1, 2, 0], checkpoint_minutes=0.0)
    run(folder, None, tmp_path / "out", device="cpu", stages="detector")
    path = tmp_path / "out" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert state["progress"]["step"] == 10 and len(state.pop("sums")) == 4
    torch.save(state, path)
    said: list[str] = []
    run(folder, None, tmp_path / "out", resume=True, device="cpu", say=said.append)
    assert any(line.startswith("resumed: stage detector, step 10") for line in said)
    assert [row[:2] for row in losses(tmp_path / "out")] == [("20", "codec")]


def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    folder = small_model(
        tmp_path / "model", [4, 0, 0], learning_rate=[1e30] * 4, gradient_clip=1e30, checkpoint_minutes=0.0
    )
    with pytest.raises(TrainError, match="loss: expected finite values and gradients"):
        run(folder, None, tmp_path / "out", device="cpu")
    net = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["net"]
    assert all(bool(torch.isfinite(value).all()) for value in net.values())


def batch_tensors(batch: TrainingBatch) -> dict[str, torch.Tensor]:
    return {"left": batch.left, "right": batch.right, **vars(batch.targets)}


@pytest.fixture(scope="module")
def step_batches(store: SampleStore, tmp_path_factory: pytest.TempPathFactory) -> StepBatches:
    """Batches of two from the samples of ``store``, for a small network."""
    config = load_train_config(small_model(tmp_path_factory.mktemp("train") / "model", [1, 0, 0]))
    net = small_net(**SIZES)
    labels = [(store.labels(i), store.rig(i)) for i in range(len(store))]
    anchor_priors(net.analysis.anchors, net.config.classes, labels)
    return StepBatches(Mixture((store,), (1.0,)), config, net.config.classes, net.analysis.anchors)


def test_a_step_has_the_same_batch_wherever_it_is_made(step_batches: StepBatches) -> None:
    """In this process or in workers, from the beginning or from the middle; other steps and processes have others."""
    here = list(itertools.islice(load_batches(step_batches, 0, 0, torch.device("cpu")), 9))
    there = list(itertools.islice(load_batches(step_batches, 4, 2, torch.device("cpu")), 5))
    for a, b in zip(here[4:], there, strict=True):
        assert batch_tensors(a).keys() == batch_tensors(b).keys()
        for name, value in batch_tensors(a).items():
            assert torch.equal(value, batch_tensors(b)[name]), name
    # The epoch of twelve samples begins anew at step 6, in another order.
    assert len({float(batch.left.sum()) for batch in here}) == 9
    second = copy.copy(step_batches)
    second.rank = 1
    assert not torch.equal(second[4].left, here[4].left)


def test_the_weight_of_a_class_is_that_of_its_objects(step_batches: StepBatches, tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", [1, 0, 0], class_weights={"Pedestrian": 2.5, "Cyclist": 2.0})
    old = step_batches
    heavy = StepBatches(old.mixture, load_train_config(folder), old.classes, old.anchors)
    assert heavy.class_weights == [1.0, 2.5, 2.0][: len(old.classes)]
    seen = set()
    for step in range(6):
        plain, weighted = step_batches[step].targets, heavy[step].targets
        factors = torch.tensor(heavy.class_weights)[plain.class_index]
        torch.testing.assert_close(weighted.weight, plain.weight * factors)
        seen |= set(plain.class_index.tolist())
    assert {0, 1} <= seen, "cars and pedestrians are among the samples"


def test_batches_leave_the_noise_of_the_training_alone(step_batches: StepBatches) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    next(load_batches(step_batches, 0, 0, torch.device("cpu")))
    assert torch.equal(torch.rand(1), expected)


class Readings(TorchDispatchMode):
    """Counts what would make a GPU finish its work first: values that go to Python, and sizes that data decide."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        booleans = name == "index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name.startswith(self.WAITING) or booleans:
            self.found.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("stage", "rate"), [("detector", None), ("codec", 0), ("joint", 0), ("entropy", 0)])
def test_a_loss_does_not_wait_for_its_device(step_batches: StepBatches, stage: Stage, rate: int | None) -> None:
    net = small_net(**SIZES)
    config = TrainConfig(feature_loss=(1.0, 0.5))
    prepare_stage(net, stage, False)
    batch, trainee = step_batches[0], MvsfcTrainee(net, config)
    with Readings() as readings:
        trainee(batch, stage, rate)["loss"].backward()
    assert readings.found == []
    with Readings() as readings:  # which sees one
        float(batch.left.sum())
    assert readings.found == ["_local_scalar_dense"]


def test_equation_8_over_lambda() -> None:
    bits, task = torch.tensor(0.5), torch.tensor(3.0)
    assert float(rate_distortion_loss(bits, task, 0.25)) * 0.25 == pytest.approx(0.25 * 3.0 + 0.5)
    assert float(rate_distortion_loss(bits, 0.0, 0.25)) == 2.0


@pytest.mark.slow
def test_samples_go_on_after_a_kill(tmp_path: Path) -> None:
    """A process that is killed while it makes samples leaves those that it finished; the rest comes out the same."""
    config = replace(SMALL, **SIZES)
    whole = build_store(tmp_path / "whole", config, None, [], 4, seed=9)
    script = (
        "import os, signal, sys\n"
        "from dataclasses import replace\n"
        "from test_networks import SMALL\n"
        "from sicm_ros.training.samples import build_store\n"
        "def kill(done, total):\n"
        "    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_store(sys.argv[1], replace(SMALL, height=64, width=256), None, [], 4, seed=9, progress=kill)\n"
    )
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(folder)], env=environment, timeout=600)
    assert killed.returncode == -signal.SIGKILL and not (folder / "index.json").exists()
    assert recorded_count(folder) == 4
    with (folder / "made.jsonl").open("a") as journal:
        journal.write('{"rig": {"fx": 1')  # as if it had been killed in a line
    first = np.array(np.memmap(folder / "images.u8", np.uint8, "r")[: whole.images[0].size])
    made: list[int] = []
    again = build_store(folder, config, None, [], 4, seed=9, progress=lambda done, total: made.append(done))
    assert made == [3, 4], "the finished ones are not rendered again"
    assert np.array_equal(again.images[0].reshape(-1), first)
    for name in ("images.u8", "disparity.f16", "index.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (folder / "made.jsonl").exists() and recorded_count(folder) == 4


def test_a_journal_of_other_samples_is_not_taken(tmp_path: Path) -> None:
    config = replace(SMALL, **SIZES)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        build_store(tmp_path, config, None, [], 2, seed=9, progress=kill)
    made: list[int] = []
    build_store(tmp_path, config, None, [], 2, seed=10, progress=lambda done, total: made.append(done))
    assert made == [1, 2]


def test_fabric_gets_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, processes: int = 1) -> tuple[object, object]:
        arguments = fabric_arguments(device, processes, "32-true", joint=True)
        return arguments["accelerator"], arguments["devices"]

    assert chosen("cuda:1") == ("cuda", [1]) and chosen("cuda:0") == ("cuda", [0])
    assert chosen("cuda", 2) == ("cuda", 2) and chosen("cpu", 2) == ("cpu", 2) and chosen("auto") == ("auto", 1)
    for device in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "auto:0"):
        with pytest.raises(TrainError, match="device: expected auto, cpu, cuda or cuda:N"):
            chosen(device)
    with pytest.raises(TrainError, match="device: expected cuda for several processes"):
        chosen("cuda:1", 2)
    # Whoever comes first waits while the samples are made, where torchrun starts all at once.
    assert fabric_arguments("cpu", 1, "32-true", joint=True)["strategy"] == "auto"
    assert lightning_fabric.Fabric(**fabric_arguments("cpu", 2, "32-true", joint=False)).world_size == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert fabric_arguments("cpu", 1, "32-true", joint=True)["strategy"]._timeout >= timedelta(days=1)


def test_labels_keep_their_precision_in_bfloat16(store: SampleStore) -> None:
    """Fabric casts what it finds in a batch; boxes, depths and disparities must not be among it."""
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    seen: list[TrainingBatch] = []

    class Model(torch.nn.Linear):
        def forward(self, batch: TrainingBatch) -> torch.Tensor:  # type: ignore[override]
            seen.append(batch)
            return super().forward(batch.left[..., :4]).sum()

    net = small_net(**SIZES)
    batch = collate([store[0], store[1]], net.config.classes)
    targets = match(batch, net.analysis.anchors)
    before = vars(targets.map(torch.clone))
    fabric.setup(Model(4, 1))(TrainingBatch(batch.left, batch.right, targets))
    after = vars(seen[0].targets)
    assert all(torch.equal(after[name], b) and after[name].dtype == b.dtype for name, b in before.items())


def test_a_mixture_has_its_shares_and_repeats(tmp_path: Path) -> None:
    config = replace(SMALL, **SIZES)
    stores = tuple(build_store(tmp_path / str(n), config, None, [], n, seed=n) for n in (6, 2))
    mixture = Mixture(stores, (0.5, 0.5))
    first, second = mixture.order(4, 0), mixture.order(4, 1)
    assert first == mixture.order(4, 0) and first != second and len(first) == 8
    for order in (first, second):
        assert sum(number == 1 for number, _ in order) == 4
        assert sorted(i for number, i in order if number == 1) == [0, 0, 1, 1], "two passes over the small store"
    # Over three epochs of four, the large store of six is gone through twice.
    seen = [i for epoch in range(3) for number, i in mixture.order(4, epoch) if number == 0]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_roots_and_shares() -> None:
    assert parse_root("a/b") == (Path("a/b"), None) and parse_root("a:0.25") == (Path("a"), 0.25)
    assert complete_shares([None, None], [30, 10]) == (0.75, 0.25)
    assert complete_shares([None, 0.4], [30, 10]) == pytest.approx((0.6, 0.4))
    for text in ("a:much", "a:0", "a:1.5"):
        with pytest.raises(TrainError, match="--data: expected"):
            parse_root(text)
    for shares in ([0.7, 0.7], [1.0, None], [0.3, 0.3]):
        with pytest.raises(TrainError, match="shares that add up to 1"):
            complete_shares(shares, [1, 1])


def test_an_input_that_is_mostly_padding_is_said(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", [0], samples=2)
    config = replace(load_config(folder / "config.yaml"), width=512)
    said: list[str] = []
    make_stores(config, load_train_config(folder), [], [], None, tmp_path / "out", 1, said.append)
    # 1242 columns times 64 / (375 - 100).
    words = "config: width 512 is 44 % padding: KITTI's images, scaled to height 64, have 289 columns"
    assert said[0] == words


@pytest.mark.slow
def test_the_last_stage_trains_the_entropy_model_alone(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", [0, 0, 0, 6])
    after = load_model(run(folder, None, tmp_path / "out", device="cpu")).net.state_dict()
    torch.manual_seed(1)
    before = MvsfcNet(load_config(folder / "config.yaml")).state_dict()
    changed = {
        k
        for k, v in before.items()
        if ".anchors." not in k and not torch.equal(after[k].float(), (v.half() if v.ndim >= 2 else v).float())
    }
    assert changed and all(k.startswith("entropy_model.") and "gain" not in k for k in changed)
    assert {k.split(".")[1] for k in changed} >= {"hyper_encoder", "hyper_decoder", "context", "estimator"}
    rows = losses(tmp_path / "out")
    assert [row[1] for row in rows] == ["entropy"] * 3 and float(rows[-1][2]) < float(rows[0][2])


@pytest.mark.slow
def test_mixed_precision_trains_and_validates_at_intervals(tmp_path: Path) -> None:
    folder = small_model(
        tmp_path / "model", [1, 1, 0], precision="bf16-mixed", validation_minutes=0.0, batch_size=10, samples=5
    )
    said: list[str] = []
    model = load_model(run(folder, None, tmp_path / "out", device="cpu", samples=20, say=said.append))
    # Twenty samples in batches of ten: two steps a stage, each followed by a validation, and one at the stage's end.
    assert sum(line.startswith("validation val uncompressed") for line in said) == 6
    assert all(p.dtype in (torch.float32, torch.float16) for p in model.net.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in model.net.parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1, 2]\n", "epochs"),
        ("batch_size: 0\n", "batch_size"),
        ("learning: 3\n", "learning"),
        ("a: [\n", "not YAML"),
    ],
)
def test_bad_settings_name_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(TrainError, match=message) as error:
        load_train_config(tmp_path)
    assert "\n" not in str(error.value) and "train.yaml" in str(error.value)


def test_missing_labels_and_unknown_stages_and_classes_are_said(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", [1, 0, 0])
    with pytest.raises(TrainError, match="label_2: expected a folder of KITTI labels"):
        run(folder, tmp_path / "nowhere", tmp_path / "out", device="cpu")
    with pytest.raises(TrainError, match="stages: expected some of"):
        run(folder, None, tmp_path / "out", device="cpu", stages="codec,heads")
    folder = small_model(tmp_path / "weighted", [1, 0, 0], class_weights={"Pedestrain": 2.0})
    with pytest.raises(TrainError, match="train.yaml: class_weights: expected some of Car.*, got Pedestrain$"):
        run(folder, None, tmp_path / "out", device="cpu")


def test_true_and_false_positives_are_counted() -> None:
    car = Object3D("Car", (0, 0, 9, 9), 1.5, 1.6, 4.0, 0.0, 1.6, 20.0, 0.0, 0.0, 0.0, 0)
    labels = [[car, replace(car, x=5.0, occluded=1), replace(car, x=-5.0, z=40.0), replace(car, label="Van", x=10.0)]]
    hit = replace(car, x=0.3, score=0.9)
    results = [[hit, replace(hit, x=10.1), replace(hit, x=5.0), replace(hit, x=-9.0), replace(hit, x=20.0, score=0.1)]]
    counted = count_found(labels, results, threshold=0.3)
    assert counted == (1, 1, 1, 1)
    assert count_found(labels, [[]]) == (0, 1, 0, 1)


def test_boxes_that_packets_have_invented_are_counted() -> None:
    car = Object3D("Car", (0, 0, 9, 9), 1.5, 1.6, 4.0, 0.0, 1.6, 20.0, 0.0, 0.0, score=0.8)

    def at(left: float, score: float = 0.8, label: str = "Car") -> Object3D:
        return replace(car, label=label, bbox=(left, 0, left + 9, 9), score=score)

    labels = [[replace(car, score=None), replace(at(100), label="DontCare", score=None)], []]
    plain = [[at(20, 0.3), at(40, 0.2), at(60, 0.9, "Pedestrian")], []]
    coded = [[at(1), at(20), at(40), at(60), at(100), at(200, 0.4)], [at(1)]]
    # Those at 40, where the uncompressed network sees next to nothing, and in the second frame, where there is nothing.
    assert count_invented(labels, coded, plain, threshold=0.5) == 2


def test_depth_errors_by_range() -> None:
    car = Object3D("Car", (0, 0, 9, 9), 1.5, 1.6, 4.0, 0.0, 1.6, 20.0, 0.0, 0.0, 0.0, 0)
    far = replace(car, bbox=(20, 0, 29, 9), z=30.0, occluded=1)
    hidden = replace(car, bbox=(40, 0, 49, 9), z=30.0, occluded=2)
    results = [[replace(o, z=o.z + 0.5, score=0.9) for o in (car, far, hidden)] + [replace(car, z=3.0, score=0.1)]]
    errors = depth_errors([[car, far, hidden]], results, threshold=0.3)
    assert errors == {(5, 15): [], (15, 25): [0.5], (25, 35): [0.5], (35, 50): []}
    assert depth_errors([[car]], [[replace(car, bbox=(5, 0, 14, 9), score=0.9)]])[(15, 25)] == []


def test_sample_is_what_the_network_gets(store: SampleStore) -> None:
    sample = store[0]
    assert isinstance(sample, Sample) and sample.left.shape == (64, 256, 3)
    batch = collate([sample], ("Car", "Pedestrian"))
    assert batch.left.shape == (1, 3, 64, 256) and batch.disparity.shape == (1, 16, 64)
    assert abs(float(batch.left.mean())) < 3


@pytest.mark.parametrize("name", ["sicm-compact", "mvsfc-r34"])
def test_settings_of_the_models_load(name: str) -> None:
    settings, network = load_train_config(MODELS / name), load_config(MODELS / name / "config.yaml")
    assert 0 <= settings.rate < len(network.lambdas)
    # Each stage starts at a rate that falls to the last one.
    assert all(settings.final_learning_rate < rate for rate in settings.learning_rate)
    # What is to be trained has steps: the paper's model in 80, 20 and 80 epochs.
    assert all(epochs > 0 for epochs in settings.epochs[:3])
    assert name != "mvsfc-r34" or settings.epochs == (80, 20, 80, 0)
