# SPDX-License-Identifier: Apache-2.0
"""What is installed is what is there: package.xml, CMake, pip and ./run agree with the tree and with each other."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest

import sicm_ros

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
DATA_FOLDERS = ("config", "launch", "models", "rviz")

# Modules whose distribution, or whose ROS package, has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "lightning_fabric": "lightning-fabric",
    "rerun": "rerun-sdk",
    "rerun_cli": "rerun-sdk",
    "yaml": "PyYAML",
}


def dependencies(*tags: str) -> set[str]:
    return {element.text for tag in tags for element in PACKAGE.findall(tag)}


def requirements(name: str) -> set[str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {re.match(r"[\w.-]+", line).group() for line in lines if line[:1].isalpha()}


def prefix_of(package: str) -> Path:
    prefixes = os.environ.get("AMENT_PREFIX_PATH", sys.prefix).split(os.pathsep)
    found = [
        Path(prefix)
        for prefix in prefixes
        if (Path(prefix) / "share/ament_index/resource_index/packages" / package).exists()
    ]
    if not found:
        pytest.skip(f"{package} is not installed in this environment: start the tests with ./run test or colcon test")
    return found[0]


# --------------------------------------------------------------------------------------------------------- declarations


def test_package_xml_declares_an_interface_package_built_by_cmake():
    assert PACKAGE.get("format") == "3"
    assert PACKAGE.findtext("name") == "sicm_ros"
    assert PACKAGE.findtext("license") == "Apache-2.0"
    assert PACKAGE.findtext("export/build_type") == "ament_cmake"
    assert PACKAGE.findtext("member_of_group") == "rosidl_interface_packages"
    assert {"rosidl_default_generators"} <= dependencies("buildtool_depend")
    assert {"rosidl_default_runtime"} <= dependencies("exec_depend")


def test_versions_agree():
    assert PACKAGE.findtext("version") == sicm_ros.__version__
    assert metadata.version("sicm_ros") == sicm_ros.__version__


def test_cmake_requires_what_package_xml_declares():
    text = (ROOT / "CMakeLists.txt").read_text()
    required = set(re.findall(r"find_package\((\w+) REQUIRED", text)) - {"Python3"}
    assert required <= dependencies("buildtool_depend", "depend", "test_depend")


def test_every_import_is_declared():
    undeclared = {}
    known = (
        requirements("nodes.txt")
        | requirements("openvino.txt")
        | requirements("core.txt")
        | requirements("cluster.txt")
        | requirements("evaluate.txt")
        | requirements("viewer.txt")
        | dependencies("depend", "exec_depend")
    )
    known |= {*sys.stdlib_module_names, "sicm_ros"}
    for path in (ROOT / "sicm_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for module in (name.split(".")[0] for name in names):
                if DISTRIBUTIONS.get(module, module) not in known:
                    undeclared.setdefault(module, path.name)
    assert undeclared == {}


def test_every_core_requirement_is_imported():
    text = "".join(path.read_text() for path in (ROOT / "sicm_ros").rglob("*.py"))
    modules = {distribution: module for module, distribution in DISTRIBUTIONS.items()}
    modules["tensorboard"] = r"lightning_fabric\.loggers"  # its TensorBoardLogger imports it
    assert [
        name
        for name in sorted(requirements("nodes.txt") | requirements("core.txt"))
        if not re.search(rf"^\s*(?:import|from) {modules.get(name, re.escape(name))}\b", text, re.MULTILINE)
    ] == []


def test_every_ros_dependency_is_used():
    text = "".join(path.read_text() for folder in ("sicm_ros", "launch") for path in (ROOT / folder).rglob("*.py"))
    # What is needed without being named in Python: the runtime of the messages, and the command `ros2 launch`.
    named = dependencies("depend", "exec_depend") - {"rosidl_default_runtime", "ros2launch"}
    text += (ROOT / "rviz" / "sicm.rviz").read_text()
    assert [
        name
        for name in sorted(named)
        if not name.startswith("python3-")
        and not re.search(rf"(?:import|from) {name}\b|package=\"{name}\"|Class: {name}/", text)
    ] == []


def test_the_list_of_the_nodes_is_all_that_they_import():
    """Not only where the nodes import something at their start: all modules below them."""
    files, waiting = set(), [ROOT / "sicm_ros/nodes" / f"{name}.py" for name in ("encoder", "decoder")]
    imported = set()
    while waiting:
        path = waiting.pop()
        if path in files or not path.is_file():
            continue
        files.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                folder = path.parents[node.level - 1] if node.level else None
                base = (
                    ".".join([*folder.relative_to(ROOT).parts, node.module or ""]).rstrip(".")
                    if folder
                    else node.module
                )
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in names]
            imported |= {name.split(".")[0] for name in names}
    assert len(files) > 30
    third_party = imported - {*sys.stdlib_module_names, "sicm_ros"} - dependencies("depend", "exec_depend")
    assert {DISTRIBUTIONS.get(name, name) for name in third_party} == (
        requirements("nodes.txt") | requirements("openvino.txt")
    )


def test_every_requirement_is_pinned_once():
    pins = {}
    for name in (
        "nodes.txt",
        "core.txt",
        "cluster.txt",
        "dev.txt",
        "evaluate.txt",
        "openvino.txt",
        "ros.txt",
        "torch.txt",
        "viewer.txt",
    ):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line[:1].isalpha() and "python_version >=" not in line:
                distribution, _, version = line.split(";")[0].strip().partition("==")
                pins.setdefault(distribution, []).append(version)
    # PyTorch is named in nodes.txt and pinned in torch.txt.
    assert {name: versions for name, versions in pins.items() if len(list(filter(None, versions))) != 1} == {}


def test_every_source_file_names_its_licence():
    files = [
        path
        for folder in ("sicm_ros", "test", "launch", "cmake", "interfaces")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cmake")
    ]
    files += [ROOT / name for name in ("setup.py", "run", "CMakeLists.txt")]
    assert len(files) > 20
    assert [
        str(path)
        for path in files
        if path.stat().st_size and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ] == []


def test_links_in_the_documentation_resolve():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_changelog_has_the_form_of_rep_132():
    title, body = (ROOT / "CHANGELOG.rst").read_text().split("\n\n", 1)
    assert title.splitlines() == ["^" * 30, f"Changelog for package {sicm_ros.__name__}", "^" * 30]
    headings = re.findall(r"^(.+)\n-+$", body, re.MULTILINE)
    assert headings and "Forthcoming" not in headings[1:]
    for heading in headings:
        assert re.fullmatch(r"Forthcoming|\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading)
    text = re.sub(r"^.+\n-+$", "", body, flags=re.MULTILINE)
    assert [line for line in text.splitlines() if line and not line.startswith(("* ", "  "))] == []


# ------------------------------------------------------------------------------------------------------------- messages


def test_cmake_builds_every_message():
    for folder in (ROOT, ROOT / "interfaces/vision_msgs"):
        listed = re.findall(r"^\s+(msg/\w+\.msg)$", (folder / "CMakeLists.txt").read_text(), re.MULTILINE)
        assert listed == sorted(str(path.relative_to(folder)) for path in folder.glob("msg/*.msg"))


@pytest.mark.parametrize(
    ("package", "message", "type_hash"),
    [
        # Those of the genuine vision_msgs 4.1.1: with any other hash, a genuine subscriber is not found.
        ("vision_msgs", "Detection3DArray", "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"),
        ("vision_msgs", "LabelInfo", "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"),
        ("vision_msgs", "VisionInfo", "95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284"),
        # Ours: a change ends the exchange with every vehicle that has the older package, so it is to be a decision.
        ("sicm_ros", "StereoBitstream", "5897201282874adb6a39272bec1d0b5224e05599ffa872f07b50d0ee20af5468"),
        ("sicm_ros", "CodecInfo", "0bfcfff002179c6f8ce47e53ca5edfc6b67eb74767561185ba02476d9c44a568"),
        ("sicm_ros", "DecodeStats", "9f12f61c7172b7222576d47626c72e8310d16b7dafc4abe187dee02ff1baf966"),
    ],
)
def test_type_hashes(package, message, type_hash):
    description = prefix_of(package) / "share" / package / "msg" / f"{message}.json"
    hashes = {entry["type_name"]: entry["hash_string"] for entry in json.loads(description.read_text())["type_hashes"]}
    assert hashes[f"{package}/msg/{message}"] == f"RIHS01_{type_hash}"


def test_messages_survive_serialisation():
    serialization = pytest.importorskip("rclpy.serialization")
    from array import array

    from sicm_ros.msg import CodecInfo, StereoBitstream

    packet = StereoBitstream(session=2**64 - 1, sequence=7, entropy_ms=1.5, data=array("B", range(256)))
    packet.right_stamp.nanosec = 999_999_999
    back = serialization.deserialize_message(serialization.serialize_message(packet), StereoBitstream)
    assert back == packet and bytes(back.data) == bytes(range(256))
    info = CodecInfo(model_name="m", fingerprint=2**63, packet_version=255, class_names=["Car", ""], rates=[0.5, 256.0])
    assert serialization.deserialize_message(serialization.serialize_message(info), CodecInfo) == info


# --------------------------------------------------------------------------------------------------------- installation


def test_cmake_installs_every_data_folder():
    (listed,) = re.findall(r"install\(DIRECTORY ([\w ]+) DESTINATION share/", (ROOT / "CMakeLists.txt").read_text())
    assert tuple(listed.split()) == DATA_FOLDERS
    # Whoever adds a folder at the top decides here whether it is installed.
    others = {
        "benchmarks",
        "build",
        "cmake",
        "data",
        "docs",
        "install",
        "interfaces",
        "log",
        "msg",
        "out",
        "requirements",
        "runs",
        "sicm_ros",
        "test",
    }
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert {name for name in folders if not name.endswith(".egg-info")} <= others | set(DATA_FOLDERS)


def test_every_data_file_is_installed():
    share = prefix_of("sicm_ros") / "share/sicm_ros"
    sources = [
        path
        for folder in DATA_FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    missing = [
        str(path.relative_to(ROOT))
        for path in sources
        if not (share / path.relative_to(ROOT)).is_file()
        or (share / path.relative_to(ROOT)).stat().st_size != path.stat().st_size
    ]
    assert missing == []


def test_every_executable_has_its_main():
    folder = prefix_of("sicm_ros") / "lib/sicm_ros"
    executables = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    nodes = [f"{name}_node" for name in ("decoder", "encoder", "kitti_player", "overlay", "viewer")]
    assert sorted(executables) == sorted(["sicm", *nodes])
    for name, text in executables.items():
        interpreter, module = re.match(r"#!(.*)\n(?s:.*)from ([\w.]+) import main\n", text).groups()
        assert os.access(folder / name, os.X_OK) and os.access(interpreter, os.X_OK), name
        assert callable(importlib.import_module(module).main), name


# ------------------------------------------------------------------------------------------------------------------ run

TOOLS = (
    "bash",
    "cat",
    "dirname",
    "env",
    "find",
    "flock",
    "grep",
    "mkdir",
    "paste",
    "rm",
    "sed",
    "sha256sum",
    "sort",
    "tr",
)


@pytest.fixture
def project(tmp_path):
    """A copy of what ./run reads, and a folder with the few commands that every machine has, to be used as PATH."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    tools.mkdir()
    for folder in ("cmake", "interfaces", "msg", "requirements"):
        shutil.copytree(ROOT / folder, project / folder)
    for name in ("run", "CMakeLists.txt", "package.xml", "pyproject.toml", "setup.py", "setup.cfg"):
        shutil.copy(ROOT / name, project)
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    return project


