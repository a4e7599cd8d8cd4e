"""Radiance grids in files: what the fourth channel is taken for, axes, boxes and labels beside them, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import build_radiance_grids

from geo3d.datasets import BrokenScene, open_dataset, read_grid
from geo3d.datasets.radiance_grids import LEAST, MOST, density_of_opacity, opacity_of_density
from geo3d.errors import InputError
from geo3d.reconstruction.captures import capture_route


def _write(path: Path, values: np.ndarray, **others) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, rgbsigma=values, **others)
    return path


def _values(low: float = -8, high: float = 4, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(1)
    density = rng.uniform(low, high, (3, 5, 2, 1))
    return np.concatenate([rng.random((3, 5, 2, 3)), density], -1).astype(dtype)


def test_the_conventions() -> None:
    density = torch.tensor([-3.0, 0, 2, 5], dtype=torch.float64)
    exp = 1 - torch.exp(-torch.exp(density) / 100)
    relu = 1 - torch.exp(-torch.tensor([0.0, 0, 2, 5], dtype=torch.float64) / 100)
    assert torch.allclose(opacity_of_density(density, "exp"), exp)
    assert torch.allclose(opacity_of_density(density, "relu"), relu)
    assert opacity_of_density(density, "opacity").tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="exp, relu, opacity"):
        opacity_of_density(density, "softplus")


def test_density_is_the_inverse_and_stays_finite() -> None:
    opacity = torch.tensor([0, 1e-9, 1e-3, 0.1, 0.5, 0.99, 1], dtype=torch.float64)
    density = density_of_opacity(opacity)
    assert density.isfinite().all()
    assert torch.allclose(opacity_of_density(density, "exp"), opacity.clamp(LEAST, MOST), rtol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "others", "convention"),
    [
        (-8, 4, {}, "exp"),
        (0, 40, {"from_ddp_nerf": True}, "relu"),
        (-8, 4, {"from_ddp_nerf": False}, "exp"),
        (0, 1, {}, "opacity"),
        (0, 1, {"density": "exp"}, "exp"),
        (-8, 4, {"density": "relu", "from_ddp_nerf": False}, "relu"),
    ],
)
def test_the_convention_is_told_by_the_file(tmp_path, low, high, others, convention) -> None:
    values = _values(low, high)
    grid = read_grid(_write(tmp_path / "a.npz", values, **others))
    expected = opacity_of_density(torch.from_numpy(values[..., 3]), convention)
    assert torch.equal(grid.opacity, expected)
    assert torch.equal(grid.rgb, torch.from_numpy(values[..., :3]))


def test_a_folder_tells_it_for_files_that_do_not(tmp_path) -> None:
    values = _values(0, 3)
    _write(tmp_path / "features" / "a.npz", values)
    _write(tmp_path / "features" / "b.npz", values, density="opacity")
    (tmp_path / "density.txt").write_text("relu\n")
    dataset = open_dataset(tmp_path)
    assert torch.equal(dataset["a"].grid().opacity, opacity_of_density(torch.from_numpy(values[..., 3]), "relu"))
    assert torch.equal(dataset["b"].grid().opacity, torch.from_numpy(values[..., 3]).clamp(0, 1))
    (tmp_path / "density.txt").write_text("softplus\n")
    with pytest.raises(InputError, match=r"density\.txt: says 'softplus', one of exp, relu, opacity"):
        open_dataset(tmp_path)


def test_eight_bits_hold_opacity(tmp_path) -> None:
    values = np.arange(3 * 5 * 2 * 4, dtype=np.uint8).reshape(3, 5, 2, 4)
    grid = read_grid(_write(tmp_path / "a.npz", values))
    assert torch.equal(grid.values, torch.from_numpy(values).permute(3, 0, 1, 2).float() / 255)


def test_half_precision_is_widened_first(tmp_path) -> None:
    values = _values(-8, 12, np.float16)  # exp(12) is beyond the range of half precision
    grid = read_grid(_write(tmp_path / "a.npz", values))
    assert torch.equal(grid.opacity, opacity_of_density(torch.from_numpy(values[..., 3]).float(), "exp"))


def test_a_flat_file_is_turned_upright(tmp_path) -> None:
    """A voxel marked at (x, y, z), z up, lies at (z, y, x) = (x, z, y) of the file, whose fastest axis is the second of
    ours."""
    sides = (4, 3, 2)
    flat = np.zeros((2 * 3 * 4, 4), np.float32)
    place = (3, 1, 0)
    flat[(place[0] * sides[2] + place[2]) * sides[1] + place[1]] = 1
    grid = read_grid(_write(tmp_path / "a.npz", flat, resolution=np.array([3, 2, 4])))
    assert grid.sides == sides
    assert grid.opacity.nonzero().tolist() == [list(place)]


def test_nothing_is_cut_off(tmp_path) -> None:
    values = np.zeros((165, 3, 201, 4), np.float32)
    assert read_grid(_write(tmp_path / "a.npz", values)).sides == (165, 3, 201)


def test_boxes_along_the_axes(tmp_path) -> None:
    _write(tmp_path / "features" / "a.npz", _values())
    (tmp_path / "aabb").mkdir()
    np.save(tmp_path / "aabb" / "a.npy", np.array([[0, 1, 0, 2, 5, 1]]))
    assert open_dataset(tmp_path)[0].grid().boxes.tolist() == [[1, 3, 0.5, 2, 4, 1, 0]]
    np.save(tmp_path / "aabb" / "a.npy", np.array([[0, 5, 0, 2, 1, 1]]))
    with pytest.raises(BrokenScene, match=r"a\.npy: no boxes of a grid: box 0 has a side below zero"):
        open_dataset(tmp_path)[0].grid()


def test_labels_subsets_and_corners_of_published_folders(tmp_path) -> None:
    build_radiance_grids(tmp_path)
    for root in (tmp_path, tmp_path / "features"):
        dataset = open_dataset(root)
        assert dataset.classes == ("bed", "chair")
        assert [scene.subset for scene in dataset] == ["train", "test"]
        grid = dataset[0].grid()
        stored = np.load(tmp_path / "semantics" / f"{dataset[0].name}.npy")
        assert torch.equal(grid.labels, torch.from_numpy(stored) - 1)
        assert grid.high.tolist() == [3, 2, 2.5]
        assert grid.boxes.shape == (1, 7)
        assert dataset[0].metric
    (tmp_path / "classes.txt").write_text("bed\n")
    with pytest.raises(BrokenScene, match=r"labels reach 1; classes\.txt names classes 0 to 0"):
        open_dataset(tmp_path)[0].grid()


def test_a_split_of_python_objects_is_refused(tmp_path) -> None:
    build_radiance_grids(tmp_path)
    np.savez(tmp_path / "3dfront_split.npz", train_scenes=np.array(["a", None], dtype=object))
    with pytest.raises(InputError, match=r"3dfront_split\.npz: not a whole file of NumPy"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("values", "others", "reason"),
    [
        (np.zeros((2, 2, 2, 3), np.float32), {}, r"found \(2, 2, 2, 3\)"),
        (np.zeros((8, 4), np.float32), {}, "no resolution"),
        (np.zeros((8, 4), np.float32), {"resolution": [2, 2, 3]}, "has 8 voxels, its resolution 2 x 2 x 3"),
        (np.full((2, 2, 2, 4), np.nan, np.float32), {}, "32 of its numbers are none"),
        (np.full((2, 2, 2, 4), 200, np.float32), {}, "colours lie within 200 and 200"),
        (np.zeros((2, 2, 2, 4), np.int32), {}, "int32"),
        (np.zeros((0, 2, 2, 4), np.float32), {}, r"\(0, 2, 2, 4\)"),
        (np.zeros((2, 2, 2, 4), np.float32), {"density": "linear"}, "density is 'linear'"),
        (np.zeros((2, 2, 2, 4), np.float32), {"bbox_min": [0, 0, 0], "bbox_max": [1, 1, 0]}, "no corners"),
        (np.zeros((2, 2, 2, 4), np.float32), {"labels": np.zeros((2, 2, 3), int)}, "labels are"),
        (np.zeros((2, 2, 2, 4), np.float32), {"boxes": np.zeros((2, 5))}, "boxes are"),
    ],
)
def test_what_is_no_grid_is_one_line(tmp_path, values, others, reason) -> None:
    with pytest.raises(BrokenScene, match=reason) as error:
        read_grid(_write(tmp_path / "scene.npz", values, **others))
    assert "scene.npz: no radiance grid:" in str(error.value)
    assert "\n" not in str(error.value)


def test_pickled_arrays_are_never_run(tmp_path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, rgbsigma=np.array([[{}]], dtype=object))
    with pytest.raises(BrokenScene, match="not a whole file of NumPy"):
        read_grid(file)
    _write(file, _values(), note=np.array([{}], dtype=object))  # other arrays are not needed
    assert read_grid(file).sides == (3, 5, 2)


@pytest.mark.parametrize("place", ["features", "."])
def test_a_damaged_file_beside_others_is_a_scene_that_is_broken(tmp_path, place) -> None:
    whole = _write(tmp_path / place / "a.npz", _values())
    (tmp_path / place / "b.npz").write_bytes(whole.read_bytes()[:100])
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.scene_names) == ("radiance_grids", ["a", "b"])
    with pytest.raises(BrokenScene, match=r"b\.npz: not a whole file of NumPy"):
        dataset["b"].grid()


def test_a_folder_of_damaged_grids_alone_says_so(tmp_path) -> None:
    whole = _write(tmp_path / "whole.npz", _values()).read_bytes()
    (tmp_path / "grids" / "features").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    for file in (tmp_path / "grids" / "features" / "a.npz", tmp_path / "flat" / "a.npz"):
        file.write_bytes(whole[: len(whole) // 2])
    for root in (tmp_path / "grids", tmp_path / "grids" / "features"):
        with pytest.raises(BrokenScene, match=r"a\.npz: not a whole file of NumPy"):
            open_dataset(root)[0].grid()
    with pytest.raises(InputError, match=r"flat: holds no radiance grid; .*a\.npz: not a whole file of NumPy"):
        capture_route(tmp_path / "flat")
