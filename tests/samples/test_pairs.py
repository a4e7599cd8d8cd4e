"""ViewPairs: the pairs of an index or of a mining run, as training reads them."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from analytic_scenes import AnalyticDataset, BoxScene, orbit
from dataset_builders import build_scannet
from PIL import Image

from geo3d.datasets import scene as scene_module
from geo3d.datasets.pair_index import read_pair_index
from geo3d.datasets.pair_mining import PairOptions, PairsConfig, mine_pairs
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.geometry import ViewPair
from geo3d.samples.pairs import PairTable, ViewPairs

OPTIONS = {"min_overlap": 0.4}


class ListedDataset(SceneDataset):
    """Two scenes that list pairs, one that is broken and one that lists nothing."""

    kind = "listed"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / "listed").exists()

    def names(self) -> list[str]:
        return ["a", "b", "broken", "empty"]

    def open(self, name: str) -> BoxScene:
        pairs = {"a": [[0, 1], [2, 0]], "b": [[1, 2]], "broken": None, "empty": np.zeros((0, 2))}[name]

        class Listed(BoxScene):
            def pairs(self) -> np.ndarray:
                if pairs is None:
                    raise BrokenScene(name, "pairs.txt", "line 3 is cut")
                return np.asarray(pairs, dtype=np.int64)

        return Listed(orbit(3, 10.0), parts=("views", "pairs"), name=name)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (AnalyticDataset, ListedDataset):
        monkeypatch.setitem(scene_module._REGISTRY, kind.kind, kind)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two datasets that both have a scene ``room``."""
    return [
        AnalyticDataset.write(tmp_path / "one", {"room": 5, "hall": 4}),
        AnalyticDataset.write(tmp_path / "two", {"room": 6}),
    ]


@pytest.fixture
def index(roots: list[Path], tmp_path: Path) -> Path:
    return mine_pairs(PairsConfig(data=tuple(roots), out=tmp_path / "pairs.tsv", **OPTIONS)).index


def listing(pairs: ViewPairs) -> list[str]:
    return [pairs.describe(k) for k in range(len(pairs))]


def test_an_index_gives_what_mining_in_memory_gives(roots: list[Path], index: Path) -> None:
    mined = ViewPairs.of_datasets([open_dataset(root) for root in roots], PairOptions(**OPTIONS))
    read = ViewPairs.from_index(index)
    assert listing(read) == listing(mined)
    assert len(mined) >= 10
    assert mined.group_count == 3
    np.testing.assert_allclose(read.items.overlap, mined.items.overlap, atol=6e-5)  # four decimals in the file
    np.testing.assert_allclose(np.degrees(read.items.angle), np.degrees(mined.items.angle), atol=6e-3)


def test_images_and_views_are_those_of_the_scene(roots: list[Path], index: Path) -> None:
    pairs = ViewPairs.from_index(index)
    k = next(k for k in range(len(pairs)) if "two" in pairs.describe(k))
    first, second = (int(c[k]) for c in (pairs.items.first, pairs.items.second))
    assert pairs.describe(k) == f"{roots[1]}: scene room: {first:04d} | {second:04d}"
    scene = open_dataset(roots[1])[0]
    images = pairs.images(k)
    assert all(isinstance(image, Image.Image) for image in images)
    np.testing.assert_array_equal(np.array(images[0]), np.array(scene.image(first)))
    np.testing.assert_array_equal(np.array(images[1]), np.array(scene.image(second)))
    pair = pairs.pair(k)
    assert isinstance(pair, ViewPair)
    assert (pair.first.name, pair.second.name) == (f"{first:04d}", f"{second:04d}")
    assert pair.first.depth is not None
    assert pair.overlap == pytest.approx(pairs.items.overlap[k])
    assert 0 < pair.angle < math.radians(60)


def test_both_orders(index: Path) -> None:
    once, twice = ViewPairs.from_index(index), ViewPairs.from_index(index, both_orders=True)
    count = len(once)
    assert len(twice) == 2 * count
    for k in range(count):
        there, back = twice.describe(k), twice.describe(k + count)
        assert there == once.describe(k)
        head, _, views = there.rpartition(": ")
        assert back == f"{head}: {' | '.join(reversed(views.split(' | ')))}"
        assert twice.group(k) == twice.group(k + count)
    np.testing.assert_array_equal(np.array(twice.images(0)[0]), np.array(twice.images(count)[1]))


def test_out_of_range(index: Path) -> None:
    pairs = ViewPairs.from_index(index)
    for k in (-1, len(pairs)):
        with pytest.raises(IndexError, match=f"view pairs: item {k} of {len(pairs)}"):
            pairs.images(k)


def test_scenes_can_be_split_off(index: Path) -> None:
    pairs = ViewPairs.from_index(index)
    ids = [pairs.group(k) for k in range(len(pairs))]
    assert sorted(set(ids)) == [0, 1, 2]
    for both_orders in (False, True):
        part = ViewPairs.from_index(index, both_orders=both_orders).of_groups([0, 2])
        assert part.group_count == 2
        assert listing(part)[: ids.count(0) + ids.count(2)] == [
            pairs.describe(k) for k, scene in enumerate(ids) if scene != 1
        ]
        assert {part.group(k) for k in range(len(part))} == {0, 2}


