"""Benchmarks: `python tools/benchmark.py NAME` prints a table of ratios; `--json FILE` writes its rows."""

from __future__ import annotations

import ast
import datetime
import importlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo3d.cli import command_line
from geo3d.errors import InputError

#: name -> (module of `benchmarks`, its config class); ascending
BENCHMARKS = {
    "chamfer": ("chamfer", "ChamferBenchmark"),
    "croco": ("croco", "CroCoBenchmark"),
    "encode": ("encode", "EncodeBenchmark"),
    "fps": ("fps", "FpsBenchmark"),
    "i2p_guidance": ("i2p_guidance", "GuidanceBenchmark"),
    "i2p_mae": ("i2p_mae", "I2PMAEBenchmark"),
    "knn": ("knn", "KnnBenchmark"),
    "loader": ("loader", "LoaderBenchmark"),
    "multiview": ("multiview", "MultiViewBenchmark"),
    "nerf_mae": ("nerf_mae", "NeRFMAEBenchmark"),
    "nerf_mae_detection": ("nerf_mae_detection", "DetectionBenchmark"),
    "pairs": ("pairs", "PairsBenchmark"),
    "pointmaps": ("pointmaps", "PointmapsBenchmark"),
    "radiance_field": ("radiance_field", "RadianceFieldBenchmark"),
    "registration": ("registration", "RegistrationBenchmark"),
    "render_rays": ("render_rays", "RenderRaysBenchmark"),
    "rope_2d": ("rope_2d", "RopeBenchmark"),
    "spark": ("spark", "SparKBenchmark"),
    "spark3d": ("spark3d", "SparK3DBenchmark"),
    "sparse_conv": ("sparse_conv", "SparseConvBenchmark"),
    "stereo": ("stereo", "StereoBenchmark"),
    "swin3d": ("swin3d", "Swin3DBenchmark"),
    "voxel_attention": ("voxel_attention", "VoxelAttentionBenchmark"),
    "voxelize": ("voxelize", "VoxelizeBenchmark"),
}
_FIELDS = ("case", "variant", "device", "dtype", "seconds", "peak_mb", "columns")


def hardware() -> str:
    """Processor, threads, versions and date, in one line."""
    import torch

    import geo3d

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{card}{name} ({len(models) or '?'} processors, {torch.backends.cpu.get_cpu_capability()}), torch "
        f"{torch.__version__}, geo3d {geo3d.__version__}, Python {platform.python_version()}, {datetime.date.today()}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as markdown, with the time of each case's first variant over their own, and the columns they add."""
    added = list(dict.fromkeys(name for row in rows for name in row.get("columns", {})))
    names = ("variant", "device", "dtype", "time", "speed against the first", "peak memory", *added)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    base: dict[str, float] = {}
    for row in rows:
        if row["case"] not in base:
            base[row["case"]] = row["seconds"]
            lines.append(f"| **{row['case']}** |" + " |" * (len(names) - 1))
        seconds, peak = row["seconds"], row["peak_mb"]
        time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms" if seconds else ""
        memory = "" if peak is None else f"{peak:.0f} MB"
        ratio = f"{base[row['case']] / seconds:.2f} x" if seconds else ""
        cells = (row["variant"], row["device"], row["dtype"], time, ratio, memory)
        more = (row.get("columns", {}).get(name, "") for name in added)
        lines.append(f"| {' | '.join((*cells, *more))} |")
    return "\n".join(lines)


def summary(module: str, config: str) -> str:
    """First line of a benchmark's docstring, read off the source: the modules are slow to import."""
    tree = ast.parse((Path(__file__).parent / "benchmarks" / f"{module}.py").read_text())
    (described,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == config)
    return ast.get_docstring(described).partition("\n")[0].rstrip(".")


@dataclass(frozen=True)
class Output:
    """Where the rows go beside the table."""

    json: Path | None = None
    """File to write the rows to, as JSON. None: they are only printed."""

    def __post_init__(self) -> None:
        if self.json is not None and not self.json.parent.is_dir():
            raise InputError(f"json: there is no folder {self.json.parent}")


def main(args: list[str], program: str) -> None:
    """Read the command line, run one benchmark, print and write its rows."""
    summaries = {name: summary(module, config) for name, (module, config) in BENCHMARKS.items()}
    name, rest = command_line.choose(args, summaries, program, noun="benchmark")
    module_name, config_name = BENCHMARKS[name]
    module = importlib.import_module(f"benchmarks.{module_name}")
    kind = getattr(module, config_name)
    output, config = command_line.parse_two(Output, kind, rest, f"{program} {name}")
    rows = module.run(config)
    print(f"{hardware()}\n\n{table(rows)}")
    if output.json is not None:
        written = [{field: row.get(field) for field in _FIELDS} for row in rows]
        output.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main, "benchmark.py")
