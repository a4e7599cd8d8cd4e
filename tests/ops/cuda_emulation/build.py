"""Builds a library in which the CUDA sources run on the CPU: as operators ``geo3d_emulated::name`` on CPU tensors."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_SOURCES = Path(__file__).parents[3] / "cuda_ext"

_REWRITES = (
    # kernel<<<grid, block, ...>>>(arguments) -> Launch(grid, block, ...)([](auto... a) { kernel(a...); })(arguments)
    (
        re.compile(r"(\w+(?:<[^<>;]*>)?)\s*<<<(.*?)>>>\s*\(", re.DOTALL),
        r"geo3d_emulation::Launch(\2)([](auto... kernel_arguments) { \1(kernel_arguments...); })(",
    ),
    (
        re.compile(r"extern __shared__ (\w+) (\w+)\[\];"),
        r"\1* const \2 = geo3d_emulation::dynamic_shared<\1>();",
    ),
    (re.compile(r"torch::stable::accelerator::DeviceGuard"), "geo3d_emulation::DeviceGuard"),
    (re.compile(r"STABLE_TORCH_LIBRARY_IMPL\(geo3d_kernels, CUDA"), "STABLE_TORCH_LIBRARY_IMPL(geo3d_emulated, CPU"),
)


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def build(folder: Path, compiler: str, *options: str) -> Path:
    """Rewrite all CUDA sources into one translation unit in ``folder`` and compile it; the library's path."""
    for header in _SOURCES.glob("*.cuh"):
        (folder / header.name).write_text(_rewrite(header.read_text()))
    includes, bodies = [], []
    for source in sorted(_SOURCES.glob("*.cu")):
        lines = _rewrite(source.read_text()).splitlines()
        includes += [line for line in lines if line.startswith("#include")]
        body = "\n".join(line if not line.startswith("#include") else "" for line in lines)
        bodies.append(f'namespace emulated_{source.stem} {{\n#line 1 "{source.name}"\n{body}\n}}')
    unit = folder / "sources.cpp"
    unit.write_text("\n".join([*dict.fromkeys(includes), (_HERE / "emulation.cpp").read_text(), *bodies]))
    library = folder / "libgeo3d_emulated.so"
    torch_folder = Path(torch.__file__).parent
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
    command += ["-fvisibility=hidden", "-Wno-attributes", "-Wno-unknown-pragmas", *options]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [f"-I{folder}", f"-I{_HERE / 'include'}", f"-iquote{_SOURCES}"]
    command += ["-isystem", str(torch_folder / "include"), str(unit), "-o", str(library)]
    command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the emulation does not compile:\n{done.stderr}")
    return library
