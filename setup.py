"""Runs CMake and maps the folders to packages; everything else is in pyproject.toml."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
from fastconv_build import check_build_tools, choose_nvcc  # noqa: E402


class CMakeBuild(build_ext):
    def run(self):
        # cmake and ninja of a venv that is not activated
        os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
        torch = check_build_tools()
        debug = self.debug or os.environ.get("DEBUG", "0") not in ("", "0")
        ninja = shutil.which("ninja")
        kind = f"{'ninja' if ninja else 'make'}-{'debug' if debug else 'release'}"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{kind}"
        nvcc = choose_nvcc(torch)
        # All of them each time: paths of an isolated build, left in CMake's cache, are gone by now.
        settings = {
            "CMAKE_BUILD_TYPE": "Debug" if debug else "Release",
            "FASTCONV_VERSION": self.distribution.get_version(),
            "FASTCONV_COMMIT": git_commit(),
            "FASTCONV_TORCH_DIR": torch.directory,
            "FASTCONV_TORCH_VERSION": torch.version,
            "FASTCONV_CUDA": "ON" if nvcc else "OFF",
            "FASTCONV_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
            "CMAKE_CUDA_COMPILER": nvcc,
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
        }
        with contextlib.suppress(ImportError):
            settings["pybind11_DIR"] = __import__("pybind11").get_cmake_dir()

        generator = ["-G", "Ninja" if ninja else "Unix Makefiles"]
        options = [f"-D{name}={value}" for name, value in settings.items() if value is not None]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        package = Path(self.get_ext_fullpath("fastconv._C")).resolve().parent
        call("cmake", "-S", ROOT, "-B", build, *generator, *options)
        call("cmake", "--build", build, "--parallel", jobs)
        # Removed, not overwritten: a process that has loaded a file keeps it.
        tag = sys.implementation.cache_tag
        for stale in [*package.glob("libfastconv_*.so"), *package.glob(f"_C.{tag}-*.so")]:
            stale.unlink()
        call("cmake", "--install", build, "--prefix", package)


def call(*command):
    if subprocess.run(command).returncode != 0:
        raise SystemExit("fastconv: the build failed, CMake says why above")


def git_commit():
    """The commit of this checkout; empty outside one, or without git."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


setup(
    packages=[*find_packages("python"), "fastconv.kernels"],
    package_dir={"": "python", "fastconv.kernels": "kernels"},
    package_data={"fastconv": ["py.typed", "*.pyi"]},
    ext_modules=[Extension("fastconv._C", [])],
    cmdclass={"build_ext": CMakeBuild},
)