def test_datasets_in_another_order_or_place(roots: list[Path], index: Path, tmp_path: Path) -> None:
    expected = listing(ViewPairs.from_index(index))
    swapped = ViewPairs.from_index(index, [open_dataset(roots[1]), open_dataset(roots[0])])
    assert listing(swapped) == expected
    moved = [roots[0].rename(tmp_path / "moved one"), roots[1].rename(tmp_path / "moved two")]
    elsewhere = ViewPairs.from_index(index, [open_dataset(root) for root in moved])
    assert [line.rpartition("scene")[2] for line in listing(elsewhere)] == [
        line.rpartition("scene")[2] for line in expected
    ]
    with pytest.raises(InputError, match=r"two, which is not among .*moved one; give the same folders"):
        ViewPairs.from_index(index, [open_dataset(moved[0])])


def test_unknown_scene_and_view_name_file_and_line(roots: list[Path], index: Path) -> None:
    lines = index.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if "\thall\t" in line)
    for old, new, message in (
        ("\thall\t", "\tattic\t", rf"pairs\.tsv, line {at + 1}: .*one has no scene 'attic'"),
        (lines[at].split("\t")[3], "9999", rf"pairs\.tsv, line {at + 1}: scene 'hall' has no view '9999'"),
    ):
        damaged = list(lines)
        damaged[at] = lines[at].replace(old, new)
        index.write_text("\n".join(damaged) + "\n")
        with pytest.raises(InputError, match=message):
            ViewPairs.from_index(index)


def test_a_scene_that_broke_since_is_quarantined(roots: list[Path], index: Path) -> None:
    whole = listing(ViewPairs.from_index(index))
    (roots[0] / "hall.analytic").write_text("broken")
    pairs = ViewPairs.from_index(index)
    assert listing(pairs) == [line for line in whole if "hall" not in line]
    assert pairs.group_count == 2
    assert {pairs.group(k) for k in range(len(pairs))} == {0, 1}
    assert len(pairs.datasets[0].quarantine) == 1
    for root in roots:
        for path in root.iterdir():
            path.write_text("broken")
    with pytest.raises(InputError, match=r"every scene is broken, the first: scene hall"):
        ViewPairs.from_index(index)


def test_a_million_pairs_stay_numbers() -> None:
    count = 1_000_000
    zeros = np.zeros(count, dtype=np.int32)
    scores = np.zeros(count, dtype=np.float32)
    table = PairTable(zeros, zeros, zeros, zeros + 1, scores, scores, np.zeros(count, dtype=np.int8))
    pairs = ViewPairs([], [(0, "room")], table, both_orders=True)
    assert len(pairs) == 2 * count
    assert len(pickle.dumps(pairs)) < 22 * count
    assert len(pickle.dumps(pairs.of_groups([0]))) < 22 * count


def test_listed_pairs_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "listed").touch()
    dataset = open_dataset(tmp_path)
    pairs = ViewPairs.from_listed([dataset])
    assert [line.rpartition("scene ")[2] for line in listing(pairs)] == [
        "a: 0000 | 0001",
        "a: 0002 | 0000",
        "b: 0001 | 0002",
    ]
    assert [str(entry) for entry in dataset.quarantine.entries] == ["scene broken: pairs.txt: line 3 is cut"]
    pair = pairs.pair(1)
    assert (pair.overlap, pair.angle) == (None, None)
    mined = ViewPairs.of_datasets([open_dataset(tmp_path)], PairOptions())
    assert listing(mined) == listing(pairs)
    summary = mine_pairs(PairsConfig(data=(tmp_path,), out=tmp_path / "out.tsv"))
    assert summary.by_evidence == {"listed": 3}
    assert np.isnan(read_pair_index(summary.index).overlap).all()
    assert listing(ViewPairs.from_index(summary.index)) == listing(pairs)


def test_scenes_without_views_do_not_stop_the_search(tmp_path: Path) -> None:
    build_scannet(tmp_path)
    (tmp_path / "scans" / "scene0000_00" / "scene0000_00.sens").unlink()
    pairs = ViewPairs.find([tmp_path], options=PairOptions(min_overlap=0.01, max_angle=120))
    assert [name for _, name in pairs.scenes] == ["scene0000_01", "scene0001_00"]
    assert len(pairs.datasets[0].quarantine) == 0


def test_nothing_to_pair_is_said(tmp_path: Path) -> None:
    dataset = open_dataset(AnalyticDataset.write(tmp_path / "set", {"a": 3, "b": "empty"}))
    with pytest.raises(InputError, match="lists view pairs"):
        ViewPairs.from_listed([dataset])
    with pytest.raises(InputError, match=r"scene a: no pair of its 3 views.*scene b: has neither"):
        ViewPairs.of_datasets([dataset], PairOptions(min_angle=80, max_angle=90))
