"""The default run, as `make pretrain` starts it: what the README promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.slow
def test_the_default_run_learns_and_uses_the_second_view(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, TOOLS / "pretrain.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "croco-001"
    report = json.loads((folder / "report.json").read_text())
    assert report["scenes"] == "held-out"
    assert report["change_percent"] < -25
    # A network that ignored the second view would lose nothing by a wrong one; 0.06 and more was measured.
    assert report["after"]["loss"] + 0.02 < report["after"]["loss_other_scene"]
    assert f"{report['after']['loss']:.4f} with the true one" in done.stdout
    with Image.open(max(folder.glob("pictures/step_*.png"))) as picture:
        assert picture.width > 4 * 200
