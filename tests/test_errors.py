"""Messages for people."""

from __future__ import annotations

from geo3d.errors import did_you_mean


def test_did_you_mean():
    known = ["scannet", "scannet_frames", "mvimgnet"]
    assert did_you_mean("scanet", known) == "; did you mean 'scannet'?"
    assert did_you_mean("mvimagenet", iter(known)) == "; did you mean 'mvimgnet'?"
    assert did_you_mean("kitti", known) == ""
    assert did_you_mean("kitti", []) == ""
