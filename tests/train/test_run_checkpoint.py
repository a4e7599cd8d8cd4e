"""Checkpoints survive what disks and crashes do to them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from geo3d.errors import InputError
from geo3d.train import checkpoint as checkpoint_module
from geo3d.train.checkpoint import CheckpointStore, Figure, damage, load_checkpoint, loss_of


def save(store: CheckpointStore, step: int, loss: float = 1.0) -> Path:
    state = {"counters": {"step": step}, "optimizer": {"w": {"exp_avg": torch.full((3,), float(step))}}}
    return store.save(step, loss, state, {"w": torch.arange(3.0) + step}, metadata={"method": "toy"})


def names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.all()]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.save(7, 0.5, {"a": 1.5, "b": torch.ones(2)}, {"w": torch.arange(3.0)}, {"w": torch.zeros(3)})
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "ema.safetensors", "state.pt", "manifest.json"}
    state, model, ema = load_checkpoint(path)
    assert state["a"] == 1.5
    assert torch.equal(state["b"], torch.ones(2))
    assert torch.equal(model["w"], torch.arange(3.0))
    assert torch.equal(ema["w"], torch.zeros(3))
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["loss"], manifest["torch"]) == (7, 0.5, torch.__version__)
    assert damage(path) is None


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    path = CheckpointStore(tmp_path).save(1, 0.5, {}, {"a": weight, "b": weight, "row": weight[1]})
    _, model, _ = load_checkpoint(path)
    assert torch.equal(model["a"], weight)
    assert torch.equal(model["b"], weight)
    assert torch.equal(model["row"], weight[1])


def test_head_of_the_weights_is_readable_by_others(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path), 3)
    with safe_open(path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"method": "toy"}
        assert list(file.keys()) == ["w"]


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 1.5), (5, 1.2)]:
        save(store, step, loss)
    assert names(store) == ["step_00000002", "step_00000004", "step_00000005"]
    assert store.best() == tmp_path / "step_00000002"
    assert loss_of(store.best()) == 1.0
    save(store, 6, 0.5)
    assert names(store) == ["step_00000005", "step_00000006"]
    assert not list(tmp_path.glob(".*"))


def test_best_need_not_be_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=False)
    for step, loss in [(1, 1.0), (2, 3.0)]:
        save(store, step, loss)
    assert names(store) == ["step_00000002"]
    assert store.best() is None


def test_a_checkpoint_without_a_good_step_is_never_the_best_for_long(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert math.isnan(loss_of(save(store, 1, float("nan"))))
    save(store, 2, 9.0)
    assert store.best().name == "step_00000002"
    save(store, 3, float("nan"))
    assert store.best().name == "step_00000002"


def test_steps_beyond_eight_digits_stay_in_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 99_999_999)
    save(store, 100_000_000)
    assert store.newest_valid(pytest.fail).name == "step_100000000"


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(path: Path) -> None:
    file = path / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(path: Path) -> None:
    (path / "state.pt").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_the_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:40])


DAMAGES = {
    truncate: r"model.safetensors has \d+ bytes of \d+",
    flip_a_bit: "state.pt has changed since it was written",
    lose_a_file: "state.pt is missing",
    lose_the_manifest: "manifest.json is missing",
    cut_the_manifest: "manifest.json is not readable",
}


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_damaged_newest_is_passed_over_with_a_line(tmp_path: Path, harm) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    harm(save(store, 2))
    lines: list[str] = []
    assert store.newest_valid(lines.append) == tmp_path / "step_00000001"
    assert len(lines) == 1
    assert lines[0].startswith("checkpoint step_00000002 is damaged (")
    assert re.search(DAMAGES[harm], lines[0])
    assert lines[0].endswith("using step_00000001")
    assert (tmp_path / "step_00000002.damaged").is_dir()
    save(store, 2)  # the same step again
    assert store.newest_valid(pytest.fail) == tmp_path / "step_00000002"


def test_damaged_best_gives_way(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    truncate(save(store, 1, loss=0.1))
    save(store, 2, loss=5.0)
    assert store.best() == tmp_path / "step_00000002"


def test_all_damaged_is_an_error_every_time(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        truncate(save(store, step))
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of 2 checkpoints is whole \(newest: step_00000002: model"):
            store.newest_valid(pytest.fail)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").newest_valid(pytest.fail) is None


@pytest.mark.parametrize("moment", ["_fingerprint", "to_disk", "write_tensors"])
def test_a_crash_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch, moment: str) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert names(store) == ["step_00000001"]
    assert store.newest_valid(pytest.fail) == tmp_path / "step_00000001"
    assert list(tmp_path.glob(".unfinished-*"))
    store.clean()
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000001", "best"}


def test_the_best_measured_one_stays_where_nothing_more_is_measured(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step, loss, figure in [(1, 3.0, 0.5), (2, 2.0, 0.4), (3, 1.0, 0.7)]:
        store.save(step, loss, {}, {"w": torch.zeros(1)}, figure=Figure("measured/miou", figure, higher_is_better=True))
    for step in (4, 5):
        store.save(step, 0.1, {}, {"w": torch.zeros(1)})
    assert store.best().name == "step_00000003"
    assert names(store) == ["step_00000003", "step_00000005"]
    store.save(6, 9.0, {}, {"w": torch.zeros(1)}, figure=Figure("measured/miou", 0.8, higher_is_better=True))
    assert store.best().name == "step_00000006"


def test_a_crash_before_the_mark_does_not_lose_the_best(tmp_path: Path, monkeypatch) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, 3.0, {}, {"w": torch.zeros(1)}, figure=Figure("measured/loss", 2.0))
    with monkeypatch.context() as crash:
        crash.setattr(CheckpointStore, "_mark_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.save(2, 2.0, {}, {"w": torch.zeros(1)}, figure=Figure("measured/loss", 1.0))
    assert store.best().name == "step_00000001"
    store.mark_again(tmp_path / "step_00000002")  # as a run does that goes on from there
    store.save(3, 1.0, {}, {"w": torch.zeros(1)}, figure=Figure("measured/loss", 1.5))
    assert store.best().name == "step_00000002"
