"""The report of multi-view completion: what the other views of a group are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small_run

from geo3d.recipes.multiview import MultiViewRecipe


@pytest.fixture(scope="module")
def task(rooms: Path, tmp_path_factory) -> MultiViewRecipe:
    folder = tmp_path_factory.mktemp("run")
    run = small_run("multiview", {"views": 3}, data=(rooms,)).resolved()
    MultiViewRecipe.prepare(run, folder, lambda line: None, True)
    return MultiViewRecipe(run, folder, lambda line: None)


def test_views_of_another_scene_stand_in_the_place_of_the_others(task: MultiViewRecipe) -> None:
    for item in range(len(task.measured)):
        sample = task.draw_measured(item, np.random.default_rng(item))
        assert torch.equal(sample["other_views"][0], sample["views"][0])
        assert torch.equal(sample["other_mask"][0], sample["mask"][0])
        assert sample["other_views"].shape == sample["views"].shape
        assert (sample["other_views"][1:] != sample["views"][1:]).flatten(1).any(1).all()
        assert (sample["other_mask"].sum(1) == sample["mask"].sum(1)).all()


def test_figures_are_of_the_first_view_of_every_group(task: MultiViewRecipe) -> None:
    figures = task.measure()
    assert set(figures) == {"loss", "loss_first", "loss_first_other_scene", "loss_first_alone", "groups", "left_out"}
    beside, replaced, alone = [], [], []
    for batch, _ in task.batches():
        for start, end in zip(batch["offsets"][:-1].tolist(), batch["offsets"][1:].tolist()):
            for found, prefix, stop in ((beside, "", end), (replaced, "other_", end), (alone, "", start + 1)):
                group = {name: batch[prefix + name][start:stop] for name in ("views", "mask")}
                with task.method.measuring():
                    output = task.method(group | {"offsets": torch.tensor([0, stop - start])})
                found.append(output.extras["view_loss"].tolist())
    assert len(beside) == figures["groups"] == task.measured_count
    # Groups one by one and in a batch: sums of float32 in another order.
    assert figures["loss"] == pytest.approx(np.mean([np.mean(losses) for losses in beside]), rel=1e-5)
    for name, losses in (("loss_first", beside), ("loss_first_other_scene", replaced), ("loss_first_alone", alone)):
        assert figures[name] == pytest.approx(np.mean([view[0] for view in losses]), rel=1e-5)
    text = task.text(figures, figures)
    assert f"{figures['loss_first']:.4f} with the true ones" in text
    assert f"{figures['loss_first_alone']:.4f} alone" in text
