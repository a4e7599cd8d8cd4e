"""The example of a model of one's own runs, outside of this process, whose registry it would change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


def test_it_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain_small: plain, family plain, reads image" in done.stdout
    assert "channels (8, 16); its maps are [(1, 8, 26, 36), (1, 16, 13, 18)]" in done.stdout
