#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do the requirements of the nodes resolve to wheels on every machine they are meant for?

    python requirements/check_wheels.py                        # nodes.txt; x86_64 and aarch64, Python 3.11 to 3.13
    python requirements/check_wheels.py core.txt --python 3.12 --machine aarch64

Asks the package index that pip is configured for (``pip install --dry-run``): nothing is installed, but pip may
download large wheels to read their requirements. Takes wheels for glibc 2.35 (Ubuntu 22.04) or older. Prints a line for
each machine and exits with 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBC = range(17, 36)  # 2.17 to 2.35

# pip takes --python-version and --platform for the tags of wheels, but not for markers such as
# `platform_machine == "x86_64"`: those it would answer for the machine at hand.
PIP = """
import runpy, sys
from pip._vendor.packaging import markers
python, machine, *sys.argv[1:] = sys.argv[1:]
here = markers.default_environment()
there = {**here, "python_version": python, "python_full_version": python + ".0", "platform_machine": machine}
markers.default_environment = lambda: dict(there)
runpy.run_module("pip", run_name="__main__")
"""


def resolve(file: Path, python: str, machine: str) -> tuple[dict[str, str], str]:
    """Versions by name that pip would install there, and what it misses (empty: nothing)."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}"]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-c", PIP, python, machine, "install", "--dry-run", "--ignore-installed"]
        command += ["--only-binary=:all:", "--target", scratch, "--implementation", "cp", "--python-version", python]
        command += [*platforms, "--report", str(report), "--quiet", "-c", str(FOLDER / "torch.txt"), "-r", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
            return {}, errors[0] if errors else " ".join(result.stderr.split()[-40:])
        found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in found}, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="nodes.txt", help="a list in requirements/")
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    parser.add_argument("--machine", nargs="+", default=MACHINES)
    options = parser.parse_args()
    if not (FOLDER / options.file).is_file():
        parser.error(f"{options.file}: expected a file in {FOLDER.name}/")
    status = 0
    for machine in options.machine:
        for python in options.python:
            found, missing = resolve(FOLDER / options.file, python, machine)
            wheels = ", ".join(f"{name} {found[name]}" for name in ("numba", "numpy", "torch") if name in found)
            print(f"{machine}, Python {python}: {missing or f'{len(found)} wheels, {wheels}'}", flush=True)
            status |= bool(missing)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
