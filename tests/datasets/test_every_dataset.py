"""What must hold of every registered dataset, on a small instance of its layout."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import BUILDERS, FOLDER_SCENES
from PIL import Image

from geo3d.datasets import PARTS, MissingPart, Quarantine, Scene, SceneDataset, list_datasets, open_dataset
from geo3d.datasets.scene import _REGISTRY, SeveralDatasets
from geo3d.errors import InputError
from geo3d.geometry import Camera, PointCloud, View, VolumeGrid
from geo3d.samples.images import ImageSet

# How a part is asked for.
READ = {
    "views": lambda scene: scene.image(0),
    "poses": lambda scene: scene.pose(0),
    "depth": lambda scene: scene.depth(0),
    "masks": lambda scene: scene.mask(0),
    "points": lambda scene: scene.points(),
    "mesh": lambda scene: scene.mesh(),
    "labels": lambda scene: (scene.require("labels"), scene.points()),
    "tracks": lambda scene: scene.tracks(),
    "pairs": lambda scene: scene.pairs(),
    "grid": lambda scene: scene.grid(),
    "disparity": lambda scene: (scene.stereo_pairs(), scene.disparity(0)),
    "flow": lambda scene: (scene.flow_pairs(), scene.flow(0)),
}


def view_names(scene: Scene) -> list[str]:
    return list(scene.view_names) if "views" in scene.parts else []


@pytest.fixture(params=list_datasets())
def kind(request: pytest.FixtureRequest) -> str:
    assert request.param in BUILDERS, f"dataset kind {request.param!r} has no builder in dataset_builders.BUILDERS"
    return request.param


@pytest.fixture
def root(kind: str, tmp_path: Path) -> Path:
    BUILDERS[kind](tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def dataset(kind: str, root: Path) -> SceneDataset:
    return open_dataset(root, quarantine=Quarantine(strict=True))


def test_the_layout_is_recognised_and_no_other(kind, root, dataset):
    assert dataset.kind == kind
    assert [name for name, cls in _REGISTRY.items() if cls.detect(root)] == [kind]


def test_a_single_scene_is_recognised(kind, dataset):
    if not dataset.folder_scenes:
        return  # its scenes are files, or rows of them, and no roots
    for scene in dataset:
        alone = open_dataset(scene.root)
        assert (alone.kind, len(alone)) == (kind, 1)
        assert alone[0].parts == scene.parts
        assert alone[0].name == alone.scene_names[0] == scene.root.name


def test_scenes_are_complete(dataset):
    scenes = list(dataset)
    assert len(scenes) == len(dataset) >= 2
    assert [scene.name for scene in scenes] == list(dataset.scene_names)
    assert len(set(dataset.scene_names)) == len(dataset)
    for scene in scenes:
        assert isinstance(scene, Scene)
        assert scene.parts
        assert scene.parts <= PARTS.keys()
        assert scene.root.is_dir()


def test_order_does_not_depend_on_the_file_system(kind, root, dataset, monkeypatch):
    expected = {scene.name: view_names(scene) for scene in dataset}
    real_scandir, real_listdir = os.scandir, os.listdir

    class Reversed:
        """A folder's entries, last first."""

        def __init__(self, path="."):
            with real_scandir(path) as entries:
                self._entries = iter(list(entries)[::-1])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Reversed)
    monkeypatch.setattr(os, "listdir", lambda path=".": real_listdir(path)[::-1])
    again = {scene.name: view_names(scene) for scene in open_dataset(root, kind)}
    assert list(again.items()) == list(expected.items())


def test_scenes_travel_to_workers(dataset):
    for scene in dataset:
        fresh = pickle.loads(pickle.dumps(scene))
        for part in sorted(scene.parts):
            READ[part](scene)
        used = pickle.loads(pickle.dumps(scene))
        for copy in (fresh, used):
            assert copy.parts == scene.parts
            assert view_names(copy) == view_names(scene)
            for index in range(len(view_names(scene))):
                assert np.array_equal(np.asarray(copy.image(index)), np.asarray(scene.image(index)))
                if "poses" in scene.parts:
                    assert np.array_equal(copy.pose(index), scene.pose(index))


