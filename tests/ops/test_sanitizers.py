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
def libraries(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the library that this processor would take, built with the sanitizers."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake, ninja = (shutil.which(name, path=search) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja are not installed; `make install` brings them")
    folder = tmp_path_factory.mktemp("sanitized")
    name = _library._names("cpu")[0]
    configure = [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", _ROOT / "cuda_ext", "-B", folder]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_COMPILER=g++"]
    configure += ["-DCMAKE_BUILD_TYPE=Sanitize", f"-DCMAKE_CXX_FLAGS={_SANITIZE}"]
    environment = {**os.environ, "GEO3D_CUDA": "OFF", "GEO3D_REQUIRE_EXTENSION": "1"}
    target = name.removeprefix("lib").removesuffix(".so")
    for command in (configure, [cmake, "--build", folder, "--target", target]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (folder / name).is_file()
    return folder


def test_kernels_stay_inside_their_tensors(preloaded: str, libraries: Path) -> None:
    """Three minutes of processor time: one to build, two to run."""
    environment = {
        **os.environ,
        _library.FOLDER_VARIABLE: str(libraries),
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has to its end
    }
    tests = [f"--ignore={_ROOT / 'tests' / 'ops' / f'test_{name}.py'}" for name in _LEFT_OUT]
    command = [sys.executable, "-m", "pytest", _ROOT / "tests" / "ops", *tests, "-k", _DESELECTED]
    command += ["-m", "not slow and not cuda", "-q", "-x", "-p", "no:cacheprovider", "--capture=sys"]
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[:8000]
    assert " passed" in done.stdout
