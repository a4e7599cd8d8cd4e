"""The CUDA sources, run on the CPU thread by thread: their logic is tested where there is no GPU.

See ``cuda_emulation/include/cuda_runtime.h`` for what this can find and what not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation.build import build
from operator_examples import EXAMPLES, Arguments, cast_arguments, run
from test_cuda import LARGE_CASES, of_backward

from geo3d.ops.registry import get_operator

pytestmark = pytest.mark.slow

_OPERATORS = [name for name in EXAMPLES if any(k.name == "cuda" for k in get_operator(name).kernels)]


def _schemas() -> list[str]:
    return [str(getattr(torch.ops.geo3d_kernels, name).default._schema).partition("::")[2] for name in _OPERATORS]


def _compiler() -> str:
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("g++ is not installed")
    return compiler


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The operators of the emulation."""
    folder = tmp_path_factory.mktemp("cuda_emulation")
    path = build(folder, _compiler())
    library = torch.library.Library("geo3d_emulated", "FRAGMENT")
    for schema in _schemas():
        library.define(schema)
    torch.ops.load_library(path)
    yield torch.ops.geo3d_emulated
    library._destroy()


ORDERS = ("forward", "reverse", "random")


def _of_kernels() -> Iterator[Any]:
    """Every kernel and dtype; in all orders for the first dtype, as they run the same code."""
    for name in _OPERATORS:
        (kernel,) = (k for k in get_operator(name).kernels if k.name == "cuda")
        for i, dtype in enumerate(kernel.dtypes):
            for order in ORDERS if i == 0 else ("random",):
                label = f"{name}-{str(dtype).removeprefix('torch.')}-{order}"
                yield pytest.param(name, dtype, order, id=label)


def _agrees(emulated: Any, name: str, arguments: Arguments, dtype: torch.dtype, case: str) -> None:
    relative, absolute = EXAMPLES[name].tolerances[dtype]
    cast = cast_arguments(name, arguments, dtype)
    results = run(name, getattr(emulated, name), cast)
    expected = run(name, get_operator(name).reference, cast_arguments(name, cast, torch.float64))
    assert len(results) == len(expected)
    for result, exact in zip(results, expected):
        torch.testing.assert_close(
            result.to(exact.dtype), exact, rtol=relative, atol=absolute, msg=lambda text: f"{case}: {text}"
        )


@pytest.mark.parametrize(("name", "dtype", "order"), list(_of_kernels()))
def test_agrees_with_the_reference_in_float64(
    emulated: Any, name: str, dtype: torch.dtype, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEO3D_EMULATION_ORDER", order)
    for case, arguments in EXAMPLES[name].cases.items():
        _agrees(emulated, name, arguments, dtype, case)


@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_windows(emulated: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO3D_EMULATION_ORDER", "random")
    _agrees(emulated, "voxel_attention", LARGE_CASES[case], torch.float32, case)
    _agrees(emulated, "voxel_attention_backward", of_backward(LARGE_CASES[case]), torch.float32, case)


@pytest.mark.parametrize("name", _OPERATORS)
def test_bits_do_not_depend_on_the_order_of_threads(emulated: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels that say so."""
    (kernel,) = (k for k in get_operator(name).kernels if k.name == "cuda")
    if not kernel.deterministic:
        pytest.skip("the kernel stands back in deterministic mode")
    arguments = cast_arguments(name, next(iter(EXAMPLES[name].cases.values())), kernel.dtypes[0])
    results = []
    for order in ORDERS:
        monkeypatch.setenv("GEO3D_EMULATION_ORDER", order)
        results.append(run(name, getattr(emulated, name), arguments))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_kernels_stay_inside_their_memory(tmp_path: Path) -> None:
    """Whatever the values that only the CPU's checks look at; sanitizers end the process if not."""
    sanitizer = subprocess.run(
        [_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("AddressSanitizer is not installed")
    checks = ("-fsanitize=address,bounds", "-fsanitize-undefined-trap-on-error")  # bounds: of arrays in shared memory
    library = build(tmp_path, _compiler(), *checks, "-g1")
    (tmp_path / "schemas").write_text("\n".join(_schemas()))
    script = Path(__file__).parent / "cuda_emulation" / "wild_values.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "schemas"), str(library)],
        env={**os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    assert done.stdout == "done\n"
