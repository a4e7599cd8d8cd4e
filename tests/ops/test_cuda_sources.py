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


def test_there_are_sources() -> None:
    assert _SOURCES


@pytest.mark.parametrize("source", _SOURCES, ids=lambda path: path.name)
def test_nvcc_compiles(source: Path, tmp_path: Path) -> None:
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("nvcc is not installed")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    newest = max(int(number) for number in re.findall(r"compute_(\d+)", known))
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (*_ARCHITECTURES, newest)]
    include = Path(torch.__file__).parent / "include"
    definitions = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [nvcc, "-std=c++17", "-O3", "-c", *targets, "--threads=0", *definitions, "-isystem", str(include)]
    done = subprocess.run(
        [*command, "-Werror=all-warnings", str(source), "-o", str(tmp_path / "kernel.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
