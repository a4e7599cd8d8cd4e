"""ViewGroups: groups of views grown in the graph of a scene's pairs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from geo3d.samples.pairs import PairTable
from geo3d.samples.view_groups import ViewGroups

#: Pairs of two scenes: a triangle with a tail (0 1, 0 2, 1 2, 2 3), and one pair apart (5 6); a path of five views.
PAIRS = {0: [(0, 1), (0, 2), (1, 2), (2, 3), (5, 6)], 1: [(0, 1), (1, 2), (2, 3), (3, 4)]}


@pytest.fixture
def source() -> ViewGroups:
    rows = [(scene, *pair) for scene, pairs in PAIRS.items() for pair in pairs]
    rows = [rows[n] for n in (8, 0, 5, 3, 2, 6, 1, 4, 7)]  # in no order, as those of an index
    scene, first, second = (np.array(column, dtype=np.int32) for column in zip(*rows))
    unknown = np.full(len(rows), np.nan, dtype=np.float32)
    table = PairTable(scene, scene, first, second, unknown, unknown, np.zeros(len(rows), dtype=np.int8))
    return ViewGroups([], [(0, "a"), (0, "b")], table)


def test_a_group_is_connected_and_begins_with_its_pair(source: ViewGroups) -> None:
    sizes = set()
    for index in range(len(source)):
        edges = {frozenset(pair) for pair in PAIRS[source.group(index)]}
        assert {frozenset(pair) for pair in source.edges(index).tolist()} == edges
        for count in (2, 3, 4, 9):
            for seed in range(10):
                views = source.group_of_views(index, count, np.random.default_rng(seed))
                assert set(views[:2]) == set(source.views(index))
                assert len(set(views)) == len(views) <= count
                for place, view in enumerate(views[2:], 2):
                    assert any(frozenset((view, other)) in edges for other in views[:place])
                sizes.add((source.group(index), len(views)))
    # All that is connected is reached: four views of the first scene, two of its lone pair, five of the path.
    assert sizes == {(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (1, 5)}


def test_views_with_more_pairs_in_the_group_are_likelier(source: ViewGroups) -> None:
    (pair,) = [n for n in range(len(source)) if source.group(n) == 0 and source.views(n) == (0, 2)]
    drawn = [source.group_of_views(pair, 3, np.random.default_rng(seed)) for seed in range(600)]
    third = np.array([views[2] for views in drawn])
    assert set(third) == {1, 3}
    assert abs((third == 1).sum() - 400) < 60  # two pairs against one: binomial of 600 at 2/3, sigma 11.5
    assert abs(sum(views[0] == 0 for views in drawn) - 300) < 62  # either view of the pair is the first: sigma 12.2


def test_draws_come_from_the_generator_alone_also_in_other_processes(source: ViewGroups) -> None:
    expected = [source.group_of_views(n, 4, np.random.default_rng(n)) for n in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    assert "_by_scene" not in vars(copy)
    assert [copy.group_of_views(n, 4, np.random.default_rng(n)) for n in range(len(source))] == expected
    part = source.of_groups([1])  # whose rows are others
    assert len(part) == 4
    for n in range(len(part)):
        assert {frozenset(pair) for pair in part.edges(n).tolist()} == {frozenset(pair) for pair in PAIRS[1]}
