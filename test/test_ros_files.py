# SPDX-License-Identifier: Apache-2.0
"""Launch files, parameter files, RViz view, DDS profiles and docs/ros.md agree with the nodes."""

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from needs import NODES as NEEDED
from needs import missing

from sicm_ros.bags.topics import TOPIC_SCHEMES
from sicm_ros.geometry import Object3D
from sicm_ros.networks.config import MvsfcConfig

MISSING = missing(*NEEDED)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from std_msgs.msg import Header
    from visualization_msgs.msg import Marker

    from sicm_ros.conversion.boxes import class_id, marker_array
    from sicm_ros.nodes import decoder, encoder, kitti_player, overlay, viewer
    from sicm_ros.ros import launch_values
    from sicm_ros.ros.rviz_view import write_view
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
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    parameters = {name for table in LAUNCH_TABLES if table in names for name in getattr(launch_values, table)}
    assert {"namespace", "model", "device", "log_level"} <= set(declared)
    for name in declared:
        # The last four are read by sicm_ros.ros.launch_nodes.
        read = constants.count(name) > 1 or name in parameters | {"namespace", "log_level", "respawn", "enclave"}
        assert read, f"{name} is declared but not used"
    assert {node.slice.value for node in ast.walk(tree) if is_given(node)} <= set(declared)
    executables = {call.args[0].value for call in calls if getattr(call.func, "id", "") == "node"}
    assert executables and executables <= set(NODES)


def is_given(node):
    return (
        isinstance(node, ast.Subscript)
        and getattr(node.value, "id", "") == "given"
        and isinstance(node.slice, ast.Constant)
    )


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_commands_in_the_documentation_use_arguments_that_exist(page):
    unknown = []
    for name, words in re.findall(r"ros2 launch sicm_ros (\w+)\.launch\.py([^\n`#'|]*)", page.read_text()):
        tree = ast.parse((ROOT / "launch" / f"{name}.launch.py").read_text())
        declared = {
            call.args[0].value
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DeclareLaunchArgument"
        }
        unknown += [f"{name}: {word}" for word in re.findall(r"(\w+):=", words) if word not in declared]
    assert unknown == []


# Of vehicle, remote and kitti_replay: what users change most, each where it has a node to go to.
OFFERED = {
    "vehicle": {"rate", "max_bitrate", "sync", "image_transport", "left", "right", "image"},
    "remote": {"score_threshold", "fixed_frame", "image", "rviz_config"},
    "kitti_replay": {"rate", "max_bitrate", "sync", "score_threshold", "encoder_params_file", "decoder_params_file"},
}
# The player plays on its own topics, and raw.
NOT_IN_REPLAY = {"left", "right", "image", "image_transport", "params_file", "vehicles", "respawn", "autostart"}


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_files_offer_what_works(path):
    text = path.read_text()
    declared = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', text))
    name = path.name.split(".")[0]
    assert OFFERED[name] <= declared
    if name == "kitti_replay":
        assert not declared & NOT_IN_REPLAY
    # An included file would offer its arguments, too.
    assert "IncludeLaunchDescription" not in text


LAUNCH_TABLES = {
    "ENCODER": "encoder_node",
    "DECODER": "decoder_node",
    "PLAYER": "kitti_player_node",
    "OVERLAY": "overlay_node",
}


@pytest.mark.parametrize("table", LAUNCH_TABLES)
def test_launch_arguments_become_parameters_of_the_nodes_types(table):
    specs = {spec.name: spec.default for spec in NODES[LAUNCH_TABLES[table]]} | {"use_sim_time": False}
    texts = {str: "some text", float: "0", int: "7", bool: "true", tuple: "[car1, car2]"}
    kinds = getattr(launch_values, table)
    values = launch_values.typed(kinds, {name: texts[type(specs[name])] for name in kinds})
    # A floating point parameter refuses an integer, also from `rate:=0`.
    assert {name: type(value) for name, value in values.items()} == {
        name: list if isinstance(specs[name], tuple) else type(specs[name]) for name in kinds
    }
    assert launch_values.typed(kinds, dict.fromkeys(kinds, "")) == launch_values.typed(kinds, {}) == {}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("rate", "high", "rate: expected a number, got 'high'"),
        ("max_bitrate", "0.5", "max_bitrate: expected an integer, got '0.5'"),
        ("autostart", "yes", "autostart: expected true or false, got 'yes'"),
        ("vehicles", "[car1", "vehicles: expected names such as [car1, car2], got '[car1'"),
        ("vehicles", "[1, 2]", "vehicles: expected names such as [car1, car2], got '[1, 2]'"),
    ],
)
def test_a_launch_argument_of_another_type_is_one_line(name, text, expected):
    with pytest.raises(ValueError) as error:
        launch_values.typed(launch_values.ENCODER | launch_values.DECODER, {name: text})
    assert str(error.value) == expected


