"""The CPU sources for processors and compilers that this machine need not have: ARM (Jetson, Mac) and clang."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]
_SOURCES = sorted((_ROOT / "cuda_ext").glob("*.cpp"))
_CROSS = "aarch64-linux-gnu-g++"
#: Starts a Python for aarch64 with torch and pytest, such as "qemu-aarch64 -L ROOT ROOT/usr/bin/python3"; see
#: docs/building.md.
_ARM_PYTHON = "GEO3D_ARM_PYTHON"
_TARGETS = {
    "arm": ("--target=aarch64-linux-gnu",),
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
}


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _succeed(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def _build_for_arm(folder: Path, *options: str) -> Path:
    """The one library for aarch64, linked to a libtorch_cpu.so of which there is no more than the name."""
    compiler, named = _tool(_CROSS), "libtorch_cpu.so"
    empty = ["-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{named}", "-o", folder / named]
    _succeed([compiler, *empty])
    configure = [_tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-S", _ROOT / "cuda_ext"]
    configure += ["-B", folder / "build", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    configure += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_FLAGS=-Werror"]
    configure += [f"-DCMAKE_MODULE_LINKER_FLAGS=-L{folder} -Wl,--no-as-needed", *options]
    _succeed(configure, GEO3D_CUDA="OFF", GEO3D_REQUIRE_EXTENSION="1")
    _succeed([_tool("cmake"), "--build", folder / "build"])
    (library,) = (folder / "build").glob("lib*.so")
    return library


def test_gcc_builds_them_for_arm(tmp_path: Path) -> None:
    library = _build_for_arm(tmp_path)
    assert library.name == "libgeo3d_cpu.so"
    machine = int.from_bytes(library.read_bytes()[18:20], "little")
    assert machine == 183, "aarch64, in an ELF header"


@pytest.mark.slow
def test_they_compute_the_same_on_arm(tmp_path: Path) -> None:
    """Some minutes where the processor is emulated."""
    if not (python := shlex.split(os.environ.get(_ARM_PYTHON, ""))):
        pytest.skip(f"{_ARM_PYTHON} names no Python for aarch64")
    library = _build_for_arm(tmp_path, "-DCMAKE_BUILD_TYPE=Release")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_every_operator.py"]
    which = ["-k", "test_kernel_agrees or test_kernel_gradient or test_explain_names"]
    output = _succeed([*python, *tests, *which], GEO3D_LIBRARY_FOLDER=str(library.parent), PYTHONPATH=str(_ROOT))
    assert " passed" in output


@pytest.mark.slow
@pytest.mark.parametrize("target", _TARGETS)
def test_clang_takes_them(target: str) -> None:
    include = Path(torch.__file__).parent / "include"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [_tool("clang++"), "-fsyntax-only", *options, *_TARGETS[target], "-isystem", include]
    if target == "arm":
        _tool(_CROSS)  # brings the headers of the system
    _succeed([*command, *_SOURCES])
