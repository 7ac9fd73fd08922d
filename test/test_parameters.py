# SPDX-License-Identifier: Apache-2.0
"""The types and ranges of the nodes' parameters, however a user writes a number."""

import math

import pytest
from needs import NODES as NEEDED
from needs import missing

MISSING = missing(*NEEDED)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    import rclpy
    from rclpy.parameter import Parameter

    from sicm_ros.nodes import decoder, encoder, kitti_player, overlay, viewer
    from sicm_ros.ros.lifecycle import set_network_threads
    from sicm_ros.ros.parameters import ParameterError, ParameterSpec, declare

    NODES = {m.__name__.rsplit(".", 1)[1]: m.PARAMETERS for m in (decoder, encoder, kitti_player, overlay, viewer)}
NAMES = ("decoder", "encoder", "kitti_player", "overlay", "viewer")


@pytest.fixture
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    context.shutdown()


def declared(context, specs, *arguments):
    """A node that was given parameters on the command line, and has declared the table."""
    node = rclpy.create_node("n", context=context, cli_args=["--ros-args", *arguments], use_global_arguments=False)
    try:
        declare(node, specs)
    except ParameterError:
        node.destroy_node()
        raise
    return node


@pytest.mark.parametrize("way", ["argument", "file"])
@pytest.mark.parametrize("name", NAMES)
def test_integers_do_for_every_number_at_start(context, tmp_path, name, way):
    doubles = [spec for spec in NODES[name] if isinstance(spec.default, float)]
    values = {spec.name: math.ceil(spec.minimum) for spec in doubles}
    arguments = [part for parameter, value in values.items() for part in ("-p", f"{parameter}:={value}")]
    if way == "file":
        lines = [f"    {parameter}: {value}" for parameter, value in values.items()]
        (tmp_path / "p.yaml").write_text("\n".join(["/**:", "  ros__parameters:", *lines, "    ignored: 1"]) + "\n")
        arguments = ["--params-file", str(tmp_path / "p.yaml")]
    node = declared(context, NODES[name], *arguments)
    try:
        for spec in doubles:
            parameter = node.get_parameter(spec.name)
            assert parameter.type_ == Parameter.Type.DOUBLE and parameter.value == values[spec.name]
            assert node.describe_parameter(spec.name).read_only is not spec.runtime
    finally:
        node.destroy_node()


def test_integers_do_for_numbers_while_running(context):
    specs = [
        ParameterSpec("rate", -1.0, "", -1.0, 15.0, runtime=True),
        ParameterSpec("count", 3, "", 0, 9, runtime=True),
        ParameterSpec("fixed", 1.0, "", 0.0, 9.0),
    ]
    node = declared(context, specs)
    try:

        def change(name, value):
            return node.set_parameters([Parameter(name, value=value)])[0].successful

        assert change("rate", 0)
        assert node.get_parameter("rate").type_ == Parameter.Type.DOUBLE and node.get_parameter("rate").value == 0
        assert change("rate", 2.5) and not change("rate", 16) and not change("rate", True) and not change("rate", "0")
        assert change("count", 4) and not change("count", 4.0) and not change("fixed", 1)
        assert node.get_parameter("rate").value == 2.5 and node.get_parameter("count").value == 4
    finally:
        node.destroy_node()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("rate:=16", r"parameter rate: expected a number in \[-1, 15\]"),
        ("rate:=true", r"parameter rate: expected a number in \[-1, 15\]"),
        ("rate:=fast", r"parameter rate: expected a number in \[-1, 15\]"),
        ("max_bitrate:=1.5", r"parameter max_bitrate: expected an integer in \[0, 1e\+09\]"),
    ],
)
def test_what_is_no_such_number_is_refused_in_words(context, argument, words):
    with pytest.raises(ParameterError, match=words):
        declared(context, encoder.PARAMETERS, "-p", argument)


@pytest.mark.parametrize(
    ("asked", "cores", "alone", "expected"),
    [(0, 1, False, 1), (0, 2, False, 1), (0, 2, True, 2), (0, 6, False, 3), (0, 64, False, 8), (0, 64, True, 64)]
    + [(5, 2, False, 5), (5, 2, True, 5)],
)
def test_threads_leave_cores_to_others(monkeypatch, asked, cores, alone, expected):
    found = []
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    set_network_threads(asked, alone)
    assert found == [expected]


def test_threads_that_the_environment_sets_stay(monkeypatch):
    found = []
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_network_threads(0)
    assert found == []
    set_network_threads(2)
    assert found == [2]
