"""The package as a whole: what importing it costs and changes, and what its wheel holds and does."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_MAX_IMPORT_SECONDS = 1.5  # of the processor: other processes may run beside
_MAX_FIRST_CALL_SECONDS = 2.0  # of the processor: to load an encoder and to call it once
_HEAVY = ("lightning_fabric", "matplotlib", "pycolmap", "trimesh", "tyro")

_IMPORT = """
import sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import geo3d
bare = time.process_time() - start
brought = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
for name in geo3d.__all__:
    getattr(geo3d, name)
print(bare, time.process_time() - start, sorted(brought), [name for name in %r if name in sys.modules])
"""

_SIDE_EFFECTS = """
import logging, os, signal, sys, threading, warnings
import numpy, torch

def state():
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads": threading.active_count(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "float32 precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "generators": (torch.random.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "gradients": torch.is_grad_enabled(),
        "warnings": list(warnings.filters),
        "log handlers": list(logging.getLogger().handlers),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "path": list(sys.path),
    }

before = state()
import geo3d, geo3d.geometry, geo3d.models, geo3d.nn, geo3d.ops
after = state()
assert not [name for name in before if before[name] != after[name]], [n for n in before if before[n] != after[n]]
"""


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_quick_and_brings_nothing_along() -> None:
    lines = [_python(_IMPORT % (_HEAVY,)) for _ in range(2)]  # the first run may have to read the disk
    bare, face = (min(float(line.split()[i]) for line in lines) for i in range(2))
    assert bare < _MAX_IMPORT_SECONDS
    assert face < _MAX_IMPORT_SECONDS
    assert lines[-1].split(maxsplit=2)[2].strip() == "['geo3d'] []"


def test_import_changes_nothing_and_prints_nothing() -> None:
    assert _python(_SIDE_EFFECTS) == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel, built from the checkout in a folder of its own."""
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("scikit-build-core is not installed; `make install` brings it")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder / "dist",
    ]
    settings = ["--config-settings", f"build-dir={folder / 'build'}"]
    done = subprocess.run([*command, *settings, _ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").iterdir()
    return path


def test_wheel_serves_every_python_and_holds_the_package_alone(wheel: Path) -> None:
    assert re.fullmatch(r"geo3d-[\d.]+-py3-none-\w+\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, room in ((_ROOT / "geo3d", "geo3d"), (_ROOT / "datasets", "geo3d/datasets")):
        for path in folder.rglob("*.py"):
            assert f"{room}/{path.relative_to(folder).as_posix()}" in names
    assert "geo3d/py.typed" in names
    weights = {f"geo3d/weights/{path.name}" for path in (_ROOT / "geo3d" / "weights").iterdir()}
    assert {name for name in names if name.startswith("geo3d/weights/")} == weights
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"geo3d", wheel.name.split("-py3")[0] + ".dist-info"}
    if shutil.which("c++"):
        assert "geo3d/ops/libgeo3d_cpu.so" in names
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".pyc"))]


@pytest.mark.slow
def test_wheel_works_where_there_is_only_torch(wheel: Path, tmp_path: Path) -> None:
    """About a minute: a new environment with torch, numpy and safetensors, and none of the other dependencies."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", _ROOT / "constraints.txt"]
    subprocess.run([*install, "torch", "numpy", "safetensors"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    code = """
import time, torch
start = time.process_time()
import geo3d
encoder = geo3d.load_encoder("sparse_resnet_tiny", fresh=0)
assert encoder(torch.rand(5000, 3)).points.isfinite().all()
took = time.process_time() - start  # beyond torch's import
import geo3d.ops
assert "site-packages" in geo3d.__file__, geo3d.__file__
model = geo3d.create_model("croco_tiny")
views = torch.rand(2, 1, 3, 64, 64)
prediction = model(*views, torch.arange(10).unsqueeze(0)).prediction
prediction.square().mean().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
print(took, geo3d.ops.explain("rope_2d", torch.zeros(1, 1, 1, 4))["cpu"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took, _, verdict = done.stdout.strip().partition(" ")
    assert float(took) < _MAX_FIRST_CALL_SECONDS
    if shutil.which("c++"):
        assert verdict == "chosen"
