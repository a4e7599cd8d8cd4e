"""Single images, of scenes and of folders of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_builders import BUILDERS, picture
from PIL import ExifTags, Image

from geo3d.datasets import open_dataset
from geo3d.errors import InputError
from geo3d.samples.images import ImageSet, PhotoFolder
from geo3d.samples.labelled_objects import LabelledImages


def photos(root: Path, folders: int, each: int) -> Path:
    for folder in range(folders):
        (root / f"class{folder:02d}" / "inner").mkdir(parents=True)
        for number in range(each):
            picture(seed=10 * folder + number).save(root / f"class{folder:02d}" / "inner" / f"{number}.png")
    return root


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in ("image_pairs", "point_files")])
def test_views_of_every_dataset(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "data")
    scenes = [scene for scene in open_dataset(tmp_path / "data") if "views" in scene.parts]
    if not scenes:
        with pytest.raises(InputError, match="no scene holds images"):
            ImageSet.find([tmp_path / "data"])
        return
    images = ImageSet.find([tmp_path / "data"])
    assert len(images) == sum(len(scene.view_names) for scene in scenes)
    assert images.group_count == len(scenes)
    index = 0
    for group, scene in enumerate(scenes):
        for view, name in enumerate(scene.view_names):
            assert np.array_equal(np.asarray(images.image(index)), np.asarray(scene.image(view)))
            assert images.describe(index).endswith(f"scene {scene.name}: {name}")
            assert images.group(index) == group
            index += 1


def test_photographs_at_any_depth_are_groups_of_their_own(tmp_path: Path) -> None:
    images = ImageSet.find([photos(tmp_path / "few", 3, 2)])
    assert isinstance(images.datasets[0], PhotoFolder)
    assert (len(images), images.group_count) == (6, 6)
    assert np.array_equal(np.asarray(images.image(5)), np.asarray(picture(seed=21)))
    assert images.describe(5).endswith("class02/inner/1.png")


def test_photographs_are_turned_as_their_exif_says_and_views_are_not(tmp_path: Path) -> None:
    shown, exif = picture(seed=3), Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    for name in ("loose/a/1.png", "loose/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        shown.transpose(Image.Transpose.ROTATE_270).save(tmp_path / name, exif=exif)
    for kind in (ImageSet, LabelledImages):
        images = kind.find([tmp_path / "loose"])
        assert np.array_equal(np.asarray(images.image(1)), np.asarray(shown))
    BUILDERS["scannet_frames"](tmp_path / "frames")
    before = [np.asarray(view) for view in _all_images(tmp_path / "frames")]
    for path in [*(tmp_path / "frames").rglob("*.jpg")]:
        start, tags = path.read_bytes(), exif.tobytes()
        path.write_bytes(start[:2] + b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags + start[2:])
        assert Image.open(path).getexif()[ExifTags.Base.Orientation] == 8
    assert len(before) > 0
    for view, stored in zip(_all_images(tmp_path / "frames"), before, strict=True):
        assert np.array_equal(np.asarray(view), stored)


def _all_images(root: Path) -> list[Image.Image]:
    images = ImageSet.find([root])
    return [images.image(index) for index in range(len(images))]


def test_photographs_of_many_folders_are_kept_together(tmp_path: Path) -> None:
    images = ImageSet.find([photos(tmp_path / "many", 11, 2)])
    assert (len(images), images.group_count) == (22, 11)
    part = images.of_groups([4, 10])
    assert [part.describe(i)[-18:] for i in range(4)] == [
        f"class{n:02d}/inner/{i}.png"[-18:] for n in (4, 10) for i in (0, 1)
    ]


def test_single_images_and_several_roots(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    picture().save(tmp_path / "one" / "only.png")
    BUILDERS["scannet"](tmp_path / "scans")
    images = ImageSet.find([tmp_path / "one", tmp_path / "scans"])
    scenes = open_dataset(tmp_path / "scans")
    assert images.group_count == 1 + len(scenes)
    assert images.group(0) == 0
    assert images.group(1) == 1


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(InputError, match=folder):
            ImageSet.find([tmp_path / folder])
