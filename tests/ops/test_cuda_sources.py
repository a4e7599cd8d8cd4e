"""The CUDA sources compile for every supported device, with or without a CUDA build of torch beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

_SOURCES = sorted((Path(__file__).parents[2] / "cuda_ext").glob("*.cu"))
_ARCHITECTURES = (80, 90)
#: Their instructions for three devices take a minute: the default run takes them to intermediate code only.
_LONG = {"voxel_attention.cu", "voxelize.cu", "window_partition.cu"}


def _nvcc(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("nvcc is not installed")
    include = Path(torch.__file__).parent / "include"
    definitions = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [nvcc, "-std=c++17", "-O3", *definitions, "-isystem", str(include), "-Werror=all-warnings", str(source)]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def _devices() -> list[str]:
    """Options for the supported architectures and the newest one that this nvcc knows."""
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("nvcc is not installed")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    newest = max(int(number) for number in re.findall(r"compute_(\d+)", known))
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (*_ARCHITECTURES, newest)]


def test_there_are_sources() -> None:
    assert {path.name for path in _SOURCES} > _LONG


@pytest.mark.parametrize(
    "source",
    [pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name in _LONG)) for path in _SOURCES],
)
def test_nvcc_compiles(source: Path, tmp_path: Path) -> None:
    done = _nvcc(source, "-c", *_devices(), "--threads=0", "-o", str(tmp_path / "kernel.o"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", [path for path in _SOURCES if path.name in _LONG], ids=lambda path: path.name)
def test_nvcc_compiles_to_intermediate_code(source: Path, tmp_path: Path) -> None:
    done = _nvcc(source, "-ptx", "-arch=compute_90", "-o", str(tmp_path / "kernel.ptx"))
    assert done.returncode == 0, done.stderr
