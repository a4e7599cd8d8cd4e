"""tools/benchmark.py, and what benchmarks rest on: what differs is refused, memory is what a call takes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark import BENCHMARKS, main, table
from benchmarks.croco_twin import CroCoTwin
from benchmarks.padded_windows import PaddedAttention
from benchmarks.race import Variant, extra_memory_mb, race
from torch import Tensor

from geo3d import create_model
from geo3d.cli import command_line
from geo3d.methods.croco import completion_loss
from geo3d.models.croco import visible_from_mask
from geo3d.nn.patches import patchify
from geo3d.ops import voxel_attention

_TEMPORARY, _RESULT = 60, 20  # MiB


def ramp(first: float) -> Callable[[], list[Tensor]]:
    """A function to time: numbers that ascend from ``first``."""
    return lambda: [torch.arange(first, first + 100)]


def megabytes(count: int) -> Tensor:
    return torch.ones(count, 2**18)


def calls() -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """A call that takes nothing, and one that takes memory beside its result."""

    def call() -> list[Tensor]:
        megabytes(_TEMPORARY)
        return [megabytes(_RESULT)]

    return list, call


def _variants(*firsts: float) -> list[Variant]:
    return [Variant(f"from {first}", f"{__name__}:ramp", {"first": first}) for first in firsts]


def test_variants_that_compute_different_things_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"a case: from 0\.1 and from 0\.0 compute different things"):
        race("a case", _variants(0.0, 0.1), turns=1)


def test_a_share_of_the_work_is_compared_with_its_like_and_scaled() -> None:
    whole, part = _variants(0.0, 1.0)
    part.share = 1e-6
    rows = race("a case", [whole, part], turns=1)
    assert rows[1]["seconds"] > 100 * rows[0]["seconds"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a call")
def test_extra_memory_is_the_peak_beyond_the_results() -> None:
    found = extra_memory_mb(f"{__name__}:calls", {}, threads=1)
    # The temporary memory is freed before the result is made, so that the peak is the larger of the two.
    assert abs(found - (_TEMPORARY - _RESULT)) < 3


def test_padded_windows_are_the_operator() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets, bins = torch.tensor([0, 1, 18, 50, 63]), [12, 12, 8]
    order = torch.randperm(63, generator=generator)
    signals = 6 * torch.rand(63, 3, generator=generator)
    values = [torch.randn(63, 2, 4, generator=generator) for _ in range(3)]
    values += [torch.randn(sum(bins), 2, 4, generator=generator) for _ in range(3)]
    query, key, value, *tables = values
    found = PaddedAttention(order, offsets, signals, bins, compiled=False)(*values)
    expected = voxel_attention(query, key, value, order, offsets, signals, *tables, bins)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # float32, values of order ten


def test_columns_that_rows_add_stand_in_the_table() -> None:
    row = {"case": "c", "variant": "v", "device": "cpu", "dtype": "float32", "seconds": 0.5, "peak_mb": None}
    lines = table([row, row | {"seconds": 0.25, "columns": {"ns": "7"}}]).splitlines()
    assert lines[0].endswith("| peak memory | ns |")
    assert lines[-2].endswith("| 1.00 x |  |  |")
    assert lines[-1].endswith("| 2.00 x |  | 7 |")
    assert len({line.count("|") for line in lines}) == 1


def test_help_says_what_each_measures_in_order(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"], "benchmark.py")
    assert stop.value.code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == sorted(BENCHMARKS)
    for name, line in lines:
        module, config = BENCHMARKS[name]
        described = getattr(importlib.import_module(f"benchmarks.{module}"), config).__doc__
        assert described.startswith(f"{line}.")


def _call(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        command_line.run(main, "benchmark.py", args)
    return stop.value.code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "benchmark.py: name a benchmark: chamfer, croco"),
        (["krn"], "unknown benchmark 'krn'"),
        (["loader", "--json", "{tmp}/none/rows.json"], "there is no folder {tmp}/none"),
        (["croco", "--model", "crocodile"], "unknown model 'crocodile'"),
        (["croco", "--model", "croco_v1_base", "--size", "32"], "rotary embedding only"),
        (["i2p_mae", "--model", "croco_tiny"], "networks of I2P-MAE that fill in, not 'croco_tiny'"),
        (["loader", "--pairs", "few"], "--pairs"),
        (["multiview", "--variants", "CroCo", "MuM"], "there is no 'MuM'; known: CroCo, multi-view,"),
        (["radiance_field", "--rooms", "0"], "nothing to fit; give data or rooms"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message: str, tmp_path: Path, capsys) -> None:
    assert _call(*(a.format(tmp=tmp_path) for a in args)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.format(tmp=tmp_path) in error


def test_a_benchmark_prints_ratios_and_writes_its_rows(tmp_path: Path, capsys) -> None:
    target = tmp_path / "rows.json"
    sizes = ["--model", "croco_tiny", "--size", "64", "--batch", "2", "--turns", "1", "--threads", "1"]
    assert _call("croco", *sizes, "--json", str(target)) == 0
    rows = json.loads(target.read_text())
    assert [row["dtype"] for row in rows] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert all(set(row) >= {"case", "variant", "device", "dtype", "seconds", "peak_mb"} for row in rows)
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows)
    out = capsys.readouterr().out
    assert "1.00 x" in out
    assert torch.__version__ in out


def test_the_twin_computes_the_same_loss() -> None:
    network = create_model("croco_tiny", generator=torch.Generator().manual_seed(0)).double()
    first, second = torch.randn(2, 2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)).argsort(1) < 57
    prediction = network(first, second, visible_from_mask(mask)).prediction
    ours = completion_loss(prediction, patchify(first, 8), mask, normalise_patches=True)
    # The twin turns by float32 angles, as one would write it: 1e-7 of the loss.
    assert CroCoTwin(network)(first, second, mask).item() == pytest.approx(ours.item(), rel=1e-5)
