"""The example of a probe of one's own runs, outside of this process, whose registry it would change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_probe.py"


def test_it_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    title, *rows, note = done.stdout.splitlines()
    assert title.split() == ["error"]
    assert [row.rpartition("  ")[0].strip() for row in rows] == [
        "checkpoint",
        "fresh weights, seed 0",
        "input features",
    ]
    assert rows[-1].endswith(" 0.000")  # what is asked for is what is handed in
    assert note == "over 16 pictures"
