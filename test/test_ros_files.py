# SPDX-License-Identifier: Apache-2.0
"""Launch files, parameter files, RViz view, DDS profiles and docs/ros.md agree with the nodes."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from needs import NODES as NEEDED
from needs import missing

from sicm_ros.bags.topics import TOPIC_SCHEMES

MISSING = missing(*NEEDED)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from sicm_ros.nodes import decoder, encoder, kitti_player, overlay, viewer
MODULES = () if MISSING else (encoder, decoder, kitti_player, overlay, viewer)

ROOT = Path(__file__).resolve().parents[1]
NODES = {f"{module.__name__.rpartition('.')[2]}_node": module.PARAMETERS for module in MODULES}
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))


@pytest.mark.parametrize(
    ("file", "node"),
    [("vehicle.yaml", "encoder_node"), ("remote.yaml", "decoder_node"), ("kitti_player.yaml", "kitti_player_node")],
)
def test_parameter_files_hold_valid_values_of_the_node(file, node):
    specs = {spec.name: spec for spec in NODES[node]}
    values = yaml.safe_load((ROOT / "config" / file).read_text())["/**"]["ros__parameters"]
    assert values
    for name, value in values.items():
        spec = specs[name]
        value = tuple(value) if isinstance(value, list) else value
        # As ros2 param dump would write it.
        assert type(value) is type(spec.default), name
        assert spec.check(value) is None
        assert spec.minimum is None or spec.minimum <= value <= spec.maximum
        assert value == spec.default, f"{name}: the file is meant to show the default"


def row(spec):
    default = str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default) or '""'
    if isinstance(spec.default, tuple):
        default = json.dumps(list(spec.default))
    allowed = (
        ", ".join(spec.choices)
        if spec.choices
        else ""
        if spec.minimum is None
        else f"{spec.minimum:g} to {spec.maximum:g}"
    )
    return f"| `{spec.name}` | `{default}` | {allowed} | {'yes' if spec.runtime else ''} | {spec.description} |"


@pytest.mark.parametrize("node", NODES)
def test_the_documentation_lists_the_parameters_as_they_are(node):
    text = (ROOT / "docs" / "ros.md").read_text()
    section = text.split(f"## Parameters of `{node}`")[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == [row(spec) for spec in NODES[node]]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_arguments_are_described_and_used(path):
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    declared = {}
    for call in calls:
        if getattr(call.func, "id", "") == "DeclareLaunchArgument":
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            assert keywords["description"].value, call.args[0].value
            default = keywords.get("default_value")
            if isinstance(default, ast.Constant) and default.value in ("true", "false"):
                assert ast.literal_eval(keywords["choices"]) == ["true", "false"], call.args[0].value
            declared[call.args[0].value] = keywords
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert {"namespace", "model", "device", "log_level"} <= set(declared)
    for name in declared:
        assert constants.count(name) > 1, f"{name} is declared but not used"
    assert {
        call.args[0].value
        for call in calls
        if getattr(call.func, "id", "") == "LaunchConfiguration" and isinstance(call.args[0], ast.Constant)
    } <= set(declared)
    executables = {k.value.value for call in calls for k in call.keywords if k.arg == "executable"}
    assert executables <= {*NODES, "rviz2"}


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_descriptions_can_be_made(path):
    pytest.importorskip("launch_ros", reason="ros2 launch is not in this environment")
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.generate_launch_description().entities


def test_rviz_shows_what_the_nodes_publish():
    view = yaml.safe_load((ROOT / "rviz" / "sicm.rviz").read_text())["Visualization Manager"]
    displays = {display["Class"]: display for display in view["Displays"]}
    boxes = displays["vision_msgs_rviz_plugins/Detection3DArray"]["Topic"]
    assert (boxes["Value"], boxes["Reliability Policy"]) == ("detections", "Reliable")
    assert displays["rviz_default_plugins/MarkerArray"]["Topic"]["Value"] == "detection_markers"
    images = [d["Topic"]["Value"] for d in view["Displays"] if d["Class"] == "rviz_default_plugins/Image"]
    assert images == ["left/image_rect", "detections_image"]
    assert view["Global Options"]["Fixed Frame"] == "camera_0_optical" and "rviz_default_plugins/TF" in displays


def test_dds_profiles_are_well_formed():
    space = {"d": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    sizes = {}
    for name in ("fastdds_lossy", "fastdds_images"):
        root = ElementTree.parse(ROOT / "config" / f"{name}.xml").getroot()
        declared = {
            d.findtext("d:transport_id", namespaces=space): d for d in root.iterfind(".//d:transport_descriptor", space)
        }
        used = [e.text for e in root.iterfind(".//d:userTransports/d:transport_id", space)]
        assert used and set(used) == set(declared)
        sizes[name] = {d.findtext("d:type", namespaces=space): d for d in declared.values()}
    assert int(sizes["fastdds_lossy"]["UDPv4"].findtext("d:maxMessageSize", namespaces=space)) <= 1400
    assert int(sizes["fastdds_images"]["SHM"].findtext("d:segment_size", namespaces=space)) > 4 * 3 * 1242 * 375


def test_the_tests_of_the_feature_table_are_there():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs" / "features.md").read_text())
    assert len(named) > 50
    for file, name in named:
        text = (ROOT / "test" / file).read_text()
        assert not name or re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"{file}::{name}"


def test_the_documentation_lists_the_topic_schemes():
    text = (ROOT / "docs" / "ros.md").read_text()
    for scheme, (left, right) in TOPIC_SCHEMES.items():
        assert f"| `{scheme}` | `{left}` | `{right}` |" in text
