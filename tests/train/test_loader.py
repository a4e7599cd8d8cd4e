"""The loader gives the same batches however it is run, and gets along with samples that cannot be read."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from toy import ToyMethod, ToySamples

from geo3d.errors import MissingExtra
from geo3d.train.loader import Batch, DrawnBatches, load_batches
from geo3d.train.order import BatchKey, StepPlan, epoch_order

PLAN = StepPlan(size=20, batch_size=4)


def drawn(samples: ToySamples, strict: bool = False) -> DrawnBatches:
    return DrawnBatches(samples, ToyMethod().collate, PLAN, seed=2, strict=strict)


def load_first(samples: ToySamples, workers: int, strict: bool = False) -> list[Batch]:
    with load_batches(drawn(samples, strict), 0, 1, workers=workers) as batches:
        return list(batches)


def load(start: int, stop: int, workers: int) -> list[Batch]:
    torch.manual_seed(workers)  # must not matter
    with load_batches(drawn(ToySamples(20)), start, stop, workers=workers) as batches:
        return list(batches)


def test_workers_and_start_leave_the_batches_as_they_are() -> None:
    alone, shared, later = load(0, 11, workers=0), load(0, 11, workers=2), load(6, 11, workers=1)
    assert [batch.key.step for batch in alone] == list(range(11))
    for one, other in [*zip(alone, shared, strict=True), *zip(alone[6:], later, strict=True)]:
        assert one.key == other.key
        assert one.indices == other.indices == one.data["index"].tolist()
        assert torch.equal(one.data["x"], other.data["x"])
        assert torch.equal(one.data["mask"], other.data["mask"])


def test_every_sample_comes_once_an_epoch_and_looks_different_in_the_next() -> None:
    batches = load(0, 10, workers=0)
    for epoch in (0, 1):
        assert sorted(i for batch in batches[5 * epoch : 5 * epoch + 5] for i in batch.indices) == list(range(20))
    looks = {i: x for batch in batches[:5] for i, x in zip(batch.indices, batch.data["x"])}
    again = {i: x for batch in batches[5:] for i, x in zip(batch.indices, batch.data["x"])}
    assert not any(torch.equal(looks[i], again[i]) for i in range(20))


def test_starting_the_loader_leaves_the_global_generator_alone() -> None:
    batches = drawn(ToySamples(20))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with load_batches(batches, 0, 1, workers=1) as loaded:
        next(loaded)
    assert torch.equal(torch.rand(1), expected)


def test_broken_sample_gives_way_to_the_next_of_the_order() -> None:
    order = epoch_order(2, 0, 20, PLAN.epoch_length)
    broken = tuple(int(index) for index in order[5:7])  # positions 5 and 6 of batch 1 (positions 4 to 7)
    whole, batch = drawn(ToySamples(20)), drawn(ToySamples(20, broken=broken))[BatchKey(1, 0, 4, 4)]
    assert batch.indices == [order[4], order[7], order[7], order[7]]
    assert [sample.index for sample in batch.broken] == [broken[0], broken[1], broken[1]]
    assert batch.broken[0].name == f"toy-{broken[0]:03d}"
    assert batch.broken[0].reason == f"toy-{broken[0]:03d}: cut off at byte 7"
    assert batch.error is None
    for one, other in pairwise(batch.data["x"][1:]):
        assert not torch.equal(one, other)  # the same item, drawn for its own position each time
    expected = whole[BatchKey(1, 0, 4, 4)]
    assert torch.equal(batch.data["x"][[0, 3]], expected.data["x"][[0, 3]])


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_or_hopeless_data_ends_in_one_line(workers: int) -> None:
    first = int(epoch_order(2, 0, 20, PLAN.epoch_length)[0])
    (batch,) = load_first(ToySamples(20, broken=(first,)), workers, strict=True)
    assert batch.data is None
    assert batch.error == f"toy-{first:03d}: cut off at byte 7"
    (batch,) = load_first(ToySamples(20, broken=tuple(range(20))), workers)
    assert batch.data is None
    assert batch.error.startswith("20 samples in a row cannot be read; the last: toy-")


def test_a_missing_extra_is_no_broken_sample() -> None:
    class Needy(ToySamples):
        def draw(self, index, rng):
            raise MissingExtra("COLMAP models need pycolmap: pip install 'geo3d[colmap]'")

    batch = drawn(Needy(20))[BatchKey(0, 0, 0, 4)]
    assert batch.error == "COLMAP models need pycolmap: pip install 'geo3d[colmap]'"
    assert not batch.broken


def test_a_bug_keeps_its_traceback() -> None:
    class Buggy(ToySamples):
        def draw(self, index, rng):
            return {"x": [1, 2][5]}

    with pytest.raises(IndexError):
        load_first(Buggy(20), workers=1)


def test_workers_have_one_thread() -> None:
    class Threads(ToySamples):
        def draw(self, index, rng):
            return super().draw(index, rng) | {"threads": torch.get_num_threads()}

    (batch,) = load_first(Threads(20), workers=1)
    assert batch.data["threads"].tolist() == [1] * 4
