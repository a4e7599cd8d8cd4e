"""The linear SVM: splits that hold every class, and accuracies whose truth is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from geo3d.errors import InputError, MissingExtra
from geo3d.linear_svm import LinearSvm, Split, object_splits, svm_accuracy

_LABELS = np.repeat(np.arange(6), 20)


def _features(apart: float, width: int = 16, seed: int = 0) -> np.ndarray:
    """Balls of deviation 1 about a centre a class, as far apart as is said."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(_LABELS), width)) + apart * np.eye(6, width)[_LABELS]


def test_splits_hold_every_class_and_share_no_object() -> None:
    labels = np.random.default_rng(1).permutation(np.r_[_LABELS, np.full(9, 6), np.full(4, -1)])
    splits = object_splits(labels, count=4, per_class=5, seed=3)
    assert len(splits) == 4
    for split in splits:
        assert not np.intersect1d(split.train, split.test).size
        assert (np.bincount(labels[split.train]) == 5).all()
        assert np.bincount(labels[split.test]).tolist() == [5] * 6 + [4]  # the rest, at most as many
        assert (np.diff(split.train) > 0).all()
        assert (np.diff(split.test) > 0).all()
    assert len({tuple(split.train) for split in splits}) == 4


def test_splits_are_those_of_their_seed_and_number() -> None:
    first, again, other = (object_splits(_LABELS, count, 10, seed) for count, seed in ((5, 0), (2, 0), (5, 1)))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.train, b.train)
        np.testing.assert_array_equal(a.test, b.test)
    assert (first[0].train != other[0].train).any()


def test_a_split_of_some_of_the_objects_counts_among_them() -> None:
    split = Split(np.array([0, 4, 7]), np.array([2, 9])).among(np.array([2, 4, 7, 8]))
    assert split.train.tolist() == [1, 2]
    assert split.test.tolist() == [0]


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_what_is_far_apart_is_told_apart(C: float) -> None:
    # Centres 28 deviations apart: not one of thousands of draws would lie on the wrong side.
    accuracy = svm_accuracy(_features(20), _LABELS, object_splits(_LABELS), C)
    assert accuracy.tolist() == [1] * 5


def test_labels_that_have_nothing_to_do_with_features_give_chance() -> None:
    labels = np.random.default_rng(5).permutation(_LABELS)
    accuracy = svm_accuracy(_features(20), labels, object_splits(labels, 20))
    # 20 splits of 60: were they independent, 1/6 would be met to within 0.011; they are not, of one shuffling.
    assert accuracy.mean() == pytest.approx(1 / 6, abs=0.08)


def test_standardising_undoes_scale_and_shift() -> None:
    features, splits = _features(3), object_splits(_LABELS)
    scaled = features * np.logspace(-3, 3, 16) + 5
    expected = svm_accuracy(features, _LABELS, splits)
    assert 0.6 < expected.mean() < 1
    np.testing.assert_allclose(svm_accuracy(scaled, _LABELS, splits), expected, atol=1e-12)
    assert svm_accuracy(scaled, _LABELS, splits, standardise=False).mean() < expected.mean() - 0.1


def test_two_objects_are_parted_half_way_as_the_widest_margin_has_it() -> None:
    machine = LinearSvm(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([4, 9]), C=1e6, standardise=False)
    assert machine.predict([[0.98, 50], [1.02, -50]]).tolist() == [4, 9]


def test_columns_that_do_not_vary_do_no_harm() -> None:
    features, splits = _features(4), object_splits(_LABELS)
    constant = np.full((len(features), 3), [0.0, 1e6, -1e-6]) * (1 + 1e-9 * np.arange(len(features))[:, None])
    np.testing.assert_allclose(
        svm_accuracy(np.hstack([features, constant]), _LABELS, splits), svm_accuracy(features, _LABELS, splits)
    )


def test_wrong_objects_are_one_line() -> None:
    with pytest.raises(InputError, match=r"chair has 20 objects: too few to learn from 20 .* at most 19 a class"):
        object_splits(_LABELS, per_class=20, names=("chair", *"bcdef"))
    with pytest.raises(InputError, match="class 7 has a single object"):
        object_splits(np.r_[_LABELS, 7])
    with pytest.raises(InputError, match="the 3 objects are of 0; give objects that are labelled"):
        object_splits(np.full(3, -1))
    splits = object_splits(_LABELS)
    features = _features(1)
    with pytest.raises(InputError, match=r"split 0 has nothing to learn from"):
        svm_accuracy(features, _LABELS, [Split(splits[0].train[:0], splits[0].test)])
    with pytest.raises(InputError, match="fewer than two classes"):
        LinearSvm(features[:20], _LABELS[:20])
    features[3, 3] = np.nan
    with pytest.raises(InputError, match="features hold NaN or infinite values"):
        svm_accuracy(features, _LABELS, splits)
    with pytest.raises(InputError, match=r"features are \(N, D\), got \(16,\)"):
        svm_accuracy(features[0], _LABELS, splits)


def test_where_scikit_learn_is_missing_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"the linear SVM needs sklearn: pip install 'geo3d\[svm\]'"):
        svm_accuracy(_features(1), _LABELS, object_splits(_LABELS))
