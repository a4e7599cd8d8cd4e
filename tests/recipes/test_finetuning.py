"""Training for a task: rates that decay from the head down, frozen encoders, few labels, whence weights come."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import small_run

from geo3d import InputError, create_model, save_model
from geo3d.methods.classify import Classify, ClassifyConfig
from geo3d.methods.finetuning import FinetuningConfig, decayed_rates
from geo3d.methods.segment import Segment, SegmentConfig
from geo3d.models import list_models
from geo3d.recipes import get_recipe, list_recipes, pretrain
from geo3d.recipes.init import find_initial_weights
from geo3d.samples.labelled_objects import LabelledImages, LabelledObjects
from geo3d.samples.labels import few_of, label_count
from geo3d.train.config import TrainConfig
from geo3d.train.optimizer import parameter_groups

SMALL_VOXELS = ("stem=8", "depths=[1, 1]", "channels=[8, 16]", "signals=XYZ_RGB", "voxel_size=0.2")
SMALL_POINTS = ("groups=[16, 8, 4]", "neighbors=[4, 4, 2]", "dims=[12, 12, 24]", "embed_dim=8", "points=64")


def quick(**changes) -> TrainConfig:
    return replace(
        TrainConfig(steps=2, batch_size=2, workers=0, lr=1e-2, warmup_steps=0, schedule="constant", accelerator="cpu"),
        **changes,
    )


# Rates


@pytest.mark.parametrize("name", list_models())
def test_rates_fall_by_a_factor_a_layer(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    factors = decayed_rates(model, 0.5, prefix="network.")
    own = model.rate_factors()
    assert factors.keys() == {f"network.{name}" for name, _ in model.named_parameters()}
    for parameter, _ in model.named_parameters():
        expected = own.get(parameter, 1.0) * 0.5 ** (model.layer_count - model.depth_of(parameter))
        assert factors[f"network.{parameter}"] == expected


def test_rates_of_a_segmenter_by_hand() -> None:
    config = SegmentConfig(model="sparse_resnet_tiny", model_options=SMALL_VOXELS, layer_decay=0.5)
    method = Segment(config, ("a", "b"), torch.Generator().manual_seed(0))
    factors = method.rate_factors()
    by_part = {
        "network.encoder.stem.": 0.125,
        "network.encoder.stem_block.": 0.125,
        "network.encoder.stages.0.": 0.25,
        "network.encoder.stages.1.": 0.5,
        "network.head.": 1.0,
    }
    for name, _ in method.named_parameters():
        assert factors[name] == next(value for part, value in by_part.items() if name.startswith(part))
    assert {group["rate_factor"] for group in parameter_groups(method, 0.05)} == set(by_part.values())
    assert set(Segment(replace(config, layer_decay=1.0), ("a",)).rate_factors().values()) == {1.0}


#: Recipe, model that is not that of its small run, and beginnings of the names of what pre-training does not bring.
NEW = [
    ("segment", None, ("head.",)),
    ("segment", "swin3d_tiny", ("classifier.",)),
    ("classify", None, ("head.",)),
    ("classify", "i2p_mae_modelnet40", ("norm.", "cls_head_finetune.")),
    ("detect", None, ("backbone.fpn_neck.", "head.")),
    ("segment_grids", None, ("base.decoder", "encoder1.", "decoder1.", "sem_out.")),
    ("stereo", None, ("head.",)),
    ("flow", None, ("head.",)),
    ("depth", None, ("head.",)),
    ("pointmaps", None, ("downstream_head1.", "downstream_head2.")),
    ("pointmaps", "mast3r_tiny", ("downstream_head1.", "downstream_head2.")),
]


def test_every_recipe_that_fine_tunes_is_here() -> None:
    assert {name for name in list_recipes() if get_recipe(name).purpose == "finetune"} == {name for name, _, _ in NEW}


@pytest.mark.parametrize(("recipe", "model", "new"), NEW)
def test_what_pretraining_brings_learns_at_a_share_of_the_rate(
    recipe: str, model: str | None, new: tuple[str, ...]
) -> None:
    """Of the groups that the optimizer gets, against names of what is new; and times what falls from layer to layer."""
    chosen = {"model": model, "model_options": ()} if recipe == "classify" else {"model": model}
    for decay in (1.0, 0.5):
        run = small_run(recipe, (chosen if model else {}) | {"trunk_rate": 0.1, "layer_decay": decay})
        method = get_recipe(recipe).check(run)  # on the meta device
        network = method.network
        rates = {id(p): group["rate_factor"] for group in parameter_groups(method, 0.05) for p in group["params"]}
        own, count = network.rate_factors(), network.layer_count
        shares = set()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                share = 1.0 if name.startswith(new) else 0.1
                shares.add(share)
                wanted = own.get(name, 1.0) * share * decay ** (count - network.depth_of(name))
                assert rates[id(parameter)] == pytest.approx(wanted), name
        assert shares == {0.1, 1.0}


def test_what_makes_no_sense_is_told() -> None:
    for wrong, message in (
        ({"layer_decay": 0.0}, "layer_decay must lie above 0 and up to 1, got 0"),
        ({"layer_decay": 1.5}, "layer_decay must lie above 0"),
        ({"trunk_rate": 0.0}, "trunk_rate must lie above 0 and up to 1, got 0"),
        ({"labels": 0.0}, "labels must be positive"),
        ({"labels": 2.5}, "labels above 1 count items"),
    ):
        with pytest.raises(InputError, match=message):
            FinetuningConfig(**wrong)
    with pytest.raises(InputError, match="model must read voxels or points; resnet_tiny reads image"):
        Segment(SegmentConfig(model="resnet_tiny"), ("a",))
    with pytest.raises(InputError, match="for grids there is segment_grids"):
        Segment(SegmentConfig(model="nerf_mae_tiny"), ("a",))
    with pytest.raises(InputError, match="'stem' should be a name and a value"):
        Segment(SegmentConfig(model="sparse_resnet_tiny", model_options=("stem",)), ("a",))
    with pytest.raises(InputError, match="unknown option stems"):
        Segment(SegmentConfig(model="sparse_resnet_tiny", model_options=("stems=3",)), ("a",))


# Few labels


def test_few_labels_are_drawn_of_all_classes_and_are_nested() -> None:
    rng = np.random.default_rng(3)
    classes = rng.permutation(np.repeat([0, 1, 2], (100, 40, 10)))
    drawn = {labels: few_of(labels, classes, np.random.default_rng(5)) for labels in (3, 0.1, 0.5, 60, 1.0)}
    assert {labels: len(rows) for labels, rows in drawn.items()} == {3: 3, 0.1: 15, 0.5: 75, 60: 60, 1.0: 150}
    assert sorted(classes[drawn[3]]) == [0, 1, 2]
    # 75 of 150: half of each class, up to one, since the first of every class goes before all
    assert np.abs(np.bincount(classes[drawn[0.5]]) - [50, 20, 5]).max() <= 1
    order = sorted(drawn, key=lambda labels: len(drawn[labels]))
    for small, large in pairwise(order):
        assert set(drawn[small]) <= set(drawn[large])
    assert not np.array_equal(drawn[0.1], few_of(0.1, classes, np.random.default_rng(6)))
    assert [label_count(labels, 30) for labels in (1e-6, 0.1, 0.5, 1, 7, 99)] == [1, 3, 15, 30, 7, 30]


def test_a_run_learns_from_few_scenes_and_few_points(rooms: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    method = SegmentConfig(model="sparse_resnet_tiny", model_options=SMALL_VOXELS, max_voxels=200, labels=2)
    run = get_recipe("segment").run(data=(rooms,), out=tmp_path / "run", method=method, train=quick())
    task = get_recipe("segment")(run, tmp_path / "run", lines.append)
    assert len(task.samples) == 2
    assert task.measured_count == 3  # of training, since three rooms are too few to hold one out: all are measured
    few = replace(run, method=replace(method, labels=1.0, point_labels=0.1))
    task = get_recipe("segment")(few, tmp_path / "few", lines.append)
    whole = [task.samples.source.cloud(index).semantic for index in range(3)]
    kept = [task.samples.cloud(index).semantic for index in range(3)]
    for before, after in zip(whole, kept):
        labelled = int((before >= 0).sum())
        assert int((after >= 0).sum()) == round(0.1 * labelled)
        assert torch.equal(after[after >= 0], before[after >= 0])
    assert torch.equal(task.samples.cloud(0).semantic, kept[0])


# Frozen encoders


def test_a_frozen_encoder_stays_as_it_is_to_the_bit(rooms: Path, tmp_path: Path) -> None:
    encoder = create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(1), stem=8, depths=(1, 1),
                           channels=(8, 16), signals="XYZ_RGB", voxel_size=0.2)  # fmt: skip
    for _ in range(2):  # statistics of batch norm that are not those of a fresh network
        encoder.train()
        encoder.features(encoder.prepare(torch.rand(500, 3).double() * 4) if not encoder.reads else
                         encoder.prepare(_colored(500)))  # fmt: skip
    save_model(encoder.eval(), tmp_path / "encoder")
    before = encoder.state_dict()
    method = SegmentConfig(max_voxels=200, frozen=True)
    run = get_recipe("segment").run(
        data=(rooms,), out=tmp_path / "run", init=tmp_path / "encoder", method=method, train=quick(ema_decay=0.5)
    )
    result, report = pretrain("segment", run, print)
    assert report["initial_weights"]["taken"] == {"network.encoder": len(before)}
    for file in ("model", "ema"):
        stored = load_file(result.checkpoint / f"{file}.safetensors")
        inside = {n.removeprefix("network.encoder."): v for n, v in stored.items() if n.startswith("network.encoder.")}
        assert inside.keys() == before.keys()
        assert all(torch.equal(inside[name], value) for name, value in before.items())
    fresh = Segment(replace(run.settled(), frozen=True), ("a",) * 20, torch.Generator().manual_seed(0)).state_dict()
    heads = [name for name in fresh if name.startswith("network.head.") and fresh[name].is_floating_point()]
    assert any(not torch.equal(stored[name], fresh[name]) for name in heads)
    model = create_model(checkpoint=tmp_path / "run")  # which is whole
    assert torch.equal(model.encoder.stem_block.conv1.kernel, encoder.stem_block.conv1.kernel)
    # and a run that goes on is the run that was never stopped
    longer = replace(run, train=replace(run.train, steps=4))
    _, resumed = pretrain("segment", longer, print)
    _, straight = pretrain("segment", replace(longer, out=tmp_path / "straight"), print)
    assert resumed["after"] == straight["after"]


def test_pointmaps_keep_their_encoder_and_learn_from_few_pairs(rooms: Path, tmp_path: Path) -> None:
    start = create_model("dust3r_tiny", generator=torch.Generator().manual_seed(1), image_size=(32, 32))
    save_model(start, tmp_path / "start")
    method = {"frozen": True, "labels": 2}
    run = small_run("pointmaps", method, data=(rooms,), out=tmp_path / "run", init=tmp_path / "start")
    pretrain("pointmaps", run, print)
    assert len(get_recipe("pointmaps")(run, tmp_path / "run", print).samples) == 2
    before, trained = start.state_dict(), create_model(checkpoint=tmp_path / "run").state_dict()
    kept = {name for name, value in before.items() if torch.equal(trained[name], value)}
    weights = {name for name, value in before.items() if value.ndim > 1}
    assert kept & weights == {name for name in weights if start.is_of_encoder(name)} | {"mask_token"}


def _colored(count: int):
    from geo3d.geometry import PointCloud

    generator = torch.Generator().manual_seed(count)
    xyz, colors = torch.rand(2, count, 3, generator=generator)
    return PointCloud(4 * xyz, colors)


# Where weights come from


def test_an_encoder_is_found_in_whatever_holds_it(tmp_path: Path) -> None:
    """In files of bare encoders, of pre-training networks, of other tasks; the network is that of the file."""
    draw = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    points = {"groups": (16, 8, 4), "neighbors": (4, 4, 2), "dims": (12, 12, 24), "embed_dim": 8, "points": 64}
    held = {
        "i2p_mae": create_model("i2p_mae_tiny", generator=draw(), decoder_dims=(24, 12), **points),
        "segmenter": create_model("point_segmenter", generator=draw(), encoder_options=points, num_classes=3),
        "spark": create_model("spark", generator=draw(), encoder="resnet_tiny", decoder_width=32),
        "resnet": create_model("resnet_tiny", generator=draw()),
        "swin3d": create_model("swin3d_tiny", generator=draw(), decoder="none"),
        "swin3d whole": create_model("swin3d_tiny", generator=draw(), num_classes=3),
        "voxels": create_model("sparse_resnet_tiny", generator=draw(), channels=(8, 8, 16)),
    }
    inner = {
        "i2p_mae": "h_encoder.", "segmenter": "encoder.h_encoder.", "spark": "sparse_encoder.sp_cnn.", "resnet": "",
        "swin3d": "layers.", "swin3d whole": "", "voxels": "",
    }  # fmt: skip
    for name, model in held.items():
        save_model(model, tmp_path / name)
        tasks = ["classify"] if model.kind == "image" else ["segment", "classify"]
        for task in tasks:
            recipe = get_recipe(task)
            run = recipe.preset("tiny")
            run.init, run.data = tmp_path / name, (tmp_path,)
            method = recipe.build_method(run, None, torch.Generator().manual_seed(0))
            weights = find_initial_weights(run.init, "encoder", method)
            expected = [
                v for n, v in model.state_dict().items() if model.is_of_encoder(n) and n.startswith(inner[name])
            ]
            taken = list(weights.taken.values())
            assert len(taken) >= len(expected) > 0
            assert all(any(torch.equal(value, other) for other in taken) for value in expected)
            fresh = [n for n in weights.fresh if method.network.is_of_encoder(n.removeprefix("network."))]
            assert not fresh, (name, task)
    save_model(create_model("nerf_mae_tiny"), tmp_path / "grid")
    run = get_recipe("segment").preset("tiny")
    run.init = tmp_path / "grid"
    with pytest.raises(InputError, match="holds a model of the family 'nerf_mae', which reads grid"):
        run.settled()


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    save_model(create_model("i2p_mae_tiny"), tmp_path / "points")
    method = Segment(SegmentConfig(model="sparse_resnet_tiny"), ("a",))
    with pytest.raises(InputError, match="family 'i2p_mae', but segment trains one of"):
        find_initial_weights(tmp_path / "points", "whole", method)


# Folders of classes


def write_images(root: Path, classes: tuple[str, ...] = ("dark", "light"), count: int = 12, subset: str = "") -> Path:
    rng = np.random.default_rng(len(subset))
    for number, name in enumerate(classes):
        folder = root / subset / name / "more"
        folder.mkdir(parents=True, exist_ok=True)
        for image in range(count):
            pixels = rng.integers(0, 100, (40, 50, 3)) + 150 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
    return root


def test_images_are_of_the_class_of_their_folder(tmp_path: Path) -> None:
    flat = LabelledImages.find([write_images(tmp_path / "flat")])
    assert (flat.classes, len(flat)) == (("dark", "light"), 24)
    assert flat.item_classes.tolist() == [0] * 12 + [1] * 12
    split = write_images(write_images(tmp_path / "split", subset="train"), subset="test", count=3)
    both = LabelledImages.find([split])
    assert both.classes == ("dark", "light")
    assert sorted(zip(both.item_subsets.tolist(), both.item_classes.tolist())) == sorted(
        [("test", n) for n in (0, 1) for _ in range(3)] + [("train", n) for n in (0, 1) for _ in range(12)]
    )
    part = both.of_groups(np.arange(3, 7))
    assert part.item_classes.tolist() == [both.category(n) for n in range(3, 7)]
    several = LabelledImages.find([tmp_path / "flat", split])
    assert several.item_classes.tolist() == [*flat.item_classes, *both.item_classes]
    with pytest.raises(InputError, match=r"images of one class alone \(dark\); lay them out in a folder for each"):
        LabelledImages.find([write_images(tmp_path / "one", ("dark",))])
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "stray.png")
    with pytest.raises(InputError, match=r"stray.png: lies in no folder of a class"):
        LabelledImages.find([tmp_path / "flat"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images; a folder for each class is expected"):
        LabelledImages.find([tmp_path / "empty"])


def test_images_are_told_apart_and_the_test_part_is_what_is_measured(tmp_path: Path) -> None:
    root = write_images(write_images(tmp_path / "data", subset="train"), subset="test", count=4)
    run = get_recipe("classify").preset("tiny")
    run.data, run.out = (root,), tmp_path / "run"
    run.method = ClassifyConfig(
        model="resnet_tiny", model_options=("width=8",), image_size=32, labels=0.5, color_jitter=0.0
    )
    run.train = quick(steps=20, batch_size=6, lr=3e-3)
    result, report = pretrain("classify", run, print)
    assert (report["after"]["things"], report["things"]) == (8, "held-out")
    assert report["after"]["majority"] == 0.5
    assert report["after"]["accuracy"] == 1.0  # dark and light, which one step would do to tell
    assert create_model(checkpoint=result.checkpoint).classes == ("dark", "light")
    Image.open(tmp_path / "run" / "classes.png").verify()
    with pytest.raises(InputError, match="data: give a folder of images"):
        pretrain("classify", replace(run, data=(), out=tmp_path / "none"))


def test_objects_without_a_category_are_no_items(tmp_path: Path) -> None:
    for name in ("cube", "ball"):
        (tmp_path / name).mkdir()
        for number in range(2):
            xyz = np.random.default_rng(number).random((60, 3))
            np.savetxt(tmp_path / name / f"{name}{number}.xyz", xyz)
    source = LabelledObjects.find([tmp_path])
    assert (sorted(source.classes), len(source)) == (["ball", "cube"], 4)
    method = Classify(ClassifyConfig(model="i2p_mae_tiny", model_options=SMALL_POINTS), source.classes)
    drawn = [method.samples(source).draw(n, np.random.default_rng(0)) for n in range(4)]
    batch = method.collate(drawn)
    assert batch["label"].tolist() == source.item_classes.tolist()
    assert batch["offsets"].tolist() == [0, 64, 128, 192, 256]
    assert json.dumps(source.item_subsets.tolist()) == '["", "", "", ""]'
