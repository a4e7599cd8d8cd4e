"""What holds for every recipe that is registered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import SMALL, records, small_run, two_processes

from geo3d import InputError, create_model, save_model
from geo3d.config import load_config, save_config
from geo3d.recipes import get_recipe, list_recipes, pretrain
from geo3d.recipes.recipe import Recipe

PRESETS = [(name, preset) for name in list_recipes() for preset in get_recipe(name).presets]
#: Recipe -> a model that there is none of, and a setting that does not fit the others.
WRONG = {
    "classify": ({"model": "i2p_mae_none"}, {"model": "nerf_mae_tiny"}),
    "croco": ({"model": "croco_none"}, {"image_size": (65, 64)}),
    "depth": ({"model": "croco_depth_none"}, {"model": "swin3d_tiny"}),
    "flow": ({"model": "croco_flow_none"}, {"image_size": (65, 64)}),
    "i2p_mae": ({"model": "i2p_mae_none"}, {"model": "i2p_mae_modelnet40"}),
    "multiview": ({"model": "multiview_none"}, {"model": "croco_tiny"}),
    "nerf_mae": ({"model": "nerf_mae_none"}, {"model": "resnet_tiny"}),
    "detect": ({"model": "nerf_mae_detector_none"}, {"model": "nerf_mae_semantic_tiny"}),
    "segment": ({"model": "sparse_resnet_none"}, {"model": "resnet_tiny"}),
    "segment_grids": ({"model": "nerf_mae_semantic_none"}, {"model": "nerf_mae_tiny"}),
    "pointmaps": ({"model": "dust3r_none"}, {"model": "croco_tiny"}),
    "spark": ({"encoder": "resnet_none"}, {"decoder_width": 33}),
    "spark3d": ({"model": "sparse_resnet_none"}, {"model": "croco_tiny"}),
    "stereo": ({"model": "croco_stereo_none"}, {"model": "croco_flow_tiny"}),
    "swin3d": ({"model": "swin3d_none"}, {"first_stride": 0}),
}
#: Recipe -> a model that it has no use for, where that is not croco_tiny.
OTHERS = dict.fromkeys(("croco", "depth", "flow", "multiview", "pointmaps", "stereo"), "swin3d_tiny") | {
    "classify": "nerf_mae_tiny"
}
#: Preset -> what it lacks by itself, and a setting of the method that goes without.
NEEDS = {
    ("i2p_mae", "paper"): (
        "clip_vit_b16 needs a file that holds CLIP's ViT-B/16.*--method.teacher-checkpoint FILE",
        {"teacher_options": ("weights=random",)},
    )
}
#: Recipes that start from a file of CroCo.
OF_CROCO = {"croco", "depth", "flow", "pointmaps", "stereo"}
#: Recipe -> the figure that tells the best of runs on rooms, whose objects are labelled; else what the recipe names.
BEST = {"i2p_mae": ("svm", True)}


def test_every_recipe_has_small_settings_here() -> None:
    assert set(list_recipes()) == SMALL.keys() == WRONG.keys()


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_are_whole_and_survive_their_file(name: str, preset: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    run = recipe.preset(preset)
    checked = run
    if (name, preset) in NEEDS:
        message, others = NEEDS[name, preset]
        with pytest.raises(InputError, match=message) as caught:
            recipe.check(run)
        assert "\n" not in str(caught.value)
        checked = replace(run, method=replace(run.method, **others))
    method = recipe.check(checked)
    assert all(p.is_meta for parameter, p in method.named_parameters() if not method.is_frozen(parameter))
    assert type(method) is recipe.method_class
    save_config(run, tmp_path / "config.yaml")
    assert load_config(recipe.run, tmp_path / "config.yaml") == run


@pytest.mark.parametrize("name", list_recipes())
def test_a_run_measures_and_goes_on_where_it_stopped(name: str, data: Path, tmp_path: Path) -> None:
    recipe, lines = get_recipe(name), []
    figure, rises = BEST.get(name, (recipe.best, recipe.higher_is_better))
    run = small_run(name, data=(data,), measure_every=2)
    longer = replace(run.train, steps=4)
    result, report = pretrain(name, replace(run, train=longer, out=tmp_path / "whole"), lines.append)
    pretrain(name, replace(run, out=tmp_path / "cut"), lines.append)
    resumed, again = pretrain(name, replace(run, train=longer, out=tmp_path / "cut"), lines.append)
    assert resumed.resumed_from == 2

    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    weights = [load_file(r.checkpoint / "model.safetensors") for r in (result, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    assert report == again == json.loads((tmp_path / "cut" / "report.json").read_text())
    assert report[recipe.measured_key] == "training"  # three rooms are too few to hold one out
    assert report["before"].keys() == report["after"].keys()
    assert report["before"][recipe.best] != report["after"][recipe.best]
    measured = [r for r in records(tmp_path / "whole") if f"measured/{figure}" in r]
    assert [record["step"] for record in measured] == [2, 4]
    assert {f"measured/{key}": value for key, value in report["after"].items()}.items() <= measured[-1].items()
    best = (max if rises else min)(measured, key=lambda r: r[f"measured/{figure}"])
    assert result.best_measured == best[f"measured/{figure}"]
    alike = [record for record in measured if record[f"measured/{figure}"] == result.best_measured]
    assert result.best_checkpoint.name in {f"step_{record['step']:08d}" for record in alike}
    for picture in ("loss.png", "pictures/step_00000000.png", "pictures/step_00000004.png"):
        Image.open(tmp_path / "whole" / picture).verify()
    assert "untrained" in lines[-1]


@pytest.fixture
def no_rooms(monkeypatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("data is made before the settings are looked at")

    monkeypatch.setattr("geo3d.datasets.synthetic.write_synthetic", fail)
    monkeypatch.setattr("geo3d.recipes.pairs.mine_pairs", fail)
    monkeypatch.setattr("geo3d.recipes.i2p_mae.make_objects", fail)
    monkeypatch.setattr("geo3d.recipes.dense.make_pairs", fail)


@pytest.mark.usefixtures("no_rooms")
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", list_recipes())
def test_a_method_that_does_not_fit_is_told_before_data_is_made(name: str, number: int, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        pretrain(name, small_run(name, WRONG[name][number], out=tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.usefixtures("no_rooms")
@pytest.mark.parametrize(("name", "preset"), NEEDS)
def test_what_a_preset_lacks_is_told_before_data_is_made(name: str, preset: str, tmp_path: Path) -> None:
    run = replace(get_recipe(name).preset(preset), out=tmp_path / "run")
    with pytest.raises(InputError, match=NEEDS[name, preset][0]):
        pretrain(name, run)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.usefixtures("no_rooms")
@pytest.mark.parametrize("name", list_recipes())
def test_a_run_that_does_not_fit_is_told_before_data_is_made(name: str, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_model(create_model(OTHERS.get(name, "croco_tiny")), other)
    changes = [
        ({"measure_every": 0}, "measure_every must be at least 1"),
        ({"held_out": 1.0}, "held_out"),
        ({"data": (tmp_path / "absent",)}, "absent is not a folder"),
        ({"init": tmp_path / "absent.pth"}, r"init: .*absent.pth"),
        ({"init": other}, r"init: .*other.safetensors.*of the family"),
        ({"train": replace(small_run(name).train, warmup_steps=9, schedule="cosine")}, "warm-up takes 9 steps"),
        ({"train": replace(small_run(name).train, batch_size=0)}, "train.batch_size must be at least 1, got 0"),
    ]
    for change, message in changes:
        with pytest.raises(InputError, match=message):
            pretrain(name, small_run(name, **change, out=tmp_path / "run"))


def test_a_config_of_another_recipe_is_refused() -> None:
    with pytest.raises(InputError, match="is configured by CroCoRun, got SparKRun"):
        pretrain("croco", small_run("spark"))


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_holds_only_what_is_its_own(name: str) -> None:
    assert issubclass(get_recipe(name), Recipe)
    assert "__init__" not in vars(get_recipe(name))
    assert "report" not in vars(get_recipe(name))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "swin3d" else []) for name in SMALL]
)
def test_sharded_networks_are_measured_and_reported(name: str, data: Path, tmp_path: Path) -> None:
    """FSDP shards weights over two processes; figures and reports call parts of the network by themselves."""
    for strategy in ("ddp", "fsdp"):
        two_processes(name, data, tmp_path / strategy, strategy=strategy)
    one, two = (json.loads((tmp_path / folder / "report.json").read_text()) for folder in ("ddp", "fsdp"))
    assert two["before"] == one["before"]
    # Sums in another order; of segmentation whole points may change their class.
    assert two["after"] == pytest.approx(one["after"], rel=1e-3)


@pytest.mark.usefixtures("no_rooms")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: setattr(run.train, "optimizer", "sgd"),
            "train: optimizer: expected one of adamw, lamb, found 'sgd'",
        ),
        (lambda run: setattr(run.train, "schedule", "cosin"), "train: schedule: expected one of cosine"),
        (lambda run: setattr(run.train, "precision", "16"), "train: precision: expected one of 32, bf16, fp16"),
        (lambda run: setattr(run.train, "seed", 2**70), "train.seed must be at least 0 and below"),
        (lambda run: setattr(run, "init_part", "decoder"), "init_part: expected one of whole, encoder"),
        (lambda run: setattr(run, "data", "photos"), "data: expected a list of a path, found 'photos'"),
        (lambda run: setattr(run, "held_out", 0.97), "held_out 0.97 leaves none of 16 scenes"),
    ],
)
def test_settings_from_python_are_told_before_there_is_data(change, message: str, tmp_path: Path) -> None:
    run = small_run("spark", out=tmp_path / "run", rooms=16)
    change(run)
    with pytest.raises(InputError, match=message):
        pretrain("spark", run)
    assert not (tmp_path / "run").exists()
