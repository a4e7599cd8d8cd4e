"""Targets of teachers on disk: what is written is read again, damage is noticed, and nothing is half written."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geo3d import InputError
from geo3d.models.teachers import TargetStore, TeacherOutput, content_key, create_teacher
from geo3d.nn.depth_views import depth_views

VIEWS = {"views": "depth", "size": 32}


@pytest.fixture
def lines() -> list[str]:
    """What is logged."""
    return []


@pytest.fixture
def store(tmp_path: Path, lines: list[str]) -> TargetStore:
    return TargetStore(tmp_path, "hog(cell=16)", VIEWS, lines.append)


def _targets(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, 2, 2, generator=generator), torch.rand(3, 2, 2, generator=generator)


def test_what_is_put_is_got(store: TargetStore, lines: list[str], tmp_path: Path) -> None:
    key = content_key(torch.rand(7, 3))
    assert store.get(key) is None
    assert key not in store
    features, saliency = _targets()
    store.put(key, features, saliency)
    found = TargetStore(tmp_path, "hog(cell=16)", dict(reversed(VIEWS.items()))).get(key)
    assert torch.equal(found.features, features.half())
    assert torch.equal(found.saliency, saliency)
    assert key in store
    assert lines == []
    about = json.loads((store.folder / "about.json").read_text())
    assert about["teacher"] == "hog(cell=16)"
    assert about["views"] == VIEWS


def test_other_teachers_and_views_are_kept_apart(store: TargetStore, tmp_path: Path) -> None:
    others = [TargetStore(tmp_path, "hog(cell=8)", VIEWS), TargetStore(tmp_path, "hog(cell=16)", VIEWS | {"size": 64})]
    assert len({s.folder for s in (store, *others)}) == 3
    key = content_key(torch.zeros(1, 3))
    store.put(key, *_targets())
    assert [other.get(key) for other in others] == [None, None]


def test_keys_tell_contents_apart() -> None:
    points = torch.rand(6, 3, dtype=torch.float64)
    keys = {content_key(p) for p in (points, points.flip(0), points[:5], points + 1e-6, torch.zeros(0, 3))}
    assert len(keys) == 5
    assert content_key(points) == content_key(points.float())


DAMAGES = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "a flipped bit of a number": lambda raw: raw[:-5] + bytes([raw[-5] ^ 4]) + raw[-4:],
    "another file": lambda raw: b"<html>" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_told_in_a_line_and_mended(damage, store: TargetStore, lines: list[str]) -> None:
    key = content_key(torch.rand(3, 3))
    store.put(key, *_targets())
    path = store.path(key)
    path.write_bytes(damage(path.read_bytes()))
    assert store.get(key) is None
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert "\n" not in lines[0]
    store.put(key, *_targets(1))
    assert torch.equal(store.get(key).features, _targets(1)[0].half())
    assert len(lines) == 1


def test_an_exchanged_file_is_noticed(store: TargetStore, lines: list[str]) -> None:
    first, second = content_key(torch.rand(3, 3)), content_key(torch.rand(4, 3))
    store.put(first, *_targets())
    store.put(second, *_targets(1))
    store.path(second).replace(store.path(first))
    assert store.get(first) is None
    assert "checksum" in lines[0]


def test_wrong_targets_are_refused_and_leave_nothing(store: TargetStore) -> None:
    key = content_key(torch.rand(3, 3))
    features, saliency = _targets()
    with pytest.raises(InputError, match=r"\(V, C, h, w\)"):
        store.put(key, features, saliency[:2])
    with pytest.raises(InputError, match="half precision"):
        store.put(key, features * 1e6, saliency)
    with pytest.raises(InputError, match="content_key"):
        store.get("../../etc")
    assert not store.folder.exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        TargetStore(tmp_path / "taken", "hog", VIEWS).put(content_key(torch.rand(3, 3)), *_targets())


def _read(stored: tuple[bytes, str]) -> float:
    return float(pickle.loads(stored[0]).get(stored[1]).features.float().sum())


def test_workers_read_it(tmp_path: Path) -> None:
    store, key = TargetStore(tmp_path, "hog", VIEWS), content_key(torch.rand(3, 3))
    store.put(key, *_targets())
    with ProcessPoolExecutor(1) as pool:
        found = pool.submit(_read, (pickle.dumps(store), key)).result(60)
    assert found == pytest.approx(float(_targets()[0].half().float().sum()))


def test_a_batch_is_completed(store: TargetStore, lines: list[str]) -> None:
    teacher = create_teacher("hog", cell=16)
    clouds = list(torch.randn(4, 30, 3, generator=torch.Generator().manual_seed(2)).unbind())
    asked: list[list[int]] = []

    def make(numbers: list[int]) -> TeacherOutput:
        asked.append(numbers)
        offsets = torch.arange(len(numbers) + 1) * 30
        return teacher(depth_views(torch.cat([clouds[n] for n in numbers]), offsets, 32).colors())

    keys = [content_key(cloud) for cloud in clouds]
    store.complete(keys[1:3], lambda numbers: make([n + 1 for n in numbers]))
    stored = store.complete(keys, make)
    assert asked == [[1, 2], [0, 3]]
    direct = make([0, 1, 2, 3])
    # Half precision of features up to 1.
    torch.testing.assert_close(stored.features, direct.features, rtol=0, atol=5e-4)
    torch.testing.assert_close(stored.saliency, direct.saliency, rtol=0, atol=1e-6)
    assert torch.equal(store.complete(keys, make).features, stored.features)
    assert len(asked) == 3
    assert lines == []
