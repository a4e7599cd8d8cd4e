"""Groups of points against what they must be on grids, and which of them are visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geo3d.nn.point_groups import PointGroups, group_points, propagate_visible

RULES = pytest.mark.parametrize("published", [True, False])


def packed(*sizes: int) -> tuple[Tensor, Tensor]:
    """Clouds of random points, far from the origin and from each other."""
    points = torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(0)) + 1
    return points, torch.tensor([0, *sizes]).cumsum(0)


@RULES
def test_groups_of_two_clusters_are_the_clusters(published: bool) -> None:
    near = torch.tensor([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]) + 1
    points = torch.cat([near, near + 10])[[0, 3, 1, 4, 2, 5]]
    (groups,) = group_points(points, torch.tensor([0, 6]), [2], [3], published)
    assert groups.picked[0] == 0
    assert groups.picked[1] % 2 == 1
    assert [sorted(row) for row in groups.index.tolist()] == [[0, 2, 4], [1, 3, 5]]
    assert groups.index[:, 0].tolist() == groups.picked.tolist()  # nearest to a centre is the centre
    assert torch.equal(groups.xyz[0], points[groups.picked])


def test_groups_of_a_line_are_where_they_must_be() -> None:
    """Farthest from the first of nine points in a row is the last, then the middle, then the quarters."""
    points = torch.zeros(9, 3)
    points[:, 0] = torch.arange(9.0)
    (groups,) = group_points(points, torch.tensor([0, 9]), [5], [3], published=False)
    assert groups.picked.tolist() == [0, 8, 4, 2, 6]  # of equal distances the lowest index
    assert groups.index.tolist() == [[0, 1, 2], [8, 7, 6], [4, 3, 5], [2, 1, 3], [6, 5, 7]]


def test_points_near_the_origin_are_no_centres_by_the_published_rule_alone() -> None:
    points = torch.tensor([[1.0, 0, 0], [0.02, 0, 0], [0, 1, 0], [0.05, 0, 0]])
    published, plain = (group_points(points, torch.tensor([0, 4]), [4], [1], rule)[0] for rule in (True, False))
    assert sorted(plain.picked.tolist()) == [0, 1, 2, 3]
    assert 1 not in published.picked
    assert {0, 2, 3} <= set(published.picked.tolist())


@RULES
def test_clouds_do_not_see_each_other_and_levels_are_of_levels(published: bool) -> None:
    points, offsets = packed(40, 7, 25)
    levels = group_points(points, offsets, (12, 6, 3), (5, 4, 2), published)
    below, below_offsets = points, offsets
    for groups, count, k in zip(levels, (12, 6, 3), (5, 4, 2), strict=True):
        assert groups.xyz.shape == (3, count, 3)
        assert groups.index.shape == (3 * count, k)
        assert torch.equal(groups.rows, below[groups.picked])
        for cloud, rows in enumerate(torch.cat([groups.picked.unsqueeze(1), groups.index], 1).split(count)):
            assert rows.min() >= below_offsets[cloud]
            assert rows.max() < below_offsets[cloud + 1]
        below, below_offsets = groups.rows, torch.arange(4) * count
    for cloud, (start, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:])):
        alone = group_points(points[start:end], torch.tensor([0, end - start]), (12, 6, 3), (5, 4, 2), published)
        for groups, own in zip(levels, alone):
            assert torch.equal(groups.xyz[cloud], own.xyz[0])


def test_members_are_the_nearest() -> None:
    points, offsets = packed(60)
    (groups,) = group_points(points, offsets, [10], [6], published=False)
    distance = torch.cdist(groups.rows.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(groups.index, distance.sort(dim=1, stable=True).indices[:, :6])


@RULES
@pytest.mark.parametrize("size", [1, 2, 3])
def test_fewer_points_than_groups_or_members_repeat(size: int, published: bool) -> None:
    points, offsets = packed(size, 30)
    levels = group_points(points, offsets, (8, 4), (6, 5), published)
    first, second = levels
    assert first.picked[:8].max() < size
    assert set(first.picked[:8].tolist()) == set(range(size))
    assert (first.index >= 0).all()
    assert first.index[:8].max() < size
    small = first.index[:8]  # all points of the cloud, nearest first, then the nearest again
    assert all(set(row) == set(range(size)) for row in small.tolist())
    assert (small[:, size:] == small[:, :1]).all()
    assert torch.isfinite(second.xyz).all()


@RULES
def test_equal_points_are_one_place(published: bool) -> None:
    levels = group_points(torch.ones(20, 3), torch.tensor([0, 20]), (6, 3), (4, 2), published)
    assert all((groups.xyz == 1).all() for groups in levels)


@RULES
def test_neighbours_do_not_depend_on_precision(published: bool) -> None:
    points, offsets = packed(50, 20)
    single, double = (group_points(p, offsets, (10, 4), (5, 3), published) for p in (points, points.double()))
    for one, two in zip(single, double):
        assert torch.equal(one.picked, two.picked)
        assert torch.equal(one.index, two.index)
        assert two.xyz.dtype == torch.float64


def level(index: list[list[int]], clouds: int = 1) -> PointGroups:
    rows = torch.tensor(index)
    return PointGroups(torch.zeros(clouds, len(rows) // clouds, 3), torch.zeros(len(rows), dtype=torch.int64), rows)


def test_a_group_is_visible_if_one_above_has_it_as_a_member() -> None:
    groups = [level([[0]] * 6), level([[1, 2], [2, 3], [4, 5]]), level([[0, 1], [1, 2]])]
    visible = propagate_visible(groups, torch.tensor([[True, False]]), published=False)
    assert [v[0].int().tolist() for v in visible] == [[0, 1, 1, 1, 0, 0], [1, 1, 0], [1, 0]]
    visible = propagate_visible(groups, torch.tensor([[False, True]]), published=False)
    assert [v[0].int().tolist() for v in visible] == [[0, 0, 1, 1, 1, 1], [0, 1, 1], [0, 1]]
    assert not any(v.any() for v in propagate_visible(groups, torch.zeros(1, 2, dtype=torch.bool), published=False))


def test_the_published_rule_shows_the_first_group_of_the_first_cloud_where_any_is_masked() -> None:
    groups = [level([[0]] * 12, 2), level([[1, 2], [2, 3], [4, 5], [7, 8], [8, 9], [10, 11]], 2)]
    some = torch.tensor([[False, True, False], [True, False, False]])
    plain, published = (propagate_visible(groups, some, rule)[0] for rule in (False, True))
    assert plain.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert published.int().tolist() == [[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    every = torch.ones(2, 3, dtype=torch.bool)  # nothing is masked: members alone, by both rules
    both = [propagate_visible(groups, every, rule)[0] for rule in (False, True)]
    assert torch.equal(*both)
    assert both[0].int().tolist() == [[0, 1, 1, 1, 1, 1]] * 2


@RULES
def test_visible_groups_of_random_clouds_are_those_of_a_walk(published: bool) -> None:
    points, offsets = packed(80, 50)
    groups = group_points(points, offsets, (24, 12, 6), (6, 4, 3), published)
    top = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    visible = propagate_visible(groups, top, published)
    expected = {int(row) for row in top.flatten().nonzero()}
    for number in (2, 1):
        expected = {int(row) for group in expected for row in groups[number].index[group]} | (
            {0} if published else set()
        )
        assert set(visible[number - 1].flatten().nonzero().flatten().tolist()) == expected