def test_unlisted_parts_say_so(dataset):
    for scene in dataset:
        for part in PARTS.keys() - scene.parts:
            with pytest.raises(MissingPart, match=part):
                READ[part](scene)
            with pytest.raises(MissingPart, match=scene.name):
                scene.require(part)


def test_readable_filters_by_part(dataset):
    parts = {scene.name: scene.parts for scene in dataset}
    first = dataset[0].parts
    expected = [name for name in dataset.scene_names if parts[name] >= first]
    assert [scene.name for scene in dataset.readable(*first)] == expected
    assert dataset.kind == "object_folders" or len(expected) == len(dataset)
    for part in PARTS:
        assert [scene.name for scene in dataset.readable(part)] == [n for n in dataset.scene_names if part in parts[n]]


def test_views(dataset):
    for scene in dataset:
        if "views" not in scene.parts:
            continue
        names = scene.view_names
        assert len(names) >= 2
        assert len(set(names)) == len(names)
        for index, name in enumerate(names):
            image = scene.image(index)
            assert isinstance(image, Image.Image)
            view = scene.view(index)
            assert isinstance(view, View)
            assert view.name == name
            assert view.image.shape == (image.height, image.width, 3)
            assert view.image.dtype == torch.float32
            assert 0 <= view.image.min() < view.image.max() <= 1


def test_poses(dataset):
    for scene in dataset:
        if "poses" not in scene.parts:
            continue
        for index in range(len(scene.view_names)):
            camera, pose = scene.camera(index), scene.pose(index)
            assert isinstance(camera, Camera)
            assert (camera.width, camera.height) == scene.image(index).size
            assert (pose.shape, pose.dtype) == ((4, 4), np.float64)
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)  # text files, float32
            assert np.linalg.det(pose[:3, :3]) > 0
            pose[:] = 0
            assert scene.pose(index)[3, 3] == 1, "what a scene hands out must not be its own copy"
        centres = np.array([scene.pose(i)[:3, 3] for i in range(len(scene.view_names))])
        assert len(np.unique(centres.round(6), axis=0)) == len(centres)


def test_depth(dataset):
    for scene in dataset:
        if "depth" not in scene.parts:
            continue
        for index in range(len(scene.view_names)):
            depth, camera = scene.depth(index), scene.depth_camera(index)
            assert (depth.shape, depth.dtype) == ((camera.height, camera.width), np.float32)
            assert np.isfinite(depth).all()
            assert depth[2, 3] == 0
            # Written as 2.5 m and 1 cm more for each frame, in whole millimetres.
            assert 2.499 < np.median(depth) < 2.561
            assert scene.view(index).depth_camera == camera


def test_masks(dataset):
    for scene in dataset:
        if "masks" not in scene.parts:
            continue
        for index in range(len(scene.view_names)):
            mask = scene.mask(index)
            assert mask.dtype == np.bool_
            assert mask.shape[::-1] == scene.image(index).size
            assert mask.any()


def test_scenes_are_found_by_name_and_described(kind, root, dataset):
    for number, name in enumerate(dataset.scene_names):
        assert dataset[name].name == dataset[number].name == name
    count = f"{len(dataset)} scene{'s' * (len(dataset) != 1)}"
    assert repr(dataset) == f"{type(dataset).__name__}({dataset.kind}: {count} in {str(dataset.root)!r})"
    assert dataset.scene_names[0] in dataset
    assert "no such scene" not in dataset
    close = dataset.scene_names[0] + "x"
    with pytest.raises(InputError, match=rf"is named '{close}'; did you mean '"):
        dataset[close]
    with pytest.raises(InputError, match=r"is named '§§'$"):
        dataset["§§"]
    for number in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[number]


def test_origins_are_zero_near_zero(dataset):
    for scene in dataset:
        assert (scene.origin.dtype, scene.origin.tolist()) == (np.float64, [0, 0, 0])
        if "points" in scene.parts:
            assert scene.points().origin is None


def test_labelled_datasets_name_their_classes(dataset):
    labelled = any("labels" in scene.parts or "grid" in scene.parts for scene in dataset)
    assert (dataset.classes is not None) == labelled
    for scene in dataset.readable("labels"):
        labels = scene.points().semantic
        assert -1 <= labels.min() < labels.max() < len(dataset.classes)