def test_one_vehicle_needs_no_brackets():
    assert launch_values.typed(launch_values.DECODER, {"vehicles": "car1"}) == {"vehicles": ["car1"]}


def test_a_parameter_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="params_file: expected a YAML file .* /nowhere.yaml"):
        launch_values.existing_file("params_file", "/nowhere.yaml")
    (tmp_path / "mine.yaml").touch()
    assert launch_values.existing_file("params_file", str(tmp_path / "mine.yaml")) == str(tmp_path / "mine.yaml")


def displays_of(view):
    return {d["Name"]: d for d in yaml.safe_load(Path(view).read_text())["Visualization Manager"]["Displays"]}


def test_rviz_shows_what_the_nodes_publish():
    view = yaml.safe_load((ROOT / "rviz" / "sicm.rviz").read_text())["Visualization Manager"]
    displays = {display["Class"]: display for display in view["Displays"]}
    boxes = displays["vision_msgs_rviz_plugins/Detection3DArray"]["Topic"]
    assert (boxes["Value"], boxes["Reliability Policy"]) == ("detections", "Reliable")
    assert displays["rviz_default_plugins/MarkerArray"]["Topic"]["Value"] == "detection_markers"
    assert "rviz_default_plugins/TF" in displays
    # Images of a distant vehicle would cross its radio link.
    assert not [name for name in displays if "Image" in name or "Camera" in name]
    # Nothing but the fixed frame is named, so a vehicle without the player's frames has to change only that.
    assert displays["rviz_default_plugins/Grid"]["Reference Frame"] == "<Fixed Frame>"
    assert view["Views"]["Current"]["Target Frame"] == "<Fixed Frame>"
    assert view["Global Options"]["Fixed Frame"] == "base_link"


def test_rviz_view_of_a_launch_has_its_frame_its_image_and_full_path_of_the_colours():
    colours = ROOT / "rviz" / "class_colours.yaml"
    path = write_view(ROOT / "rviz" / "sicm.rviz", colours, "map", "stereo/left/image_rect/compressed")
    try:
        manager = yaml.safe_load(path.read_text())["Visualization Manager"]
        displays = displays_of(path)
    finally:
        path.unlink()
    assert manager["Global Options"]["Fixed Frame"] == "map"
    assert displays["Image"]["Topic"]["Value"] == "stereo/left/image_rect/compressed"
    assert displays["Image"]["Topic"]["Reliability Policy"] == "Best Effort"
    assert displays["Boxes"]["ConfigPath"] == str(colours)
    plain = write_view(ROOT / "rviz" / "sicm.rviz", colours)
    try:
        assert displays_of(plain).keys() == displays.keys() - {"Image"}
        assert "Fixed Frame: base_link\n" in plain.read_text()
    finally:
        plain.unlink()


@pytest.mark.parametrize("content", [None, "", "{", "Panels: []", "Visualization Manager: 3"])
def test_a_file_that_is_no_rviz_view_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "mine.rviz").write_text(content)
    with pytest.raises(ValueError, match=r"^rviz_config: expected a view of RViz, got .*mine.rviz: .*$") as error:
        write_view(tmp_path / "mine.rviz", ROOT / "rviz" / "class_colours.yaml")
    assert "\n" not in str(error.value)


def test_rviz_has_a_colour_for_every_class_and_that_of_the_outlines():
    """As vision_msgs_rviz_plugins reads it: class_id in lower case, and integers r, g and b."""
    colours = yaml.safe_load((ROOT / "rviz" / "class_colours.yaml").read_text())
    for path in sorted((ROOT / "models").glob("*/config.yaml")):
        classes = yaml.safe_load(path.read_text()).get("classes", MvsfcConfig().classes)
        assert {class_id(name) for name in classes} <= set(colours), path
    boxes = [Object3D(name.capitalize(), (0, 0, 9, 9), 1.5, 1.6, 4, 0, 1, 20, 0, 0, score=0.9) for name in colours]
    outlines = [m for m in marker_array(Header(), boxes).markers if m.type == Marker.LINE_LIST]
    assert len(outlines) == len(boxes)
    for name, marker in zip(colours, outlines, strict=True):
        drawn = [round(255 * part) for part in (marker.color.r, marker.color.g, marker.color.b)]
        assert colours[name] == dict(zip("rgb", drawn, strict=True)), name


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
