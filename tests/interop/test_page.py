"""The snippets of docs/interop.md run, one after the other, in a folder with a scan and a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from interop_samples import make_cloud

import geo3d
from geo3d.viz.points import write_points

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("open3d", "pycolmap"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    cloud = make_cloud(3000)
    normals = {f"n{axis}": cloud.normals[:, i].numpy() for i, axis in enumerate("xyz")}
    write_points("scan.ply", cloud, **normals)
    Path("runs").mkdir()
    model = geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0))
    geo3d.save_model(model, "runs/spark3d-001")
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 7
    for snippet in snippets:
        exec(snippet, names)
    assert Path("capture/transforms.json").is_file()
    assert Path("box.glb").is_file()