def test_points(dataset):
    for scene in dataset:
        if "points" not in scene.parts:
            continue
        points = scene.points()
        assert isinstance(points, PointCloud)
        assert len(points) > 0
        assert points.xyz.dtype == torch.float32
        assert torch.isfinite(points.xyz).all()
        if points.colors is not None:
            assert points.colors.dtype == torch.float32
            assert 0 <= points.colors.min() < points.colors.max() <= 1


def test_mesh_and_labels(dataset):
    for scene in dataset:
        if "mesh" not in scene.parts:
            continue
        mesh = scene.mesh()
        count = len(mesh.vertices)
        assert (mesh.vertices.dtype, mesh.vertices.shape) == (np.float32, (count, 3))
        assert (mesh.faces.dtype, mesh.faces.shape[1:]) == (np.int64, (3,))
        assert 0 <= mesh.faces.min() <= mesh.faces.max() < count
        if mesh.colors is not None:
            assert (mesh.colors.dtype, mesh.colors.shape) == (np.float32, (count, 3))
        else:
            assert scene.is_object
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)  # float32
        assert ("labels" in scene.parts) == (mesh.semantic is not None)
        for labels in (mesh.semantic, mesh.instance):
            if labels is not None:
                assert (labels.dtype, labels.shape) == (np.int64, (count,))
                assert labels.min() >= -1
                assert labels.max() >= 0


def test_categories_and_subsets(dataset):
    known = [scene.category for scene in dataset]
    assert all(-1 <= category < max(len(dataset.categories), 1) for category in known)
    assert len(set(dataset.categories)) == len(dataset.categories)
    assert {scene.subset for scene in dataset} <= {"train", "test", "val", ""}
    if not dataset.folder_scenes and "grid" not in dataset[0].parts:
        assert all(scene.is_object and not scene.metric for scene in dataset)
        assert len(set(known)) >= 2


def test_tracks(dataset):
    for scene in dataset:
        if "tracks" not in scene.parts:
            continue
        tracks = scene.tracks()
        assert tracks.xyz.shape == (len(tracks.error), 3)
        assert tracks.uv.shape == (len(tracks.view), 2)
        assert tracks.view.shape == tracks.point.shape
        assert set(tracks.view) == set(range(len(scene.view_names)))
        assert set(tracks.point) == set(range(len(tracks.xyz)))
        for index in range(len(scene.view_names)):
            seen = tracks.view == index
            camera_from_world = np.linalg.inv(scene.pose(index))
            local = tracks.xyz[tracks.point[seen]] @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
            pixel = scene.camera(index).project(torch.from_numpy(local)).numpy()
            np.testing.assert_allclose(pixel, tracks.uv[seen], atol=1e-9)  # projected exactly, float64


def test_grids(dataset):
    for scene in dataset.readable("grid"):
        grid = scene.grid()
        assert isinstance(grid, VolumeGrid)
        assert {grid.rgb.dtype, grid.opacity.dtype} == {torch.float32}
        assert 0 <= grid.rgb.min() < grid.rgb.max() <= 1
        assert 0 <= grid.opacity.min() < grid.opacity.max() <= 1
        assert -1 <= grid.labels.min() < grid.labels.max() < len(dataset.classes)
        assert (grid.boxes[:, :3] < torch.tensor(grid.sides)).all()


def test_pairs(dataset):
    for scene in dataset:
        if "pairs" not in scene.parts:
            continue
        pairs = scene.pairs()
        assert (pairs.dtype, pairs.shape[1:]) == (np.int64, (2,))
        assert len(pairs) > 0
        assert 0 <= pairs.min() <= pairs.max() < len(scene.view_names)
        assert (pairs[:, 0] != pairs[:, 1]).all()


