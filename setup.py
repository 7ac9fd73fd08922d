# SPDX-License-Identifier: Apache-2.0
"""`pip install .` and `pip install -e .`: runs CMakeLists.txt, the same that colcon runs, and adopts what it installs.

The environment must be able to build ROS 2 messages: a sourced ROS 2 install, or the packages of requirements/ros.txt.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
NAME = PACKAGE.findtext("name")
STAND_IN = ROOT / "interfaces/message_filters"
SITE_PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def has_genuine_message_filters() -> bool:
    """Whether this environment, or a ROS 2 install below it, has the package of which interfaces/ has a stand-in."""
    prefixes = [sys.prefix, *filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
    return any(Path(prefix, "share/message_filters/package.xml").exists() for prefix in prefixes)


class DistributionWithData(Distribution):
    """setuptools' editable install asks for data by a name of its own."""

    def has_data(self) -> bool:
        return self.has_data_files()


class BuildWithCMake(build_ext):
    """Lets CMake install into a scratch prefix, and adds the files to the distribution.

    The generated Python goes into the module, everything else (libraries, executables, share/) below the environment's
    prefix. In an editable install the source tree stays clean and live: the generated Python goes into a folder of the
    module's name in site-packages, and sicm_ros/__init__.py joins the two; config/, launch/, models/ and rviz/ are not
    copied (`./run` links them). The stand-in for message_filters joins them where the genuine package is absent.
    """

    def run(self) -> None:
        build = Path(self.build_temp).resolve()
        prefix = build / "prefix"
        for left_over in (build / "cmake", prefix):
            shutil.rmtree(left_over, ignore_errors=True)
        underlays = [path for path in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if path]
        environment = dict(os.environ)
        # pip's isolated builds put their own folder there, in place of those of the ROS 2 install.
        environment["PYTHONPATH"] = os.pathsep.join(f"{path}/{SITE_PACKAGES}" for path in underlays)
        environment["AMENT_PREFIX_PATH"] = environment["CMAKE_PREFIX_PATH"] = os.pathsep.join(
            dict.fromkeys([sys.prefix, *underlays])
        )
        subprocess.run(
            [
                "cmake",
                "-S",
                ROOT,
                "-B",
                build / "cmake",
                f"-DCMAKE_INSTALL_PREFIX={prefix}",
                "-DBUILD_TESTING=OFF",
                f"-DPython3_EXECUTABLE={sys.executable}",
                "-DCMAKE_BUILD_TYPE=Release",
            ],
            env=environment,
            check=True,
        )
        subprocess.run(["cmake", "--build", build / "cmake", "--target", "install"], env=environment, check=True)
        self.adopt(prefix)

    def adopt(self, prefix: Path) -> None:
        (module,) = (path.parent.parent for path in prefix.glob(f"**/{NAME}/msg/__init__.py"))
        generated = [*module.glob("msg/*.py"), *module.glob(f"{NAME}_s__*.so")]
        site_packages = Path(sysconfig.get_path("platlib")).relative_to(sys.prefix)
        if self.editable_mode:
            self.add_data(generated, module.parent, site_packages)
        else:
            for path in generated:
                target = Path(self.build_lib, NAME, path.relative_to(module))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
        if not has_genuine_message_filters():
            self.add_data([STAND_IN / "message_filters/__init__.py"], STAND_IN, site_packages)
        left_out = {module.parent}
        if self.editable_mode:
            left_out |= {prefix / "share" / NAME / folder for folder in ("config", "launch", "models", "rviz")}
        rest = [path for path in prefix.rglob("*") if path.is_file() and left_out.isdisjoint(path.parents)]
        self.add_data(rest, prefix, Path())

    def add_data(self, files: list[Path], root: Path, destination: Path) -> None:
        self.distribution.data_files = self.distribution.data_files or []
        for path in sorted(files):
            folder = destination / path.parent.relative_to(root)
            self.distribution.data_files.append((str(folder), [os.path.relpath(path)]))

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def requirements(file: str) -> list[str]:
    """Names and markers without versions: those say what is tested, and what the machine has may be good enough."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [re.sub(r"^([\w.-]+)[^;]*", r"\1", line) for line in lines if line[:1].isalpha()]


setup(
    name=NAME,
    version=PACKAGE.findtext("version"),
    description=" ".join(PACKAGE.findtext("description").split()),
    license=PACKAGE.findtext("license"),
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    ext_modules=[Extension(f"{NAME}.msg", [])],
    distclass=DistributionWithData,
    cmdclass={"build_ext": BuildWithCMake},
    install_requires=[*requirements("nodes.txt"), *requirements("openvino.txt"), *requirements("core.txt")],
    entry_points={"console_scripts": [f"sicm = {NAME}.cli.app:main"]},
    zip_safe=False,
)
