# SPDX-License-Identifier: Apache-2.0
"""Skips belong to tests, not to modules: every test module can be imported, whatever the environment lacks.

launch_testing's hook imports all modules while it looks for launch tests. What one of them raises there, a skip
included, empties the whole folder.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
MODULES = sorted(FOLDER.glob("test_*.py"))
# What is absent on some machines: ROS, its messages, the viewer, launch files, and what tests compare with.
ABSENT = {
    "ROS": ("rclpy", "message_filters", "sensor_msgs", "vision_msgs", "sicm_ros.msg", "launch", "launch_testing"),
    "messages": ("sicm_ros.msg", "vision_msgs"),
    "extras": ("rerun", "constriction", "compressai", "message_filters", "launch_testing", "launch_ros"),
}


def top_level(tree: ast.Module):
    """All nodes that run when the module is imported."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_skips_itself(path):
    calls = [node for node in top_level(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) != "pytest.mark.skip"
    }
    assert not names & {"importorskip", "skip"}


@pytest.mark.slow
@pytest.mark.parametrize("absent", ABSENT)
def test_every_module_can_be_imported_without(absent):
    code = f"""
import importlib, importlib.abc, sys
sys.path.insert(0, {str(FOLDER)!r})

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == gone or name.startswith(gone + ".") for gone in {ABSENT[absent]!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
failed = []
for name in {[path.stem for path in MODULES]!r}:
    try:
        importlib.import_module(name)
    except BaseException as error:  # pytest's Skipped is none of Exception
        failed.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
print("\\n".join(failed))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=FOLDER.parent
    )
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stdout + result.stderr