def test_disparity_and_flow(dataset):
    for part, pairs_of, values_of in (
        ("disparity", "stereo_pairs", "disparity"),
        ("flow", "flow_pairs", "flow"),
    ):
        for scene in dataset.readable(part):
            pairs = getattr(scene, pairs_of)()
            assert (pairs.dtype, pairs.shape[1:]) == (np.int64, (2,))
            assert {*map(tuple, pairs)} <= {*map(tuple, scene.pairs())}
            for number, (first, second) in enumerate(pairs):
                values = getattr(scene, values_of)(number)
                size = scene.image(first).size
                assert size == scene.image(second).size
                assert (values.dtype, values.shape[:2]) == (np.float32, size[::-1])
                assert np.isnan(values[2, 3]).all()
                assert np.isfinite(np.delete(values.reshape(-1, *values.shape[2:]), 2 * size[0] + 3, 0)).all()


def test_split_keeps_the_listed_scenes(kind, root, dataset, tmp_path):
    last = dataset.scene_names[-1]
    split = tmp_path / "split.txt"
    split.write_text(f"{last}\nno_such_scene\n")
    part = open_dataset(root, split=split)
    assert list(part.scene_names) == [last]
    assert "no_such_scene" in part.quarantine.report()
    assert len(part.quarantine) == 1


@pytest.mark.parametrize("second", BUILDERS)
@pytest.mark.parametrize("first", BUILDERS)
def test_a_folder_above_several_datasets_names_them(tmp_path, first, second):
    """One folder too high must not lose a dataset, or poses and depth, without a word."""
    BUILDERS[first](tmp_path / "first")
    BUILDERS[second](tmp_path / "second")
    if first == second == "image_pairs":  # places at any depth are one dataset
        assert len(open_dataset(tmp_path)) == 4
        return
    with pytest.raises(SeveralDatasets) as error:
        open_dataset(tmp_path)
    named = f"{first}: first, second" if first == second else f"{first}: first; {second}: second"
    assert str(error.value).startswith(f"{tmp_path}: holds several datasets ({named}); give one of these folders")
    with pytest.raises(SeveralDatasets):
        ImageSet.find(tmp_path)


@pytest.mark.parametrize("second", FOLDER_SCENES)
@pytest.mark.parametrize("first", FOLDER_SCENES)
def test_so_does_one_above_scenes_of_several_kinds(tmp_path, first, second):
    for number, built in enumerate((first, second)):
        BUILDERS[built](tmp_path / "built" / str(number))
        shutil.copytree(open_dataset(tmp_path / "built" / str(number))[0].root, tmp_path / "data" / str(number))
    if first == second:
        dataset = open_dataset(tmp_path / "data")
        assert (dataset.kind, len(dataset)) == (first, 2)
        return
    with pytest.raises(SeveralDatasets, match=rf"\({first}: 0; {second}: 1\)"):
        open_dataset(tmp_path / "data")


def test_what_lies_in_a_scene_is_no_dataset_of_its_own(tmp_path):
    """A workspace of COLMAP, in which a model of undistorted images lies too."""
    BUILDERS["mvimgnet"](tmp_path)
    scene = tmp_path / "7" / "1a0001"
    shutil.copytree(scene, scene / "dense" / "0")
    (scene / "notes").mkdir()
    assert [s.name for s in open_dataset(scene)] == ["1a0001"]
    assert len(open_dataset(tmp_path)) == 3


def test_one_kind_that_reads_all_folders_is_taken(tmp_path):
    BUILDERS["transforms"](tmp_path)
    shutil.copytree(tmp_path / "fox" / "images", tmp_path / "fox" / "sparse")
    assert [cls.kind for cls in _REGISTRY.values() if cls.detect(tmp_path)] == ["mvimgnet", "transforms"]
    assert list(open_dataset(tmp_path).scene_names) == ["fox", "office"]
    assert open_dataset(tmp_path).kind == "transforms"


def test_a_folder_above_one_dataset_names_it(tmp_path):
    BUILDERS["scannet"](tmp_path / "deep" / "data")
    with pytest.raises(InputError, match=r"not recognised as any of .*/deep/data is one \(scannet\)\.$"):
        open_dataset(tmp_path)


def test_every_part_has_a_dataset(tmp_path):
    listed = set()
    for kind, build in BUILDERS.items():
        build(tmp_path / kind)
        listed |= open_dataset(tmp_path / kind)[0].parts
    assert listed == PARTS.keys(), "the tests above would pass vacuously for the other parts"
