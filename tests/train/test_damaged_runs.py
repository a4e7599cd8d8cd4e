"""Files of a run that another program has changed, checksums and all: one line that names one of them, or no harm."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import train_toy

from geo3d import InputError
from geo3d.train import checkpoint as checkpoint_module

pytestmark = pytest.mark.usefixtures("lean")
JUNK = [None, True, -1, 1e9, "", "x", [], {}, {"a": 1}, 0.5, torch.zeros(2)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of 4 steps with checkpoints after 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("geo3d.train.trainer.draw_loss_curve", lambda *_: None)
        train_toy(folder, steps=4, save_every_steps=2, schedule="constant", measure_every=2)
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def go_on(run: Path) -> str:
    """The one line with which the run does not go on; empty where it does."""
    try:
        assert train_toy(run, steps=5, schedule="constant", measure_every=2).steps == 5
    except InputError as error:
        message = str(error)
        assert str(run) in message
        assert "\n" not in message
        return message
    return ""


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_00000004"


def sign(checkpoint: Path) -> None:
    """Write the checksums of what is there now."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {name: checkpoint_module._fingerprint(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inside:
        yield (*above, key)
        yield from places(held, (*above, key))


def changed(content: Any, rng: random.Random) -> Any:
    """The content with an entry dropped or replaced."""
    content = copy.deepcopy(content)
    place = rng.choice(list(places(content)))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if rng.random() < 0.5 and isinstance(holder, dict):
        del holder[place[-1]]
    else:
        holder[place[-1]] = rng.choice(JUNK)
    return content


@pytest.mark.parametrize("seed", range(25))
def test_states_that_were_changed(run: Path, seed: int) -> None:
    path = newest(run) / "state.pt"
    torch.save(changed(torch.load(path, weights_only=True), random.Random(seed)), path)
    sign(newest(run))
    go_on(run)


@pytest.mark.parametrize("seed", range(10))
def test_manifests_that_were_changed(run: Path, seed: int) -> None:
    path = newest(run) / "manifest.json"
    content = changed(json.loads(path.read_text()), random.Random(seed))
    path.write_text(json.dumps(content, default=lambda tensor: tensor.tolist()))
    assert go_on(run) == ""  # from this checkpoint or from the one before


def _state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = newest(run) / "state.pt"
        state = torch.load(path, weights_only=True)
        instead = change(state)
        torch.save(instead if isinstance(instead, list) else state, path)
        sign(newest(run))

    return apply


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = newest(run) / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        sign(newest(run))

    return apply


def _metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2', '{"stop": 2', 1))


FIRST = "blocks.0.0.weight"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_state(lambda state: state.pop("counters")), "step_00000004: cannot be taken up (KeyError: 'counters')"),
        (_state(lambda state: state["counters"].update(step="4")), "counters: step: expected a whole number"),
        (_state(lambda state: [1]), "state.pt holds a list"),
        (_state(lambda state: state["optimizer"][FIRST].pop("exp_avg")), "is not like that of other weights"),
        (
            _state(lambda state: state["optimizer"][FIRST].update(exp_avg=torch.zeros(2))),
            f"the optimizer's exp_avg of {FIRST} should be (16, 8), found (2,)",
        ),
        (_weights(lambda weights: weights.pop(FIRST)), "holds another network"),
        (_weights(lambda weights: weights.update({FIRST: torch.zeros(16, 8).int()})), "is of torch.int32"),
        (_metrics, "metrics.jsonl: line 2 is damaged ('step')"),
        (lambda run: (run / "checkpoints" / "best").write_bytes(b"\xff../.."), ""),
        (lambda run: (run / "quarantine.txt").write_bytes(b"\xff\tx\n\n"), ""),
    ],
)
def test_what_is_said_of_a_changed_run(run: Path, harm: Callable[[Path], Any], message: str) -> None:
    harm(run)
    found = go_on(run)
    assert message in found
    assert bool(message) == bool(found)
