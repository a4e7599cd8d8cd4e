"""The scripts in tools are the sub-commands of `geo3d`, for a checkout that is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize(
    ("script", "listed"),
    [
        ("pretrain", "croco"),
        ("prepare", "pairs"),
        ("probe", "linear"),
        ("predict", "segment"),
        ("finetune", "nerf_mae_detection"),
        ("encode", "--half"),
        ("export", "--normalise"),
        ("benchmark", "knn"),
    ],
)
def test_a_script_says_what_there_is_under_its_own_name(script: str, listed: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, TOOLS / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script}.py ")
    assert listed in done.stdout
    assert not list(tmp_path.iterdir())