def start(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {"PATH": str(project.parent / "tools"), "HOME": str(project.parent), **environment}
    return subprocess.run([project / "run", *arguments], env=environment, capture_output=True, text=True)


def add_tool(project: Path, name: str, script: str = "exit 1") -> None:
    path = project.parent / "tools" / name
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


def assert_one_line(result: subprocess.CompletedProcess, *parts: str) -> None:
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("run: ")
    for part in parts:
        assert part in result.stderr


def test_run_explains_itself_without_making_anything(project):
    plain, asked = start(project), start(project, "--help")
    assert plain.returncode == asked.returncode == 0
    assert plain.stdout == asked.stdout and "./run demo" in plain.stdout and "./run test" in plain.stdout
    steps = [plain.stdout.index(step) for step in ("./run demo", "./run encode", "./run decode", "docs/ros.md")]
    assert steps == sorted(steps)
    assert not (project / ".venv").exists()


def test_run_names_the_missing_tool(project):
    assert_one_line(start(project, "demo"), "cmake", "apt install cmake")
    add_tool(project, "cmake")
    assert_one_line(start(project, "demo"), "compiler", "apt install g++")
    add_tool(project, "c++")
    assert_one_line(start(project, "demo"), "compiler", "apt install g++")
    add_tool(project, "cc")
    assert_one_line(start(project, "demo"), "make or ninja", "apt install make")
    add_tool(project, "make")
    assert_one_line(start(project, "demo"), "Python 3.11", "ROS 2 install", "apt install python3.11-venv")
    add_tool(project, "python3")  # of another version
    assert_one_line(start(project, "demo"), "Python 3.11", "ROS 2 install", "apt install python3.11-venv")
    add_tool(project, "python3", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    assert_one_line(start(project, "demo"), "venv module", "apt install python3-venv")
    assert not (project / ".venv").exists()


def test_run_asks_for_the_glibc_that_its_wheels_need():
    if not any(distribution.name == "ros-jazzy-rclpy" for distribution in metadata.distributions()):
        pytest.skip("ROS 2 is not from PyPI here")
    needed = {}
    for distribution in metadata.distributions():
        tags = re.findall(r"^Tag: .*-manylinux_2_(\d+)_x86_64$", distribution.read_text("WHEEL") or "", re.MULTILINE)
        if tags:
            needed[distribution.name] = min(map(int, tags))
    text = (ROOT / "run").read_text()
    (asked,) = re.findall(r">= \(2, (\d+)\)", text)
    assert max(needed.values()) == int(asked), max(needed, key=needed.get)
    assert set(re.findall(r"glibc\s+2\.(\d+)", text)) == {asked}
    assert f"it is 2.{asked}" in (ROOT / "requirements/ros.txt").read_text()


def test_run_leaves_alone_an_environment_that_it_did_not_make(project):
    (project / ".venv/bin").mkdir(parents=True)
    assert_one_line(start(project, "demo"), ".venv", "move it away")
    assert (project / ".venv/bin").exists()


def test_run_refuses_an_environment_of_another_ros(project):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to(sys.executable)
    (project / ".venv/.run").mkdir()
    (project / ".venv/.run/ros").write_text("PyPI\n")
    add_tool(project, "python3", "exit 0")  # one that finds rclpy
    result = start(project, "demo", AMENT_PREFIX_PATH="/opt/ros/jazzy", ROS_DISTRO="jazzy")
    assert_one_line(result, "PyPI", "jazzy", "remove the folder")


def test_run_help_lists_the_commands_of_sicm(project):
    typer = pytest.importorskip("typer")
    from sicm_ros.cli.app import app

    commands = set(typer.main.get_command(app).commands)
    listed = re.search(r"any command of sicm: ([\w, \n-]+);", start(project).stdout).group(1)
    assert set(listed.replace(",", " ").split()) | {"demo"} == commands
