"""The loader gives the same batches however it is run, and gets along with samples that cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import ToyMethod, ToySamples

from geo3d.errors import InputError, MissingExtra
from geo3d.train.loader import Batch, DrawnBatches, load_batches
from geo3d.train.order import BatchKey, StepPlan, epoch_order
from geo3d.train.workers import Packed

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


class SizedSamples(ToySamples):
    """All that one step takes is of one size."""

    size = 0

    def of_step(self, rng):
        drawn = SizedSamples(self.count)
        drawn.size = int(rng.integers(1, 1000))
        return drawn

    def draw(self, index, rng):
        return super().draw(index, rng) | {"size": self.size}


def test_what_a_step_shares_is_one_for_all_processes_and_passes_and_another_in_the_next() -> None:
    sizes: dict[int, set[int]] = {}
    for accumulate, processes, start in ((1, 1, 0), (2, 2, 0), (2, 2, 3)):
        plan = StepPlan(20, 4 // (accumulate * processes), accumulate, processes)
        batches = DrawnBatches(SizedSamples(20), ToyMethod().collate, plan, seed=2)
        for rank in range(processes):
            for key in plan.keys(start, 7, rank):
                sizes.setdefault(key.step, set()).update(batches[key].data["size"].tolist())
    assert all(len(found) == 1 for found in sizes.values())
    assert len(set.union(*sizes.values())) == 7  # steps, and no two alike here
    plain, sized = drawn(ToySamples(20)), drawn(SizedSamples(20))
    assert torch.equal(plain[BatchKey(1, 0, 4, 4)].data["x"], sized[BatchKey(1, 0, 4, 4)].data["x"])


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


class Buggy(ToySamples):
    def draw(self, index, rng):
        return {"x": [1, 2][5]}


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(IndexError):
        load_first(Buggy(20), workers=1)


LOCK = threading.Lock()


class Locking(ToySamples):
    """Takes a lock, and says how many threads torch uses and which process started its own."""

    def draw(self, index, rng):
        assert LOCK.acquire(timeout=10), "held, in this process, by nobody who will ever release it"
        LOCK.release()
        return super().draw(index, rng) | {"threads": torch.get_num_threads(), "parent": os.getppid()}


def test_workers_hold_no_lock_of_the_training_process_and_have_one_thread() -> None:
    with LOCK:
        (batch,) = load_first(Locking(20), workers=1)
    assert batch.data["threads"].tolist() == [1] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_are_forked_from_a_process_with_one_thread() -> None:
    torch.rand(2000, 2000) @ torch.rand(2000, 2000)  # threads of BLAS and OpenMP
    assert len(os.listdir("/proc/self/task")) > 1
    with load_batches(drawn(Locking(20)), 0, 1, workers=1) as batches:
        server = int(next(batches).data["parent"][0])
        assert server != os.getpid()
        assert len(os.listdir(f"/proc/{server}/task")) == 1


class Weighty(ToyMethod):
    """Needs itself to collate, though not its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.more, self.scale = nn.Linear(1000, 1000), 3.0

    def collate(self, samples):
        batch = super().collate(samples)
        return batch | {"x": batch["x"] * self.scale, "width": len(self.more.weight)}


def test_no_weights_travel_to_workers() -> None:
    batches = DrawnBatches(ToySamples(20), Weighty().collate, PLAN, seed=2)
    assert len(Packed(batches, "samples")._packed) < 20_000
    with load_batches(batches, 0, 1, workers=1) as loaded:
        (batch,) = loaded
    expected = batches[BatchKey(0, 0, 0, 4)].data
    assert torch.equal(batch.data["x"], expected["x"])
    assert batch.data["width"] == 1000


def test_what_cannot_be_sent_to_workers_is_one_line() -> None:
    samples = ToySamples(20)
    samples.transform = lambda x: x
    with pytest.raises(InputError, match=r"^ToySamples cannot be sent to loader workers: .*lambda.*workers to 0$"):
        load_first(samples, workers=1)
    assert load_first(samples, workers=0)


SCRIPT = """
from test_loader import drawn, load_batches
from toy import ToySamples

class Own(ToySamples):
    pass

{guard}:
    with load_batches(drawn({samples}(20)), 0, 1, workers=1) as batches:
        print("drawn", len(next(batches).indices))
"""


@pytest.mark.parametrize(
    ("samples", "guard"),
    [("ToySamples", "if True"), ("Own", "if __name__ == '__main__'"), ("Own", "if True")],
)
def test_scripts_run_once(samples: str, guard: str, tmp_path: Path) -> None:
    """What workers need is in a module, or the script is guarded; else one line says what to do."""
    path = tmp_path / "own.py"
    path.write_text(SCRIPT.format(guard=guard, samples=samples))
    output, errors = _python(path)
    if samples == "ToySamples" or "__name__" in guard:
        assert output == "drawn 4\n", errors
    else:
        assert output == ""
        assert f"InputError: {path}: loader workers import this script, which defines what Own needs" in errors
        assert "if __name__ == '__main__'" in errors


def test_a_session_without_a_file_is_told_that_workers_cannot_import_it() -> None:
    errors = _python("-c", SCRIPT.format(guard="if True", samples="Own"))[1]
    assert "InputError: Own: loader workers need what this session defines, and cannot import it" in errors


def _python(*arguments: str | Path) -> tuple[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr
