"""The documentation builds without a warning: links lead somewhere, every page is in the contents, docstrings parse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "pages"], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    first = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert "Pre-train, load and use" in first
    reference = (tmp_path / "pages" / "api" / "models.html").read_text(encoding="utf-8")
    assert 'id="geo3d.models.create_model"' in reference or "geo3d.models.registry.create_model" in reference
