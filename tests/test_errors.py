"""Messages for people."""

from __future__ import annotations

import subprocess
import sys

import pytest

from geo3d.errors import did_you_mean


def test_did_you_mean():
    known = ["scannet", "scannet_frames", "mvimgnet"]
    assert did_you_mean("scanet", known) == "; did you mean 'scannet'?"
    assert did_you_mean("mvimagenet", iter(known)) == "; did you mean 'mvimgnet'?"
    assert did_you_mean("kitti", known) == ""
    assert did_you_mean("kitti", []) == ""


def test_an_extra_takes_no_signal_away() -> None:
    """pycolmap's logger would end the process at SIGTERM, with a stack trace."""
    pytest.importorskip("pycolmap")
    script = """
import os, signal
from geo3d.errors import require_extra
signal.signal(signal.SIGTERM, lambda *_: print("saved"))
require_extra("pycolmap", "colmap", "this")
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("saved\n", 0), done.stderr
