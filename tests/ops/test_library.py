"""Which compiled library is loaded, and what happens where there is none; each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geo3d.ops._library import find_library

_CPU = find_library("cpu")
needs_library = pytest.mark.skipif(_CPU is None, reason="the CPU library was not built")

_RUN = """
import warnings
import torch
from geo3d.ops import explain, rope_2d
from geo3d.ops.rope_2d import rope_2d_reference
{preparation}
tokens = torch.randn(2, 3, 12, 64, requires_grad=True)
positions = torch.randint(-20, 20, (2, 12, 2))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        rope_2d(tokens, positions).sum().backward()
    result = rope_2d(tokens, positions)
expected = rope_2d_reference(tokens.double(), positions, 100.0, False)
torch.testing.assert_close(result.double(), expected, rtol=0, atol=1.5e-6)
for warning in caught:
    print("warning:", warning.message)
print("verdict:", explain("rope_2d", tokens)["cpu"])
print("loaded:", [line.split("/")[-1].strip() for line in open("/proc/self/maps") if "libgeo3d" in line][:1])
"""


def _run(preparation: str = "", **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(preparation=preparation)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_library_is_built_where_there_is_a_compiler() -> None:
    assert _CPU is not None, "run `make install`"


def test_without_a_library_the_reference_runs_and_says_so_once() -> None:
    output = _run(GEO3D_NO_EXTENSION="1")
    assert output.count("warning:") == 1
    assert "geo3d runs without compiled cpu kernels (GEO3D_NO_EXTENSION is set): same results, slower." in output
    assert "verdict: refused: GEO3D_NO_EXTENSION is set" in output
    assert "loaded: []" in output


def test_a_library_that_was_not_built_is_named_with_the_remedy() -> None:
    output = _run("from geo3d.ops import _library; _library.find_library = lambda device_type: None")
    assert output.count("warning:") == 1
    assert "(library libgeo3d_cpu.so was not built)" in output
    assert "pip install --no-build-isolation" in output


def test_a_named_folder_is_the_only_one_that_is_searched(tmp_path: Path) -> None:
    output = _run(GEO3D_LIBRARY_FOLDER=str(tmp_path))
    assert output.count("warning:") == 1
    assert f"(library libgeo3d_cpu.so is not in {tmp_path}, which GEO3D_LIBRARY_FOLDER names)" in output
    assert "loaded: []" in output


@needs_library
def test_a_library_in_a_named_folder_is_loaded(tmp_path: Path) -> None:
    shutil.copy(_CPU, tmp_path / "libgeo3d_cpu.so")
    output = _run(GEO3D_LIBRARY_FOLDER=str(tmp_path))
    assert "warning:" not in output
    assert "loaded: ['libgeo3d_cpu.so']" in output


def test_a_library_that_does_not_load_gives_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "libgeo3d_cpu.so"
    broken.write_bytes(b"not a library")
    output = _run(
        "from pathlib import Path; from geo3d.ops import _library;"
        f"_library.find_library = lambda device_type: Path({str(broken)!r})"
    )
    assert output.count("warning:") == 1
    assert "libgeo3d_cpu.so does not load: " in output
    assert "file too short" in output


@needs_library
@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("default", "libgeo3d_cpu.so"),
        pytest.param(
            "avx2",
            "libgeo3d_cpu_avx2.so",
            marks=pytest.mark.skipif(
                not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="the processor has no AVX2"
            ),
        ),
        pytest.param(
            "avx512",
            "libgeo3d_cpu_avx512.so",
            marks=pytest.mark.skipif(
                torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the processor has no AVX-512"
            ),
        ),
    ],
)
def test_the_processor_decides_on_the_library(capability: str, name: str) -> None:
    output = _run(ATEN_CPU_CAPABILITY=capability)
    assert "warning:" not in output
    assert "verdict: chosen" in output
    assert f"loaded: ['{name}']" in output


@needs_library
def test_the_library_depends_on_neither_python_nor_a_version_of_torch() -> None:
    if (readelf := shutil.which("readelf")) is None:
        pytest.skip("readelf is not installed")
    text = {
        section: subprocess.run(
            [readelf, "--wide", section, str(_CPU)], capture_output=True, text=True, check=True
        ).stdout
        for section in ("--dynamic", "--dyn-syms")
    }
    assert "libtorch_cpu.so" in text["--dynamic"]
    for unwanted in ("libpython", "libtorch_python", "RUNPATH", "RPATH"):
        assert unwanted not in text["--dynamic"]
    undefined = [line.split()[-1] for line in text["--dyn-syms"].splitlines() if " UND " in line]
    assert any(symbol.startswith("aoti_torch_") for symbol in undefined)
    assert not [symbol for symbol in undefined if re.match(r"_ZNK?(2at|3c10|5torch)|Py", symbol)]


def test_a_build_for_this_processor_is_of_the_library_that_torch_takes_here(tmp_path: Path) -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake, ninja = (shutil.which(name, path=search) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None or shutil.which("c++") is None:
        pytest.skip("needs cmake, ninja and a C++ compiler")
    source = Path(__file__).parents[2] / "cuda_ext"
    configure = [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", source, "-B", tmp_path]
    environment = {**os.environ, "GEO3D_CPU": "NATIVE", "GEO3D_CUDA": "OFF", "GEO3D_REQUIRE_EXTENSION": "1"}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    python = f"-DPython_EXECUTABLE={sys.executable}"
    subprocess.run([*configure, python], env=environment, capture_output=True, check=True)
    targets = subprocess.run(
        [ninja, "-C", tmp_path, "-t", "targets", "all"], capture_output=True, text=True, check=True
    )
    names = "from geo3d.ops import _library; print(_library._names('cpu')[0])"
    taken = subprocess.run([sys.executable, "-c", names], env=environment, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^(lib\w+\.so):", targets.stdout, re.MULTILINE)) == {taken.stdout.strip()}
