"""Sources of dense prediction: flow of posed depth against closed forms, and who is held out together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_scenes import BoxScene, look_at
from memory_scenes import MemoryDataset

from geo3d.datasets.disparity_files import write_pfm
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.samples.dense import FlowPairs, StereoPairs, nearest_values
from geo3d.samples.views import DepthViews


def test_the_nearest_entry_is_taken_and_nothing_beyond() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    places = np.array([[[0.4, 0.4], [2.6, 1.6], [-0.6, 0.0], [3.4, 2.4], [0.0, 2.6]]])
    np.testing.assert_array_equal(nearest_values(values, places)[0, :, 0], [0, 11, np.nan, 11, np.nan])


def _scene() -> BoxScene:
    """Two near views of a box in a room; what they show at a pixel is known in closed form."""
    poses = [look_at((2.0, 0.0, 1.5), (0.0, 0.0, 0.5)), look_at((1.9, 0.4, 1.6), (0.0, 0.1, 0.5))]
    return BoxScene(poses, boxes=[((-0.5, -0.5, 0.0), (0.5, 0.5, 1.0))])


def test_flow_of_posed_views_with_depth_is_that_of_reprojection() -> None:
    scene = _scene()
    source = FlowPairs.of_datasets([MemoryDataset([scene])])
    assert (len(source), source.views(0)) == (1, (0, 1))
    item = source.dense(0)
    places = scene.camera(0).pixel_grid().numpy()[5:100:7, 3:150:7] + 0.3
    flow = item.at(places)
    # Of the depth of the nearest pixel, as a depth map has it; the other view's rays then meet the same point.
    depth = scene.hit_depth(0, np.rint(places))
    ray = scene.camera(0).unproject(torch.from_numpy(places), torch.from_numpy(depth)).numpy()
    world = ray @ scene.pose(0)[:3, :3].T + scene.pose(0)[:3, 3]
    inside = (world - scene.pose(1)[:3, 3]) @ scene.pose(1)[:3, :3]
    wanted = scene.camera(1).project(torch.from_numpy(inside)).numpy() - places
    known = np.isfinite(flow).all(-1)
    np.testing.assert_allclose(flow[known], wanted[known], atol=1e-3)  # depth maps are float32
    end = wanted + places
    beyond = ((end < -0.5) | (end > np.array([159.5, 119.5]))).any(-1)
    assert not known[beyond].any()
    there = scene.hit_depth(1, end)
    hidden = there < 0.9 * inside[..., 2]
    assert hidden[~beyond].any()
    assert not known[hidden].any()
    assert known[~hidden & ~beyond].mean() > 0.95


def test_depth_at_places_of_an_image_of_another_size() -> None:
    """The depth map is half as large as the image, as sensors have it."""

    class Half(BoxScene):
        def depth_camera(self, index: int) -> Camera:
            return self.camera(index).resized(80, 60)

        def depth(self, index: int) -> np.ndarray:
            small = self.depth_camera(index).pixel_grid()
            rays = self.depth_camera(index).unproject(small, torch.ones(small.shape[:2], dtype=torch.float64))
            found = self.hit_depth(index, self.camera(index).project(rays).numpy()).astype(np.float32)
            found[0, 0] = 0
            return found

    scene = Half([look_at((2.0, 0.0, 1.5), (0.0, 0.0, 0.5))])
    source = DepthViews.of_datasets([MemoryDataset([scene])])
    found = source.dense(0).at(scene.camera(0).pixel_grid().numpy())[..., 0]
    assert np.isnan(found[:2, :2]).all()
    assert np.isfinite(found).sum() == 160 * 120 - 4
    wanted = scene.hit_depth(0, scene.camera(0).pixel_grid().numpy())
    off = np.abs(found - wanted) / wanted
    assert np.nanquantile(off, 0.9) < 0.03  # half a pixel on slanting floors


def test_pairs_of_one_place_are_held_out_together(tmp_path) -> None:
    from dataset_builders import build_stereo_flow

    build_stereo_flow(tmp_path / "places")
    source = StereoPairs.find(tmp_path / "places")
    assert (len(source), source.group_count) == (4, 2)
    alone = StereoPairs.find(tmp_path / "places" / "yard")
    assert (len(alone), alone.group_count) == (2, 2)
    assert alone.describe(1).endswith("yard: left/1.png | right/1.png")
    flow = FlowPairs.find(tmp_path / "places")
    assert (len(flow), flow.group_count) == (2, 2)
    left, right = source.images(3)
    assert left.size == right.size == (32, 24)
    write_pfm(tmp_path / "places" / "yard" / "disparity" / "1.pfm", np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match=r"is 4 x 3, but 1.png of its pair is 32 x 24"):
        source.dense(3)


def test_scenes_without_flow_or_depth_are_named() -> None:
    scene = BoxScene([look_at((2.0, 0.0, 1.5), (0.0, 0.0, 0.5))], parts=("views",))
    with pytest.raises(InputError, match="no scene holds pairs with optical flow, or posed views with depth"):
        FlowPairs.of_datasets([MemoryDataset([scene])])
    with pytest.raises(InputError, match="no scene holds rectified pairs with disparity"):
        StereoPairs.of_datasets([MemoryDataset([scene])])
