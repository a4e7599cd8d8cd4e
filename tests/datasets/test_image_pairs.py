"""Folders of image pairs: which images pair up in each layout, lists that are damaged, and genuine photos."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_builders import picture

from geo3d.datasets import BrokenScene, ImagePairs, MissingPart, Quarantine, open_dataset
from geo3d.errors import InputError


def save(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(path)


def named_pairs(scene) -> list[tuple[str, str]]:
    names = scene.view_names
    return [(names[a], names[b]) for a, b in scene.pairs()]


def test_each_image_of_a_place_pairs_with_each(tmp_path):
    save(tmp_path, "castle/b10.jpg", "castle/b9.JPG", "castle/b1.png", "castle/notes.jpeg")
    (tmp_path / "castle" / "K.txt").write_text("1 0 0")
    (scene,) = open_dataset(tmp_path)
    assert scene.parts == {"views", "pairs"}
    assert scene.view_names == ["b1.png", "b9.JPG", "b10.jpg", "notes.jpeg"]
    assert scene.pairs().tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    with pytest.raises(MissingPart, match="no poses"):
        scene.pose(0)


def test_a_single_image_is_no_place(tmp_path):
    save(tmp_path, "alone/1.jpg", "bridge/1.jpg", "bridge/2.jpg")
    assert list(ImagePairs(tmp_path).scene_names) == ["bridge"]
    with pytest.raises(InputError, match=r"not recognised as any of .*image_pairs, .*docs/datasets.md"):
        open_dataset(tmp_path / "alone")


def test_the_root_may_be_the_place(tmp_path):
    save(tmp_path / "castle", "1.jpg", "2.jpg")
    (scene,) = open_dataset(tmp_path / "castle")
    assert scene.name == "castle"
    save(tmp_path / "castle", "inside/1.jpg", "inside/2.jpg")
    assert list(open_dataset(tmp_path / "castle").scene_names) == [".", "inside"]


def test_listing(tmp_path):
    save(tmp_path, "a_1.jpg", "a_2.jpg", "sub/b_1.jpeg", "sub/b_2.jpeg", "c.d_1.png", "c.d_2.png", "other_1.jpg")
    (tmp_path / "listing.txt").write_text("sub/b\nc.d\n\na\n")
    (scene,) = open_dataset(tmp_path)
    assert named_pairs(scene) == [("sub/b_1", "sub/b_2"), ("c.d_1", "c.d_2"), ("a_1", "a_2")]
    assert [scene.image(i).format for i in range(6)] == ["JPEG", "JPEG", "PNG", "PNG", "JPEG", "JPEG"]


def test_pairs_list(tmp_path):
    save(tmp_path, "x/1.jpg", "x/2.jpg", "y.png", "z_1.jpeg")
    (tmp_path / "pairs.txt").write_text("x/1.jpg x/2.jpg\nx/2.jpg y.png\r\nz_1 x/1.jpg")
    (scene,) = open_dataset(tmp_path)
    assert named_pairs(scene) == [("x/1.jpg", "x/2.jpg"), ("x/2.jpg", "y.png"), ("z_1", "x/1.jpg")]
    assert len(scene.view_names) == 4
    assert scene.image(3).format == "JPEG"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_spelt_otherwise(tmp_path, end):
    save(tmp_path, "a/old town_1.jpg", "a/old town_2.png", "a/x_1.JPG", "a/x_2.tif")
    save(tmp_path, "b/sub/my photo.jpg", "b/2.jpg", "b/3.webp")
    lines = ["# stems", "", "old town", ' "x" ']
    (tmp_path / "a" / "listing.txt").write_bytes(end.join(lines).encode("utf-8-sig"))
    lines = [
        "2.jpg 3.webp",
        "",
        "sub\\my photo.jpg\t2.jpg",
        '"sub/my photo.jpg" 3',
        "# none",
        "3.webp sub/my photo.jpg",
    ]
    (tmp_path / "b" / "pairs.txt").write_bytes(end.join(lines).encode("utf-16"))
    first, second = open_dataset(tmp_path)
    assert named_pairs(first) == [("old town_1", "old town_2"), ("x_1", "x_2")]
    assert [first.image(i).format for i in range(4)] == ["JPEG", "PNG", "JPEG", "TIFF"]
    photo = "sub/my photo.jpg"
    assert named_pairs(second) == [("2.jpg", "3.webp"), (photo, "2.jpg"), (photo, "3"), ("3.webp", photo)]
    assert [second.image(i).size for i in range(4)] == [picture().size] * 4


def test_links_that_lead_back_up_are_followed_once(tmp_path):
    save(tmp_path, "castle/1.jpg", "castle/2.jpg")
    (tmp_path / "castle" / "loop").symlink_to(tmp_path)
    (tmp_path / "bridge").symlink_to(tmp_path / "castle")
    assert list(open_dataset(tmp_path).scene_names) == ["bridge", "castle"]


def test_a_tree_of_couples(tmp_path):
    save(tmp_path, "hm3d/s1/00_1.jpeg", "hm3d/s1/00_2.jpeg", "hm3d/s1/07_1.jpeg", "hm3d/s1/07_2.jpeg")
    save(tmp_path, "hm3d/s2/00_1.jpeg", "hm3d/s2/00_2.jpeg", "gibson/deep/er/1_1.jpeg", "gibson/deep/er/1_2.jpeg")
    dataset = open_dataset(tmp_path)
    assert list(dataset.scene_names) == ["gibson/deep/er", "hm3d/s1", "hm3d/s2"]
    assert named_pairs(dataset[1]) == [("00_1.jpeg", "00_2.jpeg"), ("07_1.jpeg", "07_2.jpeg")]


def test_couples_must_make_up_the_whole_folder(tmp_path):
    save(tmp_path, "p/1_1.jpg", "p/1_2.jpg", "p/2_1.jpg")
    (scene,) = open_dataset(tmp_path)
    assert len(scene.pairs()) == 3


def test_nothing_is_looked_for_below_a_list(tmp_path):
    save(tmp_path, "a_1.jpg", "a_2.jpg", "deeper/1.jpg", "deeper/2.jpg")
    (tmp_path / "listing.txt").write_text("a\n")
    assert len(open_dataset(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "content", "offset", "reason"),
    [
        ("listing.txt", b"", 0, "the list is empty"),
        ("pairs.txt", b" \n\n", 0, "the list is empty"),
        ("pairs.txt", b"1.jpg 2.jpg\n1.jpg\n", 12, "2 name(s) a line expected, got '1.jpg'"),
        ("pairs.txt", b"# both\r\n\r\n1.jpg 2.jpg 3.jpg\r\n", 10, "2 name(s) a line expected, got '1.jpg 2.jpg 3.jpg'"),
        ("pairs.txt", b"1.jpg \xff", 6, "is not UTF-8 text"),
    ],
)
def test_damaged_lists_are_quarantined(tmp_path, file, content, offset, reason):
    save(tmp_path, "bad/1.jpg", "bad/2.jpg", "good/1.jpg", "good/2.jpg")
    (tmp_path / "bad" / file).write_bytes(content)
    dataset = open_dataset(tmp_path)
    assert [scene.name for scene in dataset.readable("pairs")] == ["good"]
    (entry,) = dataset.quarantine.entries
    assert (entry.scene, entry.file, entry.offset) == ("bad", str(tmp_path / "bad" / file), offset)
    assert reason in entry.reason
    with pytest.raises(BrokenScene):
        list(open_dataset(tmp_path, quarantine=Quarantine(strict=True)).readable("pairs"))


def test_listed_images_that_do_not_exist(tmp_path):
    (tmp_path / "listing.txt").write_text("a\n")
    (scene,) = open_dataset(tmp_path)
    with pytest.raises(BrokenScene, match="No such file") as error:
        scene.image(1)
    assert error.value.file == str(tmp_path / "a_2")


def test_genuine_photos(data_folder):
    dataset = open_dataset(data_folder / "pairs")
    assert (dataset.kind, list(dataset.scene_names)) == ("image_pairs", ["chateau", "sceaux"])
    for scene, names in zip(dataset, (["Chateau1.png", "Chateau2.png"], ["100_7100.JPG", "100_7101.JPG"])):
        assert scene.view_names == names
        assert scene.pairs().tolist() == [[0, 1]]
        image = scene.view(0).image
        assert image.shape[::-1][1:] == scene.image(0).size
        assert image.std() > 0.05
