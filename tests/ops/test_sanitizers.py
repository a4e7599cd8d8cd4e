"""The CPU kernels under gcc's address and undefined-behaviour sanitizers: the other tests of kernels, run again.

A read or write outside a tensor, a shift too far or an overflow ends the process, and so fails the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geo3d.ops import _library

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_SANITIZE = (
    "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS"
)
#: Not about the CPU kernels, or start compilers and processes that the sanitizer would follow.
_LEFT_OUT = ("library", "cuda", "cuda_sources", "cuda_emulation", "sanitizers")
_DESELECTED = "not opcheck and not compiles and not exports and not memory and not spconv"


@pytest.fixture(scope="module")
def preloaded() -> str:
    """What must be loaded before all others: the sanitizer, and the C++ library whose exceptions it looks at."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("g++ is not installed")
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        asked = [compiler, f"-print-file-name={name}"]
        paths.append(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
        if not Path(paths[-1]).is_absolute():
            pytest.skip(f"g++ has no {name}: the address sanitizer is not installed")
    return " ".join(paths)


@pytest.fixture(scope="module")
def build_folder(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake builds the libraries with the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    configure = [_tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-S", _ROOT / "cuda_ext"]
    configure += ["-B", folder, f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_COMPILER=g++"]
    configure += ["-DCMAKE_BUILD_TYPE=Sanitize", f"-DCMAKE_CXX_FLAGS={_SANITIZE}"]
    _succeed(configure)
    return folder


def _tool(name: str) -> str:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (path := shutil.which(name, path=search)) is None:
        pytest.skip(f"{name} is not installed; `make install-dev` brings it")
    return path


def _succeed(command: list) -> None:
    environment = {**os.environ, "GEO3D_CUDA": "OFF", "GEO3D_REQUIRE_EXTENSION": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


#: All that this processor can run, not only the one that it would take.
@pytest.mark.parametrize("name", _library._names("cpu"))
def test_kernels_stay_inside_their_tensors(name: str, preloaded: str, build_folder: Path, tmp_path: Path) -> None:
    """Three minutes of processor time each: one to build, two to run."""
    _succeed([_tool("cmake"), "--build", build_folder, "--target", name.removeprefix("lib").removesuffix(".so")])
    shutil.move(build_folder / name, tmp_path)  # alone in its folder, it is the one to be loaded
    environment = {
        **os.environ,
        _library.FOLDER_VARIABLE: str(tmp_path),
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has to its end
    }
    tests = [f"--ignore={_ROOT / 'tests' / 'ops' / f'test_{name}.py'}" for name in _LEFT_OUT]
    command = [sys.executable, "-m", "pytest", _ROOT / "tests" / "ops", *tests, "-k", _DESELECTED]
    command += ["-m", "not slow and not cuda", "-q", "-x", "-p", "no:cacheprovider", "--capture=sys"]
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[:8000]
    assert " passed" in done.stdout
