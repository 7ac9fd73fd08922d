# SPDX-License-Identifier: Apache-2.0
"""The stand-in for message_filters does what the package does: the same tests hold the one that is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs import missing
from ros_graph import REPOSITORY, Graph

MISSING = missing("rclpy")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from rclpy.parameter import Parameter
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import Header

    from sicm_ros.ros.qos import boxes_qos, image_qos, overridable

STAND_IN = REPOSITORY / "interfaces/message_filters/message_filters/__init__.py"


@pytest.fixture(params=["stand-in", "installed"])
def library(request):
    if request.param == "installed":
        return pytest.importorskip("message_filters")
    spec = importlib.util.spec_from_file_location("stand_in_of_message_filters", STAND_IN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph():
    graph = Graph("filtering", "/filters")
    yield graph
    graph.close()


# ------------------------------------------------------------------------------------------------------------- filters


def test_callbacks_get_every_output_and_their_arguments_in_the_order_of_registration(library):
    source, calls = library.SimpleFilter(), []
    source.signalMessage("nobody listens")
    keys = [
        source.registerCallback(lambda *arguments, name=name: calls.append((name, *arguments)), *extra)
        for name, extra in (("a", ()), ("b", (1,)), ("c", (2, "x")))
    ]
    assert len(set(keys)) == 3 and set(keys) == set(source.callbacks)
    source.signalMessage("m")
    source.signalMessage("l", "r")
    assert calls == [
        *[("a", "m"), ("b", "m", 1), ("c", "m", 2, "x")],
        *[("a", "l", "r"), ("b", "l", "r", 1), ("c", "l", "r", 2, "x")],
    ]


def test_a_callback_registered_twice_is_called_twice(library):
    source, calls = library.SimpleFilter(), []
    source.registerCallback(calls.append)
    source.registerCallback(calls.append)
    source.signalMessage(7)
    assert calls == [7, 7]


def test_filters_are_chained_by_their_own_method(library):
    first, second, calls = library.SimpleFilter(), library.SimpleFilter(), []
    first.registerCallback(second.signalMessage)
    second.registerCallback(lambda *messages: calls.append(messages))
    first.signalMessage(1, 2)
    assert calls == [(1, 2)]


def test_what_a_callback_raises_goes_to_the_caller_and_the_filter_goes_on(library):
    source, calls = library.SimpleFilter(), []

    def first(message):
        if message == "bad":
            raise KeyError(message)

    source.registerCallback(first)
    source.registerCallback(calls.append)
    with pytest.raises(KeyError, match="bad"):
        source.signalMessage("bad")
    source.signalMessage("good")
    assert calls == ["good"]


# ---------------------------------------------------------------------------------------------------------- subscribers


def test_a_subscriber_hands_on_what_comes_over_dds(library, graph):
    subscriber = library.Subscriber(graph.node, Header, "stamped", qos_profile=boxes_qos(20))
    subscriber.registerCallback(lambda message, name: graph.received[name].append(message.frame_id), "first")
    subscriber.registerCallback(lambda message, name: graph.received[name].append(message.frame_id), "second")
    graph.executor.wake()
    assert isinstance(subscriber, library.SimpleFilter)
    assert subscriber.getTopic() == "stamped" and subscriber.topic_name == "/filters/stamped"
    graph.publisher(Header, "stamped")
    graph.wait_for_subscribers("stamped")
    for number in range(10):
        graph.publishers["stamped"].publish(Header(frame_id=str(number)))
    graph.wait(lambda: len(graph.received["second"]) == 10)
    assert graph.received["first"] == graph.received["second"] == [str(number) for number in range(10)]
    assert graph.node.destroy_subscription(subscriber.sub)
    graph.wait(lambda: graph.node.count_subscribers("/filters/stamped") == 0)
    with pytest.raises(AttributeError):
        subscriber.no_such_attribute  # noqa: B018


def profile_of(graph, topic):
    (info,) = graph.wait(lambda: graph.node.get_subscriptions_info_by_topic(topic))
    return info.qos_profile


def test_a_subscriber_is_reliable_unless_told_otherwise(library, graph):
    default = library.Subscriber(graph.node, Header, "default")
    asked = library.Subscriber(graph.node, Header, "asked", qos_profile=image_qos())
    assert default.sub.qos_profile.depth == 10 and asked.sub.qos_profile.depth == 5
    assert profile_of(graph, "/filters/default").reliability == ReliabilityPolicy.RELIABLE
    assert profile_of(graph, "/filters/asked").reliability == ReliabilityPolicy.BEST_EFFORT


def test_a_subscriber_passes_on_every_argument_of_a_subscription(library, graph):
    node, topic = graph.node, "/filters/overridden"
    for name, value in (("reliability", "reliable"), ("durability", "transient_local")):
        node.declare_parameter(f"qos_overrides.{topic}.subscription.{name}", value)
    raw = library.Subscriber(
        node, Header, "overridden", qos_profile=image_qos(), qos_overriding_options=overridable(), raw=True
    )
    raw.registerCallback(graph.received["overridden"].append)
    graph.executor.wake()
    profile = profile_of(graph, topic)
    assert profile.reliability == ReliabilityPolicy.RELIABLE
    assert profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert node.get_parameter(f"qos_overrides.{topic}.subscription.depth").value == 5
    assert node.get_parameter(f"qos_overrides.{topic}.subscription.reliability").type_ == Parameter.Type.STRING
    latched = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    graph.publisher(Header, "overridden", latched).publish(Header(frame_id="x"))
    (data,) = graph.wait(lambda: list(graph.received["overridden"]))
    assert isinstance(data, bytes)


# -------------------------------------------------------------------------------------------------------- installation


def test_the_genuine_package_wins_wherever_it_is():
    prefixes = [sys.prefix, *filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
    genuine = [prefix for prefix in prefixes if Path(prefix, "share/message_filters/package.xml").exists()]
    spec = importlib.util.find_spec("message_filters")
    if spec is None:
        pytest.skip("not installed by ./run or pip")
    if genuine:
        assert any(Path(spec.origin).is_relative_to(prefix) for prefix in genuine)
        assert hasattr(pytest.importorskip("message_filters"), "ApproximateTimeSynchronizer")
    else:
        assert Path(spec.origin).read_bytes() == STAND_IN.read_bytes()


def setup_finds_the_genuine_package(ament_prefix_path):
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--name'];"
        "print(runpy.run_path('setup.py')['has_genuine_message_filters']())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "AMENT_PREFIX_PATH": ament_prefix_path},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"True": True, "False": False}[result.stdout.splitlines()[-1]]


def test_pip_leaves_out_the_stand_in_where_an_install_has_the_package(tmp_path):
    share = tmp_path / "ros/share/message_filters"
    share.mkdir(parents=True)
    prefixes = f"/nowhere:{tmp_path / 'ros'}"
    if not Path(sys.prefix, "share/message_filters/package.xml").exists():
        assert not setup_finds_the_genuine_package(prefixes)
    (share / "package.xml").touch()
    assert setup_finds_the_genuine_package(prefixes)
